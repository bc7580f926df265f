"""How fast a config runs: vision benchmark CONFIG [WEIGHTS]

inference times the network with its post-processing on batches of test_dataloader, which are
loaded outside of the measured time; dataloader times the loading alone, with the config's
workers. Without WEIGHTS a detector finds other boxes than a trained one, which takes other time.

  vision benchmark configs/detectors/yolox-nano_coco.py --shape 416 416 --batch-size 1 8
  vision benchmark CONFIG WEIGHTS --fuse-conv-bn --json speed.json
  vision benchmark CONFIG --task dataloader --phase train
"""

from __future__ import annotations

import argparse

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report


def build_parser() -> argparse.ArgumentParser:
    """Options of what is timed, on what and how often."""
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('weights', nargs='?', help='.pth, .safetensors or zoo:NAME')
    add('--task', choices=('inference', 'dataloader'), default='inference',
        help='what is measured (default: %(default)s)')
    add('--phase', '--dataset-type', choices=('train', 'val', 'test'), default='test',
        help='of --task dataloader: which one (default: %(default)s)')
    add('--batch-size', type=int, nargs='+', metavar='N', help='one or several (default: 1; of '
        'a data loader that of the config)')
    add('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='batches of noise of this '
        'size, px, in place of the data set')
    add('--max-iter', type=int, default=100, metavar='N', help='measured steps (default: 100)')
    add('--num-warmup', type=int, default=5, metavar='N', help='steps before (default: 5)')
    add('--fuse-conv-bn', action='store_true', help='fold batch norms into convolutions')
    add('--device', default='cpu', help='e.g. cuda:0 (default: %(default)s)')
    add_report_options(parser)
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if min(args.max_iter, *(args.batch_size or [1]), *(args.shape or [1])) < 1 \
            or args.num_warmup < 0:
        parser.error('--max-iter, --batch-size and --shape are at least 1, --num-warmup 0')
    refuse_no_evidence(args.json, is_recorded=args.record)
    from vision.common.mm.launch import explained, read_config_alone
    from vision.common.mm.predictions import require_parts
    from vision.common.mm.tasks import task_of
    from vision.common.mm.throughput import NOISE_TASKS
    config = read_config_alone(args.config, args.cfg_options)
    phase = args.phase if args.task == 'dataloader' else 'test'
    if args.shape and (args.task == 'dataloader' or task_of(config) not in NOISE_TASKS):
        parser.error('--shape is for the network of a detector or a classifier')
    if not args.shape:
        require_parts(config, f'{phase}_dataloader')
    with explained(config):
        rows = loading(config, args) if args.task == 'dataloader' else inference(config, args)
    show(rows, f'{args.task} of {args.config}')
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, config=args.config,
                     weights=args.weights)
    return 0


def loading(config, args: argparse.Namespace) -> list[dict]:
    """A row for each batch size: the data loader alone."""
    from mmengine.registry import init_default_scope

    from vision.common.mm.throughput import loader_speed
    init_default_scope(config.get('default_scope') or 'vision')
    return [loader_speed(config, args.phase, batch_size=size, num_warmup=args.num_warmup,
                         max_iter=args.max_iter) for size in args.batch_size or [None]]


def inference(config, args: argparse.Namespace) -> list[dict]:
    """A row for each batch size: the network with its post-processing."""
    from vision.common.mm import launch
    from vision.common.mm.throughput import build_model, fused, network_speed
    if not args.device.startswith('cuda'):
        launch.keep_freed_memory()  # as vision test does
    model = build_model(config, args.weights, device=args.device)
    shape = tuple(args.shape) if args.shape else None
    model = fused(config, model, shape) if args.fuse_conv_bn else model
    return [network_speed(config, model, batch_size=size, num_warmup=args.num_warmup,
                          max_iter=args.max_iter, shape=shape)
            for size in args.batch_size or [1]]


def show(rows: list[dict], title: str) -> None:
    """Print the rows as a table: images a second, ms a batch, memory."""
    from rich.console import Console
    from rich.table import Table
    print(title)
    table = Table()
    columns = dict(batch_size='batch', images_per_s='images/s', p50_ms='median', p10_ms='p10',
                   p90_ms='p90', p99_ms='p99')
    for column in columns.values():
        table.add_column(column, justify='right')
    for row in rows:
        table.add_row(*(f'{row[name]:.1f}' if isinstance(row[name], float) else str(row[name])
                        for name in columns))
    Console().print(table)
    print('times are ms a batch', *(
        f'peak memory {row["peak_bytes"] / 2**20:.0f} MiB at batch {row["batch_size"]}'
        for row in rows if 'peak_bytes' in row), sep='; ')


if __name__ == '__main__':
    run_cli(main)
