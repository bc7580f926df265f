"""Trained tensors into a trunk: other prefixes, fewer levels, other image channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_state
from vision.polynet.nn.cadene import convert, is_port_state
from vision.polynet.nn.trunk import PolyNetTrunk

FIRST_CONV = 'stem.entry.0.conv.weight'  # every PolyNet has it, under some prefix


def load_pretrained(trunk: PolyNetTrunk, state: Mapping[str, Tensor], *,
                    prefix: str | None = None, where: str = '') -> None:
    """Load a checkpoint's backbone; its classifier, necks and heads are left out.

    Args:
        state: of a classifier, a detector or a backbone of this repository, or the state_dict of
            the published port as it is.
        prefix: what stands before the backbone's names, e.g. 'backbone.'; found when None.
    Levels that the trunk does not have are left out. When the image has another number of
    channels, the first convolution is adapted (``adapt_first_conv``). Counters that old files
    lack (``num_batches_tracked``) stay as they are.

    Raises:
        VisionError: VIS-CKPT-056, VIS-CKPT-066 no (single) PolyNet under the prefix, VIS-CKPT-305
            the tensors of another architecture, VIS-CKPT-015 leftovers in the state of the port.
    """
    if is_port_state(state):
        state, prefix = convert(state), 'backbone.'
    start = trunk_prefix(state, where, prefix)
    found = {name.removeprefix(start): tensor for name, tensor in state.items()
             if name.startswith(start)}
    own = trunk.state_dict()
    parts = {part_of(name) for name in own}
    wanted = {name: tensor for name, tensor in found.items() if part_of(name) in parts}
    wanted |= {name: own[name] for name in own
               if name.endswith('num_batches_tracked') and name not in wanted}
    in_channels = own[FIRST_CONV].shape[1]
    wanted[FIRST_CONV] = adapt_first_conv(wanted[FIRST_CONV], in_channels)
    load_state(trunk, wanted, where=where)


def is_published(content: Mapping) -> bool:
    """Whether a checkpoint holds the published network: the port's file, or what
    `vision convert polynet` made of it."""
    return is_port_state(content['state_dict']) or \
        (content.get('meta') or {}).get('path_scales') == 'released'


def trunk_prefix(state: Mapping[str, Tensor], where: str = '', prefix: str | None = None) -> str:
    """What stands before the trunk's names in a checkpoint: 'backbone.trunk.', say.

    Raises:
        VisionError: VIS-CKPT-066 or VIS-CKPT-056, no PolyNet under the given prefix, or without
            one not exactly one in the checkpoint.
    """
    prefixes = [name.removesuffix(FIRST_CONV) for name in state if name.endswith(FIRST_CONV)]
    if prefix is not None:
        wanted = f'{prefix.rstrip(".")}.trunk.'.lstrip('.')
        if wanted not in prefixes:
            raise VisionError('VIS-CKPT-066', f'the checkpoint has no PolyNet under {prefix!r}',
                              where=where, why='PolyNets found under: '
                              + (', '.join(map(repr, prefixes)) or 'none'),
                              do='correct or leave out the prefix')
        return wanted
    if len(prefixes) != 1:
        raise VisionError('VIS-CKPT-056', f'the checkpoint holds {len(prefixes)} PolyNets',
                          where=where, why=f'found {len(prefixes)} tensors named ...{FIRST_CONV}',
                          do='give the checkpoint of one PolyNet, or the prefix of one of them')
    return prefixes[0]


def part_of(name: str) -> str:
    """The part of the trunk that is built as one: stem.mix2, stage_a, reduction_b."""
    first, second, *_ = name.split('.')
    return f'{first}.{second}' if first == 'stem' else first


def adapt_first_conv(weight: Tensor, in_channels: int) -> Tensor:
    """(K, C, h, w) -> (K, in_channels, h, w) with the same answer to an image whose channels are
    all equal (our choice).

    With more channels than trained ones these are repeated in turn, each divided by how often it
    comes; with fewer, each gets an equal part of their sum.
    """
    trained = weight.shape[1]
    if in_channels < trained:
        return weight.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels
    turn = torch.arange(in_channels) % trained
    return weight[:, turn] / torch.bincount(turn)[turn].to(weight)[None, :, None, None]
