"""The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929).

Shapes: B images, N patches and the class token make T = N + 1 tokens, C channels, K heads of
D = C / K channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision.common.core.errors import VisionError

NORM_EPS = 1e-6  # of the published code; torch's default is 1e-5


class VitArch(NamedTuple):
    """Channels of a token, layers, heads of a layer, channels inside its feed-forward part."""

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int


# 'base' is the paper's; 'tiny' and 'small' are those of DeiT (arXiv:2012.12877, table 1).
ARCHS = dict(tiny=VitArch(192, 12, 3, 768), small=VitArch(384, 12, 6, 1536),
             base=VitArch(768, 12, 12, 3072))


class Embed(nn.Module):
    """Images (B, in_channels, S, S) to tokens (B, T, C): patches, a class token before them, and
    a learned position for each."""

    def __init__(self, dims: int, *, img_size: int, patch_size: int, in_channels: int,
                 drop_rate: float) -> None:
        super().__init__()
        self.img_size = img_size
        self.projection = nn.Conv2d(in_channels, dims, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, (img_size // patch_size)**2 + 1, dims))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.img_size, self.img_size):
            height, width = images.shape[-2:]
            raise VisionError('VIS-INPUT-1247', f'images of {height}x{width} pixels, the network '
                              f'has positions for {self.img_size}x{self.img_size}',
                              where='VisionTransformer', do=f'resize or crop to {self.img_size} '
                              'in the pipeline, or set img_size of the backbone')
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1)
        return self.drop(tokens + self.pos_embed)


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, C) -> the same."""

    def __init__(self, dims: int, num_heads: int, *, qkv_bias: bool, drop_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims, bias=qkv_bias)
        self.proj = nn.Linear(dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                             for each in self.qkv(x).chunk(3, dim=-1))  # (B, K, T, D) each
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them: (B, T, C) -> the same."""

    def __init__(self, dims: int, inner: int, *, drop_rate: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dims, inner), nn.Linear(inner, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x)))))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (equations 2 and 3).

    Args:
        drop_path: probability, while training, that a sample skips a sum's second term; kept ones
            are scaled up (stochastic depth, arXiv:1603.09382).
    """

    def __init__(self, arch: VitArch, *, qkv_bias: bool, drop_rate: float,
                 drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.ln1 = nn.LayerNorm(arch.embed_dims, eps=NORM_EPS)
        self.attn = Attention(arch.embed_dims, arch.num_heads, qkv_bias=qkv_bias,
                              drop_rate=drop_rate)
        self.ln2 = nn.LayerNorm(arch.embed_dims, eps=NORM_EPS)
        self.ffn = FeedForward(arch.embed_dims, arch.feedforward_channels, drop_rate=drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropped(self.attn(self.ln1(x)))
        return x + self.dropped(self.ffn(self.ln2(x)))

    def dropped(self, term: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return term
        kept = torch.rand(len(term), 1, 1, device=term.device) >= self.drop_path
        return term * (kept / (1 - self.drop_path)).to(term.dtype)


class VitTrunk(nn.Module):
    """Images (B, in_channels, S, S) -> one vector (B, C) an image.

    Args:
        arch: channels, layers and heads.
        img_size: S in pixels; patch_size: side of a patch, a divisor of S.
        drop_rate: of tokens after the embedding, of attention's and the feed-forward's outputs.
        drop_path_rate: of the last layer; the layers before grow linearly to it from 0.
        qkv_bias: whether query, key and value have a bias.
        final_norm: a norm over the vector at the end.
        out_type: 'cls_token', the class token; 'avg_featmap', the mean over the patches (the norm
            comes after the mean, as in arXiv:2111.06377).
    """

    def __init__(self, arch: VitArch, *, img_size: int = 224, patch_size: int = 16,
                 in_channels: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 qkv_bias: bool = True, final_norm: bool = True,
                 out_type: str = 'cls_token') -> None:
        super().__init__()
        self.out_type = out_type
        self.embed = Embed(arch.embed_dims, img_size=img_size, patch_size=patch_size,
                           in_channels=in_channels, drop_rate=drop_rate)
        last = max(arch.num_layers - 1, 1)
        self.layers = nn.ModuleList(
            Layer(arch, qkv_bias=qkv_bias, drop_rate=drop_rate,
                  drop_path=drop_path_rate * index / last) for index in range(arch.num_layers))
        self.norm = nn.LayerNorm(arch.embed_dims, eps=NORM_EPS) if final_norm else nn.Identity()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the authors' JAX code has it: Xavier for linear layers (query, key and value each on
        its own), biases of the feed-forward part with a deviation of 1e-6, LeCun for the patches,
        0.02 for positions, zeros for the class token."""
        embed = self.embed
        _lecun_normal(embed.projection.weight)
        nn.init.zeros_(embed.projection.bias)
        nn.init.zeros_(embed.cls_token)
        nn.init.normal_(embed.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention):
                for part in (*module.qkv.weight.chunk(3), module.proj.weight):
                    nn.init.xavier_uniform_(part)
                for linear in (module.qkv, module.proj):
                    if linear.bias is not None:
                        nn.init.zeros_(linear.bias)
            elif isinstance(module, FeedForward):
                for linear in (module.fc1, module.fc2):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.normal_(linear.bias, std=1e-6)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return pooled(self.norm, x, out_type=self.out_type)

    def pipeline_stages(self) -> list[tuple[str, Callable[..., Tensor] | None]]:
        """(name, run) of embedding, layers and norm, in order; None calls the module."""
        return [('embed', None), *((f'layers.{index}', None) for index in range(len(self.layers))),
                ('norm', partial(pooled, out_type=self.out_type))]


def pooled(norm: nn.Module, tokens: Tensor, *, out_type: str) -> Tensor:
    """(B, T, C) -> (B, C). The norm is over channels, so it need not see the tokens left out."""
    return norm(tokens[:, 0] if out_type == 'cls_token' else tokens[:, 1:].mean(dim=1))


def _lecun_normal(weight: Tensor) -> None:
    """Variance 1 / fan-in, after a cut at two deviations, which leaves 0.8796 of one."""
    std = 1 / (0.87962566 * math.sqrt(weight[0].numel()))
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)  # a and b are values
