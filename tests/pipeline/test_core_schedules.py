"""The known schedules: rows worked by hand, torch's own rows, and refusals."""

import pytest
from torch.distributed.pipelining import schedules as theirs

from vision.common.core.errors import VisionError
from vision.pipeline.core.schedules import SCHEDULES, make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import Action, Costs, row_as_text, row_from_text
from vision.pipeline.core.transfers import validate

SIZES = [(1, 1, 1), (2, 1, 3), (4, 1, 8), (4, 1, 2), (2, 2, 4), (4, 4, 28), (4, 2, 10), (3, 3, 2),
         (5, 2, 15)]


def written(row):
    return ' '.join(map(str, row))


def test_rows_worked_by_hand():
    assert written(make_table('gpipe', 2, 1, 2).rows[1]) == '1F0 1F1 1B0 1B1'
    assert [written(row) for row in make_table('1f1b', 3, 1, 4).rows] == [
        '0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3', '1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3',
        '2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3']
    assert written(make_table('breadth-first', 2, 2, 2).rows[0]) == \
        '0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1'
    assert written(make_table('interleaved-1f1b', 2, 2, 2).rows[1]) == \
        '1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1'


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('sizes', SIZES)
def test_every_table_is_valid(name, sizes):
    ranks, chunks, mbs = sizes
    if name in ('gpipe', '1f1b'):
        chunks = 1
    if name == 'interleaved-1f1b' and mbs % max(1, mbs // ranks):
        mbs += ranks - mbs % ranks
    validate(make_table(name, ranks, chunks, mbs))


@pytest.mark.parametrize('sizes', [(2, 2, 4), (4, 4, 28), (4, 2, 10), (3, 3, 3)])
def test_interleaved_1f1b_is_torchs(sizes):
    ranks, chunks, mbs = sizes
    bare = object.__new__(theirs.ScheduleInterleaved1F1B)  # its rows alone, without stages
    bare.pp_group_size, bare.n_local_stages, bare._n_microbatches = ranks, chunks, mbs
    bare.number_of_rounds = max(1, mbs // ranks)
    bare.microbatches_per_round = mbs // bare.number_of_rounds
    bare._num_stages, bare.rank = ranks * chunks, 0
    table = make_table('interleaved-1f1b', *sizes)
    for rank, row in enumerate(table.rows):
        expected = bare._calculate_single_rank_operations(rank)
        assert written(row) == written(action for action in expected if action is not None)


@pytest.mark.parametrize(('name', 'chunks', 'bubble'), [
    ('gpipe', 1, 3 / 31), ('1f1b', 1, 3 / 31), ('interleaved-1f1b', 4, 3 / 115),
    ('breadth-first', 4, 3 / 115)])
def test_bubbles_are_the_published_ones(name, chunks, bubble):
    """(P - 1) / (V M + P - 1), P=4 M=28: GPipe, PipeDream-flush, interleaved, breadth-first."""
    table = make_table(name, 4, chunks, 28)
    assert simulate(table, Costs.uniform(4 * chunks)).bubble == pytest.approx(bubble)


@pytest.mark.parametrize(('arguments', 'code', 'said'), [
    (('zigzag', 4, 1, 8), 1550, 'gpipe, 1f1b, interleaved-1f1b, breadth-first'),
    (('1f1b', 4, 2, 8), 1539, 'use interleaved-1f1b'),
    (('gpipe', 4, 2, 8), 1539, 'use breadth-first'),
    (('interleaved-1f1b', 4, 2, 9), 1538, 'such as 8 or 12'),
    (('breadth-first', 4, 2, 0), 1540, 'at least')])
def test_what_there_is_not_is_refused(arguments, code, said):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}') as caught:
        make_table(*arguments)
    assert said in str(caught.value)


def test_rows_as_text_and_back():
    table = make_table('1f1b', 2, 1, 3)
    row = (*table.rows[0], Action(0, 'UNSHARD'), Action(12, 'SEND_F', 10),
           Action(0, 'REDUCE_GRAD'))
    assert row_from_text(row_as_text(row)) == row
    for wrong in ('F0', '0X1', '0F0;', '1.5F0'):
        with pytest.raises(ValueError):
            row_from_text(wrong)
