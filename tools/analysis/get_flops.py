"""Parameters and multiply-adds (MACs) of a network, part by part, without running it for real.

A network is a preset of PolyNet (with its classifier) or the model of a config. Of a detector,
backbone and neck are counted: what its heads do depends on the image. One MAC is two FLOPs.

Examples:
  python tools/analysis/get_flops.py very-deep --shape 331 331
  python tools/analysis/get_flops.py ir-3-6-3_b-poly-3 --json costs.json
  python tools/analysis/get_flops.py configs/detectors/yolox-nano_coco.py --shape 416 416
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vision.common.core.errors import VisionError, run_cli
from vision.common.core.report import write_report
from vision.common.nn.macs import PartCost, counted_macs, part_costs
from vision.polynet.core.arch import PRESETS
from vision.registry import MODELS


class Classifier(nn.Module):
    """A preset with the head whose parameters its published size includes."""

    def __init__(self, preset: str, num_classes: int) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(type='PolyNet', arch=preset))
        self.fc = nn.Linear(self.backbone.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('network', help="a config with a model, or a PolyNet preset such as 'very-deep'")
    add('--shape', type=int, nargs=2, default=(331, 331), metavar=('HEIGHT', 'WIDTH'),
        help='of the image, pixels (default: 331 331)')
    add('--num-classes', type=int, default=1000, help="of a preset's classifier (default: 1000)")
    add('--json', type=Path, help='write the rows to this file too')
    add('-v', '--verbose', action='store_true', help='show the traceback of an error too')
    return parser


def build_network(name: str, num_classes: int) -> nn.Module:
    """On the meta device: shapes without numbers."""
    with torch.device('meta'):
        if name in PRESETS:
            return Classifier(name, num_classes).eval()
        if not Path(name).exists():
            raise VisionError('VIS-CONFIG-041', f'{name!r} is neither a config nor a preset',
                              where='network', do=f'a path of a config, or one of: '
                              f'{", ".join(sorted(PRESETS))}')
        config = Config.fromfile(name)
        if 'model' not in config:
            raise VisionError('VIS-CONFIG-042', 'the config has no model', where=name,
                              do='give a config with model = dict(type=...)')
        init_default_scope(config.get('default_scope', 'vision'))
        return MODELS.build(config.model).eval()


def part_names(model: nn.Module, prefix: str = '') -> Iterator[str]:
    """Children; a module that has ``parts()`` (a backbone of ours) is replaced by those."""
    for name, child in model.named_children():
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
    with counted_macs(model) as macs, torch.no_grad():
        run(x)
    return part_costs(model, part_names(model), macs)


def first_channels(model: nn.Module) -> int:
    return next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


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
    costs = count(build_network(args.network, args.num_classes), *args.shape)
    height, width = args.shape
    show(Console(), f'{Path(args.network).stem} at {height} x {width} px', costs)
    if args.json:
        write_report(args.json, [cost._asdict() for cost in costs], network=args.network,
                     shape=[height, width], parameters=sum(c.parameters for c in costs),
                     macs=sum(c.macs for c in costs))
    return 0


if __name__ == '__main__':
    run_cli(main)
