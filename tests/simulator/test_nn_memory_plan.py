"""Budgets of activations in traced graphs: what the planner of vision.memory decides on counted
times, beside its own exact simulation, and beside its manager in a step that runs."""

import pytest
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.memory.core.plan import Link
from vision.memory.nn.manager import MemoryBudget
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.engine import run
from vision.simulator.core.graph import AGAIN, FORWARD
from vision.simulator.core.memory_plan import MemoryOptions, memory_step, with_memory_plan
from vision.simulator.core.priced import ClusterPricing
from vision.simulator.core.pricing import Prices
from vision.simulator.core.rewrite import D2H_OP, H2D_OP
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.nn.trace import trace


class Residual(nn.Module):
    """In-place operators, a branch, several layers of one size."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)
        self.convs = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1, bias=False)
                                    for _ in range(6)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(6)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x))) + x
        return self.head(x.mean((2, 3))).square().mean()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x):
        return self.inner(x).square().mean()


NETS = {Residual: (8, 3, 32, 32), Attention: (8, 96, 32)}
LINK = Link(2e9, 2e9, overlaps=True)


def seconds_of(op):
    """A device of 1e12 FLOP/s and 1e11 bytes/s."""
    return max(op.flops / 1e12, op.bytes_moved / 1e11) + 1e-7


@pytest.fixture(scope='module', params=NETS)
def net(request):
    torch.manual_seed(0)
    return request.param(), torch.randn(NETS[request.param])


@pytest.fixture(scope='module')
def graph(net):
    return trace(*net, how='fake')


def walked_peak(graph):
    """Highest moment of the operators one after the other; each finds what it reads, and nothing
    is freed twice."""
    there, live, peak = set(), 0, 0
    for op in graph.ops:
        assert not there.intersection(op.begins), op
        there.update(op.begins)
        live += sum(graph.tensors[key].num_bytes for key in op.begins)
        assert there.issuperset(op.reads), (op.name, op.module)
        peak = max(peak, live)
        assert there.issuperset(op.ends), op
        there.difference_update(op.ends)
        live -= sum(graph.tensors[key].num_bytes for key in op.ends)
    return peak


def test_a_step_is_seen_as_the_manager_records_it(net, graph):
    model, x = net
    seen, _ = memory_step(graph, seconds_of, min_bytes=1024)
    manager = MemoryBudget(ratio=0.5, min_bytes=1024, log=lambda line: None)
    for _ in range(2):
        with manager:
            model(x).backward()
        model.zero_grad()
    recorded = manager.trace()
    manager.close()
    assert seen.peak_bytes == pytest.approx(recorded.peak_bytes, rel=0.02)

    def saved(trace):
        return sum(value.num_bytes for value in trace.values if value.may_drop)
    assert saved(seen) == pytest.approx(saved(recorded), rel=0.03)


@pytest.mark.parametrize('actions', ['recompute', 'swap', 'both'])
@pytest.mark.parametrize('ratio', [0.8, 0.6, 0.4])
def test_a_planned_graph_holds_what_the_plan_says(graph, ratio, actions):
    options = MemoryOptions(ratio, actions=actions, min_bytes=1024)
    planned, plan = with_memory_plan(graph, options, seconds_of, LINK)
    before, after = walked_peak(graph), walked_peak(planned)
    assert plan.actions and after < before
    # A copy of the device frees memory when it ends, a walk in order as soon as it began.
    assert after == plan.peak_bytes if 'swap' not in plan.actions.values() else \
        after <= plan.peak_bytes
    again = [op for op in planned.ops if op.name.endswith(AGAIN)]
    assert sum(map(seconds_of, again)) == pytest.approx(plan.replay_seconds)
    kinds = {op.name for op in planned.ops}
    assert (D2H_OP in kinds) == (H2D_OP in kinds) == ('swap' in plan.actions.values())


def test_the_work_of_the_step_stays_what_it_was(graph):
    planned, _ = with_memory_plan(graph, MemoryOptions(0.5, min_bytes=1024), seconds_of, LINK)
    names = [op.name for op in planned.ops
             if not op.name.endswith(AGAIN) and op.name not in (D2H_OP, H2D_OP)]
    assert names == [op.name for op in graph.ops]
    assert [op.completes for op in planned.ops if op.completes] == [
        op.completes for op in graph.ops if op.completes]


def test_what_is_copied_back_is_there_before_it_is_read(graph, repository):
    cluster = read_cluster(repository / 'configs/clusters/a100-dgx.yaml')
    pricing = ClusterPricing(Prices(cluster))
    planned, plan = with_memory_plan(graph, MemoryOptions(0.6, actions='swap', min_bytes=1024),
                                     pricing.prices.device_seconds, Link(2e11, 2e11, True))
    assert 'swap' in plan.actions.values()
    plain = run(compile_strategy(graph, StrategyTree(1), pricing, Settings()))
    outcome = run(compile_strategy(planned, StrategyTree(1), pricing, Settings()))
    program = outcome.program
    copies = [at for at, node in enumerate(program.nodes) if node.kind == 'h2d']
    back = {name: at for at in copies for name in program.nodes[at].begins}
    users = {name: at for at, node in enumerate(program.nodes) if node.stream == 'compute'
             for name in node.ends if name in back}
    assert copies and users
    assert all(outcome.starts[user] >= outcome.ends[back[name]] - 1e-12
               for name, user in users.items())
    assert outcome.makespan > plain.makespan  # small copies are dear on such a machine


def test_ignored_modules_and_small_tensors_stay(graph):
    step, _ = memory_step(graph, seconds_of, min_bytes=1024)
    names = {value.where for value in step.values if value.may_drop}
    ignored = max(names)
    rest, _ = memory_step(graph, seconds_of, min_bytes=1024, ignore=(ignored,))
    assert {value.where for value in rest.values if value.may_drop} == names - {ignored}
    assert not memory_step(graph, seconds_of, min_bytes=1 << 30)[0].candidates


def test_a_graph_without_reads_is_refused(graph):
    from dataclasses import replace
    blind = replace(graph, ops=tuple(replace(op, reads=()) for op in graph.ops))
    assert blind.flops(FORWARD) > 0
    with pytest.raises(VisionError, match='VIS-CONFIG-1676'):
        with_memory_plan(blind, MemoryOptions(0.5), seconds_of, LINK)
