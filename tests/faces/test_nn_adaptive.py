"""What the adaptive selector measures is true, and it leaves the warm-up when rows cluster."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vision.faces.nn.select import adaptive
from vision.faces.nn.select.adaptive import outside_mass, recall_at_10
from vision.faces.nn.select.build import build_selector

sys.path.insert(0, str(Path(__file__).parent))
from rows import TensorStore, batch_near, clustered_rows


def made(weights, **options):
    return build_selector('ivf', TensorStore(weights), num_active=150, **options)


def judged_outside(weights, features, labels, rows):
    """Mean mass of the negatives outside, from the whole matrix."""
    logits = 64 * features @ weights.T
    logits[torch.arange(len(labels)), labels] = -torch.inf
    return 1 - logits.softmax(1)[:, rows].sum(1).mean().item()


def test_outside_mass_against_the_whole_matrix(monkeypatch):
    weights = clustered_rows()
    features, labels = batch_near(weights)
    selector = made(weights)
    rows = selector.select(features, labels, 0).rows
    expected = judged_outside(weights, features, labels, rows)
    assert outside_mass(selector, features, labels, rows, 0) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(adaptive, '_EXACT_ROWS', 100)
    monkeypatch.setattr(adaptive, '_SAMPLED_ROWS', 400)
    sampled = [outside_mass(selector, features, labels, rows, step) for step in range(40)]
    assert len(set(sampled)) > 30
    assert sum(sampled) / 40 == pytest.approx(expected, abs=0.3 * expected)


def test_recall_by_hand():
    weights = clustered_rows()
    features, labels = batch_near(weights)
    scores = features @ weights.T
    scores[torch.arange(32), labels] = -1
    best = scores.topk(10).indices
    selector = made(weights)
    assert recall_at_10(selector, features, labels, best.unique()) == 1.0
    assert recall_at_10(selector, features, labels, torch.tensor([-5])) == 0.0
    half = recall_at_10(selector, features, labels, best[:16].unique())
    assert 0.5 <= half < 0.75


@pytest.mark.parametrize(('noise', 'phase'), [(0.5, 'index'), (50.0, 'warm-up')])
def test_only_rows_with_structure_end_the_warm_up(noise, phase):
    weights = clustered_rows(num=20_000, dim=64 if noise > 1 else 16, noise=noise)
    selector = made(weights, nprobe=4, adaptive=dict(monitor_every=5), scale=16.0)
    features, labels = batch_near(weights)
    first = selector.select(features, labels, 0)
    assert selector.controller.allocation.phase == phase
    assert {'outside_mass', 'recall', 'drift', 'is_warm_up'} <= set(first.stats)
    assert len(first.rows) == (2000 if phase == 'warm-up' else selector.inner.num_active)
    later = selector.select(features, labels, 1)
    assert 'recall' not in later.stats and len(selector.controller.log) == 1


def test_rows_without_clusters_are_searched_in_more_lists_until_they_are_found():
    weights = clustered_rows(num=5000, dim=32, noise=3.0)
    selector = made(weights, nprobe=4, scale=16.0, adaptive=dict(monitor_every=1))
    features, labels = batch_near(weights)
    recalls = [float(selector.select(features, labels, step).stats['recall'])
               for step in range(6)]
    assert recalls[0] < 0.6 and recalls[-1] > 0.85 and recalls == sorted(recalls)
    assert selector.upkeep.index(6).nprobe == selector.inner.nprobe >= 32
    renewed = selector.upkeep.index(6).renewal(weights)()
    assert renewed.nprobe == 4  # the selector sets it, whatever index answers
    selector.upkeep.adopt(renewed, 6)
    selector.inner.candidates(features, 40, 6)
    assert renewed.nprobe == selector.inner.nprobe


def test_decisions_survive_a_checkpoint():
    weights = clustered_rows()
    features, labels = batch_near(weights)
    first = made(weights, adaptive=dict(monitor_every=2))
    store = first.inner.store
    for step in range(5):
        rows = first.select(features, labels, step).rows
        store.weights[rows] = functional.normalize(store.weights[rows] + 0.01)
        first.after_update(rows, step)
    second = build_selector('ivf', store, num_active=9, adaptive=dict(monitor_every=2))
    second.load_state_dict(first.state_dict())
    assert second.controller.log == first.controller.log and len(second.controller.log) == 3
    assert second.inner.num_active == first.inner.num_active
    assert second.inner.nprobe == first.inner.nprobe
    assert second.upkeep.interval == first.upkeep.interval
