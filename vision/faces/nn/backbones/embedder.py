"""From the pixels that a data set gives to unit embeddings: what is used once training is over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vision.faces.core.gallery.alignment import checked_faces


def embed(network: nn.Module, images: Tensor, *, with_flip: bool = False) -> Tensor:
    """Unit embeddings (B, d) of prepared images (B, C, H, W).

    Args:
        with_flip: add the embedding of the mirrored image before normalising (flip fusion, the
            protocol of published LFW figures); twice the time.
    """
    embedding = network(images)
    if with_flip:
        embedding = embedding + network(images.flip(3))
    return functional.normalize(embedding.float())


class Embedder(nn.Module):
    """Backbone with its image preparation inside, as it is exported.

    Args:
        network: prepared images to embeddings, not normalised.
        mean, std: of the channels, in the order that the network wants; None: as they come.
        swaps_channels: the network wants RGB, images are BGR.
        with_flip: flip fusion.

    Shapes: float32 (B, C, H, W), values 0 to 255, BGR -> (B, d) of length 1.
    """

    def __init__(self, network: nn.Module, *, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, swaps_channels: bool = False,
                 with_flip: bool = False) -> None:
        super().__init__()
        self.network, self.swaps_channels, self.with_flip = network, swaps_channels, with_flip
        self.register_buffer('mean', torch.tensor(mean or [0.0]).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std or [1.0]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) float32, 0 to 255, BGR -> unit rows (B, d)."""
        if self.swaps_channels:
            images = images[:, [2, 1, 0]]
        return embed(self.network, (images - self.mean) / self.std, with_flip=self.with_flip)


class TorchEmbedder:
    """An embedder of this room as the commands use it, beside ``runtime.OnnxEmbedder``.

    Args:
        module: an ``Embedder`` in evaluation mode.
        size: px of the aligned faces that it takes.

    Attributes:
        identity: see ``embedder_hash``.
    """

    def __init__(self, module: nn.Module, *, size: int = 112) -> None:
        self.module, self.size, self.identity = module, size, embedder_hash(module)

    def __call__(self, faces: Iterable[np.ndarray]) -> np.ndarray:
        """Aligned faces (size, size, 3) uint8 BGR -> (N, d) float32 rows of length one."""
        return embed_images(self.module, faces, size=self.size)


def embedder_hash(embedder: nn.Module) -> str:
    """Hash of everything that an embedding depends on: weights, statistics, preparation."""
    digest = hashlib.sha256(repr((getattr(embedder, 'with_flip', None),
                                  getattr(embedder, 'swaps_channels', None))).encode())
    for name, tensor in sorted(embedder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def embed_images(embedder: nn.Module, images: Iterable[np.ndarray], *, size: int = 112,
                 batch_size: int = 64) -> np.ndarray:
    """(N, d) float32 unit embeddings of pictures (size, size, C) uint8, BGR as they are read.

    Raises:
        VisionError: VIS-DATA-1082 for a picture of another size.
    """
    device = next(embedder.parameters()).device
    rows = []
    for batch in _batches(checked_faces(images, size), batch_size):
        tensor = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        rows.append(embedder(tensor.to(device).float()).cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _batches(images: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(images, size)):
        yield batch
