"""Parameters and multiply-adds (MACs) of a network, part by part, without running it for real.

A network is a preset of PolyNet under its classifier (ImageClassifier) or the model of a config.
Of a detector, backbone and neck are counted: what its heads do depends on the image; parameters
are counted everywhere. Of a lattice give the config of its detector. Weights are neither needed
nor loaded. One MAC is two FLOPs.

Examples:
  vision flops very-deep --shape 331 331
  vision flops ir-3-6-3_b-poly-3 --num-classes 10 --json costs.json
  vision flops configs/detectors/yolox-nano_coco.py --shape 416 416
  vision flops configs/polynet/polynet-small_in1k.py \\
      --cfg-options model.backbone.output_stride=16
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.common.core.config_files import config_names, find_config
from vision.common.core.errors import VisionError, command_parser, names_like, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import write_report
from vision.polynet.core.arch import PRESETS

if TYPE_CHECKING:
    from torch import nn

    from vision.common.nn.macs import PartCost

NUM_CLASSES = 1000  # ImageNet: the published sizes include this classifier


def build_parser() -> argparse.ArgumentParser:
    """Options of the network and of the size of its input."""
    from vision.common.mm.launch import add_config_arguments
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
    import torch
    from mmengine.registry import init_default_scope

    from vision.registry import MODELS
    config, scope = find_network(args)
    init_default_scope(scope)
    with torch.device('meta'):
        return MODELS.build(config).eval()


def find_network(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Config of the model, and the scope of the names in it.

    Raises:
        VisionError: no such config or preset, a config without a model, or an option without
            effect.
    """
    name = args.network
    if name in PRESETS:
        if args.cfg_options:
            raise _without_effect('--cfg-options', f'the preset {name}',
                                  'it changes a config, and a preset is none',
                                  f'give configs/polynet/polynet-{name}_in1k.py instead')
        return preset_classifier(name, args.num_classes or NUM_CLASSES), 'vision'
    if find_config(name) is None:
        near = names_like(name, [*sorted(PRESETS), *config_names()])
        raise VisionError('VIS-CONFIG-041', f'{name!r} is neither a config nor a preset',
                          where='network', why=f'nearest: {", ".join(near)}' if near else
                          f'presets: {", ".join(sorted(PRESETS))}',
                          do='give a config by path or name (configs/README.md lists ours), or a '
                          'preset')
    if args.num_classes is not None:
        raise _without_effect('--num-classes', 'a config', 'its head has its own number of '
                              'classes', 'leave it out, or change that number with --cfg-options, '
                              'e.g. model.head.num_classes=10')
    from vision.common.mm.launch import read_config_alone
    config = read_config_alone(name, args.cfg_options)
    if 'model' not in config:
        raise VisionError('VIS-CONFIG-042', 'the config has no model', where=name,
                          do='give a config with model = dict(type=...)')
    return config.model, config.get('default_scope') or 'vision'


def _without_effect(option: str, of: str, why: str, do: str) -> VisionError:
    return VisionError('VIS-INPUT-062', f'{option} has no effect on {of}', where=option, why=why,
                       do=do)


def preset_classifier(preset: str, num_classes: int) -> dict:
    """The classifier of configs/_base_/models/polynet.py around any preset."""
    from vision.polynet.nn.trunk import CHANNELS
    return dict(type='ImageClassifier', backbone=dict(type='PolyNet', arch=preset),
                head=dict(type='LinearClsHead', num_classes=num_classes,
                          in_channels=CHANNELS[-1]))


def show(title: str, costs: list[PartCost]) -> None:
    """Print parameters and multiply-adds of each part, and of all."""
    from rich.console import Console
    from rich.table import Table

    from vision.common.nn.macs import PartCost
    table = Table(title=title)
    table.add_column('part')
    for column in ('parameters', 'GMAC', '% of MACs'):
        table.add_column(column, justify='right')
    total = PartCost('total', sum(c.parameters for c in costs), sum(c.macs for c in costs))
    for cost in (*costs, total):
        table.add_row(cost.name, f'{cost.parameters:,}', f'{cost.macs / 1e9:.3f}',
                      f'{100 * cost.macs / max(1, total.macs):.1f}',
                      style='bold' if cost is total else None)
    Console().print(table)


def _impossible(what: str, where: str, why: str, do: str) -> VisionError:
    return VisionError('VIS-INPUT-063', what, where=where, why=why, do=do)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_unwritable(args.json)
    for option, value in (('--shape', min(args.shape)), ('--num-classes', args.num_classes)):
        if value is not None and value < 1:
            raise _impossible(f'{option} holds {value}', option, '', 'give numbers of at least 1')
    height, width = args.shape
    from vision.common.nn.macs import count
    network = build_network(args)
    try:
        costs = count(network, height, width)
    except RuntimeError as error:
        raise _impossible(f'the network does not take an image of {height} x {width} px',
                          '--shape', str(error).split('\n')[0],
                          'give its own size; many detectors need multiples of 32') from error
    show(f'{Path(args.network).stem} at {height} x {width} px', costs)
    if args.json:
        write_report(args.json, [cost._asdict() for cost in costs], network=args.network,
                     shape=[height, width], parameters=sum(c.parameters for c in costs),
                     macs=sum(c.macs for c in costs))
    return 0


if __name__ == '__main__':
    run_cli(main)
