"""Predicted peaks beside torch's own memory trackers, plain and sharded."""

import pytest
import torch
from scripts import load_script
from torch import nn
from torch.utils.checkpoint import checkpoint

from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.issue_order import peak_in_issue_order
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.nn.torch_private import fake_ranks
from vision.simulator.nn.trace import trace

tool = load_script('benchmarks/simulator_memory.py')
Case, compare, measured, mlp = tool.Case, tool.compare, tool.measured, tool.mlp

CASES = [Case('mlp', mlp, (64, 256), ('0', '1', '2', '3')),
         Case('many samples', mlp, (2048, 256), ('0', '2', '3')),
         Case('one unit', mlp, (32, 256), ()),
         Case('conv net', tool.small_conv_net, (8, 3, 32, 32), ('0', '1', '2')),
         Case('encoder', tool.encoder, (4, 32, 64), tuple(f'layers.{n}' for n in range(4)))]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_peak_of_a_sharded_step_is_the_trackers(case):
    with fake_ranks(8):
        row = compare(case, is_sharded=True)
    assert abs(row['error']) < 1e-3, row


@pytest.mark.parametrize('case', CASES[1:4], ids=lambda case: case.name)
def test_peak_of_a_plain_step_is_the_trackers(case):
    row = compare(case, is_sharded=False)
    assert abs(row['error']) < 1e-3, row


def test_the_judge_sees_what_differs():
    """A model of twice the width takes as much more as both say."""
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))

    rows = [compare(Case('', make, (64, 256), ()), is_sharded=False) for make in (mlp, wide)]
    assert rows[0]['tracked_bytes'] != rows[1]['tracked_bytes']
    assert all(abs(row['error']) < 1e-3 for row in rows)


class Checkpointed(nn.Module):
    """Five layers; ``again``: each makes its inside again for its backward."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Sequential(
            nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))
            for _ in range(5))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return self.head(x)


LAYERS = tuple(f'layers.{n}' for n in range(5))


def test_a_checkpointed_model_is_traced_as_it_is():
    case = Case('', lambda: Checkpointed(True), (512, 64), LAYERS)
    with fake_ranks(8):
        assert abs(compare(case, is_sharded=True)['error']) < 1e-3
    assert abs(compare(case, is_sharded=False)['error']) < 1e-3


def test_recompute_of_a_strategy_takes_what_torchs_checkpoint_takes():
    tree = StrategyTree().split('', 'batch', 8).shard('', zero=3)
    tree.shard('layers.*', zero=3).recompute('layers.*')
    graph = trace(Checkpointed(False), torch.empty(512, 64))
    program = compile_strategy(graph, tree, tool.Free(), Settings(optimizer_form='single'))
    with fake_ranks(8):
        judge = measured(Case('', lambda: Checkpointed(True), (512, 64), LAYERS), True)['Total']
        plain = measured(Case('', lambda: Checkpointed(False), (512, 64), LAYERS), True)['Total']
    assert peak_in_issue_order(program)[0] == pytest.approx(judge, rel=0.01)
    assert judge < 0.5 * plain
