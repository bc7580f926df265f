"""Initialisation by insertion (arXiv:1611.05725): which trained part a larger PolyNet starts from.

Two ways to grow, which may be combined: a module gets more terms (I + F becomes I + F + GF and
keeps F), and a stage gets more modules, each new one between two trained ones. Everything here is
about names of modules and tensors; ``vision.polynet.nn.insertion`` moves the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import MODULE_FORMS, STAGES, Arch, ModuleForm

PLACEMENTS = ('interleaved', 'end')
_MODULE = re.compile(r'stage_([abc])\.(\d+)\.(.+)')
_UNTIED = re.compile(r'(?:blocks|chain)\.(\d+)\.(.+)')
_TIED_NORM = re.compile(r'block\.(paths\.\d+\.\d+|projection)\.norms\.(\d+)\.(.+)')
_TIED_PROJECTION = re.compile(r'block\.projections\.(\d+)\.(.+)')


@dataclass(frozen=True)
class Insertion:
    """From which source module each target module starts.

    Args:
        source, target: the architectures.
        origins: per stage, per target module: index of the source module, or None for a new one.
        share: what the source's poly modules share ('conv' or 'all').
    """

    source: Arch
    target: Arch
    origins: tuple[tuple[int | None, ...], ...]
    share: str = 'conv'

    def origin(self, name: str) -> str | None:
        """Name of the source tensor that a tensor of the target's trunk starts from, or None.

        Stem and reductions keep their names. In a module the terms keep their order: term k comes
        from term k, terms that the source lacks are new.
        """
        match = _MODULE.fullmatch(name)
        if not match:
            return name
        stage, index = STAGES.index(match[1]), int(match[2])
        origin = self.origins[stage][index]
        if origin is None:
            return None
        form = MODULE_FORMS[self.source.stages[stage][origin]]
        term, tail = split_term(match[3])
        if term >= form.order:
            return None
        return f'stage_{match[1]}.{origin}.' + join_term(term, tail, form, self.share)

    def lines(self) -> list[str]:
        """The map for people: one line per target module."""
        lines = []
        for letter, old, new, origins in zip(STAGES, self.source.stages, self.target.stages,
                                             self.origins, strict=True):
            for index, (name, origin) in enumerate(zip(new, origins, strict=True)):
                start = 'new' if origin is None else f'from {letter}.{origin} {old[origin]}'
                if origin is not None and (more := MODULE_FORMS[name].order
                                           - MODULE_FORMS[old[origin]].order):
                    start += f', {more} new term' + 's' * (more > 1)
                lines.append(f'{letter}.{index} {name}: {start}')
        return lines


def plan_insertion(source: Arch, target: Arch, *, placement: str = 'interleaved',
                   share: str = 'conv', target_share: str | None = None) -> Insertion:
    """Where the source's modules go in the target; every one is used, in its order.

    'interleaved' spreads the new modules evenly: no two trained modules that were neighbours are
    further apart than need be, and with fewer new modules than trained ones each new one stands
    between two trained ones. 'end' puts them behind, for comparison. A trained module goes to the
    nearest place whose kind can hold it.

    Args:
        share, target_share: the poly form of the source and of the target (default: the same).

    Raises:
        VisionError: VIS-CONFIG-051, a stage of the target cannot hold the source's modules;
            VIS-CONFIG-052, an unknown placement.
    """
    if placement not in PLACEMENTS:
        raise VisionError('VIS-CONFIG-052', f'no placement is called {placement!r}',
                          do=f'one of {", ".join(PLACEMENTS)}')
    origins = []
    for letter, old, new in zip(STAGES, source.stages, target.stages, strict=True):
        wanted = wanted_places(len(old), len(new), placement)
        refusals = {(a, b): refusal(a, b, is_share_kept=target_share in (None, share))
                    for a in set(old) for b in set(new)}
        places = nearest_places(
            [[not refusals[a, b] for b in new] for a in old], wanted)
        if places is None:
            raise _no_place(letter, old, new, refusals)
        trained = {place: i for i, place in enumerate(places)}
        origins.append(tuple(trained.get(place) for place in range(len(new))))
    return Insertion(source, target, tuple(origins), share)


def refusal(source: str, target: str, *, is_share_kept: bool = True) -> str:
    """Why a target module cannot start from a trained one so that it computes the same while its
    new terms are silent; '' when it can."""
    old, new = MODULE_FORMS[source], MODULE_FORMS[target]
    if new.order < old.order:
        return f'{target} has fewer terms than {source}'
    if old.order == 1:
        return ''  # one block is the first term of every form
    if new.is_chained != old.is_chained:
        return f'the later blocks of {target} and {source} read different inputs'
    if new.is_tied and not old.is_tied:
        return f'{target} has one block, {source} has {old.order} different ones'
    if new.is_tied and not is_share_kept:
        return f'{source} and {target} share different parts'
    return ''


def wanted_places(num_old: int, num_new: int, placement: str = 'interleaved') -> list[int]:
    """Place of each trained module among the target's, were every kind alike.

    >>> wanted_places(3, 6)
    [0, 2, 4]
    >>> wanted_places(3, 5)
    [0, 2, 4]
    >>> wanted_places(4, 5)
    [0, 1, 3, 4]
    """
    if placement == 'end' or num_new < num_old:
        return list(range(num_old))
    per_gap, extra = divmod(num_new - num_old, num_old)
    places, place = [], 0
    for index in range(num_old):
        places.append(place)
        # ``extra`` more, spread over the num_old - 1 gaps between trained modules.
        gaps = max(num_old - 1, 1)
        is_longer = (index + 1) * extra // gaps > index * extra // gaps
        place += 1 + per_gap + is_longer
    return places


def nearest_places(is_possible: list[list[bool]], wanted: list[int]) -> list[int] | None:
    """Increasing places, one per row of ``is_possible``, that are allowed and in sum nearest to
    ``wanted``; of equals the later ones. None when there is no way."""
    num_places = len(is_possible[0])
    # best[p]: (cost, places) of the rows so far with the last of them before place p.
    best: list[tuple[float, tuple[int, ...]]] = [(0, ())] * (num_places + 1)
    for row, want in zip(is_possible, wanted, strict=True):
        following: list[tuple[float, tuple[int, ...]]] = [(inf, ())]
        for place in range(num_places):
            cost, places = best[place]
            here = (cost + abs(place - want), (*places, place)) if row[place] else (inf, ())
            following.append(min(following[-1], here,
                                 key=lambda way: (way[0], tuple(-p for p in way[1]))))
        best = following
    cost, places = best[-1]
    return None if cost == inf else list(places)


def split_term(name: str) -> tuple[int, str]:
    """(term, its tensor as a block of its own would call it) of a tensor of a module.

    The tied convolutions of a poly module belong to its first term.
    """
    if match := _UNTIED.fullmatch(name):
        return int(match[1]), match[2]
    if match := _TIED_NORM.fullmatch(name):
        return int(match[2]), f'{match[1]}.norm.{match[3]}'
    if match := _TIED_PROJECTION.fullmatch(name):
        return int(match[1]), f'projection.{match[2]}'
    return 0, name.removeprefix('block.')


def join_term(term: int, tail: str, form: ModuleForm, share: str) -> str:
    """The inverse of ``split_term`` for a module of the given form."""
    if not form.is_tied:
        return f'{form.block_list}.{term}.{tail}'
    if tail.startswith('projection.') and share == 'conv':
        return f'block.projections.{term}.' + tail.removeprefix('projection.')
    return 'block.' + tail.replace('.norm.', f'.norms.{term}.')


def is_projection_affine(name: str) -> bool:
    """Whether a tensor is weight or bias of a projection's norm: zeros there silence the term."""
    return bool(re.search(r'\.(projection|projections\.\d+)\.norms?\.(\d+\.)?(weight|bias)$',
                          name))


def _no_place(letter: str, old: Iterable[str], new: Iterable[str],
              refusals: dict[tuple[str, str], str]) -> VisionError:
    old, new = tuple(old), tuple(new)
    reasons = sorted({text for text in refusals.values() if text})
    if len(new) < len(old):
        reasons.insert(0, f'{len(old)} trained modules do not fit into {len(new)}')
    return VisionError(
        'VIS-CONFIG-051', f'stage {letter.upper()} of the target cannot start from the source',
        where=f'{", ".join(old)} -> {", ".join(new)}', why='; '.join(reasons),
        do='a plain unit (1-way) can become any module; n-way, poly-n and mpoly-n can get a '
        'higher order, and poly-n can become mpoly-n; each in the order of the source')
