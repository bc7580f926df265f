"""A small graph made by hand, and prices that remember what they were asked."""

from dataclasses import replace

from vision.simulator.core.graph import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Module,
    ModuleGraph,
    Op,
    Parameter,
)

ROWS, HIDDEN, INNER = 6, 8, 32


class Asked:
    """A second for each operator, a byte a second for what is sent; ``sent``: (kind, bytes, number
    of ranks)."""

    def __init__(self):
        self.sent, self.copied, self.flops = [], [], 0.0

    def compute(self, ops):
        self.flops += sum(op.flops for op in ops)
        return float(len(ops))

    def communicate(self, kind, num_bytes, ranks):
        self.sent.append((kind, num_bytes, len(ranks)))
        return float(num_bytes)

    def quote(self, kind, num_bytes, ranks):
        """Of ways that are compared, an all-reduce is a reduce-scatter and an all-gather."""
        return float(num_bytes) * (2 if kind == 'all_reduce' else 1)

    def copy(self, num_bytes):
        self.copied.append(num_bytes)
        return float(num_bytes)


def linear(name, n, k):
    """(module, forward, backward) of y = x w for ROWS rows of float32."""
    def op(phase, m, n, k, **more):
        size = 4 * (m * n + n * k + m * k)
        return Op('mm', name, 'gemm', 2.0 * m * n * k, size, phase=phase, m=m, n=n, k=k, **more)

    module = Module(name, 'Linear', (Parameter(f'{name}.weight', (n, k)),),
                    output_bytes=4 * ROWS * n)
    saved = 4 * ROWS * n
    return module, op(FORWARD, ROWS, n, k, output_bytes=saved, saved_bytes=saved), [
        op(INPUT_GRAD, ROWS, k, n, output_bytes=4 * ROWS * k),
        op(WEIGHT_GRAD, n, k, ROWS, output_bytes=4 * n * k)]


def pointwise(name, phase, width):
    size = 4 * ROWS * width
    return Op('gelu', name, 'elementwise', 0.0, 2.0 * size, phase=phase, output_bytes=size,
              saved_bytes=size if phase == FORWARD else 0)


def mlp_layers(num_layers=2):
    """Layers layers.N of up (HIDDEN -> INNER), act, down (INNER -> HIDDEN), and a norm between."""
    modules, forward, backward = [Module('', 'Model')], [], []
    for n in range(num_layers):
        name = f'layers.{n}'
        up, up_forward, up_back = linear(f'{name}.up', INNER, HIDDEN)
        down, down_forward, down_back = linear(f'{name}.down', HIDDEN, INNER)
        norm = Module(f'{name}.norm', 'LayerNorm', (Parameter(f'{name}.norm.weight', (HIDDEN,)),))
        modules += [Module(name, 'Layer'), norm, up, Module(f'{name}.act', 'GELU'), down]
        forward += [pointwise(f'{name}.norm', FORWARD, HIDDEN), up_forward,
                    pointwise(f'{name}.act', FORWARD, INNER), down_forward]
        backward = [*down_back, pointwise(f'{name}.act', INPUT_GRAD, INNER), *up_back,
                    pointwise(f'{name}.norm', INPUT_GRAD, HIDDEN), *backward]
    return ModuleGraph(tuple(modules), tuple(forward + backward), batch_size=1, input_bytes=192)


def tied(graph, first, other):
    """The graph with one matrix for two linear layers of equal size."""
    modules = []
    for each in graph.modules:
        if each.name == first:
            weight, = each.parameters
            each = replace(each, parameters=(replace(weight, shared_with=(other,)),))
        elif each.name == other:
            each = replace(each, parameters=())
        modules.append(each)
    return replace(graph, modules=tuple(modules))
