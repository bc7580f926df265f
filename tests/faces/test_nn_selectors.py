"""Every selector: own classes in, size kept, repeatable; and how near to the best each comes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.select.build import NAMES, build_selector

sys.path.insert(0, str(Path(__file__).parent))
from rows import DIM, TensorStore, batch_near, clustered_rows

WITH_INDEX = tuple(name for name in NAMES if name not in ('full', 'random', 'oracle'))
OPTIONS = dict(forest=dict(leaf_size=16),
               faiss=dict(factory='HNSW16,SQfp16', parameters='efSearch=128'))


@pytest.fixture(scope='module')
def weights():
    return clustered_rows()


def made(name, weights, num_active=200, start=0, end=None, **options):
    store = TensorStore(weights, start, end)
    return build_selector(name, store, num_active=num_active, **OPTIONS.get(name, {}) | options)


def captured(weights, features, rows, scale=64.0):
    """Mean softmax mass that the rows hold."""
    return (scale * features @ weights.T).softmax(1)[:, rows].sum(1).mean().item()


@pytest.mark.parametrize('name', NAMES)
def test_laws_of_a_selection(name, weights):
    features, labels = batch_near(weights)
    selection = made(name, weights).select(features, labels, step=3)
    rows = selection.rows
    assert rows.dtype == torch.int64 and (rows.diff() > 0).all()
    assert torch.equal(rows[selection.columns], labels)
    assert len(rows) == (len(weights) if name == 'full' else 200)
    assert selection.stats['num_active'] == len(rows)


@pytest.mark.parametrize('name', NAMES)
def test_equal_seed_and_step_give_equal_rows_and_another_step_others(name, weights):
    features, labels = batch_near(weights)
    first, again = (made(name, weights, seed=5).select(features, labels, 7) for _ in range(2))
    assert torch.equal(first.rows, again.rows)
    if name != 'full':
        other = made(name, weights, seed=5).select(features, labels, 8)
        assert not torch.equal(first.rows, other.rows)  # at least the random share differs


@pytest.mark.parametrize(('name', 'least'), [('ivf', 0.95), ('faiss', 0.95), ('forest', 0.6)])
def test_captured_mass_beside_the_oracle_and_chance(name, least, weights):
    features, labels = batch_near(weights)
    mass = {key: captured(weights, features, made(
        key, weights).select(features, labels, 0).rows)
            for key in (name, 'oracle', 'random')}
    assert mass['random'] < mass[name] <= mass['oracle'] + 1e-3
    chance, best = mass['random'], mass['oracle']
    assert (mass[name] - chance) / (best - chance) >= least


def test_a_forest_ranked_per_query_holds_more_than_its_votes():
    """Judge: the rows that most leaves of the whole batch hold, as many as were chosen."""
    weights = clustered_rows(num=6000)
    features, labels = batch_near(weights, num=64)
    selector = made('forest', weights, num_active=300, num_trees=12)
    rows = selector.select(features, labels, 0).rows
    forest = selector.upkeep.index(0).forest
    votes = torch.zeros(len(weights))
    for leaf in forest.leaves(features.numpy()).flatten():
        start, end = forest.leaf_starts[leaf:leaf + 2]
        votes[torch.from_numpy(forest.leaf_rows[start:end]).long()] += 1
    votes[labels] = torch.inf
    outside, by_votes = (1 - captured(weights, features, chosen) for chosen in (
        rows, votes.topk(300).indices))
    assert outside < 0.5 * by_votes


def test_each_sample_keeps_its_own_best_on_live_rows(weights):
    """Judge: the scores of all leaves' rows, sample by sample."""
    features, _ = batch_near(weights)
    selector = made('forest', weights, num_trees=4, overfetch=1.0)
    selector.upkeep.index(0)
    selector.store.weights.copy_(weights.roll(1, dims=0))  # the forest is of the old ones
    found = selector.candidates(features, 160, 0)
    expected = set()
    for query, ids in zip(features, selector.upkeep.index(0).search(features, 5), strict=True):
        ids = ids[ids >= 0]
        expected |= set(ids[(selector.store.weights[ids] @ query).topk(5).indices].tolist())
    assert set(found.tolist()) == expected


def test_small_masses_are_ranked_by_size_not_by_number():
    """Masses below the smallest float32: the nearer rows win, wherever they stand."""
    weights = functional.normalize(torch.tensor([[1.0, 0]] * 4 + [[-1, -0.1 * i]
                                                                 for i in range(40)]))
    features, labels = torch.tensor([[1.0, 0]]), torch.tensor([0])
    for flip in (False, True):
        rows = weights.flip(0) if flip else weights
        own = torch.tensor([len(rows) - 1]) if flip else labels
        chosen = build_selector('oracle', TensorStore(rows), num_active=9, random_frac=0.0,
                                scale=300.0).select(features, own, 0).rows
        assert set(chosen.tolist()) == set((rows @ features[0]).topk(9).indices.tolist())


def test_the_oracle_is_the_best_of_all_sets():
    """Judge: every set of that size that holds the labels, one by one."""
    from itertools import combinations
    weights = clustered_rows(num=12, per_cluster=3)
    features, labels = batch_near(weights, num=3)
    chosen = made('oracle', weights, num_active=6, random_frac=0.0).select(features, labels, 0)
    own = set(labels.tolist())
    others = sorted(set(range(12)) - own)
    best = max(captured(weights, features, sorted(own | set(extra)))
               for extra in combinations(others, 6 - len(own)))
    assert captured(weights, features, chosen.rows) == pytest.approx(best, abs=1e-6)


def test_live_rows_decide_not_the_index(weights):
    """Rows move after the build: of all proposed, the ones near NOW are kept."""
    selector = made('ivf', weights, num_active=100, random_frac=0.0, overfetch=6.0)
    features, labels = batch_near(weights, num=8)
    ids = selector.candidates(features, 80, 0)
    others = ids[~torch.isin(ids, labels)]
    favoured = others[::7][:20]
    selector.store.weights[others] = -features[0]
    selector.store.weights[favoured] = features[0]
    rows = selector.select(features, labels, 0).rows
    assert torch.isin(favoured, rows).all()


@pytest.mark.parametrize(('name', 'options'), [
    ('Softmax', {}), ('CosFace', dict(margin=0.3)), ('AdaFace', {}),
    ('CombinedMargin', dict(m1=1.2, m2=0.2, m3=0.1))])
def test_own_classes_count_with_the_margin_of_the_head(name, options, weights):
    """Judge: the margin's own logits of the whole matrix, features of several lengths."""
    margin = build_margin(name, scale=16.0, **options).eval()
    features, labels = batch_near(weights)
    features = features * torch.linspace(5, 60, len(features))[:, None]
    cosine = functional.normalize(features) @ weights.T
    expected = margin(cosine, labels, norms=features.norm(dim=1, keepdim=True))
    found = made('oracle', weights, scale=16.0, target=margin.target).own_logits(features, labels)
    torch.testing.assert_close(found, expected.gather(1, labels[:, None])[:, 0])


@pytest.mark.parametrize('name', ['oracle', 'ivf'])
def test_of_several_centres_of_a_class_the_nearest_counts(name, weights):
    """Judge: all classes' logits from the nearest of three rows each."""
    features, labels = batch_near(weights[:1998])
    labels = labels - labels % 3
    margin = build_margin('ArcFace', scale=16.0)
    nearest = (features @ weights[:1998].T).view(len(labels), -1, 3).amax(2)
    expected = margin(nearest, labels // 3).gather(1, labels[:, None] // 3)[:, 0]
    selector = made(name, weights[:1998], target=margin.target, scale=16.0, num_centres=3)
    torch.testing.assert_close(selector.own_logits(features, labels), expected)
    selection = selector.select(features, labels, 0)
    own = (labels.unique()[:, None] + torch.arange(3)).flatten()
    assert torch.isin(own, selection.rows).all() and len(selection.rows) == 200
    assert torch.equal(selection.rows[selection.columns], labels)


def test_a_margin_leaves_mass_to_others(weights):
    """A sample that is sure of its class competes for places only because of the margin."""
    features = functional.normalize(torch.stack([weights[3], weights[40] + weights[41]]))
    labels = torch.tensor([3, 40])
    near = (features[0] @ weights.T).topk(12).indices
    held = [torch.isin(near, made('oracle', weights, num_active=20, random_frac=0.0, **options)
                       .select(features, labels, 0).rows).sum()
            for options in ({}, dict(target=build_margin('CosFace', margin=0.6).target))]
    assert held[1] > held[0]


def test_the_random_share_is_kept_and_uniform(weights):
    features, labels = batch_near(weights)
    best_only = made('ivf', weights, random_frac=0.0).select(features, labels, 0).rows
    counts = np.zeros(len(weights))
    selector = made('ivf', weights, random_frac=0.3)
    for step in range(300):
        counts[selector.select(features, labels, step).rows] += 1
    easy = np.setdiff1d(np.arange(len(weights)), best_only)
    expected = 300 * 60 / len(easy)
    assert counts[easy].mean() > 0.7 * expected and counts[easy].max() < 4 * expected


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'full'])
@pytest.mark.parametrize('num_active', [10, 64])
def test_more_labels_than_places_are_all_in_and_so_is_the_random_share(name, num_active, weights):
    features, labels = batch_near(weights, num=64)
    own, others = labels.unique(), set()
    for step in range(3):
        rows = made(name, weights, num_active=num_active).select(features, labels, step).rows
        assert torch.isin(own, rows).all()
        drawn = rows[~torch.isin(rows, own)].tolist()
        # Partial FC has no share of its own: random rows fill what own classes leave.
        least = 0 if name == 'random' else round(0.1 * num_active)
        assert len(drawn) == max(least, num_active - len(own))
        others |= set(drawn)
    assert not drawn or len(others) > len(drawn)  # another draw in each step


@pytest.mark.parametrize(('start', 'end'), [(0, None), (500, 1500)])
@pytest.mark.parametrize('name', [name for name in NAMES if name != 'full'])
def test_weighed_by_their_counts_active_rows_stand_for_all(name, start, end, weights):
    """Sum over active rows / count: on average the sum over all rows of this rank."""
    features, labels = batch_near(weights)
    selector = made(name, weights, start=start, end=end, random_frac=0.4)
    here = (8.0 * features @ weights[start:end].T).exp()
    sums = []
    for step in range(150):
        chosen = selector.select(features, labels, step)
        counts = chosen.expected_counts
        is_own = torch.isin(chosen.rows, labels - start)
        assert counts.shape == chosen.rows.shape and (counts[is_own] == 1).all()
        assert ((counts > 0) & (counts <= 1)).all() and (counts < 1).sum() >= 30
        sums.append((here[:, chosen.rows] / counts).sum(1))
    sums = torch.stack(sums)
    error = sums.mean(0) - here.sum(1)
    spread = sums.std(0) / 150 ** 0.5
    assert (error.abs() < 4.5 * spread).all()


@pytest.mark.parametrize('name', NAMES)
def test_rows_known_beforehand_are_chosen(name, weights):
    features, labels = batch_near(weights)
    selector = made(name, weights, start=500, end=1500)
    known, rows = selector.known_rows(labels, 3), selector.select(features, labels, 3).rows
    assert torch.isin(known, rows).all() and (known.diff() > 0).all() and len(known)
    assert torch.equal(known, rows) is (name == 'random')
    is_here = (labels >= 500) & (labels < 1500)
    assert torch.isin(labels[is_here] - 500, known).all()


@pytest.mark.parametrize('name', ['random', 'ivf', 'oracle', 'full'])
def test_ranks_hold_own_ranges_and_all_labels_together(name, weights):
    features, labels = batch_near(weights)
    parts, held = [], torch.zeros(len(labels), dtype=torch.int64)
    for start, end in ((0, 700), (700, 1500), (1500, 2000)):
        selection = made(name, weights, start=start, end=end).select(features, labels, 2)
        here = selection.columns >= 0
        assert torch.equal(selection.rows[selection.columns[here]] + start, labels[here])
        held += here
        parts.append(selection.rows + start)
    assert (held == 1).all()
    if name == 'random':  # the draw does not depend on the number of ranks
        alone = made(name, weights).select(features, labels, 2).rows
        assert torch.equal(torch.cat(parts), alone)


def test_no_sample_at_all_is_a_draw_of_rows(weights):
    selection = made('ivf', weights).select(torch.empty(0, DIM), torch.empty(0).long(), 0)
    assert len(selection.rows) == 200 and len(selection.columns) == 0


@pytest.mark.parametrize('bad', [-1, 2000])
def test_a_label_out_of_range_is_refused(bad, weights):
    features, labels = batch_near(weights)
    labels[3] = bad
    with pytest.raises(VisionError, match=f'1051.*{bad}'):
        made('random', weights).select(features, labels, 0)


@pytest.mark.parametrize('options, code', [
    (dict(name='nearest'), 1050), (dict(num_active=None), 1096), (dict(num_active=0), 1099),
    (dict(random_frac=1.5), 1099), (dict(overfetch=0.5), 1100), (dict(num_searched=0), 1100),
    (dict(num_trees=3), 1097), (dict(name='forest', nprobe=3), 1097),
    (dict(name='random', nprobe=3), 1097), (dict(upkeep=dict(every=3)), 1097),
    (dict(name='random', upkeep={}), 1097)])
def test_settings_that_are_refused(options, code, weights):
    options = dict(name='ivf', num_active=50) | options
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        build_selector(options.pop('name'), TensorStore(weights), **options)


@pytest.mark.parametrize('name', WITH_INDEX)
def test_a_loaded_selector_chooses_as_the_saved_one(name, weights):
    features, labels = batch_near(weights)
    first = made(name, weights)
    expected = first.select(features, labels, 4).rows
    second = made(name, weights)
    second.load_state_dict(first.state_dict())
    both = np.intersect1d(expected, second.select(features, labels, 4).rows)
    assert len(both) >= 0.97 * len(expected)
