"""Evaluate a checkpoint: vision test CONFIG CHECKPOINT

A model without parameters (``LatticeDetector`` with ``method='flow'``) takes no checkpoint.
--out keeps the predictions, for vision eval (the same metrics, without the network) and vision
analyze (confusion matrix, worst pictures); --show-dir draws them beside what is true.

  vision test configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \\
      zoo:lattice-pru_moving-sprites --out results.json
  vision test CONFIG CHECKPOINT --out metrics.json --out-item metrics
  vision test CONFIG CHECKPOINT --show-dir drawn --tta
  bash tools/dist_test.sh CONFIG CHECKPOINT 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.common.core.predictions import require_predictions_name


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of ``vision test``; the parser's help is the text above."""
    from vision.common.mm.launch import add_common_arguments
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='.pth, .safetensors or zoo:NAME; none for '
                        'a model without parameters')
    parser.add_argument('--out', type=Path, help='write the predictions to this file: .json to '
                        'read, or .npz (a quarter of the size)')
    parser.add_argument('--out-item', choices=('pred', 'metrics'), default='pred',
                        help='what --out writes: predictions, or the metrics as JSON (default: '
                        '%(default)s)')
    parser.add_argument('--show-dir', type=Path, help='draw predictions beside what is true and '
                        'write the pictures here, in the folders of the data set (under '
                        'work_dir/TIMESTAMP when relative)')
    parser.add_argument('--show-score-thr', type=float, default=0.3, metavar='SCORE',
                        help='boxes drawn (default: %(default)s)')
    parser.add_argument('--tta', nargs='?', const='flip', choices=('flip', '10crop'),
                        help='test-time augmentation: mirrored too; or, of a classifier, the '
                        'corners and the centre of the picture, mirrored too')
    add_common_arguments(parser)
    return parser.parse_args(argv)


def apply_options(config, args: argparse.Namespace) -> None:
    """Write what is tested, kept and drawn into the config.

    Raises:
        VisionError: the config says nothing of what to test on.
    """
    if not config.get('test_dataloader'):
        raise VisionError('VIS-CONFIG-323', f'{args.config} says nothing of what to test on',
                          where='test_dataloader', why='it is missing',
                          do='write a config with this one as _base_ and add test_dataloader and '
                          'test_evaluator, as configs/_base_/datasets/moving_sprites_lattice.py '
                          'has them')
    config.load_from = args.checkpoint
    if args.tta or args.show_dir:
        apply_task_options(config, args)
    if args.out and args.out_item == 'pred':
        from vision.common.mm.predictions import with_dump
        with_dump(config, args.out, checkpoint=args.checkpoint)


def apply_task_options(config, args: argparse.Namespace) -> None:
    """Write into the config what a detector and a classifier do in ways of their own.

    Raises:
        VisionError: an option that the model's task does not have.
    """
    from vision.common.mm.tasks import task_of
    task = task_of(config)
    refused = '--tta 10crop' if args.tta == '10crop' and task != 'classify' else \
        '--tta' if args.tta and task not in ('classify', 'detect') else \
        '--show-dir' if args.show_dir and task == 'faces' else ''
    if refused:
        raise VisionError('VIS-CONFIG-1786', f'{refused} is not for {config.model.type}',
                          where=refused, why='--tta is for detectors of MMDetection and '
                          'classifiers, 10crop for classifiers alone; a lattice follows its '
                          'frames, a face recognizer has model.flip_fusion and draws nothing',
                          do='leave it out')
    if args.tta and task == 'classify':
        from vision.classify.mm.augmented_test import with_tta
        with_tta(config, args.tta)
    elif args.tta:
        from vision.lattice.mm.augmented_test import with_tta as with_mirror_image
        with_mirror_image(config)
    if args.show_dir:
        hook = dict(type='vision.DrawPredictions') if task == 'classify' else dict(
            type='vision.DrawDetections', score_thr=args.show_score_thr)
        config.custom_hooks = [*(config.get('custom_hooks') or []),
                               dict(hook, out_dir=str(args.show_dir))]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from vision.common.mm.launch import (
        build_runner,
        explained,
        leave_ranks,
        look_first,
        rank_timeout_s,
        read_config,
    )
    from vision.common.nn.checkpoint import require_no_weights
    from vision.common.nn.watchdog import ends_together
    refuse_unwritable(args.out)
    if args.out and args.out_item == 'pred':
        require_predictions_name(args.out)
    config = read_config(args)
    apply_options(config, args)
    look_first(config, ('test_dataloader', ))
    with ends_together(rank_timeout_s(config)):
        with explained(config):
            runner = build_runner(config)
            if args.checkpoint is None:
                require_no_weights(runner.model)
            metrics = runner.test()
        if args.out and runner.rank == 0:
            if args.out_item == 'metrics':
                with atomic_write(args.out, 'w') as file:
                    json.dump({name: float(value) for name, value in metrics.items()}, file,
                              indent=1)
            print(f'{"metrics" if args.out_item == "metrics" else "predictions"}: {args.out}')
        del runner
        leave_ranks()
    return 0


if __name__ == '__main__':
    run_cli(main)
