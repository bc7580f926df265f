"""Selectors by name, with the index they ask and what keeps it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.core.select.controller import Rules
from vision.faces.nn.index.device_lists import DeviceLists, restore_lists
from vision.faces.nn.index.faiss_index import (
    GONE,
    KINDS,
    build_index,
    make_spec,
    require_kind,
    restore_index,
)
from vision.faces.nn.index.forest_index import ForestIndex
from vision.faces.nn.select.adaptive import AdaptiveSelector
from vision.faces.nn.select.device import DeviceSelector
from vision.faces.nn.select.oracle import OracleSelector
from vision.faces.nn.select.selectors import (
    FullSelector,
    IndexSelector,
    RandomSelector,
    Selector,
)
from vision.faces.nn.select.upkeep import IndexUpkeep, Schedule

NAMES = ('full', 'random', 'oracle', 'forest', *KINDS, 'device')
_PLAIN = dict(full=FullSelector, random=RandomSelector, oracle=OracleSelector)
# Leaves of 50 trees hold far more rows than are kept, so more kept ones cost little beside them.
# Planes and short codes rank coarsely: twice as much mass is left outside with one candidate for
# each kept one as with four.
_DEFAULTS = dict(forest=dict(overfetch=3.0), faiss=dict(num_searched=4))


def build_selector(name: str, store, *, num_active: int | None = None, seed: int = 0,
                   is_cosine: bool = True, upkeep: dict | None = None,
                   adaptive: dict | None = None, scale: float = 64.0,
                   target: Callable[[Tensor, Tensor], Tensor] | None = None, num_centres: int = 1,
                   **options) -> Selector | AdaptiveSelector:
    """Make a selector by name.

    Args:
        name: one of ``NAMES``.
        store: with rows over several ranks, all of them make theirs.
        num_active: for all but 'full'.
        upkeep: fields of ``Schedule``, for selectors with an index.
        adaptive: for those, too: ``monitor_every`` and fields of ``Rules``.
        scale, target: of the head's margin; ``target`` takes cosines (B,) and lengths (B, 1).
        num_centres: rows of a class.
        options: fields of ``IndexSpec`` or options of ``ForestIndex``, and ``overfetch``,
            ``num_searched``, ``random_frac``; for 'device' ``num_lists``, ``nprobe``,
            ``overfetch``, ``random_frac``.

    Raises:
        VisionError: VIS-CONFIG-1050, VIS-CONFIG-1096, VIS-CONFIG-1097, an unknown name;
            VIS-CONFIG-1096 to VIS-CONFIG-1100, an option that is missing, unknown or out of range;
            VIS-CONFIG-1042, VIS-CONFIG-1055 and VIS-CONFIG-1058 to VIS-CONFIG-1060 of the index.
    """
    if name in GONE:
        require_kind(name)  # says what to write now
    if name not in NAMES:
        raise VisionError('VIS-CONFIG-1050', f'selector {name!r} is none of {", ".join(NAMES)}',
                          where='selector', do='see vision/faces/README.md, the selectors')
    if name != 'full' and num_active is None:
        raise VisionError('VIS-CONFIG-1096', f'selector {name!r} without num_active',
                          where='selector', do='give the number of active rows')
    common = dict(num_active=1 if name == 'full' else num_active, seed=seed, is_cosine=is_cosine,
                  scale=scale, target=target, num_centres=num_centres)
    try:
        if name in _PLAIN:
            extra = dict(upkeep=upkeep, adaptive=adaptive)
            return _PLAIN[name](store, **common, **options, **{
                key: value for key, value in extra.items() if value is not None})
        schedule = Schedule(**upkeep or {})
        if name == 'device':
            if adaptive is not None:
                raise TypeError('adaptive is not for shapes that are fixed')
            keeper = IndexUpkeep(store, partial(_build_lists, options.pop('num_lists', 0),
                                                store.device),
                                 partial(restore_lists, device=store.device), schedule, seed=seed)
            return DeviceSelector(store, keeper, **common, **options)
        own = _DEFAULTS.get(name, {}) | {key: options.pop(key) for key in (
            'overfetch', 'num_searched', 'random_frac') if key in options}
        build, restore, nprobe = _index_makers(name, store.dim, seed, is_cosine, options)
        keeper = IndexUpkeep(store, build, restore, schedule, seed=seed)
        selector = IndexSelector(store, keeper, nprobe=nprobe, **own, **common)
        if adaptive is None:
            return selector
        rules = dict(adaptive)
        every = rules.pop('monitor_every', 200)
        return AdaptiveSelector(selector, Rules(**rules), monitor_every=every)
    except TypeError as error:
        raise VisionError('VIS-CONFIG-1097', f'selector {name!r}: {error}', where='selector',
                          do='see vision/faces/README.md, the selectors') from error


def _build_lists(num_lists: int, device: torch.device, rows: Tensor, seed: int) -> DeviceLists:
    # The rows of a build that a checkpoint begins again come from a file.
    return DeviceLists.build(rows.to(device), num_lists=num_lists, seed=seed)


def _index_makers(name: str, dim: int, seed: int, is_cosine: bool, options: dict
                  ) -> tuple[Callable, Callable, int | None]:
    """What builds an index and what restores one, and the lists it searches if it has any."""
    if name == 'forest':
        inspect.signature(ForestIndex).bind(None, seed=seed, is_cosine=is_cosine, **options)
        build = partial(ForestIndex, is_cosine=is_cosine, **options)
        return (lambda rows, seed: build(rows, seed=seed),
                lambda state, rows: build(rows, seed=state['seed']), None)
    spec = make_spec(name, dim, seed=seed, is_cosine=is_cosine, **options)
    return (lambda rows, seed: build_index(spec, rows, seed=seed),
            partial(restore_index, spec), spec.nprobe if spec.has_lists else None)


def without_index(state: dict) -> dict:
    """A selector's state for other ranges of rows: all but the index, which is built anew."""
    if 'upkeep' not in state:
        return state
    counters = {name: state['upkeep'][name] for name in ('built_step', 'num_renewals')}
    return state | dict(upkeep=counters | dict(index=None))
