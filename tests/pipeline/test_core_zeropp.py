"""ZeroPP's tables: they end for all sizes, and keep the bounds on bubble, memory and gathers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import count, with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import Costs, F, I, W, unit_ranges
from vision.pipeline.core.transfers import validate, with_transfers
from vision.pipeline.core.zeropp import TIES, zeropp, zeropp_rows
from vision.pipeline.nn.torch_private import torch_table

P, V, M = 4, 4, 28
UNEQUAL = dict(times=(1, 1.3, 0.7), latency=0.25)


def uniform(times=(1, 1, 1), *, num_stages=P * V, **options):
    return Costs.uniform(num_stages, times, **options)


def num_gathers(table):
    return max(count(with_gathers(table, active=2))['UNSHARD'])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_ends_for_all_sizes_and_costs(data):
    draw = data.draw
    ranks, chunks, mbs = (draw(st.integers(1, most)) for most in (5, 4, 9))
    unit = draw(st.integers(1, mbs))
    time = st.one_of(st.just(0.0), st.floats(0.01, 3))
    per_stage = st.tuples(*[time] * (ranks * chunks))
    costs = Costs(draw(per_stage), draw(per_stage), draw(per_stage),
                  latency=draw(st.floats(0, 5)))
    size = len(unit_ranges(mbs, unit)[0])
    cap = chunks * size + draw(st.integers(0, ranks))
    table = zeropp_rows(ranks, chunks, mbs, unit, costs, lag=draw(st.integers(0, 9)), cap=cap,
                        tie=draw(st.sampled_from(TIES)))
    validate(table)
    validate(with_transfers(with_gathers(table, active=draw(st.integers(1, 3))), costs))
    assert max(simulate(table, costs).peak_in_flight) <= cap


@pytest.mark.parametrize(('ranks', 'chunks', 'mbs'), [(4, 4, 28), (4, 2, 16), (8, 2, 32)])
def test_the_bubble_is_the_least_with_equal_costs(ranks, chunks, mbs):
    least = (ranks - 1) / (3 * chunks * mbs + ranks - 1)
    costs = uniform(num_stages=ranks * chunks)
    for unit in (ranks, 2 * ranks - 1, mbs):
        bubble = simulate(zeropp(ranks, chunks, mbs, unit, costs), costs).bubble
        assert least - 1e-9 <= bubble <= 1.02 * least


def test_the_bubble_beside_other_schedules():
    costs = uniform()
    bubble = simulate(zeropp(P, V, M, 7, costs), costs).bubble
    one_chunk = uniform((V, V, V), num_stages=P)
    assert bubble <= 0.009
    assert bubble <= 0.36 * simulate(make_table('breadth-first', P, V, M), costs).bubble
    assert bubble <= 0.10 * simulate(make_table('1f1b', P, 1, M), one_chunk).bubble


def test_unequal_costs_and_latency():
    costs = uniform(**UNEQUAL)
    theirs = torch_table('interleaved-zero-bubble', P, V, M)
    table = zeropp(P, V, M, 7, costs)
    assert simulate(table, costs).bubble <= 0.6 * simulate(theirs, costs).bubble
    assert num_gathers(table) <= (2 * V - 1) * 4


def test_the_search_is_no_worse_than_the_plain_rules_and_than_what_it_is_given():
    costs = uniform(**UNEQUAL)
    plain = simulate(zeropp_rows(P, V, M, P, costs), costs).makespan
    extra = torch_table('interleaved-zero-bubble', P, V, M)
    found = simulate(zeropp(P, V, M, P, costs, [extra]), costs).makespan
    assert found < 0.97 * plain
    assert found <= 1.005 * simulate(extra, costs).makespan


def test_an_extra_table_can_win():
    """A good table of another unit beats all of a unit below P, if the cap allows it."""
    costs = uniform(latency=0.25)
    good = zeropp(P, V, M, 7, costs)
    sizes = P, V, M, 2
    alone = zeropp(*sizes, costs, cap=32 + P)
    helped = zeropp(*sizes, costs, [good], cap=32 + P)
    assert simulate(helped, costs).makespan < 0.99 * simulate(alone, costs).makespan
    assert helped.rows == good.rows and helped.unit == 2
    assert zeropp(*sizes, costs, [good]).rows != good.rows  # holds too much


@pytest.mark.parametrize('options', [{}, UNEQUAL])
def test_memory_is_bounded_and_does_not_grow_with_the_step(options):
    costs = uniform(**options)
    held = {}
    for unit in (P, 7, 14):
        for mbs in (28, 56, 84):
            table = zeropp_rows(P, V, mbs, unit, costs)
            held[unit, mbs] = max(simulate(table, costs).peak_in_flight)
        found = simulate(zeropp(P, V, M, unit, costs), costs)
        assert max(found.peak_in_flight) <= V * unit + P
        assert held[unit, 28] == held[unit, 56] == held[unit, 84] <= V * unit + P
    wide = max(simulate(make_table('breadth-first', P, V, M), costs).peak_in_flight)
    assert held[7, M] <= 0.35 * wide


def test_gathers_are_few():
    costs = uniform()
    table = zeropp(P, V, M, 7, costs)
    theirs = torch_table('interleaved-zero-bubble', P, V, M)
    assert num_gathers(table) <= (2 * V - 1) * 4
    assert num_gathers(table) <= 0.35 * num_gathers(theirs)
    assert num_gathers(zeropp(P, V, M, M, costs)) == \
        num_gathers(make_table('breadth-first', P, V, M))


@pytest.mark.parametrize('unit', [1, 3, 4, 7, 28])
def test_sums_of_gradients_do_not_depend_on_the_unit(unit):
    """Each stage does each kind from micro-batch 0 on."""
    table = zeropp(P, V, M, unit, uniform(**UNEQUAL))
    for rank, row in enumerate(table.rows):
        for stage in table.stages_of(rank):
            for kind in (F, I, W):
                mbs = [action.mb for action in row if action[:2] == (stage, kind)]
                assert mbs == list(range(M))


def test_inside_of_a_unit_it_is_breadth_first():
    table = zeropp(P, V, M, 7, uniform())
    for rank, row in enumerate(table.rows):
        stages = list(table.stages_of(rank))
        forwards = [action[::2] for action in row if action.kind == F]
        assert forwards == [(stage, mb) for start in range(0, M, 7) for stage in stages
                            for mb in range(start, start + 7)]
        backwards = [action[::2] for action in row if action.kind == I]
        assert backwards == [(stage, mb) for start in range(0, M, 7) for stage in stages[::-1]
                             for mb in range(start, start + 7)]


def test_a_table_does_not_depend_on_the_unit_of_time():
    """Sums such as 0.1 + 0.2 decide no tie: what is measured in seconds or milliseconds, thirds
    or not, gives the same rows."""
    base = zeropp(P, V, 12, 4, uniform((3, 4, 2), latency=1))
    for factor in (1e-3, 1 / 3, 7e4):
        costs = uniform((3 * factor, 4 * factor, 2 * factor), latency=factor)
        assert zeropp(P, V, 12, 4, costs).rows == base.rows


def test_stage_0_without_an_input_gradient():
    """torch does all of the backward of stage 0 in W: a table for that is better for it."""
    costs = uniform()
    real = replace(costs, backward_input=(0, *costs.backward_input[1:]),
                   backward_weight=(2, *costs.backward_weight[1:]))
    made_for_it = simulate(zeropp(P, V, M, 7, real), real).makespan
    assert made_for_it <= simulate(zeropp(P, V, M, 7, costs), real).makespan


def test_units_are_equal():
    assert [len(unit) for unit in unit_ranges(16, 7)] == [6, 5, 5]
    assert [*unit_ranges(5, 2)] == [range(0, 2), range(2, 4), range(4, 5)]
    assert zeropp_rows(2, 1, 16, 7, uniform(num_stages=2)).unit == 6


@pytest.mark.parametrize('sizes, code', [((4, 4, 28, 0), 1541), ((4, 4, 28, 29), 1541),
                                         ((0, 4, 28, 7), 1540), ((4, 0, 28, 7), 1540)])
def test_impossible_sizes_are_refused(sizes, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        zeropp(*sizes, uniform())


def test_slow_gathers_are_planned_for():
    """With an all-gather as long as a chunk's forward the table is another one, and far better
    than tables that are made without a look at gathers."""
    blind, seeing = uniform(**UNEQUAL), uniform(**UNEQUAL, gather=1)

    def makespan(table):
        return simulate(with_gathers(table, active=2), seeing).makespan

    ours = makespan(zeropp(P, V, M, P, seeing))
    assert ours < 0.95 * makespan(zeropp(P, V, M, P, blind))
    assert ours < 0.88 * makespan(torch_table('interleaved-zero-bubble', P, V, M))
