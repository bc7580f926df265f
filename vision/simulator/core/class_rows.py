"""Class rows of a recogniser, which are no parameters, so that no trace sees them: what their
store takes and what its step costs, in a model's graph.

Every rank has an equal part of the rows and sees the batch of all: features are gathered, each
rank multiplies with its active rows, and the softmax is put together by sums over the ranks
(``vision.faces``, after Partial FC, arXiv:2010.05222). Products of a rank's own batch with all
active rows, which a trace of one process has, are as large as those of all samples with its part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vision.simulator.core.graph import FORWARD, INPUT_GRAD, ModuleGraph, Op, is_inside
from vision.simulator.core.rewrite import D2H_OP, H2D_OP, first_backward

ELEMENT_BYTES = 4
# Messages of one number a sample and rank: largest logit, sum, own logit with its owner.
SOFTMAX_NUMBERS = 3
BACKBONE = 'backbone'  # of a recogniser; what is outside of it is the head's


@dataclass(frozen=True)
class ClassRows:
    """A head's class rows, over all ranks.

    Args:
        module: name of the head, for people.
        num_rows, dim: of all ranks.
        numbers_per_row: with the optimizer's states, of ``ELEMENT_BYTES`` each.
        num_active: rows of a step, of all ranks.
        is_on_host: the store is in host memory and copies what is active.
        grown: active rows for each that was traced.
    """

    module: str
    num_rows: int
    dim: int
    numbers_per_row: int
    num_active: int
    is_on_host: bool = False
    grown: float = 1.0

    def store_bytes(self, num_ranks: int) -> int:
        """Memory of one rank's part of the rows and their optimizer states, rounded up."""
        return -(-ELEMENT_BYTES * self.num_rows * self.numbers_per_row // num_ranks)


def with_class_rows(graph: ModuleGraph, rows: ClassRows, num_ranks: int) -> ModuleGraph:
    """The graph of one of ``num_ranks`` ranks with the rows' memory, messages and step.

    The messages stand before the head's work and behind it; nothing hides them, as the softmax
    needs all of them.
    """
    ops, start = graph.ops, first_backward(graph.ops)
    # The head is no module that is called: its operators are the model's own, behind the backbone
    # forward and before it backward.
    first = 1 + max(at for at in range(start) if is_inside(ops[at].module, BACKBONE))
    last = next(at for at in range(start, len(ops)) if is_inside(ops[at].module, BACKBONE)) - 1
    samples = graph.batch_size * num_ranks
    active = -(-rows.num_active // num_ranks)
    features = samples * rows.dim * ELEMENT_BYTES
    row_bytes = float(active * rows.numbers_per_row * ELEMENT_BYTES)
    everyone = tuple(range(num_ranks))

    def message(kind: str, num_bytes: float, phase: str) -> list[Op]:
        return [Op(kind, rows.module, 'collective', 0.0, float(num_bytes), phase=phase,
                   ranks=everyone)] if num_ranks > 1 else []

    def rows_op(name: str, phase: str) -> Op:
        # Rows and states are read once and written once.
        return Op(name, rows.module, 'elementwise', 0.0, 2 * row_bytes, phase=phase)

    fetch = [Op(H2D_OP, rows.module, 'other', 0.0, row_bytes)] if rows.is_on_host else []
    put = [Op(D2H_OP, rows.module, 'other', 0.0, row_bytes, phase=INPUT_GRAD)] \
        if rows.is_on_host else []
    before = [*message('all_gather', features, FORWARD), *fetch, rows_op('pull rows', FORWARD),
              *message('all_reduce', SOFTMAX_NUMBERS * ELEMENT_BYTES * samples, FORWARD)]
    behind = [rows_op('step rows', INPUT_GRAD), *put,
              *message('all_reduce', features, INPUT_GRAD)]
    held = 0 if rows.is_on_host else rows.store_bytes(num_ranks)
    modules = tuple(replace(each, buffer_bytes=each.buffer_bytes + held)
                    if each.name == '' else each for each in graph.modules)
    return replace(graph, modules=modules, ops=(
        *ops[:first], *before, *ops[first:last + 1], *behind, *ops[last + 1:]))
