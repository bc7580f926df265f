"""Which rank sees which frames, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from vision.registry import DATA_SAMPLERS


def split_by_frames(lengths: list[int], num_ranks: int) -> list[list[int]]:
    """Videos of each rank, ascending: whole videos, longest first to the rank with least frames.

    Deterministic. With fewer videos than ranks the last ranks get none. No rank holds more than
    the smallest possible maximum times 4/3 (Graham 1969).
    """
    loads, parts = [0] * num_ranks, [[] for _ in range(num_ranks)]
    for video in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        parts[rank].append(video)
        loads[rank] += lengths[video]
    return [sorted(part) for part in parts]


@DATA_SAMPLERS.register_module()
class VideoFrameSampler(Sampler):
    """(video, frame) pairs for testing: whole videos per rank, each video's frames in order.

    Args:
        dataset: a ``CocoVideoDataset`` (anything with ``get_len_per_video``).
        seed: MMEngine passes it to every sampler; the order never changes.
    """

    def __init__(self, dataset, seed: int | None = None) -> None:
        rank, num_ranks = get_dist_info()
        self.lengths = [dataset.get_len_per_video(video) for video in range(len(dataset))]
        self.videos = split_by_frames(self.lengths, num_ranks)[rank]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((video, frame) for video in self.videos for frame in range(self.lengths[video]))

    def __len__(self) -> int:
        return sum(self.lengths[video] for video in self.videos)


@DATA_SAMPLERS.register_module()
class VideoClipSampler(Sampler):
    """Video indices for training: a long video comes as often as its length asks for.

    An epoch has each video max(1, round(frames / frames_per_clip)) times, shuffled by seed and
    epoch; the first ones are repeated until all ranks have equally many. Which clip of the video
    is used is the pipeline's choice.

    Args:
        dataset: a ``CocoVideoDataset``. frames_per_clip: frames that one draw stands for.
        seed: of all ranks; None takes MMEngine's common seed.
    """

    def __init__(self, dataset, frames_per_clip: int = 24, seed: int | None = None) -> None:
        if frames_per_clip < 1:
            raise ValueError(f'frames_per_clip must be >= 1, got {frames_per_clip}')
        self.rank, self.num_ranks = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        lengths = np.array([dataset.get_len_per_video(i) for i in range(len(dataset))])
        repeats = np.maximum(1, np.round(lengths / frames_per_clip).astype(int))
        self.indices = np.repeat(np.arange(len(dataset)), repeats)
        self.num_samples = -(-len(self.indices) // self.num_ranks)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.indices)
        order = np.resize(order, self.num_samples * self.num_ranks)
        return iter(order[self.rank::self.num_ranks].tolist())

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next; epochs count from 0."""
        self.epoch = epoch
