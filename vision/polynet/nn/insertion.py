"""Initialisation by insertion: tensors of a trained trunk into a larger one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import MODULE_FORMS, STAGES
from vision.polynet.core.insertion import Insertion, is_projection_affine
from vision.polynet.nn.blocks import PolyInception
from vision.polynet.nn.trunk import PolyNetTrunk


@dataclass(frozen=True)
class Growth:
    """What became of each tensor of the target's trunk.

    Args:
        copied: target name -> source name.
        new: target names that keep the values they had.
        silenced: those of ``new`` that were set to 0 (identity start).
        rescaled: modules 'stage_b.3' -> factor that keeps their terms' weight in the sum.
    """

    copied: dict[str, str]
    new: tuple[str, ...]
    silenced: tuple[str, ...]
    rescaled: dict[str, float]


@torch.no_grad()
def grow(source: PolyNetTrunk, target: PolyNetTrunk, insertion: Insertion, *,
         is_identity: bool = False) -> Growth:
    """Copy what is trained from ``source`` into ``target``, in place.

    A module's evaluation factor (path scale times keep probability) may differ between the two,
    since it depends on the module's index; then the copied projection norm is multiplied by the
    quotient, so that the trained terms weigh what they did. In a chained module the next order's
    first norms have their running statistics changed with it, so that the chain gives what it did
    (exact at evaluation; while training the batch's own statistics do the same up to eps).

    Args:
        source: not changed; both must have their parameters on one device.
        target: its other tensors stay as they are, so initialise them first.
        is_identity: zero the projection norms of every new term. With ReLU the target then
            computes the source's function at evaluation. (Our addition; otherwise new terms
            speak from the start.)

    Raises:
        VisionError: VIS-CKPT-053, tensors without a partner or of another shape;
            VIS-CONFIG-054 and VIS-CONFIG-065, an identity start that is not possible.
    """
    old, new = source.state_dict(), target.state_dict()
    origins = {name: insertion.origin(name) for name in new}
    copied = {name: origin for name, origin in origins.items() if origin is not None}
    _require_partners(old, new, copied)
    added = tuple(name for name in new if name not in copied)
    silenced = tuple(filter(is_projection_affine, added)) if is_identity else ()
    factors = _factors(source, target, insertion)
    if is_identity:
        _require_identity(target, insertion)
    for name, origin in copied.items():
        new[name].copy_(old[origin])
    for name in silenced:
        new[name].zero_()
    for name, factor in factors.items():
        stage, index = name.split('.')
        origin = insertion.origins[STAGES.index(stage[-1])][int(index)]
        form = MODULE_FORMS[insertion.source.stages[STAGES.index(stage[-1])][origin]]
        _rescale(target.get_submodule(name), form.order, factor)
    return Growth(copied, added, silenced, factors)


def _require_partners(old: dict[str, Tensor], new: dict[str, Tensor],
                      copied: dict[str, str]) -> None:
    absent = [name for name, origin in copied.items() if origin not in old]
    unused = sorted(set(old) - set(copied.values()))
    shapes = [f'{name} {tuple(old[origin].shape)} instead of {tuple(new[name].shape)}'
              for name, origin in copied.items()
              if origin in old and old[origin].shape != new[name].shape]
    faults = [f'{len(names)} tensors {title} (first: {", ".join(names[:3])})' for title, names in (
        ('of the target have no source', absent), ('of the source have no target', unused),
        ('have another shape', shapes)) if names]
    if faults:
        raise VisionError('VIS-CKPT-053', 'the two networks do not fit together',
                          why='; '.join(faults), do='build both with the same in_channels, '
                          'share, norm_cfg and highest of out_indices')


def _require_identity(target: PolyNetTrunk, insertion: Insertion) -> None:
    has_new_module = any(None in origins for origins in insertion.origins)
    probe = torch.linspace(0, 3, 7)
    act = target.layers.act()
    if has_new_module and not torch.equal(act(probe.clone()), probe):
        raise VisionError('VIS-CONFIG-069', f'no identity start with {type(act).__name__}',
                          why='a silent new module still applies the activation once more, which '
                          'changes nothing only for activations that leave x >= 0 as it is',
                          do='use ReLU, or start without identity')


def evaluation_factor(module: PolyInception) -> float:
    """What a term is multiplied by at evaluation."""
    return module.scale * (1.0 if module.is_inverted else 1 - module.drop)


def _factors(source: PolyNetTrunk, target: PolyNetTrunk,
             insertion: Insertion) -> dict[str, float]:
    factors = {}
    for letter, origins in zip(STAGES, insertion.origins, strict=True):
        for index, origin in enumerate(origins):
            name = f'stage_{letter}.{index}'
            if origin is None or not hasattr(target, f'stage_{letter}'):
                continue
            before = evaluation_factor(source.get_submodule(f'stage_{letter}.{origin}'))
            after = evaluation_factor(target.get_submodule(name))
            if after <= 0 or before <= 0:
                raise VisionError('VIS-CONFIG-065', f'the terms of {name} have factor {after} in '
                                  f'the target and {before} in the source', where='path_scales, '
                                  'residual_scale', do='choose factors above 0')
            if before != after:
                factors[name] = before / after
    return factors


def _rescale(module: PolyInception, num_terms: int, factor: float) -> None:
    """Multiply the trained terms; keep what the chain passes on."""
    for term in range(num_terms):
        projection, firsts = _norms(module, term)
        for tensor in (projection.weight, projection.bias):
            tensor.mul_(factor)
        if not (module.is_chained and term > 0):
            continue
        # This term read act(factor * t) instead of act(t): without statistics (GroupNorm) the
        # norm removes the factor by itself.
        for norm in firsts:
            if getattr(norm, 'running_var', None) is not None:
                norm.running_mean.mul_(factor)
                norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps)


def _norms(module: PolyInception, term: int) -> tuple[nn.Module, list[nn.Module]]:
    """The projection's norm and the first norm of each path, of one term."""
    if not module.is_tied:
        block = module.blocks[term]
        return block.projection.norm, [path[0].norm for path in block.paths]
    block = module.block
    projection = block.projection.norms[term] if block.share == 'all' \
        else block.projections[term].norm
    return projection, [path[0].norms[term] for path in block.paths]
