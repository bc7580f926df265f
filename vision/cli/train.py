"""Train a model: vision train CONFIG

Writes checkpoints, logs and the full config into the work_dir. An interrupted run goes on with
--resume and ends with the same weights, bit for bit, as one that was never interrupted.

  vision train configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py
  vision train CONFIG --resume                    # go on from the newest checkpoint
  vision train CONFIG --cfg-options train_cfg.max_iters=100
  bash tools/dist_train.sh CONFIG 2                        # two processes (GPUs, or gloo on CPU)
  bash tools/dist_train.sh CONFIG 8 --max-restarts 3       # goes on by itself when a rank dies
"""

from __future__ import annotations

import argparse

from vision.common.core.errors import VisionError, command_parser, run_cli


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of ``vision train``; the parser's help is the text above."""
    from vision.common.mm.launch import add_common_arguments
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file, e.g. under configs/')
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', metavar='auto|PATH',
                        help='go on: from the newest valid checkpoint of the work_dir, or PATH')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, '
                        'bfloat16 on a CPU')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate by batch size over base_batch_size')
    return parser.parse_args(argv)


def apply_options(config, args: argparse.Namespace) -> None:
    """Write ``--amp``, ``--auto-scale-lr`` and ``--resume`` into the config.

    Raises:
        VisionError: the config says nothing of what to train on or how, or not by which batch
            size its learning rate was chosen.
    """
    from vision.common.mm.predictions import require_parts
    require_parts(config, 'train_dataloader', 'train_cfg', 'optim_wrapper')
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise VisionError('VIS-CONFIG-316', '--auto-scale-lr has nothing to scale by',
                              where='auto_scale_lr',
                              why='the config has no auto_scale_lr.base_batch_size',
                              do='add auto_scale_lr=dict(base_batch_size=N) to the config')
        config.auto_scale_lr.enable = True
    if args.resume:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from vision.common.mm.launch import (
        build_runner,
        explained,
        leave_ranks,
        look_first,
        rank_timeout_s,
        read_config,
        resume_after_restart,
    )
    from vision.common.nn.watchdog import ends_together
    config = read_config(args)
    apply_options(config, args)
    resume_after_restart(config)
    look_first(config, ('train_dataloader', 'val_dataloader'))
    with ends_together(rank_timeout_s(config)):
        with explained(config):
            build_runner(config).train()
        leave_ranks()
    return 0


if __name__ == '__main__':
    run_cli(main)
