"""A decoder counted from its sizes as a graph of modules: strategies meet attention in it."""

from dataclasses import replace

from vision.simulator.core.graph import Module, ModuleGraph, Op, Parameter
from vision.simulator.core.transformers import (
    Decoder,
    Part,
    backward_of,
    embedding_forward,
    head_forward,
    layer_forward,
)


def decoder_graph(decoder: Decoder, rows: int) -> ModuleGraph:
    """The unsplit decoder on one device, for strategies to compile: modules 'embedding',
    'layers.0' ..., 'head'; equal layers are alike."""
    part = Part(rows)
    h = decoder.hidden
    names = [f'layers.{index}' for index in range(decoder.layers)]
    forward = [*embedding_forward(decoder, part)]
    modules = [Module('', 'Decoder'), Module('embedding', 'Embedding', (Parameter(
        'embedding.weight', (decoder.vocabulary, h), 2,
        shared_with=('head',) if decoder.is_tied else ()),))]
    for name in names:
        inside, ops = _layer_modules(decoder, part, name)
        modules += inside
        forward += ops
    forward += head_forward(decoder, part)
    own = () if decoder.is_tied else (Parameter('head.weight', (decoder.vocabulary, h), 2),)
    modules.append(Module('head', 'Linear', own))
    return ModuleGraph(tuple(modules), (*forward, *backward_of(forward)),
                       input_bytes=8 * rows * decoder.sequence, batch_size=rows,
                       notes=('operators of the decoder are counted from its sizes',))


def _layer_modules(decoder: Decoder, part: Part, name: str) -> tuple[list[Module], list[Op]]:
    """A module for each product, so that strategies can split it."""
    h, rows, size = decoder.hidden, part.rows, part.rows * decoder.sequence * 2
    modules = [Module(name, 'DecoderLayer', output_bytes=size * h,
                      output_shape=(rows, decoder.sequence, h), like=0)]
    ops = []
    for op in layer_forward(decoder, part):
        inner = f'{name}.{op.name}'
        if op.kind == 'gemm' and op.batch == 1:
            weight = Parameter(f'{inner}.weight', (op.n, op.k), 2)
            modules.append(Module(inner, 'Linear', (weight,), output_bytes=size * op.n,
                                  output_shape=(rows, decoder.sequence, op.n)))
            ops.append(replace(op, module=inner))
        else:
            ops.append(replace(op, module=name))
    return modules, ops
