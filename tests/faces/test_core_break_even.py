"""The cost model of a head's step: by hand, and the break-even against a slow search."""

import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.select.break_even import HeadPlan, Machine, Work, break_even

CPU = Machine(flops_per_s=6e10, scan_per_s=1e10, bytes_per_s=8e9, call_s=5e-6)


def test_seconds_by_hand():
    machine = Machine(flops_per_s=10, scan_per_s=4, bytes_per_s=100, call_s=0.5)
    work = Work(products=20, scanned=6) + Work(bytes=50, calls=2)
    assert work.seconds(machine) == 4 + 3 + 0.5 + 1


def test_a_step_by_hand():
    plan = HeadPlan(batch=10, dim=4, num_per_sample=3, num_probed=2, interval=100)
    assert plan.full(1000) == Work(3 * 10 * 1000 * 4, 0, 4 * (8 * 10 * 1000 + 14 * 1000 * 4), 40)
    assert plan.random(1000).products == 3 * 10 * 100 * 4
    assert plan.random(40).products == 3 * 10 * 10 * 4  # the batch's own classes at least
    # 10,000 classes: 400 lists of 25, two searched: 50 rows; 40 active, 37.5 candidates.
    assert plan.search(10_000) == Work(10 * 4 * 400, 10 * 4 * 50, 0, 10)
    assert plan.score(30) == Work(10 * 37.5 * 4, 0, 16 * 37.5 * 14, 20)
    assert plan.upkeep(10_000) == Work(0, 128 * 400, 4000, 0)
    parts = plan._softmax(40) + plan.search(10_000) + plan.score(30) + plan.upkeep(10_000)
    assert plan.selected(10_000) == parts


@pytest.mark.parametrize('against', ['full', 'random'])
@pytest.mark.parametrize('batch', [16, 256])
@pytest.mark.parametrize('dim', [32, 512])
def test_break_even_is_where_a_slow_search_finds_it(against, batch, dim):
    plan = HeadPlan(batch=batch, dim=dim)
    found = break_even(CPU, plan, against=against)
    times = [(plan.selected(num).seconds(CPU), getattr(plan, against)(num).seconds(CPU))
             for num in (found - 1, *range(found, 40 * found, found))]
    assert times[0][0] > times[0][1] and all(ours <= other for ours, other in times[1:])


def test_more_samples_and_dearer_calls_need_more_classes():
    counts = [break_even(CPU, HeadPlan(batch=batch, dim=128)) for batch in (256, 1024, 8192)]
    assert counts == sorted(counts) and counts[0] < counts[2]
    slow = Machine(6e10, 1e10, 8e9, 1e-3)
    assert break_even(slow, HeadPlan(256, 128)) > counts[0]
    never = Machine(6e10, 1.0, 8e9, 0)
    assert break_even(never, HeadPlan(256, 128)) is None


def test_refusals():
    with pytest.raises(VisionError, match='VIS-CONFIG-1095'):
        Machine(0, 1, 1, 1)
    with pytest.raises(VisionError, match='VIS-CONFIG-1094'):
        break_even(CPU, HeadPlan(256, 128), against='oracle')
