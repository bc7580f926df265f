"""Start a larger PolyNet from a trained smaller one: insertion, arXiv:1611.05725.

Examples:
  python tools/model_converters/polynet_insertion.py ir-3-6-3 epoch_30.pth \\
      ir-3-6-3_b-mpoly-3 start.pth
  python tools/model_converters/polynet_insertion.py SOURCE.py epoch_30.pth TARGET.py \\
      start.pth --identity-start --map start.json

SOURCE and TARGET are two presets (vision flops lists them for a wrong name), or two
config files with a PolyNet as backbone. Configs know more than the architecture: name them when
path_scales, residual_scale, path drop, share or in_channels are not the defaults in one of them (a
preset has path scales of 1).

A module may get more terms (I + F becomes I + F + GF and keeps F) and a stage more modules: each
new one goes between two trained ones. Stem, reductions and whatever the checkpoint holds beside
the backbone (the classifier) are copied. New tensors are initialised as the target's config says,
from --seed. Train on with: tools/train.py TARGET.py --cfg-options load_from=start.pth

With --identity-start the projection norms of all new terms are zero: at evaluation the new network
computes exactly what the old one did, and training departs from there. Where the factor of a
trained module's terms changes (path_scales, path drop), its projection norm makes up for it, with
and without --identity-start.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mmengine.logging import MMLogger

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_same_file, refuse_unwritable
from vision.common.mm.launch import read_config
from vision.common.nn.checkpoint import load_checkpoint, load_state, save_checkpoint
from vision.common.nn.seeds import seed_everything
from vision.polynet.core.arch import find_arch
from vision.polynet.core.insertion import PLACEMENTS, Insertion, plan_insertion
from vision.polynet.mm.backbone import PolyNet
from vision.polynet.nn.insertion import Growth, grow
from vision.polynet.nn.pretrained import trunk_prefix
from vision.zoo import resolve


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='preset or config of the trained network')
    parser.add_argument('checkpoint', help='its checkpoint, or zoo:NAME')
    parser.add_argument('target', help='preset or config of the larger network')
    parser.add_argument('out', type=Path, help='checkpoint to write (.pth)')
    parser.add_argument('--identity-start', action='store_true',
                        help='silence what is new, so that the function is unchanged')
    parser.add_argument('--placement', choices=PLACEMENTS, default=PLACEMENTS[0],
                        help='where new modules go (default %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the new tensors')
    parser.add_argument('--map', type=Path, help='write the map of all tensors as JSON')
    args = parser.parse_args(argv)
    refuse_same_file(args.checkpoint, args.out)
    refuse_unwritable(args.out, args.map)
    source, target = backbone_options(args.source), backbone_options(args.target)
    if args.identity_start:
        refuse_other_maps(source, target)
    insertion = plan(source, target, args.placement)
    state = load_checkpoint(resolve(args.checkpoint))['state_dict']
    prefix = trunk_prefix(state, args.checkpoint)
    trained = PolyNet(**source)
    load_state(trained.trunk, {name.removeprefix(prefix): tensor for name, tensor in state.items()
                               if name.startswith(prefix)}, where=args.checkpoint)
    grown, growth = grown_backbone(trained, target, insertion, seed=args.seed,
                                   is_identity=args.identity_start)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    content = {prefix + name: tensor for name, tensor in grown.trunk.state_dict().items()}
    save_checkpoint(dict(state_dict=content | rest, meta=dict(insertion=insertion.lines())),
                    args.out)
    if args.map:
        with atomic_write(args.map, 'w') as file:
            json.dump(dict(modules=insertion.lines(), **asdict(growth)), file, indent=1)
    print(summary(insertion, growth, grown, num_kept=len(rest)))
    return 0


def backbone_options(name: str) -> dict:
    """Keyword arguments of the PolyNet that a preset or a config file describes."""
    if not name.endswith('.py'):
        find_arch(name)
        return dict(arch=name)
    if not Path(name).is_file():
        raise VisionError('VIS-INPUT-055', f'no config file {name}', do='give an existing file, '
                          'or a preset such as ir-3-6-3')
    config = read_config(argparse.Namespace(config=name, cfg_options=None, launcher='none',
                                            local_rank=0, work_dir=None))
    backbone = config.get('model', {}).get('backbone', {})
    if str(backbone.get('type', '')).split('.')[-1] != 'PolyNet':
        raise VisionError('VIS-INPUT-055', f'{name} has no PolyNet as backbone',
                          where='model.backbone', do='give a config of a PolyNet')
    options = {key: value for key, value in backbone.items() if key != 'type'}
    if isinstance(options.get('init_cfg'), dict) and options['init_cfg']['type'] == 'Pretrained':
        del options['init_cfg']  # what is new starts at random, whatever is loaded otherwise
    return options


def refuse_other_maps(source: dict, target: dict) -> None:
    """The same tensors compute something else on maps of another size."""
    for key, default in (('padding_mode', 'valid'), ('output_stride', 32)):
        before, after = source.get(key, default), target.get(key, default)
        if before != after:
            raise VisionError('VIS-CONFIG-054', f'no identity start with another {key}',
                              where=f'{key}: {before!r} in the source, {after!r} in the target',
                              why='equal tensors give other maps then', do='make them equal, or '
                              'start without --identity-start')


def plan(source: dict, target: dict, placement: str) -> Insertion:
    shares = [options.get('share', 'conv') for options in (source, target)]
    return plan_insertion(*(find_arch(options.get('arch', 'very-deep'))
                            for options in (source, target)),
                          placement=placement, share=shares[0], target_share=shares[1])


def grown_backbone(trained: PolyNet, target: dict, insertion: Insertion, *, seed: int,
                   is_identity: bool) -> tuple[PolyNet, Growth]:
    seed_everything(seed)
    # MMEngine tells what initialised each tensor: a thousand lines, and here is no log file.
    MMLogger.get_current_instance().setLevel('WARNING')
    grown = PolyNet(**target)
    grown.init_weights()
    return grown, grow(trained.trunk, grown.trunk, insertion, is_identity=is_identity)


def summary(insertion: Insertion, growth: Growth, grown: PolyNet, *, num_kept: int) -> str:
    sizes = {name: tensor.numel() for name, tensor in grown.trunk.named_parameters()}
    is_new = set(growth.new)
    num_new = sum(size for name, size in sizes.items() if name in is_new)
    return '\n'.join([
        *insertion.lines(),
        f'copied {len(growth.copied)} tensors of the trunk ({sum(sizes.values()) - num_new} '
        f'parameters) and {num_kept} others; new {len(growth.new)} ({num_new} parameters), of '
        f'which {len(growth.silenced)} are zero',
        *(f'{name}: terms times {factor:.6f}, since its factor at evaluation changes'
          for name, factor in growth.rescaled.items())])


if __name__ == '__main__':
    run_cli(main)
