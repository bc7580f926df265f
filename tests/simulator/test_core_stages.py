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


def test_stages_without_a_table_of_as_many_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1621(.|\n)*compile_stages'):
        compile_strategy(mlp_layers(4), mapped(), Asked())
    with pytest.raises(VisionError, match='2 stages for a table of 4'):
        compile_stages(mlp_layers(4), mapped(), make_table('1f1b', 4, 1, 4), Asked(), SETTINGS)
