"""What active_class.py measures on: rows, features, one step of a head, its gradient."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.head.selective import SelectiveLoss, selective_loss
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.select.selectors import Selection
from vision.faces.nn.store.class_store import build_store, class_rows

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
OPTIONS = dict(faiss=dict(factory='HNSW16,SQfp16', parameters='efSearch=128'))
FULL_STEPS = 4  # timed, after one that warms up


@dataclass
class Bench:
    """One number of classes: rows, what a step is made of, and the two rivals' times."""

    args: argparse.Namespace
    rows: Tensor
    seed: int = 0
    live: tuple[Tensor, Tensor] | None = None  # features and labels of a training
    matmul_dtype: torch.dtype | None = None  # of the head's products

    def __post_init__(self) -> None:
        self.num_classes, self.dim = self.rows.shape
        self.margin = build_margin(self.args.loss, scale=self.args.scale,
                                   margin=self.args.margin)
        self.device = self.rows.device
        self.store = build_store(
            self.num_classes, self.dim, seed=self.seed, device=self.device, is_filled=False,
            optimizer=dict(type='sgd', momentum=MOMENTUM, weight_decay=WEIGHT_DECAY))
        self.generator = torch.Generator(self.device).manual_seed(self.seed + 1)
        self.reset_rows(self.rows)

    def reset_rows(self, rows: Tensor) -> None:
        """Put these rows in the store, at rest: no momentum, nothing to catch up."""
        state = self.store.state_dict()
        for tensor in state['state'].values():
            tensor.zero_()
        self.store.load_ranges([state | dict(rows=rows, last=torch.full_like(
            state['last'], state['missed']['num_steps']))])

    def batch(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(features that need a gradient, labels): live ones, or made of these rows."""
        if self.live is not None:
            features, labels = self.live
            drawn = torch.randint(len(labels), (self.args.batch,), generator=self.generator,
                                  device=self.device)
            return features[drawn].clone().requires_grad_(), labels[drawn]
        rows = self.rows if rows is None else rows
        labels = torch.randint(self.num_classes, (self.args.batch,), generator=self.generator,
                               device=self.device)
        noise = torch.randn(len(labels), self.dim, generator=self.generator, device=self.device)
        features = functional.normalize(rows[labels]) + noise / self.dim**0.5
        return functional.normalize(features).requires_grad_(), labels

    def step(self, selector, number: int, features: Tensor, labels: Tensor) -> None:
        selection = selector.select(features.detach(), labels, number)
        weights = self.store.pull(selection.rows, is_checked=True)
        self.loss(features, weights, selection).loss.backward()
        self.store.push(selection.rows, weights.grad, lr=LR)
        selector.after_update(selection.rows, number)

    def loss(self, features: Tensor, weights: Tensor, selection: Selection) -> SelectiveLoss:
        is_weighed = self.args.correction == 'sampled'
        return selective_loss(
            features, weights, selection.columns, self.margin, correction=self.args.correction,
            expected_counts=selection.expected_counts if is_weighed else None,
            matmul_dtype=self.matmul_dtype)

    def selector(self, name: str, num_active: int, **options):
        if name not in ('full', 'random'):
            options |= dict(scale=self.args.scale, target=self.margin.target,
                            random_frac=self.args.random_frac)
        return build_selector(name, self.store, num_active=num_active, seed=self.seed,
                              **OPTIONS.get(name, {}) | options)

    def num_active(self, share: float | None = None) -> int:
        share = share or self.args.active[0 if self.num_classes < 300_000 else -1]
        return max(self.args.batch, round(share * self.num_classes))


def synthetic_rows(num: int, dim: int, seed: int, device: torch.device | str = 'cpu') -> Tensor:
    """(num, dim) unit rows: clusters of 40 around centres in groups of 25, in random order."""
    generator = torch.Generator(device).manual_seed(seed)

    def spread(count: int) -> Tensor:
        return torch.randn(count, dim, generator=generator, device=device) / dim**0.5
    groups = functional.normalize(spread(math.ceil(num / 1000)))
    centres = functional.normalize(groups.repeat_interleave(25, 0) + spread(25 * len(groups)))
    rows = centres.repeat_interleave(40, 0)[:num] + 0.8 * spread(num)
    return functional.normalize(rows)[torch.randperm(num, generator=generator, device=device)]


def read_rows(path: Path) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Unit rows, and live features (N, d) with labels (N,) where the file has them."""
    live = None
    if path.suffix == '.npy':
        rows = torch.from_numpy(np.load(path, allow_pickle=False))
    else:
        content = load_checkpoint(path)
        state = content['state_dict']
        rows = class_rows(content['active_class']['stores']) if 'active_class' in content \
            else next(iter(state.values()), None)
        if {'features', 'labels'} <= set(state):
            live = state['features'].float(), state['labels']
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise VisionError('VIS-INPUT-1052', f'{path} holds no matrix of class rows',
                          where=str(path), do='give a checkpoint of a run with '
                          'ActiveClassHead, or save one (classes, dim) array')
    return functional.normalize(rows.float()), live


def moved(rows: Tensor, cosine: float, generator: torch.Generator) -> Tensor:
    """Rows turned in random directions, to about this cosine with what they were."""
    noise = torch.randn(rows.shape, generator=generator, device=rows.device) / rows.shape[1]**0.5
    return functional.normalize(rows + math.sqrt(1 / cosine**2 - 1) * noise)


def dense_step_ms(bench: Bench) -> float:
    step = dense_step(bench)
    return median_ms([partial(step, *bench.batch()) for _ in range(FULL_STEPS + 1)])


def dense_step(bench: Bench) -> Callable[[Tensor, Tensor], None]:
    """Forward, backward and SGD of the whole matrix in plain PyTorch, ArcFace on the target."""
    weights, momentum = bench.rows.clone().requires_grad_(), torch.zeros_like(bench.rows)

    def step(features: Tensor, labels: Tensor) -> None:
        weights.grad = None
        cosine = features @ functional.normalize(weights).T
        place = torch.arange(len(labels), device=labels.device), labels
        target = bench.margin.target(cosine[place].clamp(-0.9999, 0.9999))
        logits = cosine.index_put(place, target) * bench.margin.scale
        functional.cross_entropy(logits, labels).backward()
        with torch.no_grad():
            momentum.mul_(MOMENTUM).add_(weights.grad.add_(weights, alpha=WEIGHT_DECAY))
            weights.sub_(momentum, alpha=LR)
    return step


def time_steps(bench: Bench, selector, repeats: int | None = None, first: int = 0) -> float:
    repeats = repeats or bench.args.steps
    work = [partial(bench.step, selector, first + number, *bench.batch())
            for number in range(repeats + 1)]
    return median_ms(work)


def median_ms(calls: list[Callable]) -> float:
    """Median of all calls but the first, which warms up."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return round(float(np.median(times[1:])), 3)


def fidelity(bench: Bench, selector, num_batches: int = 2) -> dict:
    """Gradient of the features over active rows against that over all, on the live rows."""
    everything = bench.selector('full', bench.num_classes)
    live = bench.store.pull(torch.arange(bench.num_classes, device=bench.device)).detach()
    cosines, errors, outside = [], [], []
    for number in range(num_batches):
        features, labels = bench.batch(live)
        full, log_all = gradient(bench, features, live, everything.select(features, labels, 0))
        chosen = selector.select(features.detach(), labels, number)
        part, log_active = gradient(bench, features, live[chosen.rows], chosen)
        cosines.append(float(functional.cosine_similarity(full.flatten(), part.flatten(), 0)))
        errors.append(float((part - full).norm() / full.norm()))
        outside.append(float(1 - (log_active - log_all).exp().mean()))  # weighed: near 0
    return dict(grad_cosine=round(float(np.mean(cosines)), 5),
                grad_rel_error=round(float(np.mean(errors)), 5),
                outside_mass=round(float(np.mean(outside)), 5))


def gradient(bench: Bench, features: Tensor, rows: Tensor, selection: Selection
             ) -> tuple[Tensor, Tensor]:
    features.grad = None
    result = bench.loss(features, rows, selection)
    result.loss.backward()
    return features.grad, result.log_normaliser
