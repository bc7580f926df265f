"""Underscore names of torch that PolyNet's inference uses; they enter here and only here.

oneDNN can add, apply ReLU and keep its own weight layout inside a convolution. Torch's compiler
calls it so; eager torch offers no public name for it. ``convolve`` falls back to public functions
wherever these operators are not built or do not apply, with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
DTYPES = (torch.float32, torch.bfloat16)


def has_onednn() -> bool:
    """Whether this torch has the operators."""
    return (torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, '_convolution_pointwise')
            and hasattr(torch.ops.mkldnn, '_convolution_pointwise_')
            and hasattr(torch.ops.aten, 'mkldnn_reorder_conv2d_weight'))


def pack_weight(weight: Tensor, stride: Pair, padding: Pair, dilation: Pair,
                input_size: torch.Size) -> Tensor | None:
    """The weight (O, I, kh, kw) in oneDNN's layout for inputs (B, I, H, W) of ``input_size``;
    other sizes work too. None where oneDNN does not apply."""
    if not has_onednn() or weight.device.type != 'cpu' or weight.dtype not in DTYPES:
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None  # the processor lacks the instructions
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(
        weight.to_mkldnn(), padding, stride, dilation, 1, list(input_size))


def convolve(x: Tensor, weight: Tensor, packed: Tensor | None, bias: Tensor, stride: Pair,
             padding: Pair, dilation: Pair, *, has_relu: bool, addend: Tensor | None) -> Tensor:
    """relu?(conv(x) + addend?); the result overwrites ``addend`` when there is one.

    Shapes: x (B, I, H, W), weight (O, I, kh, kw), bias (O,), addend and result (B, O, h, w);
    ``packed`` is what ``pack_weight`` made of the weight.
    """
    if packed is None:
        y = F.conv2d(x, weight, bias, stride, padding, dilation)
        y = y if addend is None else addend.add_(y)
        return y.relu_() if has_relu else y
    common = (x, packed, bias, padding, stride, dilation, 1)
    if addend is None:
        return torch.ops.mkldnn._convolution_pointwise.default(
            *common, 'relu' if has_relu else 'none', [], '')
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        addend, *common, 'add', 1.0, 'relu' if has_relu else None, [], '')
