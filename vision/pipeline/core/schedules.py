"""The known schedules as tables of compute actions; backward is one task (B) in all of them.

ZeroPP's own table is in zeropp.py; the zero-bubble tables of torch are read from torch in nn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Action, B, F, Table, looped


def make_table(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """A table by name: 'gpipe', '1f1b', 'interleaved-1f1b' or 'breadth-first'.

    Args:
        num_ranks: P; num_chunks: V, stages of a rank; num_microbatches: M, of one step.

    Raises:
        VisionError: VIS-CONFIG-1550, an unknown name; VIS-CONFIG-1538 to VIS-CONFIG-1540, a
            combination it has not.
    """
    if name not in SCHEDULES:
        raise VisionError('VIS-CONFIG-1550', f'there is no schedule {name!r}',
                          why=f'made by name are {", ".join(SCHEDULES)}; zeropp is made from '
                          'measured costs (vision.pipeline.core.zeropp), the zero-bubble tables '
                          'come from torch (vision.pipeline.nn)', do='give one of these names')
    refuse_sizes(name, num_ranks, num_chunks, num_microbatches)
    return SCHEDULES[name](num_ranks, num_chunks, num_microbatches)


def refuse_sizes(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> None:
    """Raises VIS-CONFIG-1540 for a number below 1."""
    sizes = dict(ranks=num_ranks, chunks=num_chunks, microbatches=num_microbatches)
    for word, size in sizes.items():
        if size < 1:
            raise VisionError('VIS-CONFIG-1540', f'{name} with {size} {word}',
                              why='a pipeline has at least one rank, one chunk on each and one '
                              'micro-batch', do=f'give at least 1 of {word}')


def gpipe(num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """All forwards, then all backwards (Huang et al. 2019, arXiv:1811.06965)."""
    _refuse_chunks('gpipe', num_chunks, 'breadth-first')
    return _named('gpipe', breadth_first(num_ranks, 1, num_microbatches))


def one_f_one_b(num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """One forward, one backward: P - r micro-batches in flight on rank r (PipeDream-flush,
    Narayanan et al. 2021, arXiv:2006.09503)."""
    _refuse_chunks('1f1b', num_chunks, 'interleaved-1f1b')
    rows = []
    for rank in range(num_ranks):
        forwards = [Action(rank, F, mb) for mb in range(num_microbatches)]
        backwards = [Action(rank, B, mb) for mb in range(num_microbatches)]
        rows.append(_warm_then_alternate(forwards, backwards, num_ranks - 1 - rank))
    return Table('1f1b', looped(num_ranks, 1), num_microbatches, tuple(rows))


def interleaved_1f1b(num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """1F1B over several chunks of each rank, rounds of about P micro-batches a chunk (Narayanan
    et al. 2021, arXiv:2104.04473, section 2.2).

    Raises:
        VisionError: M is not a multiple of max(1, M // P) rounds.
    """
    num_rounds = max(1, num_microbatches // num_ranks)
    if num_microbatches % num_rounds:
        raise VisionError('VIS-CONFIG-1538', f'interleaved-1f1b with {num_microbatches} '
                          f'micro-batches on {num_ranks} ranks',
                          why=f'they go in {num_rounds} equal rounds of at least {num_ranks}',
                          do=f'give a multiple of {num_ranks}, such as '
                          f'{num_rounds * num_ranks} or {(num_rounds + 1) * num_ranks}')
    size = num_microbatches // num_rounds
    rows = []
    for rank in range(num_ranks):
        visits = [(chunk, mb) for start in range(0, num_microbatches, size)
                  for chunk in range(num_chunks) for mb in range(start, start + size)]
        forwards = [Action(chunk * num_ranks + rank, F, mb) for chunk, mb in visits]
        backwards = [Action((num_chunks - 1 - chunk) * num_ranks + rank, B, mb)
                     for chunk, mb in visits]
        num_warm = (num_chunks - 1) * size + 2 * (num_ranks - 1 - rank)
        rows.append(_warm_then_alternate(forwards, backwards, num_warm))
    return Table('interleaved-1f1b', looped(num_ranks, num_chunks), num_microbatches, tuple(rows))


def breadth_first(num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """All micro-batches through a chunk before the next (Lamy-Poirier 2022, arXiv:2211.05953).

    Backwards go from micro-batch 0 on, where torch's go from the last (our choice: gradients are
    summed in the same order as by the other schedules, so that their bits agree).
    """
    mbs = range(num_microbatches)
    rows = []
    for rank in range(num_ranks):
        stages = range(rank, num_ranks * num_chunks, num_ranks)
        rows.append((*(Action(stage, F, mb) for stage in stages for mb in mbs),
                     *(Action(stage, B, mb) for stage in reversed(stages) for mb in mbs)))
    return Table('breadth-first', looped(num_ranks, num_chunks), num_microbatches, tuple(rows))


SCHEDULES: dict[str, Callable[[int, int, int], Table]] = {
    'gpipe': gpipe, '1f1b': one_f_one_b, 'interleaved-1f1b': interleaved_1f1b,
    'breadth-first': breadth_first}


def _refuse_chunks(name: str, num_chunks: int, instead: str) -> None:
    if num_chunks != 1:
        raise VisionError('VIS-CONFIG-1539', f'{name} with {num_chunks} chunks on each rank',
                          why='it has one chunk on each rank',
                          do=f'give 1 chunk, or use {instead}')


def _named(name: str, table: Table) -> Table:
    return Table(name, table.rank_of, table.num_microbatches, table.rows)


def _warm_then_alternate(forwards: Sequence[Action], backwards: Sequence[Action], num_warm: int
                         ) -> tuple[Action, ...]:
    """``num_warm`` forwards, then F B F B ..., then the backwards that are left."""
    def row() -> Iterator[Action]:
        warm = min(num_warm, len(forwards))
        yield from forwards[:warm]
        for forward, backward in zip(forwards[warm:], backwards, strict=False):
            yield from (forward, backward)
        yield from backwards[len(forwards) - warm:]
    return tuple(row())
