"""The selector that never waits for the device: laws of a selection, no operator that waits."""

import sys
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.index.device_lists import DeviceLists
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.class_store import build_store
from vision.faces.nn.store.device_store import ClassStore
from vision.faces.nn.store.lazy_optim import build_optimizer

sys.path.insert(0, str(Path(__file__).parent))
from rows import TensorStore, batch_near, clustered_rows
from slow_oracle import SlowOracle
from waits import Waits


@pytest.fixture(scope='module')
def weights():
    return clustered_rows()


def made(weights, start=0, end=None, store=None, **options):
    """With all lists searched, so that each sample has its best rows."""
    return build_selector('device', store or TensorStore(weights, start, end),
                          **dict(num_active=200, num_lists=16, nprobe=16) | options)


def captured(weights, features, rows):
    return (64 * features @ weights.T).softmax(1)[:, rows].sum(1).mean().item()


@pytest.mark.parametrize(('num_active', 'batch', 'expected'), [
    (200, 32, 200), (10, 32, 33), (2000, 32, 2000), (200, 0, 200)])
def test_laws_of_a_selection(weights, num_active, batch, expected):
    features, labels = batch_near(weights, num=batch)
    selector = made(weights, num_active=num_active)
    selection = selector.select(features, labels, 3)
    rows = selection.rows
    assert len(rows) == expected and (rows.diff() > 0).all() and rows.dtype == torch.int64
    assert rows[0] >= 0 and rows[-1] < 2000
    assert torch.equal(rows[selection.columns], labels)
    again = made(weights, num_active=num_active).select(features, labels, 3)
    assert torch.equal(again.rows, rows)
    if expected < 2000:
        assert not torch.equal(selector.select(features, labels, 4).rows, rows)


def test_mass_beside_the_oracle_and_chance(weights):
    """The oracle sums over all rows and samples; a sum over near rows only is hardly less."""
    features, labels = batch_near(weights)
    margin = build_margin('ArcFace')
    common = dict(num_active=200, target=margin.target)
    rows = {name: build_selector(name, TensorStore(weights), **common).select(
        features, labels, 0).rows for name in ('oracle', 'random')}
    rows['device'] = made(weights, target=margin.target, overfetch=3.0).select(
        features, labels, 0).rows
    chance, mass, best = (captured(weights, features, rows[name])
                          for name in ('random', 'device', 'oracle'))
    assert (mass - chance) / (best - chance) > 0.97


def test_the_order_of_samples_changes_nothing(weights):
    features, labels = batch_near(weights, num=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    one, two = (made(weights).select(features[some], labels[some], 0).rows
                for some in (torch.arange(64), order))
    assert torch.equal(one, two)


@pytest.mark.parametrize(('start', 'end'), [(0, None), (500, 1500)])
def test_weighed_by_their_counts_active_rows_stand_for_all(weights, start, end):
    features, labels = batch_near(weights)
    selector = made(weights, start, end, random_frac=0.4)
    here = (8.0 * features @ weights[start:end].T).exp()
    sums = []
    for step in range(150):
        chosen = selector.select(features, labels, step)
        counts = chosen.expected_counts
        assert (counts[torch.isin(chosen.rows, labels - start)] == 1).all()
        assert ((counts > 0) & (counts <= 1)).all() and (counts < 1).sum() >= 40
        sums.append((here[:, chosen.rows] / counts).sum(1))
    sums = torch.stack(sums)
    error = sums.mean(0) - here.sum(1)
    assert (error.abs() < 4.5 * sums.std(0) / 150 ** 0.5).all()


def test_a_step_waits_for_no_value(weights):
    """On a store with momentum, whose rows have missed steps."""
    store = build_store(2000, weights.shape[1], optimizer=dict(type='sgd', momentum=0.9))
    for step in range(3):
        rows = torch.arange(step, 2000, 7)
        store.push(rows, torch.ones(len(store.pull(rows)), weights.shape[1]), lr=0.1)
    features, labels = batch_near(weights)
    selector = made(weights, store=store, target=build_margin('AdaFace').target, nprobe=4)
    selector.upkeep.index(0)
    with Waits() as waits:
        selection = selector.select(features, labels, 0)
    assert waits.found == [] and len(selection.rows) == 200
    judge = SlowOracle(store, num_active=200)
    with Waits() as waits:  # the judge sees them where they are
        judge.select(features, labels, 0)
    assert {'_unique2', 'nonzero'} <= set(waits.found)


def test_a_step_works_on_tensors_that_have_no_values():
    """On the meta device: nothing can be read, and a tensor of the host would be refused."""
    rows = torch.empty(2000, 16, device='meta')
    store = ClassStore(rows, build_optimizer(type='sgd', momentum=0.9), num_classes=2000)
    selector = made(None, store=store, target=build_margin('AdaFace').to('meta').target)
    lists = DeviceLists.build(clustered_rows(), num_lists=16)
    for name, value in vars(lists).items():
        if isinstance(value, torch.Tensor):
            setattr(lists, name, value.to('meta'))
    selector.upkeep.adopt(lists, 0)
    labels = torch.zeros(32, dtype=torch.int64, device='meta')
    selection = selector.select(torch.empty(32, 16, device='meta'), labels, 0)
    assert selection.rows.shape == selection.expected_counts.shape == (200,)
    assert selection.columns.shape == (32,) and selection.rows.device.type == 'meta'


@pytest.mark.parametrize(('code', 'options'), [
    ('1057', dict(is_cosine=False)), ('1057', dict(store='host')), ('1098', dict(overfetch=0.5)),
    ('1097', dict(adaptive={})), ('1097', dict(num_searched=3))])
def test_what_it_cannot_work_with_is_refused(weights, code, options):
    if 'store' in options:
        options = dict(store=build_store(50, 8, backend='host'))
    with pytest.raises(VisionError, match=code):
        made(weights, **options)


def test_a_run_with_renewals_learns_and_goes_on_from_a_checkpoint(weights):
    """Bit for bit, cut while new lists are being made."""
    def steps(selector, numbers):
        chosen = []
        for step in numbers:
            features, labels = batch_near(weights, seed=step)
            rows = selector.select(features, labels, step).rows
            selector.store.weights[rows] += 0.05 * weights[rows.roll(1)]
            selector.after_update(rows, step)
            chosen.append(rows)
        return chosen
    schedule = dict(interval=6, swap_lag=3, warm_every=2)
    first = made(weights, nprobe=2, upkeep=schedule)
    before = steps(first, range(8))
    second = made(weights, store=TensorStore(first.store.weights), nprobe=2, upkeep=schedule)
    second.load_state_dict(first.state_dict())
    straight, cut = steps(first, range(8, 20)), steps(second, range(8, 20))
    assert all(map(torch.equal, straight, cut)) and len(before) == 8
