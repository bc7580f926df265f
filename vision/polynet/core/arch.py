"""PolyNet architectures as data: three stages, each a tuple of module names.

A PolyInception module replaces the residual unit I + F by a polynomial of Inception blocks
(arXiv:1611.05725). Names, with F, G, H blocks of their own weights and the same letter for the
same weights:

========  ===================  ======
name      polynomial           blocks
========  ===================  ======
1-way     I + F                1
2-way     I + F + G            2
3-way     I + F + G + H        3
poly-2    I + F + F2           1
poly-3    I + F + F2 + F3      1
mpoly-2   I + F + GF           2
mpoly-3   I + F + GF + HGF     3
========  ===================  ======
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vision.common.core.errors import VisionError

STAGES = ('a', 'b', 'c')


class ModuleForm(NamedTuple):
    """order: terms beside the identity; is_chained: term k+1 is computed on term k (poly, mpoly);
    is_tied: every term has the same convolutions (poly)."""

    order: int
    is_chained: bool
    is_tied: bool

    @property
    def block_list(self) -> str:
        """Name of its list of different blocks among a module's tensors. A chain is called
        otherwise than parallel ways: its tensors have the same shapes, and a checkpoint of I + F
        + G would load into I + F + GF without a word."""
        return 'chain' if self.is_chained else 'blocks'


MODULE_FORMS = {
    '1-way': ModuleForm(1, False, False),
    '2-way': ModuleForm(2, False, False),
    '3-way': ModuleForm(3, False, False),
    'poly-2': ModuleForm(2, True, True),
    'poly-3': ModuleForm(3, True, True),
    'mpoly-2': ModuleForm(2, True, False),
    'mpoly-3': ModuleForm(3, True, False),
}
# The six kinds that the paper puts in place of the plain unit, one stage at a time.
ABLATION_MODULES = ('2-way', '3-way', 'poly-2', 'poly-3', 'mpoly-2', 'mpoly-3')


HOW_TO_WRITE = ("give a preset's name, e.g. arch='small', or three lists of module names, e.g. "
                "arch=[['2-way'] * 3, ['poly-3'] * 6, ['2-way'] * 3]")


@dataclass(frozen=True)
class Arch:
    """Module names of stages A, B and C, first module first.

    Raises:
        VisionError: not three stages, an empty stage, or a name that does not exist.
    """

    stages: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        stages = tuple(_names(stage) for stage in self.stages)
        object.__setattr__(self, 'stages', stages)
        if len(stages) != len(STAGES) or not all(stages):
            raise _no_arch('a PolyNet has three stages (A, B, C) with at least one module each, '
                           f'got {len(stages)} with {[len(stage) for stage in stages]} modules')
        for letter, stage in zip(STAGES, stages, strict=True):
            for index, name in enumerate(stage):
                if name not in MODULE_FORMS:
                    raise VisionError(
                        'VIS-CONFIG-012', f'no PolyInception module is called {name!r}',
                        where=f'arch, stage {letter}, module {index}',
                        do=f'one of {", ".join(MODULE_FORMS)}')

    @property
    def depths(self) -> tuple[int, ...]:
        """Modules in each of the stages A, B, C."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def num_modules(self) -> int:
        """Modules of all three stages; path scales and drop probabilities come one for each."""
        return sum(self.depths)


def _names(stage: object) -> tuple[str, ...]:
    """A stage as it may stand in a config. A string or a number in its place is what a flat list,
    depths alone or the dict of another backbone would give."""
    if isinstance(stage, list | tuple) and all(isinstance(name, str) for name in stage):
        return tuple(stage)
    raise _no_arch(f'a stage of a PolyNet is a list of module names, got {stage!r}')


def _no_arch(what: str) -> VisionError:
    return VisionError('VIS-CONFIG-011', what, where='arch', do=HOW_TO_WRITE)


def uniform(*depths: int, **modules: str) -> Arch:
    """``uniform(3, 6, 3, b='poly-3')``: plain units, except in the stages that are named."""
    names = dict.fromkeys(STAGES, '1-way') | modules
    return Arch(tuple((names[letter],) * depth
                      for letter, depth in zip(STAGES, depths, strict=True)))


def mixed_pairs(depth: int) -> tuple[str, ...]:
    """poly-3 then 2-way, repeated: stages B and C of Very Deep PolyNet."""
    return ('poly-3', '2-way') * (depth // 2)


def _presets() -> dict[str, Arch]:
    presets = {
        'very-deep': Arch((('2-way',) * 10, mixed_pairs(20), mixed_pairs(10))),
        'mixed-b': Arch((('1-way',) * 6, ('3-way', 'mpoly-3', 'poly-3') * 4, ('1-way',) * 6)),
        # Our choice for small machines and detectors: the mix of Very Deep at the paper's
        # ablation depth.
        'small': Arch((('2-way',) * 3, mixed_pairs(6), ('poly-3', '2-way', 'poly-3'))),
    }
    for depths in ((3, 6, 3), (5, 10, 5), (6, 12, 6), (20, 56, 20)):
        presets['ir-' + '-'.join(map(str, depths))] = uniform(*depths)
    for letter in STAGES:
        for module in ABLATION_MODULES:
            presets[f'ir-3-6-3_{letter}-{module}'] = uniform(3, 6, 3, **{letter: module})
    return presets


PRESETS = _presets()


def find_arch(arch: str | Sequence[Sequence[str]] | Arch) -> Arch:
    """An architecture from a preset's name or three lists of module names.

    Raises:
        VisionError: VIS-CONFIG-011, neither a name, an ``Arch`` nor a list; VIS-CONFIG-013, no
            preset has the name; and what ``Arch`` refuses.
    """
    if isinstance(arch, Arch):
        return arch
    if not isinstance(arch, str):
        if not isinstance(arch, list | tuple):
            raise _no_arch(f'arch={arch!r} is no architecture')
        return Arch(tuple(arch))
    if arch not in PRESETS:
        near = difflib.get_close_matches(arch, PRESETS, n=3)
        raise VisionError('VIS-CONFIG-013', f'no PolyNet preset is called {arch!r}',
                          where='arch', do=f'did you mean {", ".join(near)}?' if near else
                          f'presets: {preset_names()}')
    return PRESETS[arch]


def preset_names() -> str:
    """All presets in one line for messages; the 18 single-stage nets as a pattern."""
    single = f'ir-3-6-3_STAGE-MODULE (STAGE: a, b, c; MODULE: {", ".join(ABLATION_MODULES)})'
    return ', '.join([*(name for name in PRESETS if '_' not in name), single])


def released_path_scales(num_modules: int = 40, *, max_drop: float = 0.3) -> tuple[float, ...]:
    """Factor of module i's terms at evaluation: the keep probability, falling linearly.

    For 40 modules this is 1 - i / 130, rounded to six decimals: the factors of the published
    network, which are constants of its code and not in its weights file.
    """
    if num_modules == 1:
        return (1.0,)
    return tuple(round(1 - max_drop * index / (num_modules - 1), 6)
                 for index in range(num_modules))


def path_drops(num_modules: int, rate: float, schedule: str) -> tuple[float, ...]:
    """Drop probability of each module's terms: from 0 to ``rate`` ('linear'), or ``rate``.

    Raises:
        VisionError: VIS-CONFIG-019, ``rate`` is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise VisionError('VIS-CONFIG-019', f'path_drop_rate={rate} is not a probability below 1',
                          do='choose 0 <= path_drop_rate < 1; 0 turns it off')
    if schedule == 'constant' or num_modules == 1:
        return (rate,) * num_modules
    return tuple(rate * index / (num_modules - 1) for index in range(num_modules))
