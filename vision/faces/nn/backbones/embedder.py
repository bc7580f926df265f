"""From the pixels that a data set gives to unit embeddings: what is used once training is over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


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
