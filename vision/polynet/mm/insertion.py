"""A larger PolyNet out of a trained smaller one, from configs and a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from mmengine.logging import MMLogger

from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.common.nn.seeds import seed_everything
from vision.polynet.core.arch import find_arch
from vision.polynet.core.insertion import PLACEMENTS, Insertion, plan_insertion
from vision.polynet.mm.backbone import PolyNet
from vision.polynet.nn.insertion import Growth, grow
from vision.polynet.nn.pretrained import trunk_prefix
from vision.zoo import resolve


def insert(source: str, checkpoint: str, target: str, *, placement: str = PLACEMENTS[0],
           seed: int = 0, is_identity: bool = False) -> tuple[dict, dict, str]:
    """(checkpoint of the larger network, where each tensor comes from, the same in words).

    Args:
        source, target: a preset or the path of a config with a PolyNet as backbone.
        checkpoint: of the source; a path or zoo:NAME.
        placement: of ``PLACEMENTS``: where new modules go.
        seed: of the new tensors.
        is_identity: silence what is new, so that the function is unchanged.

    Raises:
        VisionError: VIS-INPUT-055, VIS-CONFIG-054: see the parts below; tensors that do not fit.
    """
    old, new = backbone_options(source), backbone_options(target)
    if is_identity:
        refuse_other_maps(old, new)
    insertion = plan(old, new, placement)
    state = load_checkpoint(resolve(checkpoint))['state_dict']
    prefix = trunk_prefix(state, checkpoint)
    trained = PolyNet(**old)
    load_state(trained.trunk, {name.removeprefix(prefix): tensor for name, tensor in state.items()
                               if name.startswith(prefix)}, where=checkpoint)
    grown, growth = grown_backbone(trained, new, insertion, seed=seed, is_identity=is_identity)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    content = {prefix + name: tensor for name, tensor in grown.trunk.state_dict().items()}
    return (dict(state_dict=content | rest, meta=dict(insertion=insertion.lines())),
            dict(modules=insertion.lines(), **asdict(growth)),
            summary(insertion, growth, grown, num_kept=len(rest)))


def backbone_options(name: str) -> dict:
    """Keyword arguments of the PolyNet that a preset or a config file describes.

    Raises:
        VisionError: no such file, or a config with another backbone; no such preset.
    """
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
        raise VisionError('VIS-INPUT-070', f'{name} has no PolyNet as backbone',
                          where='model.backbone', do='give a config of a PolyNet')
    options = {key: value for key, value in backbone.items() if key != 'type'}
    if isinstance(options.get('init_cfg'), dict) and options['init_cfg']['type'] == 'Pretrained':
        del options['init_cfg']  # what is new starts at random, whatever is loaded otherwise
    return options


def refuse_other_maps(source: dict, target: dict) -> None:
    """Refuse backbones in which the same tensors compute something else: maps of another size.

    Raises:
        VisionError: ``padding_mode`` or ``output_stride`` differ.
    """
    for key, default in (('padding_mode', 'valid'), ('output_stride', 32)):
        before, after = source.get(key, default), target.get(key, default)
        if before != after:
            raise VisionError('VIS-CONFIG-054', f'no identity start with another {key}',
                              where=f'{key}: {before!r} in the source, {after!r} in the target',
                              why='equal tensors give other maps then', do='make them equal, or '
                              'start without --identity-start')


def plan(source: dict, target: dict, placement: str) -> Insertion:
    """Where the modules of the smaller network go in the larger one, from the options of both
    backbones."""
    shares = [options.get('share', 'conv') for options in (source, target)]
    return plan_insertion(*(find_arch(options.get('arch', 'very-deep'))
                            for options in (source, target)),
                          placement=placement, share=shares[0], target_share=shares[1])


def grown_backbone(trained: PolyNet, target: dict, insertion: Insertion, *, seed: int,
                   is_identity: bool) -> tuple[PolyNet, Growth]:
    """The larger backbone with the trained modules in place and new ones drawn by ``seed``, and
    what was copied."""
    seed_everything(seed)
    # MMEngine tells what initialised each tensor: a thousand lines, and here is no log file.
    MMLogger.get_current_instance().setLevel('WARNING')
    grown = PolyNet(**target)
    grown.init_weights()
    return grown, grow(trained.trunk, grown.trunk, insertion, is_identity=is_identity)


def summary(insertion: Insertion, growth: Growth, grown: PolyNet, *, num_kept: int) -> str:
    """The plan, and how many tensors were copied, are new or were rescaled, as lines of text."""
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
