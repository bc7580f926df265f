"""Parameters and multiply-adds (MACs) of a network, part by part, without running it for real.

A network is a preset of PolyNet under its classifier (ImageClassifier) or the model of a config.
Of a detector, backbone and neck are counted: what its heads do depends on the image; parameters
are counted everywhere. Of a lattice give the config of its detector. Weights are neither needed
nor loaded. One MAC is two FLOPs.

Examples:
  python tools/analysis/get_flops.py very-deep --shape 331 331
  python tools/analysis/get_flops.py ir-3-6-3_b-poly-3 --num-classes 10 --json costs.json
  python tools/analysis/get_flops.py configs/detectors/yolox-nano_coco.py --shape 416 416
  python tools/analysis/get_flops.py configs/polynet/polynet-small_in1k.py \\
      --cfg-options model.backbone.output_stride=16
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import nn

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import write_report
from vision.common.mm.launch import add_config_arguments, read_config
from vision.common.nn.macs import PartCost, counted_macs, part_costs
from vision.polynet.core.arch import PRESETS
from vision.polynet.nn.trunk import CHANNELS
from vision.registry import MODELS

NUM_CLASSES = 1000  # ImageNet: the published sizes include this classifier


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('network', help="a config with a model, or a PolyNet preset such as 'very-deep'")
    add('--shape', type=int, nargs=2, default=(331, 331), metavar=('HEIGHT', 'WIDTH'),
        help='of the image, pixels (default: 331 331)')
    add('--num-classes', type=int, metavar='N',
        help=f"of a preset's classifier (default: {NUM_CLASSES}; a config has its own)")
    add('--json', type=Path, metavar='FILE', help='write the rows to this file too')
    add_config_arguments(parser)
    return parser


def build_network(args: argparse.Namespace) -> nn.Module:
    """On the meta device: shapes without numbers."""
    config, scope = find_network(args)
    init_default_scope(scope)
    with torch.device('meta'):
        return MODELS.build(config).eval()


def find_network(args: argparse.Namespace) -> tuple[dict | ConfigDict, str]:
    """Config of the model, and the scope of the names in it."""
    name = args.network
    if name in PRESETS:
        if args.cfg_options:
            raise VisionError('VIS-INPUT-062', f'--cfg-options has no effect on the preset {name}',
                              why='it changes a config, and a preset is none',
                              do=f'give configs/polynet/polynet-{name}_in1k.py instead')
        return preset_classifier(name, args.num_classes or NUM_CLASSES), 'vision'
    if not Path(name).exists():
        raise VisionError('VIS-CONFIG-041', f'{name!r} is neither a config nor a preset',
                          where='network', do=f'a path of a config, or one of: '
                          f'{", ".join(sorted(PRESETS))}')
    if args.num_classes is not None:
        raise VisionError('VIS-INPUT-062', '--num-classes has no effect on a config',
                          why='its head has its own number of classes',
                          do='leave it out, or change that number with --cfg-options, e.g. '
                          'model.head.num_classes=10')
    config = read_config(argparse.Namespace(config=name, cfg_options=args.cfg_options,
                                            launcher='none', local_rank=0, work_dir=None))
    if 'model' not in config:
        raise VisionError('VIS-CONFIG-042', 'the config has no model', where=name,
                          do='give a config with model = dict(type=...)')
    return config.model, config.get('default_scope') or 'vision'


def preset_classifier(preset: str, num_classes: int) -> dict:
    """The classifier of configs/_base_/models/polynet.py around any preset."""
    return dict(type='ImageClassifier', backbone=dict(type='PolyNet', arch=preset),
                head=dict(type='LinearClsHead', num_classes=num_classes,
                          in_channels=CHANNELS[-1]))


def part_names(model: nn.Module, prefix: str = '') -> Iterator[str]:
    """Children with parameters; one that has ``parts()`` (a backbone of ours) is replaced by
    those."""
    for name, child in model.named_children():
        if next(child.parameters(), None) is None:
            continue  # nothing to count in a data preprocessor
        if hasattr(child, 'parts'):
            names = {id(module): path for path, module in child.named_modules()}
            yield from (f'{prefix}{name}.{names[id(module)]}'
                        for part in child.parts() for module in part)
        elif any(hasattr(module, 'parts') for module in child.modules()):
            yield from part_names(child, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def count(model: nn.Module, height: int, width: int) -> list[PartCost]:
    x = torch.zeros(1, first_channels(model), height, width, device='meta')
    # Detectors of MMDetection decode boxes in forward, which needs numbers.
    run = model.extract_feat if hasattr(model, 'extract_feat') and not hasattr(
        model, 'head') else model
    try:
        with counted_macs(model) as macs, torch.no_grad():
            run(x)
    except RuntimeError as error:
        raise VisionError('VIS-INPUT-063', f'the network does not take an image of {height} x '
                          f'{width} px', where='--shape', why=str(error).split('\n')[0],
                          do='give its own size; many detectors need multiples of 32'
                          ) from error
    return part_costs(model, part_names(model), macs)


def first_channels(model: nn.Module) -> int:
    """Of the image. YOLOX's stem puts four pixels into the channels before it convolves."""
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))
    has_focus = any(type(layer).__name__ == 'Focus' for layer in model.modules())
    return channels // 4 if has_focus else channels


def show(console: Console, title: str, costs: list[PartCost]) -> None:
    table = Table(title=title)
    table.add_column('part')
    for column in ('parameters', 'GMAC', '% of MACs'):
        table.add_column(column, justify='right')
    total = PartCost('total', sum(c.parameters for c in costs), sum(c.macs for c in costs))
    for cost in (*costs, total):
        table.add_row(cost.name, f'{cost.parameters:,}', f'{cost.macs / 1e9:.3f}',
                      f'{100 * cost.macs / max(1, total.macs):.1f}',
                      style='bold' if cost is total else None)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_unwritable(args.json)
    for option, value in (('--shape', min(args.shape)), ('--num-classes', args.num_classes)):
        if value is not None and value < 1:
            raise VisionError('VIS-INPUT-063', f'{option} holds {value}', where=option,
                              do='give numbers of at least 1')
    costs = count(build_network(args), *args.shape)
    height, width = args.shape
    show(Console(), f'{Path(args.network).stem} at {height} x {width} px', costs)
    if args.json:
        write_report(args.json, [cost._asdict() for cost in costs], network=args.network,
                     shape=[height, width], parameters=sum(c.parameters for c in costs),
                     macs=sum(c.macs for c in costs))
    return 0


if __name__ == '__main__':
    run_cli(main)
