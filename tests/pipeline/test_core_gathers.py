"""Gathers: no fewer are possible, compute finds its chunk whole, reductions by unit or step."""

import random
from functools import cache

import pytest

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import count, with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import (
    COMPUTE,
    REDUCE_GRAD,
    RESHARD,
    UNSHARD,
    Action,
    Costs,
    F,
    Table,
)
from vision.pipeline.core.transfers import validate
from vision.pipeline.core.zeropp import zeropp_rows


def written(row):
    return ' '.join(map(str, row))


def fewest_gathers(stages, active):
    """Slow judge: the best over all choices of what is freed."""
    @cache
    def search(place, whole):
        if place == len(stages):
            return 0
        stage = stages[place]
        if stage in whole:
            return search(place + 1, whole)
        if len(whole) < active:
            return 1 + search(place + 1, whole | {stage})
        return 1 + min(search(place + 1, (whole - {freed}) | {stage}) for freed in whole)
    return search(0, frozenset())


@pytest.mark.parametrize('seed', range(40))
def test_no_choice_needs_fewer(seed):
    rng = random.Random(seed)
    stages = [rng.randrange(rng.randint(1, 5)) for _ in range(24)]
    active = rng.randint(1, 4)
    row = tuple(Action(stage, F, place) for place, stage in enumerate(stages))
    table = Table('any', (0,) * 5, 24, (row,))
    complete = with_gathers(table, active=active)
    assert count(complete)[UNSHARD] == (fewest_gathers(tuple(stages), active),)
    whole = set()
    for action in complete.rows[0]:
        if action.kind == UNSHARD:
            assert action.stage not in whole
            whole.add(action.stage)
        elif action.kind == RESHARD:
            whole.remove(action.stage)
        else:
            assert action.stage in whole
        assert len(whole) <= active
    assert not whole


@pytest.mark.parametrize('active', [1, 2, 3, 4])
@pytest.mark.parametrize('reduce', ['per_unit', 'per_step'])
def test_tables_are_valid(active, reduce):
    tables = [make_table('breadth-first', 4, 4, 8), make_table('interleaved-1f1b', 4, 4, 8),
              zeropp_rows(4, 4, 14, 7, Costs.uniform(16))]
    for table in tables:
        complete = with_gathers(table, active=active, reduce=reduce)
        validate(complete)
        assert [[action for action in row if action.kind in COMPUTE] for row in complete.rows] == \
            [list(row) for row in table.rows]


def test_a_gather_is_issued_one_chunk_ahead():
    row = with_gathers(make_table('breadth-first', 1, 3, 2), active=2).rows[0]
    assert written(row) == (
        '0UNSHARD 1UNSHARD 0F0 0F1 0RESHARD 2UNSHARD 1F0 1F1 2F0 2F1 2B0 2B1 2REDUCE_GRAD '
        '2RESHARD 0UNSHARD 1B0 1B1 1REDUCE_GRAD 0B0 0B1 0REDUCE_GRAD 0RESHARD 1RESHARD')


def test_breadth_first_visits():
    """2 V - 1 visits of chunks; the turn keeps one, a second place one more."""
    table = make_table('breadth-first', 4, 4, 28)
    assert [count(with_gathers(table, active=active))[UNSHARD][0] for active in (1, 2, 3, 4)] == \
        [7, 6, 5, 4]


def test_what_all_fits_is_gathered_once():
    table = zeropp_rows(4, 2, 16, 4, Costs.uniform(8))
    assert count(with_gathers(table, active=2))[UNSHARD] == (2,) * 4


def test_reductions_by_unit_and_by_step():
    table = zeropp_rows(4, 4, 28, 7, Costs.uniform(16))
    per_unit, per_step = (count(with_gathers(table, reduce=mode))[REDUCE_GRAD]
                          for mode in ('per_unit', 'per_step'))
    assert per_unit == (4 * 4,) * 4 and per_step == (4,) * 4
    plain = make_table('breadth-first', 4, 4, 8)  # has no units
    assert count(with_gathers(plain))[REDUCE_GRAD] == (4,) * 4


@pytest.mark.parametrize('options', [dict(active=0), dict(reduce='never')])
def test_other_values_are_refused(options):
    with pytest.raises(VisionError, match='VIS-CONFIG-1542'):
        with_gathers(make_table('gpipe', 2, 1, 2), **options)
