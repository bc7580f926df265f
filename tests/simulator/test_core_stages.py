"""Stages of a pipeline: nothing of the model is lost, and the table's own simulator agrees."""

import sys
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.transfers import with_transfers
from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.engine import run
from vision.simulator.core.graph import FORWARD
from vision.simulator.core.program import GRADIENT
from vision.simulator.core.stages import compile_stages, piece_flops, piece_of_ops, stage_costs
from vision.simulator.core.strategy import StrategyTree

sys.path.insert(0, str(Path(__file__).parent))
from hand_graphs import HIDDEN, INNER, ROWS, Asked, mlp_layers

NAMES = [f'layers.{n}' for n in range(4)]
RANGES = [(0, 3), (3, 4)]
SETTINGS = Settings()


def costs_of(**more):
    return stage_costs(mlp_layers(4), NAMES, RANGES, (0, 1), Asked(), SETTINGS, **more)


def test_every_operator_is_in_one_stage():
    graph = mlp_layers(4)
    assert sorted(set(piece_of_ops(graph, NAMES))) == [0, 1, 2, 3]
    assert sum(piece_flops(graph, NAMES)) == graph.flops(FORWARD)
    costs = costs_of()  # a second an operator
    assert costs.forward == (12.0, 4.0)
    assert costs.backward_input == (0.0, 4.0)  # the first stage does all in one
    assert costs.backward_weight == (12.0 + 6.0, 2.0)
    assert costs.latency == 4 * ROWS * HIDDEN
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    assert costs.static_bytes == (4 * 3 * layer, 4 * layer)  # and two states of AdamW


def test_shares_are_gathered_and_reduced():
    costs = costs_of(num_shares=2)
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    assert costs.gather == costs.reduce == (3.0 * layer, 1.0 * layer)
    assert costs.static_bytes == (4 * 3 * layer // 2, 4 * layer // 2)


def mapped():
    tree = StrategyTree(2)
    for n, name in enumerate(NAMES):
        tree.map(name, (int(n == 3),))
    return tree


def test_a_mapped_model_takes_as_long_as_its_table():
    costs = costs_of()
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs)
    program = compile_stages(mlp_layers(4), mapped(), table, Asked(), SETTINGS)
    assert program.num_ranks == 2
    optimizer = 1.0  # a second an operator
    assert run(program).makespan == simulate(table, costs).makespan + optimizer


def test_features_are_split_inside_stages():
    table = make_table('gpipe', 2, 1, 2)
    tree = StrategyTree(4)
    for n, name in enumerate(NAMES):
        ranks = (2, 3) if n == 3 else (0, 1)
        tree.map(name, ranks).split(f'{name}.up', 'out', 2).split(f'{name}.down', 'in', 2)
    asked = Asked()
    program = compile_stages(mlp_layers(4), tree, with_transfers(table, costs_of()), asked,
                             SETTINGS)
    reduces = [each for each in asked.sent if each[0] == 'all_reduce']
    assert reduces == [('all_reduce', 4 * ROWS * HIDDEN, 2)] * 8 and program.replicas == 2


def shared(parts=1):
    """Two shares of the batch, ``parts`` of the features; layers 0 to 2, and 3."""
    size = 2 * parts
    tree = StrategyTree(2 * size).split('', 'batch', 2)
    for n, name in enumerate(NAMES):
        tree.map(name, range(size * (n == 3), size * (n == 3) + size))
        if parts > 1:
            tree.split(f'{name}.up', 'out', parts).split(f'{name}.down', 'in', parts)
    return tree


@pytest.mark.parametrize('schedule', ['1f1b', 'gpipe'])
def test_shares_reduce_each_stage_once_behind_its_last_backward_task(schedule):
    table, asked = with_transfers(make_table(schedule, 2, 1, 4), costs_of()), Asked()
    program = compile_stages(mlp_layers(4), shared(), table, asked, SETTINGS)
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    sent = [each for each in asked.sent if each[0] == 'all_reduce']
    assert sorted(sent) == [('all_reduce', layer, 2), ('all_reduce', 3 * layer, 2)]
    assert program.replicas == 2
    for rank in (0, 1):
        mine = [at for at, node in enumerate(program.nodes) if node.ranks == (rank,)]
        at, = (at for at in mine if program.nodes[at].stream == GRADIENT)
        before, = program.nodes[at].after
        assert before == max(at for at in mine if program.nodes[at].kind in 'BW')
        step, = (at for at in mine if program.nodes[at].kind == 'optimizer')
        assert at in program.nodes[step].after
    # The first stage is done last: nothing hides its all-reduce, a byte a second.
    alone = compile_stages(mlp_layers(4), mapped(), table, Asked(), SETTINGS)
    assert run(program).makespan == run(alone).makespan + 3 * layer
    assert run(program).peak(0).categories['communication'] >= 3 * layer
    lean = compile_stages(mlp_layers(4), shared(), table, Asked(),
                          Settings(has_bucket_copies=False))
    assert 'communication' not in {each.category for each in lean.buffers.values()}


def test_shares_of_split_features_lie_apart():
    class Ranks(Asked):
        def communicate(self, kind, num_bytes, ranks):
            self.asked = [*getattr(self, 'asked', ()), (kind, num_bytes, tuple(ranks))]
            return 0.0

    table, ranks = make_table('gpipe', 2, 1, 2), Ranks()
    compile_stages(mlp_layers(4), shared(2), with_transfers(table, costs_of()), ranks, SETTINGS)
    layer = 4 * (HIDDEN * INNER + HIDDEN)  # half of both matrices, the whole norm
    assert ('all_reduce', 3 * layer, (0, 2)) in ranks.asked
    assert ('all_reduce', layer, (4, 6)) in ranks.asked


@pytest.mark.parametrize('change, code, text', [
    (lambda tree: tree.recompute('layers.1'), 1623, 'recompute'),
    (lambda tree: tree.offload('layers.*'), 1623, 'offload'),
    (lambda tree: tree.shard('', zero=1), 1624, 'zero=1'),
    (lambda tree: tree.shard('', zero=2), 1624, 'zero=2')])
def test_what_stages_leave_out_is_refused(change, code, text):
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs_of())
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}(.|\n)*{text}'):
        compile_stages(mlp_layers(4), change(shared()), table, Asked(), SETTINGS)


def test_gathers_of_stages_are_priced_in_their_own_dtype():
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    costs = stage_costs(mlp_layers(4), NAMES, RANGES, (0, 1), Asked(),
                        Settings(gathered_bytes=2), num_shares=2)
    assert costs.gather == (1.5 * layer, 0.5 * layer)
    assert costs.reduce == (3.0 * layer, 1.0 * layer)


def test_stages_without_a_table_of_as_many_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1621(.|\n)*compile_stages'):
        compile_strategy(mlp_layers(4), mapped(), Asked())
    with pytest.raises(VisionError, match='2 stages for a table of 4'):
        compile_stages(mlp_layers(4), mapped(), make_table('1f1b', 4, 1, 4), Asked(), SETTINGS)
