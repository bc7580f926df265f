"""How fast a config runs: the network on batches that are there, and the loading of batches."""

from __future__ import annotations

import copy
import itertools
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from vision.common.core.errors import VisionError
from vision.common.core.references import find_file
from vision.common.mm.exact_data import build_dataloader
from vision.common.mm.tasks import task_of
from vision.common.nn.checkpoint import load_checkpoint, load_model
from vision.common.nn.devices import find_device
from vision.registry import MODELS

# mmcv folds norms into convolutions by their order in a module; more than this is another network.
FUSED_TOLERANCE = 1e-3
# A lattice has nothing to follow in noise; a face recognizer has a size of its own.
NOISE_TASKS = ('detect', 'classify')


def network_speed(config: Config, model: torch.nn.Module, *, batch_size: int = 1,
                  num_warmup: int = 5, max_iter: int = 100,
                  shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """Time ``test_step`` of a model on the batches of ``test_dataloader``, which are loaded
    outside of the measured time and begin anew at their end.

    Args:
        num_warmup: steps before those that count.
        shape: (height, width): batches of noise in place of the data set's.

    Returns:
        what ``speed`` gives, with batch_size and peak_bytes: of the device's memory, or on a CPU
        of the process.
    """
    device = next(model.parameters(), torch.zeros(0)).device
    is_cuda = device.type == 'cuda'
    batches = _noise(config, batch_size, *shape) if shape else _batches(
        dict(config.test_dataloader), batch_size)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        found = speed(model.test_step, batches, num_warmup=num_warmup, max_iter=max_iter,
                      sync=partial(torch.cuda.synchronize, device) if is_cuda else lambda: None)
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(batch_size=batch_size, **found, peak_bytes=int(peak), device=str(device))


def loader_speed(config: Config, phase: str = 'train', *, batch_size: int | None = None,
                 num_warmup: int = 5, max_iter: int = 100) -> dict[str, Any]:
    """Time the data loader of a phase as the config has it, workers included.

    Returns:
        what ``speed`` gives, with batch_size and num_workers.
    """
    # A set smaller than a batch would give none.
    loader = dict(config[f'{phase}_dataloader'], drop_last=False)
    if batch_size:
        loader['batch_size'] = batch_size
    built = build_dataloader(loader)
    batches = itertools.chain.from_iterable(itertools.repeat(built))
    rows = iter(batches)
    found = speed(lambda number: next(rows), itertools.count(), num_warmup=num_warmup,
                  max_iter=max_iter)
    return dict(batch_size=built.batch_size or loader.get('batch_size'),
                num_workers=loader.get('num_workers', 0), **found)


def speed(step: Callable[[Any], Any], batches: Iterator, *, num_warmup: int, max_iter: int,
          sync: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Time a step. Of a step that gives a batch (a dict with ``inputs``) its samples count, else
    those of the batch that it takes.

    Returns:
        num_iters, images_per_s, and of a step mean_ms, p10_ms, p50_ms, p90_ms, p99_ms.
    """
    times_s, num_images = [], 0
    for number, batch in zip(range(num_warmup + max_iter), batches, strict=False):
        sync()
        start = time.perf_counter()
        given = step(batch)
        sync()
        elapsed = time.perf_counter() - start
        if number >= num_warmup:
            times_s.append(elapsed)
            num_images += num_samples(given if isinstance(given, dict) else batch)
    times_ms = 1e3 * np.array(times_s)
    p10, p50, p90, p99 = np.percentile(times_ms, [10, 50, 90, 99])
    return dict(num_iters=len(times_s), images_per_s=num_images / float(np.sum(times_s)),
                mean_ms=float(times_ms.mean()), p10_ms=float(p10), p50_ms=float(p50),
                p90_ms=float(p90), p99_ms=float(p99))


def num_samples(batch: dict) -> int:
    """Of a batch; several crops of one image are one sample."""
    samples = batch.get('data_samples')
    if samples is not None:
        return len(samples)
    inputs = batch['inputs']
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def build_model(config: Config, weights: str | None = None, *,
                device: str = 'cpu') -> torch.nn.Module:
    """The model of a config for inference.

    Args:
        weights: None leaves the values that the model is built with.

    Raises:
        VisionError: VIS-ENV-515 no such device, and what loading raises.
    """
    device = find_device(device)
    init_default_scope(config.get('default_scope') or 'vision')
    model = MODELS.build(config.model)
    if weights:
        path = find_file(weights)
        load_model(model, load_checkpoint(path), where=str(path))
    return model.to(device).eval()


def fused(config: Config, model: torch.nn.Module,
          shape: tuple[int, int] | None = None) -> torch.nn.Module:
    """A copy with batch norms folded into the convolutions before them, by mmcv, which goes by
    the order of modules: the maps of a batch must stay what they were.

    Args:
        shape: (height, width) of a batch of noise in place of one of the data set's.

    Raises:
        VisionError: VIS-CONFIG-1787, they are others.
    """
    from mmcv.cnn.utils import fuse_conv_bn
    batch = next(_noise(config, 1, *shape) if shape else
                 _batches(dict(config.test_dataloader), 1))
    try:
        result = fuse_conv_bn(copy.deepcopy(model))
        with torch.no_grad():
            maps = [_flat(one.extract_feat(one.data_preprocessor(batch, False)['inputs']))
                    for one in (model, result)]
        worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
                    for a, b in zip(*maps, strict=True))
        fault = '' if worst <= FUSED_TOLERANCE else \
            f'its maps differ by {worst:.2g} of the largest value'
    except RuntimeError as error:  # a norm of another width
        fault = str(error).splitlines()[0]
    if fault:
        raise VisionError('VIS-CONFIG-1787', 'fused batch norms make another network of this one',
                          where='--fuse-conv-bn', why=f'{fault}: a convolution is used twice, or '
                          'not followed by its norm', do='measure it without --fuse-conv-bn')
    return result


def _flat(maps: Any) -> list[torch.Tensor]:
    return [maps] if isinstance(maps, torch.Tensor) else [one for part in maps
                                                           for one in _flat(part)]


def _batches(loader: dict, batch_size: int) -> Iterator[dict]:
    loader = dict(loader, batch_size=batch_size, num_workers=0, persistent_workers=False,
                  drop_last=False)
    loader.pop('prefetch_factor', None)  # is of worker processes
    built = build_dataloader(loader)
    return itertools.chain.from_iterable(itertools.repeat(built))


def _noise(config: Config, batch_size: int, height: int, width: int) -> Iterator[dict]:
    """One batch of noise, again and again."""
    task = task_of(config)
    assert task in NOISE_TASKS, task
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
              for _ in range(batch_size)]
    size = dict(ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0),
                batch_input_shape=(height, width), pad_shape=(height, width), img_id=0)
    if task == 'classify':
        from mmengine.structures import BaseDataElement as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    while True:
        yield dict(inputs=list(inputs),
                   data_samples=[Sample(metainfo=dict(size)) for _ in range(batch_size)])
