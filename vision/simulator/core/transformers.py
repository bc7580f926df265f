"""Decoders (GPT and Llama kind) as operators, from their sizes alone; one device's part of them.

Counts of FLOPs and bytes after Korthikanti et al. 2022 (arXiv:2205.05198), which also has the
bytes that a layer keeps for its backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vision.common.core.errors import VisionError
from vision.simulator.core.graph import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Op,
)


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder.

    Args:
        layers, hidden, heads, sequence, vocabulary: as usual.
        kv_heads: heads of keys and values; 0 for as many as ``heads``.
        ffn: inner width of the MLP; 0 for 4 * hidden (GPT), or 8/3 * hidden rounded up to 256.
        is_gated: SwiGLU MLP with three matrices and RMSNorm without biases (Llama), instead of
            GELU with two and LayerNorm.
        is_tied: the output matrix is the embedding.
        has_positions: learned position embeddings.
        attention: 'fused' never writes the scores; 'plain' writes them, with softmax and dropout.
        dropout: of attention scores and of both outputs of a layer.
        dtype: of the computation, as torch writes it.
        gemm_dtype: of the products of layers, where it is another (float8).
        is_compiled: element-wise operators are fused and issued together.
        is_fused: hand-written fused kernels (Megatron); without them and without compilation
            software casts, copies and adds more than these counts have.
        is_causal_skipped: a fused attention leaves out the masked half.

    Raises:
        VisionError: VIS-CONFIG-1643 or VIS-CONFIG-1649, a size below 1, or heads that do not
            divide what they share.
    """

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int
    kv_heads: int = 0
    ffn: int = 0
    is_gated: bool = False
    is_tied: bool = True
    has_positions: bool = True
    attention: str = 'fused'
    dropout: bool = False
    dtype: str = 'bfloat16'
    gemm_dtype: str = ''
    is_compiled: bool = False
    is_fused: bool = False
    is_causal_skipped: bool = True

    def __post_init__(self) -> None:
        sizes = dict(layers=self.layers, hidden=self.hidden, heads=self.heads,
                     sequence=self.sequence, vocabulary=self.vocabulary)
        for name, size in sizes.items():
            if size < 1:
                raise VisionError('VIS-CONFIG-1643', f'a decoder with {name}={size}',
                                  why='sizes are whole numbers from 1 on', do=f'give {name}')
        if self.hidden % self.heads or self.heads % self.num_kv_heads:
            raise VisionError('VIS-CONFIG-1649', f'hidden={self.hidden}, heads={self.heads}, '
                              f'kv_heads={self.num_kv_heads}', why='heads divide the hidden size, '
                              'and heads of keys and values the heads', do='correct the sizes')

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values; fewer than ``heads`` with grouped queries."""
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        """Features of one head."""
        return self.hidden // self.heads

    @property
    def inner(self) -> int:
        """Width between the products of the MLP."""
        if self.ffn:
            return self.ffn
        return -(-8 * self.hidden // 3 // 256) * 256 if self.is_gated else 4 * self.hidden

    @cached_property
    def layer_parameters(self) -> int:
        """Numbers in one layer: four matrices of attention, two or three of the MLP, norms and
        biases."""
        h, kv = self.hidden, self.num_kv_heads * self.head_size
        matrices = h * (h + 2 * kv) + h * h + (3 if self.is_gated else 2) * h * self.inner
        small = 2 * h if self.is_gated else (h + 2 * kv) + h + self.inner + h + 4 * h
        return matrices + small

    @property
    def embedding_parameters(self) -> int:
        """Numbers in the embeddings of tokens and, where there are some, of positions."""
        return self.vocabulary * self.hidden \
            + (self.sequence * self.hidden if self.has_positions else 0)

    @property
    def head_parameters(self) -> int:
        """Numbers in the output matrix; 0 where it is the embedding."""
        return 0 if self.is_tied else self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        """Numbers in the whole decoder, last norm included."""
        return self.layers * self.layer_parameters + self.embedding_parameters \
            + self.head_parameters + (1 if self.is_gated else 2) * self.hidden

    def model_flops(self, num_tokens: int) -> float:
        """Of forward and backward of one device's tokens, without what is computed again:
        Narayanan et al. 2021 (arXiv:2104.04473), equation 3, less its recomputed forward, for
        any MLP and any number of heads of keys. Causal attention is counted whole, as there."""
        h, kv = self.hidden, self.num_kv_heads * self.head_size
        matrices = h * (h + 2 * kv) + h * h + (3 if self.is_gated else 2) * h * self.inner
        layer = 2 * matrices + 4 * self.sequence * h
        return 3 * num_tokens * (self.layers * layer + 2 * h * self.vocabulary)


@dataclass(frozen=True)
class Part:
    """One device's part of a layer.

    Args:
        rows: sequences of a micro-batch.
        tensor: devices that share each layer (tensor parallel).
        is_sequence_parallel: they share what is between the products too.
        context: devices that share each sequence.
    """

    rows: int
    tensor: int = 1
    is_sequence_parallel: bool = False
    context: int = 1


def layer_forward(decoder: Decoder, part: Part, *, module: str = '') -> list[Op]:
    """Forward operators of one layer on one device, without communication. What they save is
    ``kept_bytes`` of the layer: an operator saves of its own results those that the backward of
    whoever reads them needs."""
    write = _Writer(decoder, part, module)
    h, t, d = decoder.hidden, part.tensor, decoder
    kv = d.num_kv_heads * d.head_size
    outer = write.tokens / (t if part.is_sequence_parallel else 1)
    mask = 1 if d.dropout else 0  # of dropout, a byte for each element
    write.small('norm', outer * h, moved=2, saved=2)
    # Rotated, queries and keys are kept as they are then, and values alone as they were made.
    kept = write.tokens / t * (2 * kv if d.is_gated else 2 * h + 4 * kv)
    write.gemm('qkv', write.tokens, (h + 2 * kv) // t, h, saved=kept)
    if d.is_gated:
        write.small('rotary', write.tokens * (h + kv) / t, moved=2 if d.is_compiled else 6,
                    count=1 if d.is_compiled else 6, saved=2)
    _attention(write)
    write.gemm('proj', write.tokens, h, h // t)
    write.small('add', outer * h, moved=3.5 if d.dropout else 3, saved=2 + mask)
    write.small('norm', outer * h, moved=2, saved=2)
    inner = write.tokens * d.inner / t
    if d.is_gated:
        write.gemm('gate', write.tokens, d.inner // t, h, saved=2 * inner)
        write.gemm('up', write.tokens, d.inner // t, h, saved=2 * inner)
        # Activation and product.
        write.small('swiglu', inner, moved=3 if d.is_compiled else 5,
                    count=1 if d.is_compiled else 2, saved=4)
    else:
        write.gemm('fc1', write.tokens, d.inner // t, h, saved=2 * inner)
        write.small('gelu', inner, moved=2, saved=2)
    write.gemm('fc2', write.tokens, h, d.inner // t)
    write.small('add', outer * h, moved=3.5 if d.dropout else 3, saved=2 + mask)
    return write.ops


def backward_of(forward: Sequence[Op]) -> list[Op]:
    """Operators of the backward, in its order. A product with weights has two; a fused attention
    computes its scores again (2.5 times the FLOPs: Dao et al. 2022, arXiv:2205.14135); what is
    element-wise reads the gradient beside what it read, half as much again. Products of matrices
    make gradients of the size of what they read."""
    ops: list[Op] = []
    for op in reversed(forward):
        if op.kind in ('gemm', 'conv') and op.batch == 1:
            read, weights = _read_bytes(op)
            ops.append(replace(op, name=f'{op.name}.input_grad', phase=INPUT_GRAD, n=op.k, k=op.n,
                               saved_bytes=0, output_bytes=read))
            ops.append(replace(op, name=f'{op.name}.weight_grad', phase=WEIGHT_GRAD, m=op.n,
                               n=op.k, k=op.m, saved_bytes=0, output_bytes=weights))
        elif op.kind == 'gemm':
            ops += [replace(op, name=f'{op.name}.grad', phase=INPUT_GRAD, saved_bytes=0,
                            output_bytes=size) for size in _read_bytes(op)]
        elif op.kind == 'attention':
            ops.append(replace(op, name=f'{op.name}.grad', phase=INPUT_GRAD, flops=2.5 * op.flops,
                               bytes_moved=2 * op.bytes_moved, saved_bytes=0))
        else:
            ops.append(replace(op, name=f'{op.name}.grad', phase=INPUT_GRAD,
                               bytes_moved=1.5 * op.bytes_moved, saved_bytes=0))
    return ops


def _read_bytes(op: Op) -> tuple[int, int]:
    """Of both factors of a product. A convolution reads its input several times over."""
    if op.kind == 'conv':
        return op.output_bytes, op.output_bytes // op.m * op.k
    made = op.m * op.n
    return op.output_bytes * op.m * op.k // made, op.output_bytes * op.k * op.n // made


def embedding_forward(decoder: Decoder, part: Part, *, module: str = 'embedding') -> list[Op]:
    """The operator that looks up the tokens of a micro-batch, without FLOPs."""
    write = _Writer(decoder, part, module)
    write.small('embedding', write.tokens * decoder.hidden, moved=2, kind='embedding',
                saved=2)
    return write.ops


def head_forward(decoder: Decoder, part: Part, *, module: str = 'head') -> list[Op]:
    """Last norm, logits and their cross entropy in 32 bits."""
    write = _Writer(decoder, part, module)
    vocabulary = decoder.vocabulary / part.tensor
    write.small('norm', write.tokens * decoder.hidden, moved=2, saved=2)
    write.gemm('logits', write.tokens, round(vocabulary), decoder.hidden, is_layer=False,
               saved=2 * write.tokens * vocabulary)
    # Read as written by the product, written and read twice in 32 bits: maximum, sum, loss.
    write.small('cross_entropy', write.tokens * vocabulary, moved=5 if decoder.is_compiled else 9,
                count=5, saved=4)
    return write.ops


def scores_forward(decoder: Decoder, part: Part) -> list[Op]:
    """What selective recomputation does again: the attention without its projections."""
    write = _Writer(decoder, part, '')
    _attention(write)
    return write.ops


def kept_bytes(decoder: Decoder, part: Part, recompute: str) -> float:
    """Of one layer and micro-batch on one device, from forward to backward (Korthikanti et al.
    2022, table 2, for 16-bit activations; Llama's and fused attention's counted the same way).

    Args:
        recompute: 'none', 'selective' (the scores; a fused attention has none), 'half' (every
            second product, what is element-wise; the attention's output is kept), 'full'.
    """
    tokens = part.rows * decoder.sequence / part.context
    h, t = decoder.hidden, part.tensor
    outer = 1 / t if part.is_sequence_parallel else 1.0
    if recompute == 'full':
        return 2 * tokens * h * outer
    kv = decoder.num_kv_heads * decoder.head_size
    if recompute == 'half':
        # The layer's input; of q, k, v, output, gate, up, down every second; the attention's.
        products = h + kv + decoder.inner + (h if decoder.is_gated else 0)
        return 2 * tokens * (h * outer + (products + h) / t)
    masks = 2 * h if decoder.dropout else 0
    # Inputs of both norms; inputs of qkv and of the MLP (outputs of the norms).
    shared = (4 * h + 4 * h + masks) * outer
    split = (2 * h + 4 * kv + 2 * h) / t  # q, k, v and the input of the projection
    inner = decoder.inner * (8 if decoder.is_gated else 4) / t  # gate, up, activation, product
    total = tokens * (shared + split + inner)
    if decoder.attention == 'plain' and recompute == 'none':
        per_score = 2 + (3 if decoder.dropout else 0)
        total += per_score * part.rows * decoder.heads / t * decoder.sequence**2 / part.context
    return total


class _Writer:
    """Collects operators of one device's part."""

    def __init__(self, decoder: Decoder, part: Part, module: str) -> None:
        self.decoder, self.part, self.module = decoder, part, module
        self.tokens = part.rows * decoder.sequence / part.context
        self.ops: list[Op] = []

    def gemm(self, name: str, m: float, n: int, k: int, *, batch: int = 1,
             is_layer: bool = True, saved: float = 0.0) -> None:
        """``saved`` bytes of its results stay."""
        dtype = (self.decoder.gemm_dtype if is_layer else '') or self.decoder.dtype
        if dtype != self.decoder.dtype:
            # Largest value, then scaled to 8 bits: two reads, half a write, of both factors.
            self.small('cast', m * k + k * n, moved=2.5, count=2)
        moved = 2 * batch * (m * k + k * n + m * n)
        self.ops.append(Op(name, self.module, 'gemm', 2.0 * batch * m * n * k, moved, dtype,
                           FORWARD, round(m), n, k, batch, output_bytes=round(2 * batch * m * n),
                           saved_bytes=round(saved)))

    def small(self, name: str, elements: float, *, moved: float, count: int = 1,
              kind: str = 'elementwise', saved: float = 0) -> None:
        """``moved`` numbers of 16 bits for each element, in ``count`` operators, of which the last
        has the ``saved`` bytes for each element."""
        kind = 'norm' if name == 'norm' else kind
        op = Op(name, self.module, kind, 0.0, 2 * moved * elements / count, self.decoder.dtype,
                output_bytes=round(2 * elements))
        self.ops += [*[op] * (count - 1), replace(op, saved_bytes=round(saved * elements))]


def _attention(write: _Writer) -> None:
    d, part = write.decoder, write.part
    heads, d_head = d.heads / part.tensor, d.head_size
    rows, sequence = part.rows, d.sequence
    if d.attention == 'fused':
        # Two products, causal: half of the scores. Reads q, k, v, writes the output.
        flops = (2.0 if d.is_causal_skipped else 4.0) * rows * heads * d_head \
            * sequence * sequence / part.context
        moved = 8 * write.tokens * heads * d_head
        output = round(2 * write.tokens * heads * d_head)
        write.ops.append(Op('attention', write.module, 'attention', flops, moved, d.dtype,
                            saved_bytes=output, output_bytes=output))
        return
    batch = round(rows * heads)
    scores = rows * heads * sequence * sequence / part.context
    write.gemm('scores', sequence / part.context, sequence, d_head, batch=batch)
    write.small('softmax', scores, moved=2, saved=2)
    if d.dropout:
        write.small('dropout', scores, moved=2.5, saved=3)
    write.gemm('context', sequence / part.context, d_head, sequence, batch=batch,
               saved=2 * write.tokens * heads * d_head)
