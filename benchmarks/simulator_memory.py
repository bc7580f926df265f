"""Part 'memory' of simulator.py: predicted peaks beside those of torch's own memory trackers.

Each model trains two steps with AdamW, plain under MemTracker and sharded over eight ranks by
FSDP2 under FSDPMemTracker, with a process group that does nothing. Both count tensors, none
rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from vision.classify.nn.vit import ARCHS, VitTrunk
from vision.polynet.mm import PolyNet
from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.graph import Op
from vision.simulator.core.issue_order import peak_in_issue_order
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.nn.torch_private import fake_ranks, tracked_peak
from vision.simulator.nn.trace import trace

NUM_RANKS = 8


class Case(NamedTuple):
    """``units``: modules that are gathered one at a time."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: tuple[str, ...]


class Free:
    """Prices nothing: memory in the order of issue does not depend on time."""

    def compute(self, ops: Sequence[Op]) -> float:
        return 0.0

    def communicate(self, kind: str, num_bytes: float, ranks: Sequence[int]) -> float:
        return 0.0

    def copy(self, num_bytes: float) -> float:
        return 0.0


class Last(nn.Module):
    """The last level of a backbone, averaged, and a classifier."""

    def __init__(self, trunk: nn.Module, channels: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        y = y[-1] if isinstance(y, (tuple, list)) else y
        return self.head(y.mean((2, 3)) if y.dim() == 4 else y)


def mlp() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(*blocks, nn.Linear(256, 10))


def small_conv_net() -> nn.Module:
    def block(before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                             nn.BatchNorm2d(after), nn.ReLU(inplace=True))
    return nn.Sequential(block(3, 16, 1), block(16, 32, 2), block(32, 64, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def cases() -> list[Case]:
    polynet = PolyNet(arch='small', out_indices=(4,), padding_mode='same')
    stages = tuple(f'trunk.{name}' for name, _ in polynet.named_children())
    return [
        Case('mlp', mlp, (64, 256), ('0', '1', '2', '3')),
        Case('conv net with BatchNorm', small_conv_net, (16, 3, 32, 32), ('0', '1', '2')),
        Case('polynet-small', lambda: Last(PolyNet(arch='small', out_indices=(4,),
                                                   padding_mode='same'), 2048),
             (2, 3, 64, 64), stages),
        Case('vit-tiny', lambda: Last(VitTrunk(ARCHS['tiny'], img_size=64), 192),
             (4, 3, 64, 64), tuple(f'trunk.layers.{n}' for n in range(12))),
        Case('transformer encoder', encoder, (4, 32, 64),
             tuple(f'layers.{n}' for n in range(4)))]


def measured(case: Case, is_sharded: bool) -> dict[str, int]:
    """Peak by category, as torch tracks it."""
    torch.manual_seed(0)
    model, inputs = case.make(), torch.randn(case.shape)
    if is_sharded:
        for name in case.units:
            fully_shard(model.get_submodule(name))
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return tracked_peak(model, optimizer, inputs, step)


def predicted(case: Case, is_sharded: bool) -> tuple[int, dict[str, int]]:
    """(peak, by category); the model has no data."""
    with torch.device('meta'):
        model = case.make()
    graph = trace(model, torch.empty(case.shape, device='meta'), how='fake')
    tree = StrategyTree()
    if is_sharded:
        tree.split('', 'batch', NUM_RANKS).shard('', zero=3)
        for name in case.units:
            tree.shard(name, zero=3)
    return peak_in_issue_order(compile_strategy(graph, tree, Free(),
                                                Settings(optimizer_form='single')))


def compare(case: Case, is_sharded: bool) -> dict[str, Any]:
    total, parts = predicted(case, is_sharded)
    judge = measured(case, is_sharded)
    return dict(model=case.name, ranks=NUM_RANKS if is_sharded else 1,
                predicted_bytes=total, tracked_bytes=judge['Total'],
                error=round(total / judge['Total'] - 1, 6), predicted=parts,
                tracked={name: size for name, size in judge.items() if name != 'Total'})


def memory() -> list[dict[str, Any]]:
    """A row for each model, plain and sharded."""
    rows = []
    for case in cases():
        rows.append(compare(case, False))
        with fake_ranks(NUM_RANKS):
            rows.append(compare(case, True))
    return rows
