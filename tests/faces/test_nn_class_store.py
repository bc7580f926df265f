"""Class rows: cut over ranks, saved and cut anew, kept in host memory, within their memory."""

import copy
import threading
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint, read_plain, save_checkpoint
from vision.faces.nn.store import device_store, lazy_optim
from vision.faces.nn.store.class_store import (
    ClassStore,
    build_store,
    class_rows,
    initial_rows,
    row_range,
)
from vision.faces.nn.store.lazy_optim import build_optimizer

NUM, DIM = 103, 6
SGD = dict(type='sgd', momentum=0.9, weight_decay=1e-3)


def ranks(num, *, optimizer=SGD, seed=0):
    """The stores of all ranks of a run, in one process."""
    ranges = [row_range(NUM, rank, num) for rank in range(num)]
    return [ClassStore(initial_rows(start, end, DIM, seed), build_optimizer(**optimizer),
                       num_classes=NUM, row_start=start) for start, end in ranges]


def train(stores, steps, first=0):
    """Steps with active rows and gradients that depend on class and step only."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        active = torch.randperm(NUM, generator=generator)[:12].sort()[0]
        noise = torch.randn(NUM, DIM, generator=generator)
        for store in stores:
            own = active[(active >= store.row_start) & (active < store.row_end)]
            rows = own - store.row_start
            weights = store.pull(rows)
            store.push(rows, noise[own] + weights.detach(), lr=0.1 if step < 25 else 0.02)


def whole(stores):
    return torch.cat([store.snapshot(torch.float32) for store in stores])


def states(stores):
    return copy.deepcopy([store.state_dict() for store in stores])


@pytest.mark.parametrize('num_classes', [1, 7, 103, 4096])
@pytest.mark.parametrize('world', [1, 2, 3, 7])
def test_ranges_cover_all_classes_once_and_differ_by_one(num_classes, world):
    ranges = [row_range(num_classes, rank, world) for rank in range(world)]
    assert ranges[0][0] == 0 and ranges[-1][1] == num_classes
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    sizes = [end - start for start, end in ranges]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


def test_ranges_of_ten_classes_on_three_ranks():
    assert [row_range(10, rank, 3) for rank in range(3)] == [(0, 4), (4, 7), (7, 10)]


def test_new_rows_depend_on_seed_and_class_only():
    everything = initial_rows(0, 10_000, 5, seed=3)
    for start, end in ((0, 1), (4095, 4097), (4096, 8192), (5000, 10_000), (9999, 10_000)):
        assert torch.equal(initial_rows(start, end, 5, seed=3), everything[start:end])
    assert torch.equal(initial_rows(0, 3, 5, seed=3), everything[:3])
    assert not torch.equal(initial_rows(0, 10, 5, seed=4), everything[:10])
    assert everything.std().item() == pytest.approx(0.01, rel=0.02)
    assert len(everything.unique(dim=0)) == len(everything)


@pytest.mark.parametrize('optimizer', [SGD, dict(type='adamw'), dict(type='row_adagrad')])
def test_any_number_of_ranks_gives_the_same_bits_also_after_a_cut(optimizer):
    uninterrupted = ranks(1, optimizer=optimizer)
    train(uninterrupted, 60)
    four = ranks(4, optimizer=optimizer)
    train(four, 20)
    two = ranks(2, optimizer=optimizer, seed=9)
    for store in two:
        store.load_ranges(states(four)[::-1])
    train(two, 20, first=20)
    three = ranks(3, optimizer=optimizer, seed=9)
    for store in three:
        store.load_ranges(states(two))
    train(three, 20, first=40)
    assert torch.equal(whole(three), whole(uninterrupted))
    assert not torch.equal(whole(three), whole(two))


def test_states_survive_a_file_and_give_all_rows(tmp_path):
    stores = ranks(3)
    train(stores, 30)
    save_checkpoint(dict(state_dict={}, stores=states(stores)), tmp_path / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'x.pth')['stores']
    assert torch.equal(class_rows(loaded), whole(stores))
    other = build_store(NUM, DIM, optimizer=SGD, seed=8)
    other.load_ranges(loaded)
    train(stores, 10, first=30)
    train([other], 10, first=30)
    assert torch.equal(other.snapshot(torch.float32), whole(stores))


@pytest.mark.parametrize('spoil, words', [
    (lambda s: s.pop(1), 'rows 35 to 69 are there in none'),
    (lambda s: s.pop(2), 'rows 69 to 103 are in none'),
    (lambda s: s.append(s[2]), 'there twice'), (lambda s: s.clear(), 'there are none'),
    (lambda s: s[1].update(num_classes=104), 'num_classes is 104, here it is 103'),
    (lambda s: s[0].update(dim=7), 'dim is 7'),
    (lambda s: s[0]['optimizer'].update(type='adamw'), 'optimizer adamw'),
    (lambda s: s[1]['missed'].update(num_steps=3), 'different steps')])
def test_states_that_do_not_fit_are_refused_and_nothing_changes(spoil, words):
    stores, other = ranks(3), build_store(NUM, DIM, optimizer=SGD, seed=5)
    train(stores, 4)
    train([other], 2)
    saved, before = states(stores), other.snapshot(torch.float32)
    spoil(saved)
    with pytest.raises(VisionError, match=words) as error:
        other.load_ranges(saved)
    assert error.value.code == 'VIS-CKPT-1023'
    assert torch.equal(other.snapshot(torch.float32), before)


@pytest.mark.parametrize('rows', [[3, 2], [2, 2], [-1, 4], [0, NUM]])
def test_row_ids_that_would_be_lost_are_refused(rows):
    store = build_store(NUM, DIM, optimizer=SGD)
    for call in (lambda ids: store.pull(ids),
                 lambda ids: store.push(ids, torch.zeros(2, DIM), lr=0.1)):
        with pytest.raises(VisionError) as error:
            call(torch.tensor(rows))
        assert error.value.code == 'VIS-INPUT-1022'


def test_ids_and_gradients_of_another_form_are_refused():
    store = build_store(NUM, DIM, optimizer=SGD)
    with pytest.raises(VisionError, match='int64'):
        store.pull(torch.tensor([1.0]))
    with pytest.raises(VisionError, match='gradients of shape'):
        store.push(torch.tensor([1, 2]), torch.zeros(1, DIM), lr=0.1)
    assert store._missed.num_steps == 0


@pytest.mark.parametrize('value, lr', [(float('nan'), 0.1), (float('inf'), 0.1),
                                       (1.0, float('nan')), (1.0, -0.1)])
def test_a_step_that_is_not_finite_is_refused_and_nothing_changes(value, lr):
    store = build_store(NUM, DIM, optimizer=SGD)
    train([store], 3)
    before, gradients = store.snapshot(torch.float32), torch.ones(2, DIM)
    gradients[1, 2] = value
    with pytest.raises(VisionError) as error:
        store.push(torch.tensor([4, 7]), gradients, lr=lr)
    assert error.value.code == 'VIS-RUN-1026'
    assert torch.equal(store.snapshot(torch.float32), before)


@pytest.mark.parametrize('backend', ['device', 'host'])
def test_a_look_at_rows_in_any_order_is_what_a_pull_gives_and_leaves_no_trace(backend):
    store = build_store(20, 4, backend=backend, optimizer=SGD)
    for step in range(3):
        rows = torch.arange(step, 20, 3)
        store.push(rows, torch.ones(len(rows), 4), lr=0.1)
    pulled = store.pull(torch.arange(20)).detach()
    before = copy.deepcopy(store.state_dict())
    ids = torch.tensor([7, 3, 7, 19, 0])
    assert torch.equal(store.peek(ids), pulled[ids])
    after = store.state_dict()
    assert torch.equal(before['rows'], after['rows']) and torch.equal(before['last'],
                                                                      after['last'])


def test_no_active_rows_is_a_step_all_the_same():
    store, other = build_store(NUM, DIM, optimizer=SGD), build_store(NUM, DIM, optimizer=SGD)
    nobody = torch.arange(0)
    for made in (store, other):
        train([made], 3)
    weights = store.pull(nobody)
    assert weights.shape == (0, DIM) and weights.requires_grad
    store.push(nobody, torch.zeros(0, DIM), lr=0.1)
    other.push(torch.arange(NUM), torch.zeros(NUM, DIM), lr=0.1)
    torch.testing.assert_close(store.snapshot(torch.float64), other.snapshot(torch.float64))


def test_push_of_pulled_rows_equals_push_alone_and_keeps_what_was_pulled():
    first, second = ranks(1)[0], ranks(1)[0]
    train([first, second], 5)
    rows, gradients = torch.tensor([1, 50, 99]), torch.ones(3, DIM)
    weights = first.pull(rows)
    before = weights.detach().clone()
    first.push(rows, gradients, lr=0.1)
    second.push(rows.clone(), gradients, lr=0.1)
    assert torch.equal(weights, before)
    assert torch.equal(first.snapshot(torch.float32), second.snapshot(torch.float32))


def test_snapshot_is_of_now_in_the_asked_precision(monkeypatch):
    store = build_store(NUM, DIM, optimizer=SGD)
    train([store], 20)
    expected = store.pull(torch.arange(NUM)).detach()
    monkeypatch.setattr(device_store, 'CHUNK_ROWS', 10)  # more than one chunk, the last a part
    assert torch.equal(store.snapshot(torch.float32), expected)
    assert store.snapshot().dtype == torch.float16
    assert torch.equal(store.snapshot(), expected.half())
    assert not torch.equal(store._rows, expected)  # some rows had missed steps


def test_bytes_beyond_rows_and_momentum_stay_within_a_fiftieth_of_the_rows():
    store = build_store(200_000, 64, optimizer=SGD)
    train_rows = torch.arange(0, 200_000, 100)
    for _ in range(3):
        store.push(train_rows, torch.zeros(len(train_rows), 64), lr=0.1)
    kept = [value for value in vars(store).values() if isinstance(value, torch.Tensor)]
    kept += [*store._state.values()]
    extra = sum(t.nbytes for t in kept) - 2 * store._rows.nbytes
    assert store._missed._to_now.nbytes <= 300_000  # whatever the number of classes
    assert 0 < extra <= store._rows.nbytes / 50


@pytest.mark.parametrize('optimizer', [SGD, dict(type='adamw')])
def test_rows_in_host_memory_are_the_same_bits_whatever_was_fetched_before(optimizer):
    plain = build_store(NUM, DIM, optimizer=optimizer)
    host = build_store(NUM, DIM, optimizer=optimizer, backend='host')
    generator = torch.Generator().manual_seed(3)
    num_hits = 0
    for step in range(40):
        train([plain, host], 1, first=step)
        # Some of these are pushed before they are pulled: the thread's copy is then old.
        rows = torch.randperm(NUM, generator=generator)[:step].sort()[0]
        host.prefetch(rows)
        train([plain, host], step % 2, first=100 + step)
        num_hits += int(host._is_fresh.sum())
        asked = torch.randperm(NUM, generator=generator)[:30].sort()[0]
        assert torch.equal(host.pull(asked), plain.pull(asked))
    assert num_hits > 400 and host._is_fresh.sum() < len(rows)
    host.load_state_dict(states([plain])[0])
    assert torch.equal(host.pull(asked), plain.pull(asked))


def test_all_rows_brought_up_to_date_make_what_was_fetched_old(monkeypatch):
    monkeypatch.setattr(lazy_optim.MissedSteps.__init__, '__defaults__', ('cpu', 10))
    plain, host = (build_store(NUM, DIM, optimizer=SGD, backend=b) for b in ('device', 'host'))
    train([plain, host], 8)
    host.prefetch(torch.arange(NUM))
    train([plain, host], 3, first=8)
    assert torch.equal(host.pull(torch.arange(NUM)), plain.pull(torch.arange(NUM)))


def test_a_step_is_written_back_while_the_main_thread_goes_on_and_before_anyone_reads():
    plain, host = (build_store(NUM, DIM, optimizer=SGD, backend=b) for b in ('device', 'host'))
    rows, gate, threads = torch.arange(0, NUM, 3), threading.Event(), []
    host._pool.submit(gate.wait, 10)  # the thread is busy
    write = ClassStore._write

    def watched(self, *args):
        threads.append(threading.current_thread() is threading.main_thread())
        write(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassStore, '_write', watched)
        for store in (host, plain):
            store.pull(rows)
            store.push(rows, torch.ones(len(rows), DIM), lr=0.1)
        assert threads == [True]  # the plain one; the other is still to be written
        before = initial_rows(0, NUM, DIM, 0)
        assert torch.equal(host._rows, before) and not torch.equal(plain._rows, before)
        host.prefetch(rows)  # waits for nothing
        threading.Timer(0.1, gate.set).start()
        assert torch.equal(host.pull(torch.arange(NUM)), plain.pull(torch.arange(NUM)))
    assert threads == [True, False]


def test_a_write_that_fails_is_raised_by_who_reads_next():
    host = build_store(NUM, DIM, optimizer=SGD, backend='host')
    host._submit = lambda work, *args: host._pool.submit(lambda: 1 / 0)
    host.push(torch.tensor([3]), torch.ones(1, DIM), lr=0.1)
    with pytest.raises(ZeroDivisionError):
        host.snapshot()


@pytest.mark.parametrize('backend', ['device', 'host'])
def test_rows_of_a_mapped_checkpoint_are_taken_and_the_file_is_not_changed(tmp_path, backend):
    first = build_store(NUM, DIM, optimizer=SGD)
    train([first], 10)
    path = tmp_path / 'x.pth'
    save_checkpoint(dict(state_dict={}, stores=[first.state_dict()]), path)
    content = path.read_bytes()
    other = build_store(NUM, DIM, optimizer=SGD, backend=backend, seed=5)
    mapped = read_plain(path, is_mapped=True)['stores']
    other.load_ranges(mapped, takes_tensors=True)
    assert other.state_dict()['rows'].data_ptr() == mapped[0]['rows'].data_ptr()
    train([first, other], 10, first=10)
    assert torch.equal(whole([first]), whole([other]))
    assert path.read_bytes() == content
    halves = ranks(2)
    for store in halves:  # their part of the same tensors is copied
        store.load_ranges(mapped, takes_tensors=True)
        assert store.state_dict()['rows'].data_ptr() != mapped[0]['rows'].data_ptr()


def test_large_state_takes_no_memory_until_a_row_is_stepped():
    def resident_bytes():
        return int(Path('/proc/self/statm').read_text().split()[1]) * 4096

    num, dim = 400_000, 64
    rows = torch.zeros(num, dim)
    rows += 1
    before = resident_bytes()
    store = ClassStore(rows, build_optimizer(**SGD), num_classes=num)
    assert store._state['momentum'].nbytes == 102_400_000
    for step in range(3):
        touched = torch.arange(step, num, 4000)
        store.push(touched, torch.ones(len(touched), dim), lr=0.1)
    assert resident_bytes() - before < 20_000_000
    momentum = store._state['momentum']
    assert (momentum != 0).any(1).sum() == 300 and momentum[0, 0] == pytest.approx(1.001)


@pytest.mark.parametrize('options', [dict(backend='disk'), dict(dtype=torch.float16)])
def test_store_options_that_mean_nothing_are_refused(options):
    with pytest.raises(VisionError) as error:
        build_store(NUM, DIM, **options)
    assert error.value.code == 'VIS-CONFIG-1021'
