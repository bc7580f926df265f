"""The unit that is chosen is the fastest that fits; a budget that nothing fits is refused."""

from dataclasses import replace

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.choose import EQUAL_TIMES, choose, heuristic_unit, units_to_try
from vision.pipeline.core.tasks import SEND_F, UNSHARD, Costs
from vision.pipeline.core.transfers import validate

P, V, M = 2, 3, 12


def costs(**options):
    made = Costs.uniform(P * V, (1, 1.3, 0.7), latency=0.25, gather=2, reduce=2)
    return replace(made, activation_bytes=(10,) * P * V, weight_bytes=(30,) * P * V,
                   static_bytes=(50,) * P, **options)


def chosen(budget_bytes=None, **options):
    return choose(P, V, M, costs(), budget_bytes=budget_bytes, **options)


def test_without_a_budget_it_is_the_fastest_unit():
    choice = chosen()
    assert [each.unit for each in choice.candidates] == [12, 6, 4, 3, 2]
    least = min(each.makespan for each in choice.candidates)
    near = [each.unit for each in choice.candidates if each.makespan <= least * EQUAL_TIMES]
    assert choice.unit == min(near) and choice.warning == ''
    validate(choice.table)
    assert {UNSHARD, SEND_F} <= {action.kind for row in choice.table.rows for action in row}


def test_equal_times_take_the_smaller_unit():
    plain = Costs.uniform(P * V)
    choice = choose(P, V, M, plain, is_sharded=False)
    assert len({round(each.makespan, 6) for each in choice.candidates}) == 1
    assert choice.unit == P
    assert not any(action.kind == UNSHARD for row in choice.table.rows for action in row)


def test_a_smaller_budget_never_gives_a_faster_step_nor_more_memory():
    free = chosen()
    peaks = sorted({each.peak_bytes for each in free.candidates}, reverse=True)
    makespans = []
    for budget in peaks:
        choice = chosen(budget)
        assert max(choice.timeline.peak_bytes) <= budget and choice.warning == ''
        assert all(each.fits == (each.peak_bytes <= budget) for each in choice.candidates)
        makespans.append(choice.timeline.makespan)
    assert makespans == sorted(makespans) and makespans[0] < makespans[-1]


def test_under_every_unit_it_is_made_tight_and_then_below_the_ranks():
    least = min(each.peak_bytes for each in chosen().candidates)
    tight = chosen(least - 10)
    last = tight.candidates[-1]
    assert (last.unit, last.is_tight, last.peak_in_flight, tight.warning) == (P, True, V * P, '')
    small = chosen(last.peak_bytes - 10)
    assert small.unit == 1 and 'less than the 2 ranks' in small.warning
    assert max(small.timeline.peak_bytes) <= last.peak_bytes - 10


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1503') as caught:
        chosen(60)
    least = int(caught.value.why.split(' B,')[0].split()[-1])
    assert max(chosen(least).timeline.peak_bytes) == least
    with pytest.raises(VisionError, match='VIS-CONFIG-1503'):
        chosen(least - 1)


def test_the_same_arguments_give_the_same_table():
    assert chosen().table == chosen().table


@pytest.mark.parametrize(('ranks', 'mbs', 'unit'), [(4, 28, 7), (4, 16, 8), (4, 5, 5), (1, 8, 1),
                                                    (8, 64, 16), (4, 13, 13), (4, 15, 8)])
def test_the_heuristic_unit(ranks, mbs, unit):
    """At least 2 P - 1 where the step has so many, in equal units."""
    assert heuristic_unit(ranks, mbs) == unit


@pytest.mark.parametrize(('ranks', 'mbs'), [(8, 512), (4, 28), (4, 3), (1, 1), (16, 17)])
def test_units_that_are_tried(ranks, mbs):
    units = units_to_try(ranks, mbs)
    assert units[0] == mbs and heuristic_unit(ranks, mbs) in units
    assert units == sorted(set(units), reverse=True) and len(units) < 30
    assert min(units) >= min(ranks, mbs)


def test_a_step_needs_a_micro_batch():
    with pytest.raises(VisionError, match='VIS-CONFIG-1540'):
        choose(2, 2, 0, Costs.uniform(4))
