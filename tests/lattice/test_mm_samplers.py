"""Whole videos per rank, balanced by frames, nothing lost, nothing twice."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.lattice.mm import samplers
from vision.lattice.mm.samplers import VideoClipSampler, VideoFrameSampler, split_by_frames

LENGTHS = st.lists(st.integers(1, 500), max_size=30)


class Lengths(list):
    def get_len_per_video(self, video: int) -> int:
        return self[video]


def as_rank(monkeypatch, rank: int, num_ranks: int) -> None:
    monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, num_ranks))


@given(LENGTHS, st.integers(1, 12))
def test_every_video_goes_to_exactly_one_rank(lengths, num_ranks):
    parts = split_by_frames(lengths, num_ranks)
    assert len(parts) == num_ranks
    assert sorted(sum(parts, [])) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)


@given(LENGTHS.filter(bool), st.integers(1, 12))
def test_load_is_within_four_thirds_of_the_best_possible(lengths, num_ranks):
    loads = [sum(lengths[i] for i in part) for part in split_by_frames(lengths, num_ranks)]
    # The best maximum is at least each of these three (the last: two of the first m + 1 meet).
    ordered = sorted(lengths, reverse=True)
    pair = sum(ordered[num_ranks - 1:num_ranks + 1]) if len(ordered) > num_ranks else 0
    bound = max(sum(lengths) / num_ranks, ordered[0], pair)
    assert max(loads) <= bound * 4 / 3 + 1e-9


def test_hand_made_split():
    assert split_by_frames([10, 90, 50, 40], 2) == [[0, 1], [2, 3]]
    assert split_by_frames([5, 5, 5], 2) == [[0, 2], [1]]
    assert split_by_frames([5], 3) == [[0], [], []]


@pytest.mark.parametrize('num_ranks', [1, 2, 5])
def test_frames_come_in_order_and_each_once(monkeypatch, num_ranks):
    data, seen = Lengths([3, 1, 4]), []
    for rank in range(num_ranks):
        as_rank(monkeypatch, rank, num_ranks)
        sampler = VideoFrameSampler(data, seed=rank)
        items = list(sampler)
        assert len(items) == len(sampler) and items == sorted(items) == list(sampler)
        seen += items
    assert sorted(seen) == [(v, f) for v, n in enumerate(data) for f in range(n)]


def test_more_ranks_than_videos_leave_some_ranks_without_work(monkeypatch):
    as_rank(monkeypatch, 4, 5)
    assert len(VideoFrameSampler(Lengths([3, 1, 4]))) == 0


def test_clips_follow_the_length_and_ranks_get_equal_parts(monkeypatch):
    data, drawn = Lengths([240, 24, 5]), []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        sampler = VideoClipSampler(data, frames_per_clip=24, seed=7)
        part = list(sampler)
        assert len(part) == len(sampler) == 4
        drawn += part
    assert np.bincount(drawn).tolist() == [10, 1, 1]


def test_clips_are_shuffled_by_seed_and_epoch_only():
    data = Lengths([100] * 20)
    sampler, twin = (VideoClipSampler(data, seed=3) for _ in range(2))
    first = list(sampler)
    assert first == list(twin) and first == list(sampler) and first != sorted(first)
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == sorted(first)


def test_impossible_clip_is_refused():
    with pytest.raises(ValueError, match='frames_per_clip must be >= 1'):
        VideoClipSampler(SimpleNamespace(), frames_per_clip=0)
