"""Data order and augmentation as functions of the seed, so that a resumed run repeats them.

Each index that a sampler gives carries its place (epoch, how many came before it). A thin proxy
around the data set seeds all random generators from (seed, rank, epoch, place) before it loads
the sample: the same sample then looks the same whichever worker loads it and however often the
run was interrupted. Skipping what was consumed costs no loading.
"""

from __future__ import annotations

import copy
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from vision.common.core.errors import VisionError
from vision.common.mm.classes import build_dataset
from vision.common.nn.seeds import kept_random_states, seed_everything
from vision.common.nn.torch_private import forget_dead_loaders, loader_processes

DEFAULT_SEED = 0
_LOADER_OPTIONS = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn',
                   'multiprocessing_context', 'generator', 'prefetch_factor',
                   'persistent_workers')
_DEAD_WORKER = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? [\d, ]+\) '
    r'(?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)'
    r'|Caught (?P<memory>MemoryError) in DataLoader worker process \d+')
_WHY_DEAD = {
    'Killed': 'most often the system had no memory left and ended it (see dmesg)',
    'MemoryError': 'there was no memory left for the sample that it was loading',
    'Bus error': '/dev/shm, over which samples come to the main process, is full or too small'}
DEATH_S = 2.0  # the wait until a process is known to have ended whose connection was reset
_OWN = ('inner', 'key', 'length')  # attributes of SeededDataset itself
ENDLESS = ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')


def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None,
                     diff_rank_seed: bool = False, *,
                     data_ranks: tuple[int, int] | None = None) -> DataLoader:
    """As MMEngine's; data set, sampler and batch sampler are wrapped, also ready-made ones.

    Args:
        seed: of this rank; with ``diff_rank_seed`` it is that of the run plus the rank.
        data_ranks: (i, n), this rank reads the i-th of n shares; default: its share of all ranks.

    Raises:
        VisionError: VIS-CONFIG-1531, shares of a sampler that only knows the number of ranks.
    """
    seed = DEFAULT_SEED if seed is None else seed
    if diff_rank_seed:
        seed -= get_rank()  # samplers share theirs, and samples are seeded by rank anyway
    share, num_shares = data_ranks or (get_rank(), get_world_size())
    if isinstance(dataloader, DataLoader):
        return _rebuilt(dataloader, seed, share)
    config = copy.deepcopy(dict(dataloader))
    dataset = config['dataset']
    if isinstance(dataset, dict):
        dataset = build_dataset(dataset)
    length = None
    if num_batches := config.pop('num_batch_per_epoch', None):
        size = config.get('batch_size') or config['batch_sampler']['batch_size']
        length = min(num_batches * size * num_shares, len(dataset))
    config['dataset'] = SeededDataset(dataset, (seed, share), length)
    sampler = config['sampler']
    if isinstance(sampler, dict):
        # Samplers of videos look at the class of their data set.
        counted = dataset if length is None else config['dataset']
        sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=counted, seed=seed))
    if num_shares != get_world_size():
        _read_share(sampler, share, num_shares)
    config['sampler'] = PlacedSampler(sampler, seed)
    batches = config.get('batch_sampler')
    if isinstance(batches, dict):
        batches = DATA_SAMPLERS.build(batches, default_args=dict(
            sampler=config['sampler'], batch_size=config.pop('batch_size')))
    if batches is not None:
        config['batch_sampler'] = SkippableBatches(batches, seed)
        config.pop('batch_size', None)
    if not config.get('num_workers'):  # torch refuses options of processes that there are none of
        config.pop('prefetch_factor', None)
        config['persistent_workers'] = False
    return Runner.build_dataloader(config, seed=seed)


def _read_share(sampler: Any, share: int, num_shares: int) -> None:
    """Let one of MMEngine's samplers, which divide the data by all ranks, divide it by these."""
    if type(sampler) not in (DefaultSampler, InfiniteSampler):
        raise VisionError('VIS-CONFIG-1531', f'{type(sampler).__name__} divides the data by the '
                          f'number of ranks, the strategy has {num_shares} shares of data',
                          where='sampler', why='ranks that hold layers of one model read the '
                          'same samples', do='use DefaultSampler or InfiniteSampler')
    sampler.rank, sampler.world_size = share, num_shares
    if isinstance(sampler, DefaultSampler):
        size = len(sampler.dataset)
        sampler.num_samples = -(-(size if sampler.round_up else size - share) // num_shares)
        sampler.total_size = sampler.num_samples * num_shares if sampler.round_up else size


def _rebuilt(dataloader: DataLoader, seed: int, share: int) -> DataLoader:
    """A ready-made loader of the same options over the wrapped data set and batches."""
    if isinstance(dataloader.dataset, SeededDataset | IterableDataset):
        return dataloader
    options = {name: getattr(dataloader, name) for name in _LOADER_OPTIONS}
    if dataloader.batch_sampler is None:
        options.update(batch_size=None, sampler=PlacedSampler(dataloader.sampler, seed))
    else:
        options['batch_sampler'] = SkippableBatches(dataloader.batch_sampler, seed)
    return DataLoader(SeededDataset(dataloader.dataset, (seed, share)), **options)


class PlacedInt(int):
    """An index that knows its place; ``key`` is (epoch, place)."""

    key: tuple[int, int]


class PlacedTuple(tuple):
    """The same for samplers that give tuples such as (video, frame)."""

    key: tuple[int, int]


def _placed(index: Any, epoch: int, place: int) -> PlacedInt | PlacedTuple:
    placed = PlacedTuple(index) if isinstance(index, tuple) else PlacedInt(index)
    placed.key = (epoch, place)
    return placed


class PlacedSampler:
    """A sampler whose indices carry their place, and which can begin later in its stream.

    Everything else (``set_epoch``, ``dataset``, ...) is the inner sampler's. One of torch, which
    draws its order from the process's random state, draws it from (seed, epoch) here.
    """

    def __init__(self, sampler, seed: int) -> None:
        self.inner, self.seed = sampler, seed
        self.epoch = 0
        self.num_to_skip = 0

    def __deepcopy__(self, memo: dict) -> PlacedSampler:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __iter__(self) -> Iterator[Any]:
        skipped, self.num_to_skip = self.num_to_skip, 0
        for place, index in enumerate(_in_order_of(self.inner, self.seed, self.epoch)):
            if place >= skipped:
                yield _placed(index, self.epoch, place)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == 'inner':  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next; epochs count from 0."""
        self.epoch = epoch
        if hasattr(self.inner, 'set_epoch'):
            self.inner.set_epoch(epoch)

    @property
    def is_endless(self) -> bool:
        """Whether the sampler never ends by itself, as those of iteration-based training."""
        return isinstance(self.inner, InfiniteSampler) or type(self.inner).__name__ in ENDLESS


class SkippableBatches:
    """A batch sampler (for example by aspect ratio) that can begin later.

    Its indices carry their place: that of the sampler inside, where there is one, else their
    number in the epoch.
    """

    def __init__(self, batches, seed: int) -> None:
        self.inner, self.seed = batches, seed
        self.epoch = 0
        self.num_to_skip = 0
        if hasattr(batches, 'sampler') and not isinstance(batches.sampler, PlacedSampler):
            batches.sampler = PlacedSampler(batches.sampler, seed)

    def __deepcopy__(self, memo: dict) -> SkippableBatches:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __iter__(self) -> Iterator[list]:
        skipped, self.num_to_skip = self.num_to_skip, 0
        place = 0
        for number, batch in enumerate(_in_order_of(self.inner, self.seed, self.epoch)):
            if number >= skipped:
                yield [index if hasattr(index, 'key') else _placed(index, self.epoch, place + i)
                       for i, index in enumerate(batch)]
            place += len(batch)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == 'inner':
            raise AttributeError(name)
        if name == 'sampler' and not hasattr(self.inner, name):
            return self  # where MMEngine's hook and ours look for set_epoch
        return getattr(self.inner, name)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next; epochs count from 0."""
        self.epoch = epoch
        for part in (getattr(self.inner, 'sampler', None), self.inner):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)

    @property
    def is_endless(self) -> bool:
        """Whether the sampler inside never ends by itself."""
        return getattr(getattr(self.inner, 'sampler', None), 'is_endless', False)


def _in_order_of(sampler, seed: int, epoch: int) -> Iterator[Any]:
    """What a sampler gives. One without ``set_epoch`` may draw its order when it gives the first
    index, from its own generator or the process's: that one draw is made from (seed, epoch)."""
    if hasattr(sampler, 'set_epoch') or isinstance(sampler, list | tuple | PlacedSampler):
        yield from sampler
        return
    if isinstance(generator := getattr(sampler, 'generator', None), torch.Generator):
        generator.manual_seed(seed * 1_000_003 + epoch)
    with kept_random_states():
        seed_everything(seed, epoch, 0x5A17)
        indices = iter(sampler)
        first = next(indices, None)
    if first is not None:
        yield first
        yield from indices


class SeededDataset:
    """A data set that loads every sample from a random state of its own; else the inner one.

    Args:
        length: only so many first samples (``num_batch_per_epoch``); default: all.
    """

    def __init__(self, dataset, key: tuple[int, ...], length: int | None = None) -> None:
        object.__setattr__(self, 'inner', dataset)
        object.__setattr__(self, 'key', key)
        object.__setattr__(self, 'length', length)

    def __deepcopy__(self, memo: dict) -> SeededDataset:
        return self  # MMEngine copies the dataloader's config, which holds this object

    def __getitem__(self, index: Any) -> Any:
        if (place := getattr(index, 'key', None)) is not None:
            seed_everything(*self.key, *place)
            index = int(index) if isinstance(index, int) else tuple(index)
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner) if self.length is None else self.length

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)  # hooks exchange the pipeline of the real one

    def __getstate__(self) -> tuple:
        return tuple(getattr(self, name) for name in _OWN)

    def __setstate__(self, state: tuple) -> None:
        for name, value in zip(_OWN, state, strict=True):
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


def placed_sampler(dataloader: DataLoader) -> PlacedSampler | SkippableBatches:
    """What holds the loader's place.

    Raises:
        VisionError: VIS-CONFIG-327, a loader over a stream, which has no places.
    """
    for part in (dataloader.batch_sampler, dataloader.sampler):
        if isinstance(part, PlacedSampler | SkippableBatches):
            return part
    raise VisionError('VIS-CONFIG-327', 'the training data cannot be entered at a given place',
                      where='train_dataloader', why='a data set that is only iterated has no '
                      'indices', do='give a data set with __getitem__ and __len__, or train '
                      'without --resume')


def skip_batches(dataloader: DataLoader, num_batches: int) -> None:
    """Let the next pass over the data begin behind ``num_batches``, without loading them."""
    size = 1 if isinstance(dataloader.batch_sampler, SkippableBatches) else \
        dataloader.batch_size or 1
    placed_sampler(dataloader).num_to_skip = num_batches * size


def go_to(train_loop, epoch: int, iteration: int) -> None:
    """Place the data at the batch that follows; iteration-based loops do it themselves."""
    if isinstance(train_loop, EpochBasedTrainLoop):
        dataloader = train_loop.dataloader
        skip_batches(dataloader, iteration - epoch * len(dataloader))


def _gone_worker(error: Exception) -> BaseProcess | None:
    """The loader process that ended badly while a batch of it was fetched. Where a tensor is
    fetched from one that is gone, torch names no process: the connection was reset."""
    workers = loader_processes(error)
    end = time.monotonic() + DEATH_S
    while workers and isinstance(error, OSError | EOFError) and time.monotonic() < end \
            and all(worker.exitcode is None for worker in workers):
        time.sleep(DEATH_S / 100)
    return next((worker for worker in workers if worker.exitcode), None)


def _how_it_ended(worker: BaseProcess | None) -> str:
    code = worker.exitcode if worker is not None else None
    return signal.strsignal(-code) if code and code < 0 else 'without a word'


@contextmanager
def dead_workers_explained() -> Iterator[None]:
    """Say why a process of the data loader is gone: torch names its number only.

    Torch raises that from a signal handler, in the middle of whatever is being done; what was
    being done may have made another error of it.

    Raises:
        VisionError: VIS-DATA-330.
    """
    try:
        yield
    except Exception as error:
        # Another process may die while this error is on its way: torch would raise again, in the
        # middle of whatever cleans up.
        forget_dead_loaders()
        found, cause = None, error
        while cause is not None and found is None:
            found = _DEAD_WORKER.search(str(cause))
            cause = cause.__cause__ or cause.__context__
        gone = _gone_worker(error)
        if found is None and gone is None:
            raise
        told = found and (found['signal'] or found['memory'])
        how = told or _how_it_ended(gone)
        what = found[0].strip() if found else f'process {gone.pid} ended: {how}'
        raise VisionError(
            'VIS-DATA-330', f'a process of the data loader is gone: {what}',
            where='train_dataloader.num_workers', why=next(
                (why for name, why in _WHY_DEAD.items() if name in how),
                'something ended it from outside (often because there is no memory left), or a '
                'library crashed while it read a sample'),
            do='run vision doctor, which looks at memory and /dev/shm; lower '
            'num_workers or batch_size; num_workers=0 shows a crash where it happens. Then go on '
            'with --resume') from error
