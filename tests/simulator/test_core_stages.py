"""Stages of a pipeline: nothing of the model is lost, and the table's own simulator agrees."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import Costs
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.nn.torch_private import torch_table
from vision.simulator.core.compile import Settings, compile_strategy
from vision.simulator.core.engine import run
from vision.simulator.core.from_actions import to_actions
from vision.simulator.core.graph import FORWARD
from vision.simulator.core.memory import TENSORS
from vision.simulator.core.program import GRADIENT
from vision.simulator.core.rewrite import with_recompute, with_tensors
from vision.simulator.core.stage_parameters import Grid
from vision.simulator.core.stages import (
    compile_stages,
    piece_flops,
    piece_of_ops,
    stage_costs,
)
from vision.simulator.core.strategy import StrategyTree

sys.path.insert(0, str(Path(__file__).parent))
from hand_graphs import HIDDEN, INNER, ROWS, Asked, mlp_layers, tied

NAMES = [f'layers.{n}' for n in range(4)]
RANGES = [(0, 3), (3, 4)]
SETTINGS = Settings()


def costs_of(**more):
    return stage_costs(mlp_layers(4), NAMES, RANGES, Grid((0, 1), **more), Asked(),
                       SETTINGS).costs


def test_every_operator_is_in_one_stage():
    graph = mlp_layers(4)
    assert sorted(set(piece_of_ops(graph, NAMES))) == [0, 1, 2, 3]
    assert sum(piece_flops(graph, NAMES)) == graph.flops(FORWARD)
    again = with_recompute(with_tensors(graph), [[name] for name in NAMES])
    assert piece_flops(again, NAMES) == piece_flops(graph, NAMES)  # the forward pass alone
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


def alone(size=1):
    """All layers in one stage, on ``size`` shares of the batch."""
    tree = StrategyTree(size).split('', 'batch', size)
    return tree.map('', range(size))


def both_ways(change, *, size=1, num_mbs=3, schedule='gpipe'):
    """A strategy as a pipeline of one stage and without a pipeline: (program, what was asked)."""
    table, settings = make_table(schedule, 1, 1, num_mbs), Settings(
        num_microbatches=num_mbs, optimizer_form='fused')
    staged, plain = Asked(), Asked()
    return ((compile_stages(mlp_layers(4), change(alone(size)), table, staged, settings), staged),
            (compile_strategy(mlp_layers(4), change(alone(size)), plain, settings), plain))


@pytest.mark.parametrize('change', [lambda tree: tree, lambda tree: tree.recompute('layers.*'),
                                    lambda tree: tree.recompute('layers.1')])
def test_one_stage_takes_what_the_model_takes_without_a_pipeline(change):
    (staged, _), (plain, _) = both_ways(change)
    assert run(staged).makespan == run(plain).makespan


def test_what_is_made_again_is_time_of_the_backward_and_one_region_of_memory():
    """Of a layer's four operators all but the last are done again, a second each. Kept is each
    layer's output; norm, up and act of one layer at a time are there beside it."""
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs_of())
    costs = costs_of()
    tree = mapped().recompute('layers.*')
    program = compile_stages(mlp_layers(4), tree, table, Asked(), SETTINGS)
    longer = replace(costs, backward_weight=(18.0 + 9.0, 2.0), backward_input=(0.0, 4.0 + 3.0))
    assert run(program).makespan == simulate(table, longer).makespan + 1.0
    features, inside = 4 * ROWS * HIDDEN, 4 * ROWS * (HIDDEN + 2 * INNER)
    sizes = {name: each.num_bytes for name, each in program.buffers.items()}
    # The second stage has its input from the first.
    assert sizes['activation of stage 0, 0'] == 3 * features
    assert sizes['activation of stage 1, 0'] == features + features
    assert {size for name, size in sizes.items() if 'made again' in name} == {inside}
    outcome, plain = run(program), run(compile_stages(mlp_layers(4), mapped(), table, Asked(),
                                                      SETTINGS))
    for rank, (layers, in_flight) in enumerate(((3, 2), (1, 1))):
        saved = plain.peak(rank, TENSORS).num_bytes - outcome.peak(rank, TENSORS).num_bytes
        assert saved == in_flight * layers * inside - inside


def test_a_region_of_all_modules_is_cut_where_stages_end():
    """Each stage keeps its last layer's output and its input, and makes all else again."""
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs_of())
    program = compile_stages(mlp_layers(4), mapped().recompute(''), table, Asked(), SETTINGS)
    features, inside = 4 * ROWS * HIDDEN, 4 * ROWS * (HIDDEN + 2 * INNER)
    sizes = {name: each.num_bytes for name, each in program.buffers.items()}
    assert sizes['activation of stage 0, 0'] == features
    assert sizes['made again for stage 0, 0'] == 3 * inside + 2 * features
    assert sizes['made again for stage 1, 0'] == inside


def test_a_split_backward_makes_it_again_once_and_keeps_what_weights_need():
    """In I. What up lets go of, W needs still, as up has gradients of weights; norm and act are
    done with I."""
    table = torch_table('interleaved-zero-bubble', 2, 1, 4)
    program = compile_stages(mlp_layers(4), mapped().recompute('layers.*'), table, Asked(),
                             SETTINGS)
    sizes = {name: each.num_bytes for name, each in program.buffers.items()}
    assert sizes['made again for stage 1, 0'] == 4 * ROWS * INNER
    assert sizes['made again for stage 1, 0, for its input'] == 4 * ROWS * (HIDDEN + INNER)
    by_name = {node.name: node for node in program.nodes}
    assert by_name['1I0'].begins[-2:] == ('made again for stage 1, 0',
                                          'made again for stage 1, 0, for its input')
    assert by_name['1I0'].ends == ('made again for stage 1, 0, for its input',)
    assert by_name['1W0'].ends[-1] == 'made again for stage 1, 0'
    assert by_name['1I0'].seconds == 4.0 + 3.0 and by_name['1W0'].seconds == 2.0
    assert by_name['0W0'].ends[-1] == 'made again for stage 0, 0'


@pytest.mark.parametrize('zero', [1, 2])
def test_states_are_sharded_in_stages_as_without_a_pipeline(zero):
    (staged, sent), (plain, expected) = both_ways(lambda tree: tree.shard('', zero=zero), size=2)
    assert sent.sent == expected.sent and len(sent.sent) == 2
    assert run(staged).makespan == run(plain).makespan
    # Nothing is lost: shares of the states add up, parameters are whole on each of two ranks.
    weights = 4 * (2 * 2 * HIDDEN * INNER + 2 * HIDDEN) * 2
    static = staged.buffers['static of rank 0'].num_bytes
    assert static == weights + 2 * weights // 2 + (weights if zero == 1 else 0)
    if zero == 2:
        gradients = {name: each.num_bytes for name, each in staged.buffers.items()
                     if each.category == 'gradients'}
        assert gradients == {'gradients of stage 0': weights,
                             'gradient shard of stage 0': weights // 2}
        life = {each.name: each for each in run(staged).lifetimes[0]}
        scatter = next(at for at, node in enumerate(staged.nodes)
                       if node.kind == 'reduce_scatter')
        first = next(at for at, node in enumerate(staged.nodes) if node.kind == 'B')
        outcome = run(staged)
        assert life['gradients of stage 0'].begin == outcome.starts[first]
        assert life['gradients of stage 0'].end == outcome.ends[scatter]


@pytest.mark.parametrize('zero', [1, 2])
def test_each_stage_shards_over_its_own_shares_and_gathers_behind_the_optimizer(zero):
    table, asked = with_transfers(make_table('1f1b', 2, 1, 4), costs_of()), Asked()
    program = compile_stages(mlp_layers(4), shared().shard('', zero=zero), table, asked, SETTINGS)
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    kind = 'all_reduce' if zero == 1 else 'reduce_scatter'
    assert [each for each in asked.sent if each[0] != 'p2p'] == [
        (kind, 3 * layer, 2), (kind, layer, 2), ('all_gather', 3 * layer, 2),
        ('all_gather', layer, 2)]
    for rank in (0, 1):
        gather, = (node for node in program.nodes if node.ranks == (rank,)
                   and node.kind == 'all_gather')
        before, = gather.after
        assert program.nodes[before].kind == 'optimizer'


def test_offload_moves_what_is_kept_and_brings_it_back_before_it_is_needed():
    (staged, moved), (_, plain) = both_ways(lambda tree: tree.offload('layers.*'))
    assert sum(moved.copied) == sum(plain.copied) and len(moved.copied) == 6
    nodes, outcome = staged.nodes, run(staged)
    inside = 4 * ROWS * (HIDDEN + 2 * INNER)
    assert set(moved.copied) == {4 * inside}
    assert staged.buffers['activation of stage 0, 0'].num_bytes == 4 * 4 * ROWS * HIDDEN
    for mb in range(3):
        there = {node.name: at for at, node in enumerate(nodes) if node.mb == mb}
        out, back = there[f'd2h of stage 0, {mb}'], there[f'h2d of stage 0, {mb}']
        assert outcome.starts[out] >= outcome.ends[there[f'0F{mb}']]
        assert outcome.ends[out] <= outcome.starts[back]
        assert outcome.ends[back] <= outcome.starts[there[f'0B{mb}']]
    # Copies take a second a byte here: at most one micro-batch's is on the device with its copy.
    held = [name for name in staged.buffers if name.startswith('moved')]
    assert len(held) == 6


def test_what_the_next_task_needs_is_not_moved():
    """1F1B's last stage goes back with what it has just done; its first stage has time."""
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs_of())
    program = compile_stages(mlp_layers(4), mapped().offload('layers.*'), table, Asked(),
                             SETTINGS)
    copies = [node.name for node in program.nodes if node.kind in ('d2h', 'h2d')]
    assert sorted(copies) == sorted(f'{way} of stage 0, {mb}' for mb in range(4)
                                    for way in ('d2h', 'h2d'))
    # Rank 0 does F0 F1 B0 F2 B1 F3 B2 B3: a copy back begins with the task before the one that
    # needs it, so when the one before that has ended.
    after = {node.name: {program.nodes[at].name for at in node.after} for node in program.nodes
             if node.kind == 'h2d'}
    assert after == {f'h2d of stage 0, {mb}': {ahead, f'd2h of stage 0, {mb}'}
                     for mb, ahead in enumerate(('0F0', '0B0', '0B1', '0F3'))}
    # The law of memory: what moves is the same bytes whether or not it has moved.
    total = {kind: sum(each.num_bytes for name, each in program.buffers.items()
                       if name.startswith(kind) and 'back' not in name)
             for kind in ('activation', 'moved')}
    plain = compile_stages(mlp_layers(4), mapped(), table, Asked(), SETTINGS)
    assert sum(total.values()) == sum(each.num_bytes for name, each in plain.buffers.items()
                                      if name.startswith('activation'))


TABLES = [make_table('breadth-first', 2, 2, 6), make_table('1f1b', 4, 1, 6),
          make_table('interleaved-1f1b', 2, 2, 6), torch_table('interleaved-zero-bubble', 2, 2, 6),
          torch_table('zbv', 2, 2, 6)]


@pytest.mark.parametrize('table', TABLES, ids=lambda table: table.name)
def test_in_any_schedule_what_goes_out_comes_back_in_time_and_the_table_is_the_same(table):
    tree = StrategyTree(4)
    for n, name in enumerate(NAMES):
        tree.map(name, (n,))
    tree.offload('layers.*').recompute('layers.1')
    # Copies that take a tenth of a task: as quick as those of a machine.
    quick = Asked()
    quick.copy = lambda num_bytes: num_bytes * 1e-4
    table = with_transfers(table, Costs.uniform(4))
    program = compile_stages(mlp_layers(4), tree, table, quick, SETTINGS)
    assert to_actions(program) == table
    outcome = run(program)
    copies = {}
    for at, node in enumerate(program.nodes):
        if node.kind in ('d2h', 'h2d'):
            copies.setdefault(node.name.partition(' of ')[2], {})[node.kind] = at
    assert copies and all(set(each) == {'d2h', 'h2d'} for each in copies.values())
    for each in copies.values():
        assert outcome.ends[each['d2h']] <= outcome.starts[each['h2d']]
        (back,), reads = program.nodes[each['h2d']].begins, [
            node for node in program.nodes if each['h2d'] in node.after]
        assert [node.kind in 'IBW' for node in reads] == [True]
        out, = program.nodes[each['d2h']].ends
        assert program.buffers[out].num_bytes == program.buffers[back].num_bytes
    # All memory of a micro-batch is gone at the end of the step.
    for rank, lives in enumerate(outcome.lifetimes):
        left = [life.name for life in lives if life.begin is not None and life.end is None]
        assert not left, (rank, left)


def test_a_split_sequence_is_sent_on_in_parts():
    asked = Asked()
    tree = StrategyTree(4).split('', 'sequence', 2)
    for n, name in enumerate(NAMES):
        tree.map(name, (2, 3) if n == 3 else (0, 1))
        tree.split(f'{name}.up', 'out', 2).split(f'{name}.down', 'in', 2)
    graph = mlp_layers(4)
    modules = tuple(replace(each, output_bytes=4 * ROWS * HIDDEN) if each.type == 'Layer' else each
                    for each in graph.modules)
    table = with_transfers(make_table('1f1b', 2, 1, 4), costs_of())
    compile_stages(replace(graph, modules=modules), tree, table, asked, SETTINGS)
    assert [each for each in asked.sent if each[0] == 'p2p'] == [
        ('p2p', 4 * ROWS * HIDDEN // 2, 2)]


def test_sharded_parameters_of_split_features_are_gathered_by_those_that_share_them():
    class Ranks(Asked):
        def communicate(self, kind, num_bytes, ranks):
            self.asked = [*getattr(self, 'asked', ()), (kind, num_bytes, tuple(ranks))]
            return 0.0

    table, ranks = make_table('gpipe', 2, 1, 2), Ranks()
    table = with_transfers(with_gathers(table, active=1), costs_of(num_shares=2))
    compile_stages(mlp_layers(4), shared(2).shard('', zero=3), table, ranks, SETTINGS)
    layer = 4 * (HIDDEN * INNER + HIDDEN)
    for kind in ('all_gather', 'reduce_scatter'):
        assert [each[1:] for each in ranks.asked if each[0] == kind] == [
            (3 * layer, (0, 2)), (layer, (4, 6))]
    sums = {each[2] for each in ranks.asked if each[0] == 'all_reduce'}
    assert sums == {(0, 1), (4, 5)}
    assert [each[2] for each in ranks.asked if each[0] == 'p2p'] == [(0, 4)]


MATRIX = 4 * HIDDEN * INNER
TIED = tied(mlp_layers(4), 'layers.0.up', 'layers.3.up')


def test_a_tied_parameter_is_in_both_stages_and_its_gradients_are_added_up_before_the_step():
    table, asked = with_transfers(make_table('1f1b', 2, 1, 4), costs_of()), Asked()
    program = compile_stages(TIED, mapped(), table, asked, SETTINGS)
    plain = compile_stages(mlp_layers(4), mapped(), table, Asked(), SETTINGS)
    # As many bytes and tasks as with two tensors, and one all-reduce between two ranks more.
    assert program.buffers == plain.buffers
    assert [each for each in asked.sent if each[0] != 'p2p'] == [('all_reduce', MATRIX, 2)]
    tie, = (at for at, node in enumerate(program.nodes) if node.kind == 'all_reduce')
    assert program.nodes[tie].ranks == (0, 1) and program.nodes[tie].stream == GRADIENT
    backward = {rank: max(at for at, node in enumerate(program.nodes) if node.ranks == (rank,)
                          and node.kind in 'BW') for rank in (0, 1)}
    assert set(program.nodes[tie].after) == set(backward.values())
    steps = [node for node in program.nodes if node.kind == 'optimizer']
    assert len(steps) == 2 and all(tie in node.after for node in steps)
    assert run(program).makespan == run(plain).makespan + MATRIX


@pytest.mark.parametrize('zero, num_bytes', [(0, MATRIX), (1, MATRIX), (2, MATRIX // 2),
                                             (3, MATRIX // 2)])
def test_a_tie_adds_up_what_a_rank_has_of_the_gradient_behind_its_reduction(zero, num_bytes):
    tree, asked = shared(), Asked()
    table = make_table('1f1b', 2, 1, 4)
    if zero == 3:
        table = with_gathers(table, active=1)
    if zero:
        tree.shard('', zero=zero)
    program = compile_stages(TIED, tree, with_transfers(table, costs_of()), asked, SETTINGS)
    tie, = (node for node in program.nodes if node.name.startswith('tied'))
    assert ('all_reduce', num_bytes, 2) in asked.sent and tie.seconds == num_bytes
    kinds = {program.nodes[at].kind for at in tie.after}
    assert kinds >= {{0: 'all_reduce', 1: 'all_reduce', 2: 'reduce_scatter',
                      3: 'REDUCE_GRAD'}[zero]}


def test_stages_of_one_rank_have_a_tied_tensor_once():
    """V-shaped: the first stage and the last are one process."""
    names, ranges = [f'layers.{n}' for n in range(4)], [(n, n + 1) for n in range(4)]
    own = [stage_costs(graph, names, ranges, Grid((0, 1, 1, 0)), Asked(), SETTINGS)
           for graph in (TIED, mlp_layers(4))]
    assert own[0].ties == () and own[0].costs.static_bytes[1] == own[1].costs.static_bytes[1]
    assert own[1].costs.static_bytes[0] - own[0].costs.static_bytes[0] == 4 * MATRIX
    across = stage_costs(TIED, names, ranges, Grid((0, 1, 0, 1)), Asked(), SETTINGS).ties
    assert [(each.num_bytes, each.stages) for each in across] == [(MATRIX, (0, 3))]


def test_a_tied_matrix_is_cut_in_one_way():
    tree = mapped().split('layers.0.up', 'out', 2)
    with pytest.raises(VisionError, match='VIS-CONFIG-1621(.|\n)*same tensor'):
        tree.spread(TIED)


def test_gathers_of_stages_are_priced_in_their_own_dtype():
    layer = 4 * (2 * HIDDEN * INNER + HIDDEN)
    costs = stage_costs(mlp_layers(4), NAMES, RANGES, Grid((0, 1), num_shares=2), Asked(),
                        Settings(gathered_bytes=2)).costs
    assert costs.gather == (1.5 * layer, 0.5 * layer)
    assert costs.reduce == (3.0 * layer, 1.0 * layer)


def test_stages_without_a_table_of_as_many_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1626(.|\n)*compile_stages'):
        compile_strategy(mlp_layers(4), mapped(), Asked())
    with pytest.raises(VisionError, match='2 stages for a table of 4'):
        compile_stages(mlp_layers(4), mapped(), make_table('1f1b', 4, 1, 4), Asked(), SETTINGS)
