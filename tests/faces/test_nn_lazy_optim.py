"""Lazy optimizers against dense ones that step every row in every step."""

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.faces.nn.store import lazy_optim
from vision.faces.nn.store.class_store import build_store
from vision.faces.nn.store.lazy_optim import MissedSteps, build_optimizer

NUM, DIM, STEPS = 200, 12, 500
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def schedule(step):
    """Two drops."""
    return 0.1 * 0.1 ** ((step >= 200) + (step >= 380))


def warm_cosine(step):
    """Another learning rate in every step."""
    return 0.1 * min(1, (step + 1) / 50) * float(
        1 + torch.cos(torch.tensor(torch.pi * step / STEPS))) / 2


def batches(seed=0, dtype=torch.float32, num_active=15):
    """(step, active rows, function of the rows that gives their gradients)."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        rows = torch.randperm(NUM, generator=generator)[:num_active].sort()[0]
        noise = torch.randn(num_active, DIM, generator=generator).to(dtype)
        yield step, rows, lambda weights, noise=noise: 0.01 * noise + 0.1 * weights


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def dense_run(start, kind, lr_of, **options):
    weights = torch.nn.Parameter(start.clone())
    optimizer = kind([weights], lr=1.0, **options)
    for step, rows, gradient_of in batches(dtype=start.dtype):
        weights.grad = torch.zeros_like(weights)
        weights.grad[rows] = gradient_of(weights.detach()[rows])
        optimizer.param_groups[0]['lr'] = lr_of(step)
        optimizer.step()
    return weights.detach(), optimizer.state[weights]


def lazy_run(store, lr_of, look_every=None):
    for step, rows, gradient_of in batches(dtype=store._rows.dtype):
        weights = store.pull(rows)
        store.push(rows, gradient_of(weights.detach()), lr=lr_of(step))
        if look_every and step % look_every == 0:
            store.snapshot()
            store.pull(torch.arange(0, NUM, 3))
    return store.snapshot(store._rows.dtype)


def new_store(optimizer, dtype=torch.float32):
    return build_store(NUM, DIM, optimizer=optimizer, dtype=dtype, seed=4)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('lr_of', [schedule, warm_cosine])
@pytest.mark.parametrize('momentum, weight_decay', [(0.9, 1e-2), (0.9, 0.0), (0.0, 1e-2),
                                                    (0.0, 0.0), (0.99, 5e-4)])
def test_lazy_sgd_equals_dense_sgd(dtype, lr_of, momentum, weight_decay):
    options = dict(momentum=momentum, weight_decay=weight_decay)
    store = new_store(dict(type='sgd', **options), dtype)
    start = store.snapshot(dtype)
    expected, state = dense_run(start, torch.optim.SGD, lr_of, **options)
    actual = lazy_run(store, lr_of)
    assert relative(expected, start) > 0.1  # otherwise this test proves nothing
    assert relative(actual, expected) < TOLERANCE[dtype]
    if momentum:
        _, lazy_state = store._current(slice(0, NUM))
        assert relative(lazy_state['momentum'], state['momentum_buffer']) < 3 * TOLERANCE[dtype]


def test_a_row_worked_by_hand():
    store = new_store(dict(type='sgd', momentum=0.5, weight_decay=0.1), torch.float64)
    one, other = torch.tensor([0]), torch.tensor([1])
    store._rows[0] = 1.0
    store.push(one, torch.full((1, DIM), 2.0), lr=0.1)  # v = 2.1, w = 1 - 0.21
    store.push(other, torch.zeros(1, DIM), lr=0.1)      # v = 1.05 + 0.079, w = 0.79 - 0.1129
    store.push(other, torch.zeros(1, DIM), lr=0.01)     # v = 0.5645 + 0.06771, w - 0.0063221
    weights = store.pull(one)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.6707779),
                               rtol=0, atol=1e-12)
    assert store._last[0] == 1 and store._rows[0, 0] == pytest.approx(0.79)  # reading writes not


def test_reading_leaves_no_trace():
    optimizer = dict(type='sgd', momentum=0.9, weight_decay=1e-3)
    plain, looked_at = new_store(optimizer), new_store(optimizer)
    assert torch.equal(lazy_run(plain, schedule), lazy_run(looked_at, schedule, look_every=7))


@pytest.mark.parametrize('optimizer', [
    dict(type='sgd', momentum=0.9, weight_decay=1e-3), dict(type='sgd', weight_decay=1e-3),
    dict(type='adamw'), dict(type='row_adagrad', weight_decay=1e-3)])
def test_not_looking_whether_rows_are_up_to_date_changes_no_bit(optimizer, monkeypatch):
    """As on an accelerator, which would have to be waited for."""
    expected = lazy_run(new_store(optimizer), schedule)
    store, factors = new_store(optimizer), MissedSteps.factors
    monkeypatch.setattr(MissedSteps, 'factors', lambda self, last, dtype, **_: factors(
        self, last, dtype, may_wait=False))
    assert torch.equal(lazy_run(store, schedule), expected)
    rows = torch.tensor([5, 3, 5, 199])
    current, _ = store._current(rows)
    assert torch.equal(store.peek(rows), current)


@pytest.mark.parametrize('kind', ['sgd', 'adamw', 'row_adagrad'])
def test_a_new_window_changes_nothing_but_rounding(kind, monkeypatch):
    optimizer = dict(type=kind, weight_decay=1e-2, **({'momentum': 0.9} if kind == 'sgd' else {}))
    expected = lazy_run(new_store(optimizer, torch.float64), schedule)
    monkeypatch.setattr(lazy_optim.MissedSteps.__init__, '__defaults__', ('cpu', 64))
    store = new_store(optimizer, torch.float64)
    actual = lazy_run(store, schedule)
    assert store._missed.num_steps == STEPS % 64
    assert relative(actual, expected) < 1e-12


def test_products_over_a_window_stay_those_of_each_step():
    missed, matrices = MissedSteps(2, window=2000), []
    for step in range(2000):
        lr = 0.3 / (1 + step)
        matrices.append([[1 - lr * 1e-3, -lr * 0.9], [1e-3, 0.9]])
        missed.advance(matrices[-1])
    assert missed.is_full
    for start in (0, 1, 1500, 1999):
        expected = torch.eye(2, dtype=torch.float64)
        for matrix in matrices[start:]:
            expected = torch.tensor(matrix, dtype=torch.float64) @ expected
        actual = missed.factors(torch.tensor([start, 2000]), torch.float64)
        torch.testing.assert_close(actual[..., 0], expected, rtol=1e-12, atol=1e-15)
        assert torch.equal(actual[..., 1], torch.eye(2, dtype=torch.float64))


def test_adamw_active_in_every_step_is_torchs():
    store = new_store(dict(type='adamw', weight_decay=0.05), torch.float64)
    dense = torch.nn.Parameter(store.snapshot(torch.float64))
    optimizer = torch.optim.AdamW([dense], weight_decay=0.05)
    everything, generator = torch.arange(NUM), torch.Generator().manual_seed(1)
    for step in range(60):
        dense.grad = torch.randn(NUM, DIM, generator=generator).double()
        optimizer.param_groups[0]['lr'] = lr = 0.01 if step < 30 else 0.003
        optimizer.step()
        store.push(everything, dense.grad, lr=lr)
    assert relative(store.snapshot(torch.float64), dense.detach()) < 1e-12


@pytest.mark.parametrize('kind', ['adamw', 'row_adagrad'])
def test_each_row_is_an_optimizer_of_its_own_that_decays_in_between(kind):
    """The stated semantics, with one slow optimizer per row as the judge."""
    store = new_store(dict(type=kind, weight_decay=0.02), torch.float64)
    start = store.snapshot(torch.float64)
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    judges = [torch.optim.AdamW([row], weight_decay=0.02) for row in rows]
    sums = torch.zeros(NUM, dtype=torch.float64)
    for step, active, gradient_of in batches(dtype=torch.float64):
        if step == 120:
            break
        lr, weights = schedule(step), store.pull(active)
        gradients = gradient_of(weights.detach())
        store.push(active, gradients, lr=lr)
        with torch.no_grad():
            for i in set(range(NUM)) - set(active.tolist()):
                rows[i].mul_(1 - lr * 0.02)
            for i, gradient in zip(active.tolist(), gradients, strict=True):
                if kind == 'adamw':
                    rows[i].grad = gradient
                    judges[i].param_groups[0]['lr'] = lr
                    judges[i].step()
                else:
                    sums[i] += gradient.square().mean()
                    rows[i].mul_(1 - lr * 0.02).sub_(lr * gradient / (sums[i].sqrt() + 1e-8))
    assert relative(store.snapshot(torch.float64), torch.stack(rows).detach()) < 1e-12


@pytest.mark.parametrize('options, code, words', [
    (dict(type='lion'), 1027, 'no optimizer'), (dict(type='sgd', lr=0.1), 1028, 'lr_mult'),
    (dict(type='sgd', momentum=1.0), 1029, 'momentum=1.0'),
    (dict(type='sgd', nesterov=True), 1028, 'nesterov'),
    (dict(type='adamw', betas=(0.9, 1.2)), 1029, 'beta2=1.2'),
    (dict(type='row_adagrad', weight_decay=-1), 1029, 'weight_decay=-1')])
def test_options_that_mean_nothing_are_refused(options, code, words):
    with pytest.raises(VisionError, match=words) as error:
        build_optimizer(**options)
    assert error.value.code == f'VIS-CONFIG-{code}'
