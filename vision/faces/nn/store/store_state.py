"""States of class stores: ranges saved by any number of ranks, cut anew for any other number."""

from __future__ import annotations

from torch import Tensor

from vision.common.core.errors import VisionError


def fault_of(sources: list[dict], target: dict) -> VisionError | None:
    """The error, not raised, of states saved by ranks that do not give what ``target`` covers.

    Returns:
        VisionError: VIS-CKPT-1023; None where they do.
    """
    if fault := _fault(sorted(sources, key=lambda state: state['row_start']), target):
        return VisionError('VIS-CKPT-1023', f'saved class rows do not fit: {fault}',
                           where='active_class', why='rows, optimizer state and steps must belong '
                           'together', do='give the states of all ranks of one checkpoint, of the '
                           'same classes and the same kind of optimizer')
    return None


def copy_ranges(sources: list[dict], target: dict) -> None:
    """Copy what ``target`` (a store's state, tensors in place) covers out of states that fit."""
    for source in sources:
        start = max(source['row_start'], target['row_start'])
        end = min(source['row_end'], target['row_end'])
        if start >= end:
            continue
        there = slice(start - target['row_start'], end - target['row_start'])
        here = slice(start - source['row_start'], end - source['row_start'])
        for name, tensor in _by_row(target).items():
            tensor[there].copy_(_by_row(source)[name][here])  # no second copy on the device


def is_alike(source: dict, target: dict) -> bool:
    """Do both have the same rows, in tensors of the same form?"""
    return source['row_start'] == target['row_start'] and all(
        (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())
        for a, b in ((_by_row(source)[name], tensor) for name, tensor in _by_row(target).items()))


def _by_row(state: dict) -> dict[str, Tensor]:
    return dict(state['state'], rows=state['rows'], last=state['last'])


def _fault(sources: list[dict], target: dict) -> str:
    if not sources:
        return 'there are none'
    covered = 0
    for source in sources:
        for name in ('num_classes', 'dim'):
            if source[name] != target[name]:
                return f'{name} is {source[name]}, here it is {target[name]}'
        ours, theirs = target['optimizer']['type'], source['optimizer']['type']
        if ours != theirs or set(_by_row(source)) != set(_by_row(target)):
            return f'optimizer {theirs} with state {sorted(source["state"])}, here ' \
                   f'{ours} with {sorted(target["state"])}'
        if source['row_start'] != covered:
            return f'rows {covered} to {source["row_start"]} are there ' + \
                   ('twice' if source['row_start'] < covered else 'in none of them')
        covered = source['row_end']
        if source['missed']['num_steps'] != sources[0]['missed']['num_steps']:
            return 'ranks were saved at different steps'
    if covered != target['num_classes']:
        return f'rows {covered} to {target["num_classes"]} are in none of them'
    return ''
