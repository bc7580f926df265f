"""What stages of a pipeline do beside the tasks of their table: activations made again or moved,
gradients reduced, tied ones added up, the optimizer's step. Each function adds nodes to a program
of ``from_actions``, whose ranks stand for all shares of the batch and parts of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vision.pipeline.core.tasks import COMPUTE as TASKS
from vision.pipeline.core.tasks import B, F, I, Table, W
from vision.simulator.core.compile import (
    ALL_GATHER,
    ALL_REDUCE,
    OPTIMIZERS,
    REDUCE_SCATTER,
    Pricing,
    Settings,
)
from vision.simulator.core.graph import OPTIMIZER, Op
from vision.simulator.core.program import (
    COMPUTE,
    D2H,
    FEATURE,
    GRADIENT,
    H2D,
    Buffer,
    Node,
    Program,
)


@dataclass(frozen=True)
class Tie:
    """A parameter that stages of several pipeline ranks use, such as an embedding that is the
    head's matrix too. ``num_bytes`` of a rank; ``stages``: one of each pipeline rank."""

    name: str
    num_bytes: int
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Reduced:
    """Bytes of gradients on a rank, and the ranks that add theirs up."""

    num_bytes: int
    ranks: tuple[int, ...]


class _Writer:
    """Nodes and buffers of a program that is being added to."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes, self.buffers = list(program.nodes), dict(program.buffers)

    def done(self, **changes) -> Program:
        return replace(self.program, nodes=tuple(self.nodes), buffers=self.buffers, **changes)

    def hold(self, name: str, rank: int, num_bytes: int, category: str) -> str:
        assert name not in self.buffers, name
        self.buffers[name] = Buffer(rank, num_bytes, category)
        return name

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def change(self, at: int, *, begins: Sequence[str] = (), ends: Sequence[str] = (),
               after: Sequence[int] = ()) -> None:
        node = self.nodes[at]
        self.nodes[at] = replace(node, begins=(*node.begins, *begins), ends=(*node.ends, *ends),
                                 after=(*node.after, *after))

    def tasks_of(self, rank: int) -> list[int]:
        """Compute tasks of a rank, by number, in the order of its row."""
        return [at for at, node in enumerate(self.nodes) if node.ranks == (rank,)
                and node.kind in TASKS and node.stage is not None]

    def last_backward(self) -> dict[int, int]:
        """The last W or B of each stage, by number."""
        return {node.stage: at for at, node in enumerate(self.nodes) if node.kind in (B, W)}

    def last_on(self, rank: int, *streams: str) -> tuple[int, ...]:
        """The last node of a rank on each of these streams."""
        last = {node.stream: at for at, node in enumerate(self.nodes) if rank in node.ranks}
        return tuple(last[stream] for stream in streams if stream in last)


def with_remade(program: Program, remade: Sequence[int], remade_inputs: Sequence[int],
                remade_weights: Sequence[int]) -> Program:
    """The program with the activations that backward tasks make again (bytes as ``Stages`` has
    them); their time is part of the tasks.

    Where the pass is in two, what the gradients of weights need is there from I to W. Making it
    once is our choice: two passes of torch's autograd over one checkpoint make it twice.
    """
    writer = _Writer(program)
    for at, node in enumerate(program.nodes):
        if node.kind not in (B, I, W) or node.stage is None or not remade[node.stage]:
            continue
        stage, rank = node.stage, node.ranks[0]
        name = f'made again for stage {stage}, {node.mb}'
        # The first stage does all of its backward in W.
        if node.kind == B or stage == 0 and node.kind == W:
            writer.hold(name, rank, remade[stage], 'activations')
            writer.change(at, begins=(name,), ends=(name,))
        elif node.kind == W:
            writer.change(at, ends=(name,))
        elif stage:
            inputs = f'{name}, for its input'
            writer.hold(name, rank, remade_weights[stage], 'activations')
            writer.hold(inputs, rank, remade_inputs[stage], 'activations')
            writer.change(at, begins=(name, inputs), ends=(inputs,))
    return writer.done()


def with_offloads(program: Program, table: Table, moved: Sequence[int], pricing: Pricing
                  ) -> Program:
    """The program with copies to host memory behind each F, and back before the first backward
    task of its micro-batch.

    A copy back begins when one task is left before the one that needs it. What the very next task
    of a rank needs is not moved: nothing would hide it (both our choice).

    Args:
        moved: bytes of a micro-batch, by stage.
    """
    writer = _Writer(program)
    for rank in range(table.num_ranks):
        tasks = writer.tasks_of(rank)
        copies: dict[tuple[int, int], tuple[int, int]] = {}  # (place of F, its copy)
        back: dict[tuple[int, int], str] = {}
        for place, at in enumerate(tasks):
            node = writer.nodes[at]
            size, key = moved[node.stage], (node.stage, node.mb)
            if not size:
                continue
            name = f'moved of stage {node.stage}, {node.mb}'
            if node.kind == F:
                writer.hold(name, rank, size, 'activations')
                following = writer.nodes[tasks[place + 1]]
                writer.change(at, begins=(name,))
                if (following.stage, following.mb) == key:
                    back[key] = name
                    continue
                copies[key] = place, writer.add(Node(
                    f'd2h of stage {node.stage}, {node.mb}', 'd2h', (rank,), D2H,
                    pricing.copy(size), after=(at,), ends=(name,), mb=node.mb))
                continue
            if key not in back:
                began, out = copies[key]
                back[key] = writer.hold(f'{name} and back', rank, size, 'activations')
                ahead = tasks[max(began, place - 2)]
                copy = writer.add(Node(
                    f'h2d of stage {node.stage}, {node.mb}', 'h2d', (rank,), H2D,
                    pricing.copy(size), after=tuple(dict.fromkeys((ahead, out))),
                    begins=(back[key],), mb=node.mb))
                writer.change(at, after=(copy,))
            if node.kind != I:
                writer.change(at, ends=(back[key],))
    return writer.done()


def with_reductions(program: Program, table: Table, reduced: Sequence[Sequence[Reduced]],
                    pricing: Pricing, settings: Settings, *, is_scattered: bool) -> Program:
    """The program with each stage's gradients reduced over the parts of the batch, behind its
    last W or B: an all-reduce, or a reduce-scatter behind which a rank has its share alone
    (ZeRO-2). Until then gradients of all micro-batches are added up, and whole.

    One for all gradients of a stage, not one a bucket, is our choice: a stage's last backward
    task is one node, so that buckets would all begin behind it as well.
    """
    writer = _Writer(program)
    last = writer.last_backward()
    first = {node.stage: at for at, node in reversed(list(enumerate(program.nodes)))
             if node.kind in (B, W)}
    for stage, at in sorted(last.items(), key=lambda each: each[1]):
        for number, each in enumerate(reduced[stage]):
            what = f'of stage {stage}' + (f', {number}' if number else '')
            rank, begins, ends = table.rank_of[stage], [], []
            if is_scattered:
                share = -(-each.num_bytes // len(each.ranks))
                begins.append(writer.hold(f'gradient shard {what}', rank, share, 'gradients'))
                ends.append(writer.hold(f'gradients {what}', rank, each.num_bytes, 'gradients'))
                writer.change(first[stage], begins=ends)
            if settings.has_bucket_copies:
                name = writer.hold(f'buckets {what}', rank, each.num_bytes, 'communication')
                if is_scattered:  # else they are there from the start and stay
                    begins.append(name)
                    ends.append(name)
            kind = REDUCE_SCATTER if is_scattered else ALL_REDUCE
            writer.add(Node(f'gradients {what}', kind, (rank,), GRADIENT,
                            pricing.communicate(kind, each.num_bytes, each.ranks), after=(at,),
                            begins=tuple(begins), ends=tuple(ends)))
    return writer.done()


def with_ties(program: Program, table: Table, ties: Sequence[Tie],
              ranks: Sequence[Sequence[int]], pricing: Pricing, *, num_shares: int = 1) -> Program:
    """The program with an all-reduce of each tied parameter's gradient between the stages that
    hold it (Proteus, Megatron-LM), behind their own reductions and before the optimizer.

    Args:
        ranks: of the run, by stage; the same place of each stage has the same part.
        num_shares: over which gradients are sharded by then.
    """
    writer = _Writer(program)
    last = writer.last_backward()
    for tie in ties:
        joined = tuple(sorted(table.rank_of[stage] for stage in tie.stages))
        after = [last[stage] for stage in tie.stages]
        for rank in joined:
            after += writer.last_on(rank, GRADIENT)
        size = -(-tie.num_bytes // num_shares)
        seconds = pricing.communicate(ALL_REDUCE, size, tuple(ranks[stage][0]
                                                              for stage in tie.stages))
        writer.add(Node(f'tied gradient {tie.name}', ALL_REDUCE, joined, GRADIENT, seconds,
                        after=tuple(dict.fromkeys(after))))
    return writer.done()


def with_optimizer(program: Program, table: Table, trained: Sequence[int],
                   peers: Sequence[Sequence[int]], pricing: Pricing, settings: Settings, *,
                   num_shares: int = 1, num_parts: int = 1, zero: int = 3) -> Program:
    """The program with each rank's optimizer step behind its last task and reduction; then ranks
    that stepped a share of their parameters each (ZeRO-1, 2) gather them.

    Args:
        trained: bytes of each stage's gradients, of all shares.
        num_shares, zero: as of ``stage_costs``.
        num_parts: of the features; with ``num_shares`` the ranks of the run for each of these.
    """
    writer = _Writer(program)
    moved = OPTIMIZERS[settings.optimizer][1]
    for rank in range(table.num_ranks):
        stages = table.stages_of(rank)
        size = sum(trained[stage] for stage in stages) / (num_shares if zero else 1)
        op = Op(settings.optimizer, '', 'elementwise', 0.0, moved * size, phase=OPTIMIZER)
        step = writer.add(Node('optimizer', 'optimizer', (rank,), seconds=pricing.compute([op]),
                               after=writer.last_on(rank, COMPUTE, GRADIENT)))
        if zero in (1, 2):
            for stage in stages:
                writer.add(Node(
                    f'parameters of stage {stage}', ALL_GATHER, (rank,), FEATURE,
                    pricing.communicate(ALL_GATHER, trained[stage], peers[stage]),
                    after=(step,)))
    return writer.done(replicas=num_shares * num_parts)
