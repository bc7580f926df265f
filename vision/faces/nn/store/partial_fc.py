"""Class rows out of the files that runs of InsightFace's Partial FC leave, one for each rank.

Three generations of its PyTorch code are read, whatever number of processes wrote them:
``checkpoint_gpu_R.pt`` (weights, optimizer, backbone), ``softmax_fc_gpu_R.pt`` (weights) and
``rank_R_softmax_weight.pt`` with ``rank_R_softmax_weight_mom.pt`` (weights, momentum). Its ranks
hold the same contiguous ranges of classes as ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.core.plain_pickle import BrokenPickle, NotPlain
from vision.common.nn.torch_files import read_torch_file
from vision.faces.nn.store.lazy_optim import MissedSteps, build_optimizer
from vision.faces.nn.store.ranks import row_range

PATTERNS = (r'checkpoint_gpu_(\d+)\.pt', r'softmax_fc_gpu_(\d+)\.pt',
            r'rank_(\d+)_softmax_weight\.pt')


def read_partial_fc(folder: Path) -> tuple[list[dict], dict[str, Tensor]]:
    """States for ``ClassStore.load_ranges``, and the backbone's tensors ({} if not there).

    SGD's momentum and AdamW's moments come along where the files have them; a momentum that is
    nowhere is zero, as in a new run. Dense optimizers leave no row behind, so none has steps to
    make up.

    Raises:
        VisionError: VIS-CKPT-1025, files missing, damaged, or not of one run.
    """
    parts = [_part(content, path) for path, content in _contents(Path(folder))]
    num_classes = sum(len(weight) for weight, _, _ in parts)
    if not num_classes:
        raise _fault(folder, 'its files hold no rows')
    states = []
    for rank, (weight, state, optimizer) in enumerate(parts):
        start, end = row_range(num_classes, rank, len(parts))
        if len(weight) != end - start or weight.shape[1] != parts[0][0].shape[1] or \
                optimizer != parts[0][2]:
            raise _fault(folder, f'rank {rank} has {tuple(weight.shape)} rows, {end - start} of '
                         f'length {parts[0][0].shape[1]} belong there, as in rank 0')
        states.append(dict(
            num_classes=num_classes, dim=weight.shape[1], row_start=start, row_end=end,
            rows=weight, last=torch.zeros(len(weight), dtype=torch.int32), state=state,
            missed=MissedSteps(build_optimizer(**optimizer).order).state_dict(),
            optimizer=optimizer))
    return states, _backbone(Path(folder))


def _contents(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """What each rank left with its file, by rank."""
    for pattern in PATTERNS:
        found = {int(match[1]): path for path in folder.glob('*.pt')
                 if (match := re.fullmatch(pattern, path.name))}
        if not found:
            continue
        missing = next(rank for rank in range(len(found) + 1) if rank not in found)
        if missing < len(found):
            raise _fault(folder, f'{len(found)} of {max(found) + 1} ranks are there, rank '
                         f'{missing} is not')
        return [(found[rank], _content(found[rank])) for rank in sorted(found)]
    raise _fault(folder, 'it has none of ' + ', '.join(
        pattern.replace(r'(\d+)', 'R').replace('\\', '') for pattern in PATTERNS))


def _content(path: Path) -> dict[str, Any]:
    content = _load(path)
    if isinstance(content, Tensor):
        momentum = path.with_name(path.name.replace('weight', 'weight_mom'))
        return dict(weight=content, weight_mom=_load(momentum)) if momentum.is_file() else \
            dict(weight=content)
    if 'state_dict_softmax_fc' in content:
        rows = content['state_dict_softmax_fc']
        content = dict(rows if isinstance(rows, dict) else {},
                       optimizer=content.get('state_optimizer'))
    if not isinstance(content.get('weight'), Tensor):
        raise _fault(path, 'it has no weight')
    return content


def _part(content: dict[str, Any], path: Path
          ) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """Rows of one rank, optimizer state by row, optimizer options."""
    if content['weight'].ndim != 2 or not content['weight'].is_floating_point():
        raise _fault(path, f'its weight is {tuple(content["weight"].shape)} of '
                     f'{content["weight"].dtype}')
    try:
        weight, state, optimizer = _taken(content)
        betas = optimizer.get('betas', [0, 0])
        options = [value for name, value in optimizer.items() if name not in ('type', 'betas')]
        if len(betas) != 2 or not all(type(value) in (int, float) for value in options + betas):
            raise TypeError(f'an optimizer with {optimizer!r:.80}')
        strange = [name for name, tensor in state.items() if name != 'count'
                   and (tensor.shape != weight.shape or not tensor.is_floating_point())]
        if strange:
            raise TypeError(f'{strange[0]} is not like the rows')
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError,
            OverflowError) as error:
        raise _fault(path, f'its optimizer cannot be used ({type(error).__name__}: {error})'
                     ) from error
    return weight, state, optimizer


def _taken(content: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    weight = content['weight'].float()
    saved = content.get('optimizer')
    if saved is None:
        momentum = content.get('weight_mom')
        momentum = torch.zeros_like(weight) if momentum is None else momentum.float()
        return weight, dict(momentum=momentum), dict(type='sgd', momentum=0.9)
    group = saved['param_groups'][-1]  # their code puts the class rows last
    state = saved['state'].get(group['params'][-1], {})
    if 'betas' in group:
        zeros = torch.zeros_like(weight)
        count = torch.full((len(weight), 1), int(state.get('step', 0)), dtype=torch.int32)
        return weight, dict(exp_avg=state.get('exp_avg', zeros),
                            exp_avg_sq=state.get('exp_avg_sq', zeros), count=count), dict(
            type='adamw', betas=list(group['betas']), eps=group['eps'],
            weight_decay=group['weight_decay'])
    momentum = state.get('momentum_buffer')
    return weight, dict(momentum=torch.zeros_like(weight) if momentum is None else momentum), \
        dict(type='sgd', momentum=group['momentum'], weight_decay=group['weight_decay'])


def _backbone(folder: Path) -> dict[str, Tensor]:
    path, alone = folder / 'checkpoint_gpu_0.pt', folder / 'model.pt'
    if path.is_file():
        content = _load(path)
        state = {} if isinstance(content, Tensor) else content.get('state_dict_backbone', {})
    else:
        path, state = alone, _load(alone) if alone.is_file() else {}
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor)
                                              for name, tensor in state.items()):
        raise _fault(path, 'its backbone is no dict of tensors')
    return {name.removeprefix('module.'): tensor for name, tensor in state.items()}


def _load(path: Path) -> Any:
    try:
        content = read_torch_file(path)
    except (NotPlain, BrokenPickle, OSError) as fault:
        raise _fault(path, str(fault).strip().split('\n')[0]) from fault
    if not isinstance(content, Tensor | dict):
        raise _fault(path, f'it holds a {type(content).__name__}')
    return content


def _fault(where: Path, what: str) -> VisionError:
    return VisionError('VIS-CKPT-1025', f'files of Partial FC cannot be used: {what}',
                       where=str(where), why='the rows of all ranks of one run are needed',
                       do='give the output folder of a finished run of arcface_torch')
