"""The trainings of active_class_experiment.py: glyphs, one plain loop over the room's own parts.

Everything that a run depends on stands in ``Settings`` and ``ARMS``. Batches, shifts and first
weights depend on the seed and the step alone, so that all arms of a seed see the same ones.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
from vision.faces.core.data.glyphs import PreparedGlyphs
from vision.faces.core.evaluate.identification import rank_exactly
from vision.faces.nn.backbones.embedder import embed
from vision.faces.nn.backbones.lean import lean_trunk
from vision.faces.nn.head.margins import CosFace, Margin, Softmax
from vision.faces.nn.head.selective import selective_loss
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.class_store import build_store

SIZE = 32  # px
OBJECTIVES: dict[str, Callable[[], Margin]] = {
    'cosface': lambda: CosFace(scale=32.0, margin=0.2), 'softmax-16': lambda: Softmax(scale=16.0)}
CHUNK = 256  # samples scored at a time


@dataclass(frozen=True)
class Settings:
    """Of every run; those of the backbone and its optimizer were chosen with ``full`` on seed 100.

    Attributes:
        dim: of embeddings and rows.
        width: channels of the backbone's first map.
        trunk_steps, steps: common to all arms, and of each arm after them.
        row_lr: of the class rows (SGD, momentum 0.9), lr: of the backbone (AdamW); both fall by
            a cosine over ``steps``.
        shift_px: largest move of a training picture, each way. With 1 the full arm of the pilot
            ended at a training loss of 0.75, and below 0.5 was asked for.
        num_scored: fixed training and held-out samples of the full loss.
    """

    num_classes: int = 20_000
    dim: int = 64
    width: int = 24
    batch: int = 64
    trunk_steps: int = 2000
    steps: int = 12_000
    warmup: int = 200
    lr: float = 2e-3
    row_lr: float = 2e-3
    weight_decay: float = 0.01
    shift_px: int = 0
    num_scored: int = 4096


@dataclass(frozen=True)
class Arm:
    """Which classes are active.

    Attributes:
        selector: of ``build_selector``.
        share: active classes over all, own ones included; 0: own ones only.
        is_weighed: random rows stand for those that were not drawn (correction='sampled').
        options: of the selector.
    """

    selector: str
    share: float = 1.0
    is_weighed: bool = False
    options: tuple[tuple[str, Any], ...] = ()


# Selected arms as the paper has them and the head's defaults are: a truncation, not weighed, with
# a tenth of the places drawn at random. Renewals every 100 steps are those of the paper's release.
_UPKEEP = ('upkeep', dict(interval=100, swap_lag=0))
ARMS = {
    'full': Arm('full'),
    'positives': Arm('random', 0.0),
    'random-1': Arm('random', 0.01, is_weighed=True),
    'random-10': Arm('random', 0.1, is_weighed=True),
    'oracle-1': Arm('oracle', 0.01),
    'ivf-1': Arm('ivf', 0.01, options=(('nprobe', 64), _UPKEEP)),
    # Grown anew each time, 50 trees of the release: a fifth of the renewals, or it would be all
    # that the run does.
    'forest-1': Arm('forest', 0.01, options=(
        ('num_trees', 50), ('upkeep', dict(interval=500, swap_lag=0))))}
TRUNK = ARMS['random-10']


class Glyphs:
    """Prepared pictures, uint8, read where they lie.

    Attributes:
        train, val: (N, 2) int64, place of the picture and label.
        is_gallery: (N_val,) bool, the first held-out style, all characters.
    """

    def __init__(self, folder: Path) -> None:
        prepared = PreparedGlyphs(folder)
        self.images, self.num_classes = prepared.images, prepared.num_classes
        self.train, self.val = (self._places(prepared, prepared.samples(split))
                                for split in ('train', 'val'))
        self.is_gallery = prepared.samples('val')[:, 1] == prepared.num_train_styles

    @staticmethod
    def _places(prepared: PreparedGlyphs, samples: np.ndarray) -> np.ndarray:
        return np.stack([prepared.place[samples[:, 0], samples[:, 1]], samples[:, 0]], axis=1)

    def batch(self, seed: int, step: int, settings: Settings) -> tuple[Tensor, Tensor]:
        """Pictures (B, 1, 32, 32), moved, and labels (B,) of one training step."""
        per_epoch = len(self.train) // settings.batch
        epoch, place = divmod(step, per_epoch)
        order = order_of(seed, epoch, len(self.train))
        rows = self.train[order[place * settings.batch:(place + 1) * settings.batch]]
        shifts = np.random.default_rng((seed, 2, step)).integers(
            0, 2 * settings.shift_px + 1, (2, len(rows)))
        return self.pictures(rows[:, 0], settings.shift_px, shifts), torch.from_numpy(rows[:, 1])

    def pictures(self, places: np.ndarray, margin_px: int = 0,
                 shifts: np.ndarray | None = None) -> Tensor:
        """(B, 1, 32, 32) float32 in -1..1; ``shifts`` (2, B) from 0 to 2 ``margin_px``."""
        images = self.images[places]
        if margin_px:
            padded = np.pad(images, ((0, 0), (margin_px, margin_px), (margin_px, margin_px)))
            side = np.arange(SIZE)
            y, x = shifts[:, :, None] + side
            images = padded[np.arange(len(places))[:, None, None], y[:, :, None], x[:, None]]
        pictures = torch.from_numpy(images)[:, None].float().sub_(127.5).div_(127.5)
        return pictures.contiguous(memory_format=torch.channels_last)


@lru_cache(1)
def order_of(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.random.default_rng((seed, 1, epoch)).permutation(num)


class Run:
    """Backbone, rows and optimizers of one training.

    Attributes:
        step: steps made, those of the trunk included.
    """

    def __init__(self, settings: Settings, seed: int, margin: Margin) -> None:
        torch.manual_seed(seed)
        self.settings, self.seed, self.margin, self.step = settings, seed, margin, 0
        self.network = lean_trunk(settings.width, settings.dim).to(
            memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.lr,
                                           weight_decay=settings.weight_decay, fused=True)
        self.store = build_store(settings.num_classes, settings.dim, seed=seed,
                                 optimizer=dict(type='sgd', momentum=0.9))

    def selector(self, arm: Arm):
        num_active = max(1, round(arm.share * self.settings.num_classes))
        return build_selector(arm.selector, self.store, num_active=num_active, seed=self.seed,
                              scale=self.margin.scale, target=self.margin.target,
                              **dict(arm.options))

    def train(self, arm: Arm, glyphs: Glyphs, num_steps: int,
              report: Callable[[int, float], None]) -> float:
        """CPU seconds of ``num_steps`` more steps; each step's loss goes to ``report``."""
        selector, start = self.selector(arm), time.process_time()
        self.network.train()
        for _ in range(num_steps):
            loss = self.train_step(selector, arm, *glyphs.batch(self.seed, self.step,
                                                                self.settings))
            self.step += 1
            report(self.step, loss)
        return time.process_time() - start

    def train_step(self, selector, arm: Arm, pictures: Tensor, labels: Tensor) -> float:
        features = self.network(pictures)
        factor = self.rate()
        self.optimizer.zero_grad()
        loss = self.head_step(selector, arm, features, labels, factor)
        for group in self.optimizer.param_groups:
            group['lr'] = factor * self.settings.lr
        self.optimizer.step()
        return loss

    def head_step(self, selector, arm: Arm, features: Tensor, labels: Tensor,
                  factor: float) -> float:
        """All that an arm does beyond the backbone: choose, loss, gradients, rows, upkeep."""
        chosen = selector.select(features.detach(), labels, self.step)
        rows = self.store.pull(chosen.rows)
        result = selective_loss(
            features, rows, chosen.columns, self.margin,
            correction='sampled' if arm.is_weighed else 'none',
            expected_counts=chosen.expected_counts if arm.is_weighed else None)
        result.loss.backward()
        self.store.push(chosen.rows, rows.grad, lr=factor * self.settings.row_lr)
        selector.after_update(chosen.rows, self.step)
        return float(result.loss.detach())

    def rate(self) -> float:
        """Of the learning rates: up, level to the end of the trunk, then down by a cosine."""
        settings = self.settings
        after = max(0, self.step - settings.trunk_steps) / settings.steps
        return min(1.0, (self.step + 1) / settings.warmup) * (1 + math.cos(math.pi * after)) / 2

    def save(self, path: Path) -> None:
        save_checkpoint(dict(settings=asdict(self.settings), step=self.step,
                             state_dict=self.network.state_dict(), store=self.store.state_dict(),
                             optimizer=self.optimizer.state_dict()), path)

    def load(self, path: Path) -> bool:
        """Go on from a trunk of the same settings; False: there is none."""
        if not path.exists():
            return False
        content = load_checkpoint(path)
        if content['settings'] != asdict(self.settings):
            return False
        self.step = content['step']
        self.network.load_state_dict(content['state_dict'])
        self.store.load_state_dict(content['store'])
        self.optimizer.load_state_dict(content['optimizer'])
        return True

    def digest(self) -> str:
        """Of all weights and rows."""
        found = hashlib.sha256()
        for tensor in (*self.network.state_dict().values(), self.store.snapshot(torch.float32)):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def measure(run: Run, glyphs: Glyphs) -> dict[str, Any]:
    """Rank-1 of the held-out pictures and the full loss on fixed samples.

    Gallery: the first held-out style, all characters, also the 2,000 without training pictures.
    Probes: every picture of the other held-out styles. ``hits`` (characters,) counts those found.
    """
    embeddings, labels = embed_all(run, glyphs, glyphs.val[:, 0]), glyphs.val[:, 1]
    gallery = glyphs.is_gallery
    ranking = rank_exactly(embeddings[gallery], labels[gallery], embeddings[~gallery],
                           labels[~gallery])
    is_hit, probes = ranking.rank == 1, labels[~gallery]
    is_unseen = probes >= glyphs.num_classes
    return dict(rank1=float(is_hit.mean()), rank1_unseen=float(is_hit[is_unseen].mean()),
                hits=np.bincount(probes[is_hit], minlength=labels.max() + 1)) | full_losses(
                    run, glyphs)


def full_losses(run: Run, glyphs: Glyphs) -> dict[str, float]:
    """Softmax loss over all classes with the margin, of fixed samples, pictures not moved.

    The same samples for every arm and seed; held-out ones are of trained classes.
    """
    rng, rows = np.random.default_rng(7), run.store.snapshot(torch.float32)
    found = {}
    for name, samples in (('loss_train', glyphs.train),
                          ('loss_held_out', glyphs.val[glyphs.val[:, 1] < glyphs.num_classes])):
        picked = samples[np.sort(rng.permutation(len(samples))[:run.settings.num_scored])]
        features = torch.from_numpy(embed_all(run, glyphs, picked[:, 0]))
        parts = zip(features.split(CHUNK), torch.from_numpy(picked[:, 1]).split(CHUNK),
                    strict=True)
        losses = [len(x) * float(selective_loss(x, rows, y, run.margin).loss) for x, y in parts]
        found[name] = sum(losses) / len(picked)
    return found


@torch.no_grad()
def embed_all(run: Run, glyphs: Glyphs, places: np.ndarray) -> np.ndarray:
    """(N, d) unit embeddings in evaluation mode."""
    with evaluating(run.network) as network:
        parts = [embed(network, glyphs.pictures(part))
                 for part in np.array_split(places, max(1, len(places) // CHUNK))]
    return torch.cat(parts).numpy()


@contextmanager
def evaluating(network: nn.Module):
    network.eval()
    yield network
    network.train()


def trace(arm: Arm, objective: str, num_steps: int = 12) -> list[float]:
    """Losses of a small fixed training: equal ones mean that the code does the same.

    1,500 classes of random pictures. What a run computes depends on code in many files; this says
    whether any of it changed in a way that counts, and lets all other changes pass.
    """
    settings = replace(Settings(), num_classes=1500, batch=16, trunk_steps=4, steps=num_steps,
                       warmup=2, num_scored=64)
    glyphs = Glyphs.__new__(Glyphs)
    rng = np.random.default_rng(3)
    glyphs.images = rng.integers(0, 256, (3000, SIZE, SIZE), dtype=np.uint8)
    glyphs.train = np.stack([np.arange(3000), np.arange(3000) % 1500], axis=1)
    small, losses = replace(arm, share=arm.share and max(arm.share, 0.03)), []
    Run(settings, 5, OBJECTIVES[objective]()).train(
        small, glyphs, num_steps, lambda _, loss: losses.append(round(loss, 4)))
    return losses
