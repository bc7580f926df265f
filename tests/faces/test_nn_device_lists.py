"""Lists on a device: what they hold, brute force over the same lists as judge, nothing waits."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vision.common.core.errors import VisionError
from vision.faces.nn.index.device_lists import DeviceLists, restore_lists
from vision.faces.nn.index.kmeans import assign

DIM = 16
WAITING = ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select', 'item', 'equal', 'isin',
           'bincount', 'repeat_interleave')


@pytest.fixture(scope='module')
def rows():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, DIM, generator=generator)
    noise = torch.randn(2400, DIM, generator=generator)
    return functional.normalize(centres.repeat_interleave(40, 0) + 0.5 * noise)


def queries(num=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(num, DIM, generator=generator))


def uneven(rows, num_lists=24):
    """A third of all rows in one list, the last list empty."""
    assignment = torch.arange(len(rows)) % (num_lists - 1)
    assignment[::3] = 5
    return DeviceLists(rows[:num_lists].clone(), assignment), assignment


def test_lists_hold_every_row_once_with_its_own_and_in_bounded_memory(rows):
    lists, assignment = uneven(rows)
    held = lists._lists >= 0
    assert lists._lists[held].sort().values.tolist() == list(range(len(rows)))
    piece, _ = held.nonzero(as_tuple=True)
    ids = lists._lists[held].long()
    assert torch.equal(lists._of_piece[piece], lists.centroids[assignment[ids]])
    assert lists._lists.numel() <= 3 * len(rows) + lists._lists.shape[1]
    assert torch.equal(lists.assignment(), assignment)
    lengths = assignment.bincount(minlength=24).double()
    assert lists.imbalance() == pytest.approx(float(24 * (lengths ** 2).mean() * 24 / 2400 ** 2))


@pytest.mark.parametrize('nprobe', [1, 3, 1000])
@pytest.mark.parametrize('num', [1, 10, 250])
@pytest.mark.parametrize('is_function', [False, True])
def test_results_are_those_of_brute_force_over_the_same_lists(rows, nprobe, num, is_function):
    """The rows have moved since the lists were made: the live ones count."""
    lists, _ = uneven(rows)
    live = functional.normalize(rows + 0.3 * queries(len(rows), seed=2))
    asked = queries()
    ids, scores = lists.propose_scored(
        asked, (lambda ids: live[ids]) if is_function else live, nprobe=nprobe, num=num)
    assert ids.shape == scores.shape == (20, num) and ids.dtype == torch.int64
    for query, found, score in zip(asked, ids, scores, strict=True):
        pieces = (lists._of_piece @ query).topk(min(nprobe, len(lists._lists))).indices
        inside = lists._lists[pieces].flatten()
        inside = inside[inside >= 0].long()
        best = (live[inside] @ query).topk(min(num, len(inside))).values
        torch.testing.assert_close(score[:len(best)], best)
        torch.testing.assert_close(live[found[:len(best)]] @ query, best)
        assert len(found[:len(best)].unique()) == len(best)
        assert torch.isin(found[:len(best)], inside).all()
        assert (found[len(best):] == -1).all() and (score[len(best):] == -torch.inf).all()
    if nprobe == 1000:
        torch.testing.assert_close(scores, (asked @ live.T).topk(num).values)


def test_few_of_the_lists_built_hold_most_of_the_nearest(rows):
    lists = DeviceLists.build(rows, seed=3)
    near = functional.normalize(rows[::60] + 0.05 * queries(40, seed=4))
    exact = (near @ rows.T).topk(10).indices
    found, _ = lists.propose_scored(near, rows, nprobe=8, num=10)
    assert len(lists.centroids) == 256
    assert (exact[:, :, None] == found[:, None]).any(2).float().mean() > 0.9
    again = DeviceLists.build(rows, seed=3)
    assert torch.equal(again._lists, lists._lists)


def test_a_search_waits_for_no_value(rows):
    class Waits(TorchDispatchMode):
        found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            is_mask = name in ('index', 'index_put_') and any(
                index is not None and index.dtype == torch.bool for index in args[1])
            if is_mask or any(name.strip('_').startswith(each.strip('_')) for each in WAITING):
                self.found.append(name)
            return func(*args, **(kwargs or {}))

    asked = queries()
    with Waits() as waits:
        lists, _ = uneven(rows)
        assert 'bincount' in waits.found  # making them may wait: the mode sees it
        waits.found.clear()
        lists.propose_scored(asked, rows, nprobe=4, num=30)
        assert waits.found == []


@pytest.mark.parametrize('num_iterations', [0, 2])
def test_renewed_lists_have_each_row_at_its_nearest_centroid(rows, num_iterations):
    lists = DeviceLists.build(rows, num_lists=32)
    moved = functional.normalize(rows + 0.3 * queries(len(rows), seed=5))
    renewed = lists.renewal(moved.half(), num_iterations=num_iterations)()
    nearest = assign(moved.half(), renewed.centroids, is_cosine=True)
    assert torch.equal(renewed.assignment(), nearest)
    assert torch.equal(renewed.centroids, lists.centroids) is (num_iterations == 0)
    assert not torch.equal(nearest, lists.assignment())


def test_a_checkpoint_gives_the_same_lists_or_new_ones_of_its_centroids(rows):
    lists = DeviceLists.build(rows, num_lists=32)
    state = dict(lists.state_dict(), lists=lists.lists_state())
    same = restore_lists(state, None, 'cpu')
    assert torch.equal(same._lists, lists._lists)
    filled = restore_lists(dict(state, lists=None), rows, 'cpu')
    assert torch.equal(filled._lists, lists._lists)
    for damage in (dict(centroids=None), dict(centroids=state['centroids'] * torch.nan),
                   dict(lists=dict(assignment=torch.tensor([32], dtype=torch.int32))),
                   dict(lists=dict(assignment=torch.zeros(4))), dict(lists=None)):
        with pytest.raises(VisionError, match='VIS-CKPT-1054'):
            restore_lists(state | damage, None, 'cpu')


def test_what_cannot_be_built_is_refused(rows):
    with pytest.raises(VisionError, match='1044'):
        DeviceLists.build(rows[:10], num_lists=11)
    broken = rows.clone()
    broken[7, 3] = torch.inf
    with pytest.raises(VisionError, match='1047'):
        DeviceLists.build(broken)


@pytest.mark.parametrize('num', [1, 2, 10])
def test_few_rows_and_no_query_are_no_fault(rows, num):
    lists = DeviceLists.build(rows[:num])
    ids, scores = lists.propose_scored(rows[num - 1:num], rows[:num], nprobe=2, num=3)
    assert ids[0, 0] == num - 1 and scores[0, 0] == pytest.approx(1)
    assert lists.propose_scored(rows[:0], rows[:num], nprobe=2, num=3)[0].shape == (0, 3)
