"""Data order and augmentation as functions of the seed, so that a resumed run repeats them.

Each index that a sampler gives carries its place (epoch, how many came before it). A thin proxy
around the data set seeds all random generators from (seed, rank, epoch, place) before it loads
the sample: the same sample then looks the same whichever worker loads it and however often the
run was interrupted. Skipping what was consumed costs no loading.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from vision.common.nn.seeds import seed_everything

DEFAULT_SEED = 0
ENDLESS = ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')


def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None,
                     diff_rank_seed: bool = False) -> DataLoader:
    """As MMEngine's; data set, sampler and batch sampler are wrapped by ``exact_data``."""
    if isinstance(dataloader, DataLoader):
        return dataloader
    config = copy.deepcopy(dict(dataloader))
    dataset = config['dataset']
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    seed = DEFAULT_SEED if seed is None else seed
    sampler = config['sampler']
    if isinstance(sampler, dict):
        sampler = DATA_SAMPLERS.build(sampler, default_args=dict(
            dataset=dataset, seed=None if diff_rank_seed else seed))
    config['sampler'] = PlacedSampler(sampler)
    if isinstance(config.get('batch_sampler'), dict):
        config['batch_sampler'] = SkippableBatches(DATA_SAMPLERS.build(
            config['batch_sampler'], default_args=dict(
                sampler=config['sampler'], batch_size=config.pop('batch_size'))))
    config['dataset'] = SeededDataset(dataset, seed, get_rank())
    return Runner.build_dataloader(config, seed=seed, diff_rank_seed=diff_rank_seed)


class PlacedInt(int):
    """An index that knows its place; ``key`` is (epoch, place)."""

    key: tuple[int, int]


class PlacedTuple(tuple):
    """The same for samplers that give tuples such as (video, frame)."""

    key: tuple[int, int]


class PlacedSampler:
    """A sampler whose indices carry their place, and which can begin later in its stream.

    Everything else (``set_epoch``, ``dataset``, ...) is the inner sampler's.
    """

    def __init__(self, sampler) -> None:
        self.inner = sampler
        self.epoch = 0
        self.num_to_skip = 0

    def __deepcopy__(self, memo: dict) -> PlacedSampler:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __iter__(self) -> Iterator[Any]:
        skipped, self.num_to_skip = self.num_to_skip, 0
        for place, index in enumerate(self.inner):
            if place < skipped:
                continue
            placed = PlacedTuple(index) if isinstance(index, tuple) else PlacedInt(index)
            placed.key = (self.epoch, place)
            yield placed

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == 'inner':  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(epoch)

    @property
    def is_endless(self) -> bool:
        return isinstance(self.inner, InfiniteSampler) or type(self.inner).__name__ in ENDLESS


class SkippableBatches:
    """A batch sampler of a config (for example by aspect ratio) that can begin later."""

    def __init__(self, batches) -> None:
        self.inner = batches
        self.num_to_skip = 0

    def __deepcopy__(self, memo: dict) -> SkippableBatches:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __iter__(self) -> Iterator[list]:
        skipped, self.num_to_skip = self.num_to_skip, 0
        for number, batch in enumerate(self.inner):
            if number >= skipped:
                yield batch

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == 'inner':
            raise AttributeError(name)
        return getattr(self.inner, name)


class SeededDataset:
    """A data set that loads every sample from a random state of its own; else the inner one."""

    def __init__(self, dataset, *key: int) -> None:
        object.__setattr__(self, 'inner', dataset)
        object.__setattr__(self, 'key', key)

    def __deepcopy__(self, memo: dict) -> SeededDataset:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __getitem__(self, index: Any) -> Any:
        if (place := getattr(index, 'key', None)) is not None:
            seed_everything(*self.key, *place)
            index = int(index) if isinstance(index, int) else tuple(index)
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ('inner', 'key'):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)  # hooks exchange the pipeline of the real one

    def __getstate__(self) -> tuple:
        return self.inner, self.key

    def __setstate__(self, state: tuple) -> None:
        for name, value in zip(('inner', 'key'), state, strict=True):
            object.__setattr__(self, name, value)


class EndlessBatches:
    """Batches for ever, epoch after epoch, as iteration-based loops ask for them.

    In place of MMEngine's iterator, which cannot begin in the middle of a later epoch.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataloader = dataloader
        self.epoch = 0
        self.batches: Iterator | None = None

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self.batches is None:
            self.batches = iter(self.dataloader)
        try:
            return next(self.batches)
        except StopIteration:
            self.epoch += 1
            placed_sampler(self.dataloader).set_epoch(self.epoch)
            self.batches = iter(self.dataloader)
            return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Begin behind the first ``num_iters`` batches of the whole stream."""
        sampler = placed_sampler(self.dataloader)
        if not sampler.is_endless:
            self.epoch, num_iters = divmod(num_iters, len(self.dataloader))
            sampler.set_epoch(self.epoch)
        skip_batches(self.dataloader, num_iters)
        self.batches = None


def placed_sampler(dataloader: DataLoader) -> PlacedSampler:
    if isinstance(dataloader.sampler, PlacedSampler):
        return dataloader.sampler
    return dataloader.batch_sampler.sampler


def skip_batches(dataloader: DataLoader, num_batches: int) -> None:
    """Let the next pass over the data begin behind ``num_batches``, without loading them."""
    if isinstance(dataloader.batch_sampler, SkippableBatches):
        dataloader.batch_sampler.num_to_skip = num_batches
    else:
        placed_sampler(dataloader).num_to_skip = num_batches * dataloader.batch_size


def go_to(train_loop, epoch: int, iteration: int) -> None:
    """Place the data at the batch that follows; iteration-based loops do it themselves."""
    if isinstance(train_loop, EpochBasedTrainLoop):
        dataloader = train_loop.dataloader
        skip_batches(dataloader, iteration - epoch * len(dataloader))
