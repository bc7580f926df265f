"""An index that follows moving rows: when it swaps, what it costs, and that it is repeatable."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.select.upkeep import IndexUpkeep, Schedule

sys.path.insert(0, str(Path(__file__).parent))
from rows import TensorStore, batch_near, clustered_rows, selections


class CountingIndex:
    """Remembers the rows it was made of; nothing more is needed to see when which one answers."""

    can_update = True
    keeps_lists = False

    def __init__(self, rows, kind='cold', log=None):
        self.rows, self.kind, self.log = rows.float().clone(), kind, [] if log is None else log
        self.log.append(kind)
        self.unevenness = 1.0

    def assignment(self):
        return torch.arange(len(self.rows))

    def renewal(self, rows, *, num_iterations, previous=None):
        kind = f'warm{num_iterations}' if num_iterations else 'assigned'
        return lambda: CountingIndex(rows, kind, self.log)

    def update(self, ids, rows):
        self.rows[ids] = rows.float()

    def imbalance(self):
        return self.unevenness

    def state_dict(self):
        return dict(kind=self.kind)


def keeper(store=None, build=None, **schedule):
    store = store or TensorStore(torch.zeros(50, 4))
    return IndexUpkeep(store, build or (lambda rows, seed: CountingIndex(rows)),
                       lambda state, rows: CountingIndex(rows, 'restored'),
                       Schedule(**dict(interval=10, swap_lag=3) | schedule))


def run(made, steps, change=True):
    """The mean of the rows that the index of each step was made of."""
    seen = []
    for step in steps:
        seen.append(made.index(step).rows.mean().item())
        if change:
            made.store.weights += 1
        made.after_update(torch.arange(5), step)
    return seen


@pytest.mark.parametrize('is_async', [False, True])
def test_a_new_index_answers_from_the_step_fixed_in_advance(is_async):
    made = keeper(is_async=is_async)
    seen = run(made, range(26))
    # First built at step 0; snapshots after steps 10 and 20, used from steps 14 and 24 on.
    assert seen == [0.0] * 14 + [11.0] * 10 + [21.0] * 2
    made.finish()


def test_a_late_build_is_waited_for():
    gate, order = threading.Event(), []

    class Slow(CountingIndex):
        def renewal(self, rows, *, num_iterations, previous=None):
            def work():
                gate.wait(5)
                order.append('built')
                return CountingIndex(rows)
            return work
    made = keeper(build=lambda rows, seed: Slow(rows), is_async=True)
    run(made, range(13))
    assert order == []  # training went on
    threading.Timer(0.2, gate.set).start()
    run(made, range(13, 15))
    assert order == ['built'] and made.seconds['wait'] > 0.1
    made.finish()


def test_the_ladder_of_renewals():
    made = keeper(interval=4, swap_lag=1, warm_every=3, warm_iterations=2, cold_imbalance=3.0)
    index = made.index(0)
    run(made, range(18))
    assert index.log == ['cold', 'assigned', 'assigned', 'warm2', 'assigned']
    made.index(18).unevenness = 5.0
    run(made, range(18, 22))
    assert made.index(22).log == ['cold']  # built from nothing, not renewed


def test_touched_rows_follow_at_once_and_survive_a_swap():
    made = keeper(touched_per_step=3)
    made.index(0)
    for step in range(14):
        made.store.weights[:5] = step
        made.after_update(torch.arange(5), step, first=torch.tensor([4]))
        assert made.index(step).rows[:, 0][[4, 0, 1]].tolist() == [step] * 3
    assert made.index(14).rows[2, 0] == 10  # of the snapshot: beyond the budget


def test_drift_is_measured_against_the_snapshot():
    store = TensorStore(torch.eye(4).repeat(10, 1))
    made = keeper(store)
    made.index(0)
    assert made.drift() == pytest.approx(0, abs=1e-3)
    store.weights = store.weights.roll(1, dims=1)
    assert made.drift() == pytest.approx(1, abs=1e-3)
    made.build_for(5, 6)
    assert made.drift() == pytest.approx(0, abs=1e-3)


def test_an_index_wanted_at_a_step_is_built_ahead_of_it_and_not_between():
    made, seen = keeper(is_async=True), []
    for step in range(26):
        if step in (0, 10, 20):
            seen.append(made.index(step).rows.mean().item())
        made.store.weights += 1
        made.build_for(step, step - step % 10 + 10)
    # First built at once; then from snapshots after steps 6 and 16, three steps ahead.
    assert seen == [0.0, 7.0, 17.0] and made.index(26).log == ['cold']
    assert made.state_dict()['num_renewals'] == 2
    made.finish()


@pytest.mark.parametrize('cut', range(8, 18))
@pytest.mark.parametrize('is_exact', [True, False])
def test_a_loaded_index_goes_on_as_the_saved_one(cut, is_exact):
    """Before, while and after a build is under way; saving changes nothing."""
    straight = run(keeper(), range(26))
    made = keeper()
    first = run(made, range(cut))
    state = made.state_dict(is_exact=is_exact)
    other = keeper(made.store)
    other.load_state_dict(state)
    assert other.index(cut).kind == 'restored'
    joined = first + run(other, range(cut, 26))
    assert (joined == straight) is is_exact


def test_a_checkpoint_without_the_index_itself_still_loads():
    """As before checkpoints had it: the rows of then fill the index."""
    made = keeper()
    run(made, range(12))
    state = {key: value for key, value in made.state_dict().items()
             if key in ('index', 'built_step', 'num_renewals')}
    other = keeper(made.store)
    other.load_state_dict(state)
    assert other.index(12).kind == 'restored' and other.index(12).rows.mean() == 12


def test_a_damaged_state_is_refused():
    made = keeper()
    run(made, range(12))
    coming = made.state_dict()['coming']
    for damaged in (dict(snapshot=torch.zeros(3, 4)), dict(probe=[torch.tensor([50]),
                                                                  torch.zeros(1, 4)]),
                    dict(coming=coming | dict(rows=torch.zeros(50, 5))), dict(coming={}),
                    dict(coming=coming | dict(touched=torch.tensor([-1]))),
                    dict(coming=coming | dict(previous=torch.zeros(3, dtype=torch.int32)))):
        with pytest.raises(VisionError, match='1054'):
            keeper(made.store).load_state_dict(made.state_dict() | damaged)


@pytest.mark.parametrize('schedule', [dict(swap_lag=10), dict(interval=0), dict(warm_every=-1)])
def test_schedules_that_are_refused(schedule):
    with pytest.raises(VisionError, match='1049'):
        keeper(**schedule)


def trained(name, is_async, steps=40):
    """Selections of a short run on rows that really move."""
    store = TensorStore(clustered_rows())
    options = dict(factory='HNSW16') if name == 'faiss' else {}
    selector = build_selector(name, store, num_active=150, **options, upkeep=dict(
        interval=10, swap_lag=4, touched_per_step=20 if name == 'ivf' else 0,
        is_async=is_async))
    # Made as they are asked for: near the rows of then.
    batches = (batch_near(store.weights, seed=step) for step in range(steps))
    return selections(selector, store, batches), store.weights


@pytest.mark.parametrize('name', ['ivf', 'faiss', 'forest'])
def test_a_thread_changes_no_selection(name):
    """Bit for bit: a run with the thread is the run without it."""
    (chosen, weights), (chosen_too, weights_too) = (trained(name, is_async=flag)
                                                    for flag in (False, True))
    assert all(map(torch.equal, chosen, chosen_too)) and torch.equal(weights, weights_too)


@pytest.mark.parametrize('options', [dict(name='faiss', factory='HNSW16'), dict(name='forest')])
def test_touched_rows_of_an_index_that_cannot_take_them_are_refused(options):
    store = TensorStore(clustered_rows())
    selector = build_selector(store=store, num_active=100, upkeep=dict(touched_per_step=5),
                              **options)
    with pytest.raises(VisionError, match='VIS-CONFIG-1093'):
        selector.select(*batch_near(store.weights), 0)


@pytest.mark.parametrize('is_async', [False, True])
def test_a_build_that_fails_is_raised_where_its_index_was_to_be_used(is_async):
    store = TensorStore(clustered_rows())
    selector = build_selector('ivf', store, num_active=100, upkeep=dict(
        interval=3, swap_lag=2, is_async=is_async))
    features, labels = batch_near(store.weights)
    selector.select(features, labels, 0)
    index = selector.upkeep.index(0)
    store.weights[7] = torch.nan
    for step in (3, 4):
        selector.after_update(torch.tensor([7]), step)
    with pytest.raises(VisionError, match='1047'):
        selector.after_update(torch.tensor([7]), 5)
    assert selector.upkeep.index(6) is index
    selector.upkeep.finish()


def test_a_fault_of_a_build_that_is_not_ours_says_what_it_was():
    class Failing(CountingIndex):
        def renewal(self, rows, **options):
            def work():
                raise MemoryError('no room')
            return work
    made = keeper(build=lambda rows, seed: Failing(rows), is_async=True)
    with pytest.raises(VisionError, match='(?s)VIS-RUN-1056.*MemoryError: no room'):
        run(made, range(14))
    made.finish()
