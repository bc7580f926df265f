"""What a training config or a decoder would take on a cluster: seconds a step, memory, its fit.

Nothing is trained, no GPU is needed, no data is read. What a figure rests on is printed with it.

Examples:
  vision simulate vit-tiny_imagenette160 --cluster a100-dgx --gpus 8
  vision simulate vit-tiny_imagenette160 --cluster a100-dgx --batch auto
  vision simulate vit-tiny_imagenette160 --cluster a100-dgx --gpus 8 --search --budget 60s
  vision simulate --decoder llama3-8b --cluster h100 --gpus 512 \\
      --global-batch 1024 --parameters fitted --search
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def build_parser() -> argparse.ArgumentParser:
    """Options of a config or a decoder, of the cluster, of the search and of what is written."""
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    parser.add_argument('config', type=Path, nargs='?',
                        help='config that tools/train.py would run')
    _add_decoder_arguments(parser)
    parser.add_argument('--cluster', type=Path, required=True, help='YAML file, or the name of '
                        'one of configs/clusters: a100-dgx, h100, rtx4090, v100-dgx1, cpu-gloo')
    parser.add_argument('--gpus', type=int, help='ranks (default: what the strategy needs, or 1)')
    parser.add_argument('--batch', default='config', help="samples of a rank's step, or 'auto': "
                        'the most that fits')
    parser.add_argument('--image-size', type=_size, metavar='WIDTHxHEIGHT')
    parser.add_argument('--tf32', action='store_true', help='float32 products on tensor cores')
    parser.add_argument('--search', action='store_true', help='try strategies, print the best')
    parser.add_argument('--budget', type=_seconds, default=60.0, help='of the search, as 60s')
    parser.add_argument('--trace', type=Path, help='JSON for ui.perfetto.dev')
    parser.add_argument('--plot', type=Path, help='PNG of a rank: what its streams do, '
                        'and its memory over time')
    parser.add_argument('--json', type=Path, help='the prediction with all its parts')
    add_config_arguments(parser)
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    return parser


def _add_decoder_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('in place of a config').add_argument
    add('--decoder', metavar='NAME|SIZES', help='llama3-8b, llama3-70b, gpt3-175b or '
        'layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256')
    add('--sequence', type=int, metavar='TOKENS', help='of each (default: 8192, of gpt3 2048)')
    add('--global-batch', type=int, metavar='SEQUENCES', help='of a step (default: one a rank)')
    add('--strategy', metavar='DEGREES', help='such as tensor=8,pipeline=4,zero=1,micro_batch=2,'
        'recompute=full; the other ranks are data parallel (default: zero=3)')
    add('--parameters', type=Path, help="constants that were fitted to published runs: 'fitted' "
        'of configs/clusters, or a YAML file')


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments of a config or of a decoder; a mixture of both is a usage error."""
    parser = build_parser()
    # A config may stand behind options, which argparse grants an optional one only so.
    args = parser.parse_intermixed_args(argv)
    if (args.config is None) == (args.decoder is None):
        parser.error('give either a CONFIG or --decoder')
    others = ('image_size', 'tf32', 'trace', 'plot', 'cfg_options') if args.decoder else \
        ('sequence', 'global_batch', 'strategy', 'parameters')
    wrong = [name for name in others if getattr(args, name) not in (None, False)]
    if args.decoder and args.batch != 'config':
        wrong.append('batch')
    if wrong:
        parser.error(f'--{wrong[0].replace("_", "-")} does not go with '
                     f'{"--decoder" if args.decoder else "a config"}')
    if args.search and args.strategy:
        parser.error('--search chooses the strategy; leave out --strategy')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return _decoder(args) if args.decoder else _config(args)


def _decoder(args: argparse.Namespace) -> int:
    from vision.simulator.core.cluster import read_cluster
    from vision.simulator.mm.decoders import plan, print_step, read_decoder
    refuse_unwritable(args.json)
    num_gpus = 1 if args.gpus is None else args.gpus
    step = plan(read_decoder(args.decoder, args.sequence), read_cluster(args.cluster),
                num_gpus=num_gpus,
                global_batch=num_gpus if args.global_batch is None else args.global_batch,
                strategy=args.strategy, parameters=args.parameters,
                is_searched=args.search, budget_seconds=args.budget)
    print_step(step)
    if args.json:
        args.json.write_text(json.dumps(step.to_dict(), indent=1) + '\n')
    return 0 if step.verdict != 'out of memory' else 1


def _config(args: argparse.Namespace) -> int:
    from vision.common.mm.launch import read_config
    from vision.simulator.core.cluster import read_cluster
    from vision.simulator.mm import report
    from vision.simulator.mm.configs import read_training
    from vision.simulator.mm.prediction import largest_batch, predict
    for path in (args.trace, args.plot, args.json):
        refuse_unwritable(path)
    cluster = read_cluster(args.cluster)
    batch = None if args.batch in ('auto', 'config') else int(args.batch)
    configured = read_training(read_config(args), num_gpus=args.gpus, batch_size=batch,
                               image_size=args.image_size)
    if args.search:
        from vision.simulator.mm.variants import search
        found = search(configured, cluster, budget_seconds=args.budget, tf32=args.tf32)
        report.print_search(found)
        result = found.best
    elif args.batch == 'auto':
        batch, result = largest_batch(configured, cluster, tf32=args.tf32)
        print(f'largest batch: {batch} samples of a rank')
    else:
        result = predict(configured, cluster, tf32=args.tf32)
    report.print_prediction(result)
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=1) + '\n')
    if args.trace:
        args.trace.write_text(json.dumps(result.outcome.chrome_trace()) + '\n')
    if args.plot:
        report.plot(result, args.plot)
    return 0 if result.verdict.state != 'out of memory' else 1


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no WIDTHxHEIGHT, such as 320x240')
    return int(match[2]), int(match[1])


def _seconds(text: str) -> float:
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*(s|m|min)?', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} is no time, such as 60s or 2m')
    return float(match[1]) * (60 if match[2] in ('m', 'min') else 1)


if __name__ == '__main__':
    run_cli(main)
