"""A batch of images on the cores of a processor: an image for each thread at a time.

The usual way gives every operator all threads: they meet at its end, and the small ones leave some
of them idle. Images have nothing to wait for. The way for throughput, not for latency: a single
image still gets all threads inside each operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor, nn

from vision.common.core.errors import VisionError


class ImageThreads(nn.Module):
    """A model for inference on the CPU whose images run side by side; same results.

    Args:
        model: images (B, C, H, W) -> a tensor, or a tuple or list of tensors, with B first. It
            must treat images apart from each other, as networks in evaluation mode do.
        num_threads: images at once; default: torch's number of threads.
    Raises:
        VisionError: VIS-RUN-1244, in training mode, or on another device.
    """

    def __init__(self, model: nn.Module, num_threads: int | None = None) -> None:
        super().__init__()
        self.model, self.num_threads = model, num_threads or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor | Sequence[Tensor]:
        if self.training or images.device.type != 'cpu':
            raise VisionError('VIS-RUN-1244', 'images cannot run side by side '
                              + ('in training mode' if self.training else
                                 f'on {images.device}'), where='ImageThreads',
                              why='norms would see a part of the batch' if self.training else
                              'it is made for the cores of a processor',
                              do='call the model itself')
        if len(images) < 2 or self.num_threads < 2:
            return self.model(images)
        is_inference, parts = torch.is_inference_mode_enabled(), images.split(1)

        def run(part: Tensor) -> Tensor | Sequence[Tensor]:
            with torch.inference_mode(is_inference), torch.no_grad():
                return self.model(part)
        if self._pool is None:
            self._pool = one_core_workers(self.num_threads)
            # Packed weights and the like are made at a first call: by one thread.
            first = self._pool.submit(run, parts[0]).result()
            return joined([first, *self._pool.map(run, parts[1:])])
        return joined(list(self._pool.map(run, parts)))

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_pool': None}  # threads are not copied


def one_core_workers(num: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core each; elsewhere it goes on as before."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num, 'images', initializer=use_one_core)
    try:
        barrier = Barrier(num)  # all start: each waits until the last is there
        list(pool.map(lambda _: barrier.wait(), range(num)))
    finally:
        torch.set_num_threads(before)  # threads born later take what was set last
    return pool


def use_one_core() -> None:
    torch.get_num_threads()  # a new thread takes the common number at its first look, once
    torch.set_num_threads(1)


def joined(results: list[Tensor | Sequence[Tensor]]) -> Tensor | Sequence[Tensor]:
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return type(results[0])(torch.cat(level) for level in zip(*results, strict=True))
