"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT

A model without parameters (``LatticeDetector`` with ``method='flow'``) takes no checkpoint.

  python tools/test.py configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \\
      zoo:lattice-pru_moving-sprites --out metrics.json
  bash tools/dist_test.sh CONFIG CHECKPOINT 2
"""

from __future__ import annotations

import json
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    from vision.common.mm.launch import (
        add_common_arguments,
        build_runner,
        explained,
        leave_ranks,
        look_first,
        rank_timeout_s,
        read_config,
    )
    from vision.common.nn.checkpoint import require_no_weights
    from vision.common.nn.watchdog import ends_together
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='.pth, .safetensors or zoo:NAME; none for '
                        'a model without parameters')
    parser.add_argument('--out', type=Path, help='write the metrics to this JSON file')
    parser.add_argument('--show-dir', type=Path, help='draw the detections and write the images '
                        'here (under work_dir/TIMESTAMP when relative)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    refuse_unwritable(args.out)
    config = read_config(args)
    if not config.get('test_dataloader'):
        raise VisionError('VIS-CONFIG-323', f'{args.config} says nothing of what to test on',
                          where='test_dataloader', why='it is missing',
                          do='write a config with this one as _base_ and add test_dataloader and '
                          'test_evaluator, as configs/_base_/datasets/moving_sprites_lattice.py '
                          'has them')
    config.load_from = args.checkpoint
    look_first(config, ('test_dataloader', ))
    if args.show_dir:
        config.default_hooks.visualization = dict(
            type='mmdet.DetVisualizationHook', draw=True, test_out_dir=str(args.show_dir))
        config.visualizer.type = 'mmdet.DetLocalVisualizer'
    with ends_together(rank_timeout_s(config)):
        with explained(config):
            runner = build_runner(config)
            if args.checkpoint is None:
                require_no_weights(runner.model)
            metrics = runner.test()
        if args.out and runner.rank == 0:
            with atomic_write(args.out, 'w') as file:
                json.dump({name: float(value) for name, value in metrics.items()}, file, indent=1)
            print(f'metrics: {args.out}')
        del runner
        leave_ranks()
    return 0


if __name__ == '__main__':
    run_cli(main)
