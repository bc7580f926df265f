"""The oracle: the rows of the slow one, in parts and passes, without a wait; draws made ahead."""

import copy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from vision.faces.core.select.ahead import Ahead
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.select import oracle
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.class_store import build_store
from vision.faces.nn.store.device_store import ClassStore
from vision.faces.nn.store.lazy_optim import build_optimizer

sys.path.insert(0, str(Path(__file__).parent))
from rows import TensorStore, batch_near, clustered_rows
from slow_oracle import SlowOracle
from waits import Waits

ARCFACE = build_margin('ArcFace').target


@pytest.fixture(scope='module')
def weights():
    return clustered_rows()


def moved_store(weights, **options):
    """With momentum, so that rows have steps to make up."""
    store = build_store(*weights.shape, optimizer=dict(type='sgd', momentum=0.9), **options)
    store.state_dict()['rows'].copy_(weights)
    for step in range(3):
        rows = torch.arange(step, len(weights), 7)
        store.push(rows, torch.ones(len(store.pull(rows)), weights.shape[1]), lr=0.1)
    return store


@pytest.mark.parametrize('memory', [{}, dict(CHUNK_BYTES=1 << 16),
                                    dict(CHUNK_BYTES=1 << 16, KEPT_BYTES=0)])
@pytest.mark.parametrize('options', [
    {}, dict(target=ARCFACE), dict(target=ARCFACE, num_centres=4), dict(scale=8.0),
    dict(target=build_margin('CosFace', margin=0.6).target, scale=64.0),
    dict(scale=65.0), dict(scale=1000.0), dict(is_cosine=False)])
def test_rows_are_those_of_the_slow_one(monkeypatch, weights, memory, options):
    """Rows in parts, E kept or worked out twice; a range of the rows and all of them."""
    for name, value in memory.items():
        monkeypatch.setattr(oracle, name, value)
    features, labels = batch_near(weights)
    labels -= labels % options.get('num_centres', 1)
    for start, end in ((0, None), (500, 1500)):
        store = TensorStore(3 * weights if 'is_cosine' in options else weights, start, end)
        common = dict(num_active=400, random_frac=0.0, **options)
        slow = SlowOracle(store, **common).select(features, labels, 0)
        quick = build_selector('oracle', store, **common).select(features, labels, 0)
        assert torch.equal(quick.rows, slow.rows) and torch.equal(quick.columns, slow.columns)
        assert torch.equal(quick.expected_counts, slow.expected_counts)


@pytest.mark.parametrize('backend', ['device', 'host'])
def test_rows_as_of_now_decide_wherever_they_are(weights, backend):
    store = moved_store(weights, backend=backend)
    features, labels = batch_near(weights)
    before = store.snapshot(torch.float32)
    common = dict(num_active=200, random_frac=0.0, target=ARCFACE)
    for step in range(2):
        slow, quick = (selector.select(features, labels, step).rows for selector in (
            SlowOracle(store, **common), build_selector('oracle', store, **common)))
        assert torch.equal(slow, quick)
    assert torch.equal(store.snapshot(torch.float32), before)  # looking changes nothing


def test_chosen_rows_do_not_depend_on_the_draw_and_both_are_apart(weights):
    features, labels = batch_near(weights)
    chosen = []
    for step in range(2):
        selection = build_selector('oracle', TensorStore(weights), num_active=200,
                                   random_frac=0.25).select(features, labels, step)
        assert len(selection.rows) == 200 and (selection.rows.diff() > 0).all()
        is_chosen = selection.expected_counts == 1
        assert is_chosen.sum() == 150
        torch.testing.assert_close(selection.expected_counts[~is_chosen],
                                   torch.full((50,), 50 / 1850))
        chosen.append(selection.rows[is_chosen])
    assert torch.equal(*chosen)
    alone = SlowOracle(TensorStore(weights), num_active=150, random_frac=0.0)
    assert torch.equal(alone.select(features, labels, 0).rows, chosen[0])


@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_own_classes_are_in_where_features_are_not_finite(weights, bad):
    """Such a step is left out by others; until then it is one like any other."""
    features, labels = batch_near(weights)
    features[3, 2] = bad
    selection = build_selector('oracle', TensorStore(weights), num_active=200,
                               target=ARCFACE).select(features, labels, 0)
    assert torch.equal(selection.rows[selection.columns], labels) and len(selection.rows) == 200


@pytest.mark.parametrize('options', [{}, dict(scale=200.0), dict(num_centres=2),
                                     dict(is_cosine=False)])
def test_a_step_waits_for_no_value(monkeypatch, weights, options):
    monkeypatch.setattr(oracle, 'CHUNK_BYTES', 1 << 16)
    store = moved_store(weights)
    features, labels = batch_near(weights)
    labels -= labels % 2
    selector = build_selector('oracle', store, num_active=200,
                              target=build_margin('AdaFace').target, **options)
    with Waits() as waits:
        selection = selector.select(features, labels, 0)
    assert waits.found == [] and len(selection.rows) == 200


def test_a_step_works_on_tensors_that_have_no_values():
    store = ClassStore(torch.empty(2000, 16, device='meta'), build_optimizer(
        type='sgd', momentum=0.9), num_classes=2000)
    selector = build_selector('oracle', store, num_active=200,
                              target=build_margin('AdaFace').to('meta').target)
    selection = selector.select(torch.empty(32, 16, device='meta'),
                                torch.zeros(32, dtype=torch.int64, device='meta'), 0)
    assert selection.rows.shape == selection.expected_counts.shape == (200,)
    assert selection.columns.shape == (32,) and selection.rows.device.type == 'meta'


# Draws that are made ahead.

@pytest.mark.parametrize('name', ['random', 'oracle', 'device'])
def test_draws_that_are_made_ahead_are_the_same(monkeypatch, weights, name):
    """Beside a selector that never draws ahead, one that begins anew at step 3, and a jump."""
    options = dict(num_lists=16) if name == 'device' else {}

    def chosen(steps):
        selector = build_selector(name, TensorStore(weights), num_active=200, **options)
        rows = []
        for step in steps:
            features, labels = batch_near(weights, num=32 + step % 3, seed=step)
            selector.expect(labels, step)
            rows.append(selector.select(features, labels, step).rows)
        return rows
    steps = [0, 1, 2, 3, 4, 4, 9]
    ahead, resumed = chosen(steps), chosen(steps[3:])
    monkeypatch.setattr(Ahead, 'begin', lambda *args: None)
    plain = chosen(steps)
    assert all(map(torch.equal, ahead, plain)) and all(map(torch.equal, resumed, plain[3:]))


def test_a_draw_that_was_begun_is_not_made_again_and_leaves_no_thread():
    made = []
    ahead = Ahead(lambda *key: made.append(key) or key)
    for step in range(4):
        assert ahead(7, step) == (7, step)
        ahead.begin(7, step + 1)
        ahead.begin(7, step + 1)
    assert ahead(7, 4) == ahead(7, 4) == (7, 4)
    assert made == [(7, step) for step in range(5)]
    assert copy.deepcopy(ahead)(7, 4) == (7, 4) and len(made) == 6
    for thread in threading.enumerate():
        if thread.name == 'drawn-rows':
            thread.join(5)
            assert not thread.is_alive()


def test_an_error_of_the_thread_is_raised_where_the_draw_is_asked_for():
    ahead = Ahead(lambda number: 1 // number)
    ahead.begin(0)
    with pytest.raises(ZeroDivisionError):
        ahead(0)


def test_rows_that_were_drawn_before_the_features_are_drawn_once(monkeypatch, weights):
    from vision.faces.nn.select import selectors
    drawn, draw = [], selectors.draw_outside
    monkeypatch.setattr(selectors, 'draw_outside', lambda *args, **kwargs: (
        drawn.append(args[-1]), draw(*args, **kwargs))[1])
    features, labels = batch_near(weights)
    selector = build_selector('random', TensorStore(weights), num_active=200)
    for step in range(3):
        known = selector.known_rows(labels, step)
        assert torch.equal(selector.select(features, labels, step).rows, known)
    assert drawn == [0, 1, 2]
    assert np.array_equal(selector.select(features, labels.flip(0), 2).rows, known)
