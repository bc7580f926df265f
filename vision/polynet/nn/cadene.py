"""Names of the published PyTorch port's state_dict (Very Deep PolyNet only), and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import unwrapped
from vision.polynet.core.arch import PRESETS, STAGES
from vision.polynet.nn.trunk import CHANNELS, PolyNetTrunk

LEAVES = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
# Our prefix: the port's prefix, for plain convolution units.
UNITS = {f'stem.entry.{i}': f'stem.conv1.{i}' for i in range(3)}
UNITS |= {'stem.mix1.branches.1.0': 'stem.conv1_branch', 'stem.mix3.branches.1.0':
          'stem.conv2_branch'}
UNITS |= {f'stem.mix2.branches.0.{i}': f'stem.conv2_short.{i}' for i in range(2)}
UNITS |= {f'stem.mix2.branches.1.{i}': f'stem.conv2_long.{i}' for i in range(4)}
UNITS |= {f'reduction_a.branches.0.{i}': f'reduction_a.path0.{i}' for i in range(3)}
UNITS |= {'reduction_a.branches.1.0': 'reduction_a.path1'}
UNITS |= {f'reduction_b.branches.{path}.{i}': f'reduction_b.path{path}.{i}'
          for path, length in enumerate((3, 2, 2)) for i in range(length)}
TIED_PATHS = {'b': (('path0_1x1', 'path0_1x7', 'path0_7x1'), ('path1',)),
              'c': (('path0_1x1', 'path0_1x3', 'path0_3x1'), ('path1',))}
PATH_LENGTHS = {'a': (3, 2, 1), 'b': (3, 1), 'c': (3, 1)}


def way_units(ours: str, theirs: str, stage: str) -> Iterator[tuple[str, str]]:
    """Units of a 2-way module."""
    for block in range(2):
        mine, other = f'{ours}.blocks.{block}', f'{theirs}.blocks.{block}'
        for path, length in enumerate(PATH_LENGTHS[stage]):
            for i in range(length):
                # A path of one convolution has no index in the port.
                tail = f'.{i}' if length > 1 else ''
                yield f'{mine}.paths.{path}.{i}', f'{other}.path{path}{tail}'
        yield f'{mine}.projection', f'{other}.conv2d'


def poly_names(ours: str, theirs: str, stage: str) -> Iterator[tuple[str, str]]:
    """Tensors of a poly-3 module: tied convolutions, a norm per order, projections per order."""
    for path, names in enumerate(TIED_PATHS[stage]):
        for i, name in enumerate(names):
            mine, other = f'{ours}.block.paths.{path}.{i}', f'{theirs}.{name}'
            yield f'{mine}.conv.weight', f'{other}.conv.weight'
            for order in range(3):
                for leaf in LEAVES:
                    yield f'{mine}.norms.{order}.{leaf}', f'{other}.bn_blocks.{order}.{leaf}'
    for order in range(3):
        yield from unit_names(f'{ours}.block.projections.{order}',
                              f'{theirs}.conv2d_blocks.{order}')


def unit_names(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """(our name, theirs) of each tensor of one convolution unit, given the unit's name in both."""
    yield f'{ours}.conv.weight', f'{theirs}.conv.weight'
    for leaf in LEAVES:
        yield f'{ours}.norm.{leaf}', f'{theirs}.bn.{leaf}'


def name_pairs() -> dict[str, str]:
    """Our name of every tensor of Very Deep PolyNet: the port's name."""
    pairs: dict[str, str] = {}
    for ours, theirs in UNITS.items():
        pairs |= unit_names(f'backbone.trunk.{ours}', theirs)
    for letter, names in zip(STAGES, PRESETS['very-deep'].stages, strict=True):
        for index, name in enumerate(names):
            ours = f'backbone.trunk.stage_{letter}.{index}'
            theirs = f'stage_{letter}.{index}'
            if name == 'poly-3':
                pairs |= poly_names(ours, theirs, letter)
            else:
                for mine, other in way_units(ours, theirs, letter):
                    pairs |= unit_names(mine, other)
    return pairs | {f'head.fc.{leaf}': f'last_linear.{leaf}' for leaf in ('weight', 'bias')}


def convert(state: Mapping[str, Tensor], *, reverse: bool = False) -> dict[str, Tensor]:
    """The port's state to ours, or back with ``reverse``; the tensors are the same objects.

    ``num_batches_tracked`` may be missing (files older than torch 0.4.1 have none), and the whole
    classifier: then the result is a trunk. What wrappers put before all names is left out.

    Raises:
        VisionError: a tensor is left over or missing; names the first of each.
    """
    state = state if reverse else unwrapped(state)
    pairs = name_pairs()
    names = {ours: theirs for ours, theirs in pairs.items()} if reverse else \
        {theirs: ours for ours, theirs in pairs.items()}
    is_trunk = not any(name.startswith(('head.', 'last_linear.')) for name in state)
    leftover = [name for name in state if name not in names]
    missing = [name for name in names
               if name not in state and not name.endswith('num_batches_tracked')
               and not (is_trunk and name.startswith(('head.', 'last_linear.')))]
    if leftover or missing:
        raise VisionError(
            'VIS-CKPT-015', f'{len(leftover)} tensors are left over (first: {leftover[:3]}), '
            f'{len(missing)} are missing (first: {missing[:3]})',
            why='a converted Very Deep PolyNet must use every tensor exactly once',
            do='give the state_dict of the published port'
            + (' that this tool made from it' if reverse else ''))
    return {names[name]: tensor for name, tensor in state.items()}


def check_shapes(state: Mapping[str, Tensor], *, num_classes: int = 1000) -> None:
    """Compare tensors under our names with what Very Deep PolyNet has.

    Raises:
        VisionError: VIS-CKPT-057, with the first names, under both names.
    """
    with torch.device('meta'):
        trunk = PolyNetTrunk(PRESETS['very-deep'])
    shapes = {f'backbone.trunk.{name}': tensor.shape
              for name, tensor in trunk.state_dict().items()}
    shapes |= {'head.fc.weight': torch.Size((num_classes, CHANNELS[-1])),
               'head.fc.bias': torch.Size((num_classes,))}
    pairs = name_pairs()
    wrong = [f'{pairs[name]} ({name}) {tuple(tensor.shape)} instead of {tuple(shapes[name])}'
             for name, tensor in state.items() if tensor.shape != shapes[name]]
    if wrong:
        raise VisionError('VIS-CKPT-057', f'{len(wrong)} tensors have another shape than those of '
                          'Very Deep PolyNet', why='; '.join(wrong[:3]),
                          do='give the published weights, or say --num-classes when only the '
                          'classifier differs')


def missing_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the batch counters that a state under our names lacks."""
    return {name: torch.zeros((), dtype=torch.int64) for name in name_pairs()
            if name.endswith('num_batches_tracked') and name not in state}


def is_port_state(state: Mapping[str, Tensor]) -> bool:
    """Whether names are the port's; a trunk of this repository, which has ``blocks``, too, but
    ``paths`` in them, is not."""
    return any(re.match(r'stage_[abc]\.\d+\.(blocks\.\d+\.path\d|path0_1x1)', name)
               for name in unwrapped(state))
