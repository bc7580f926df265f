"""Run a table of actions, one micro-batch after the other, on torch's own pipeline runtime.

What torch would do wrong without a word is refused here: see ``PipelineRuntime``.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import (
    RECV_B,
    RECV_F,
    REDUCE_GRAD,
    RESHARD,
    UNSHARD,
    Action,
    B,
    F,
    Table,
    W,
)
from vision.pipeline.nn.torch_private import (
    Schedule,
    Stage,
    is_compiled,
    is_sharded,
    reshards_after_forward,
)


class PipelineRuntime:
    """Runs the steps of a pipeline as a table says.

    A chunk takes and gives a tensor or a tuple of tensors, all of one shape from micro-batch to
    micro-batch; the output of the last one may be any tree of tensors. Before the first step, and
    again when the shape of a micro-batch changes, one micro-batch goes forward and backward so
    that all stages know their shapes; buffers (BatchNorm), gradients and torch's random numbers
    are afterwards as before. Hooks of modules do see it. Rank 0 of the pipeline tells the others
    of such a change: a broadcast of two numbers a step (our choice; without it they would wait
    for tensors of the old shape).

    Args:
        chunks: modules of this rank by stage. With sharded data each is wrapped by
            ``fully_shard(..., reshard_after_forward=False)``, and so are FSDP modules inside.
        table: a complete one, with transfers, and gathers if the data is sharded; the same on
            every rank.
        group: of the pipeline's ranks; None for all.
        device: of the chunks.
        loss_of: (output of the last stage, number of the micro-batch) -> scalar, already divided
            by the number of micro-batches. ``runtime.loss_of`` may be set between steps.

    After a step ``spans`` has the times of its actions and the most micro-batches in flight. An
    error in a step leaves this object, and FSDP, in the middle of it: make a new one.

    Raises:
        VisionError: VIS-CONFIG-1512 for FSDP modules that shard again after the forward pass,
            VIS-CONFIG-1514 for compiled ones, VIS-CONFIG-1515 for DDP, VIS-CONFIG-1516 where
            chunks and table do not fit. From ``step`` VIS-CONFIG-1543 for a batch that cannot be
            split, VIS-CONFIG-1518 for outputs that are not tensors, VIS-RUN-1513, VIS-RUN-1544,
            VIS-RUN-1545 for gradients that are missing, VIS-RUN-1517 where ranks run different
            tables.
    """

    def __init__(self, chunks: Mapping[int, nn.Module], table: Table, *,
                 group: dist.ProcessGroup | None, device: torch.device | str,
                 loss_of: Callable[[Any, int], Tensor]) -> None:
        self.chunks = dict(sorted(chunks.items()))
        self.group, self.device, self.loss_of = group, torch.device(device), loss_of
        self.rank = dist.get_rank(group)
        for stage, chunk in self.chunks.items():
            _refuse_wrappers(stage, chunk)
        self.spans = Spans(self.device)
        self._take(table)
        self._rebuild()

    def use(self, table: Table) -> None:
        """Run this table from the next step on; on every rank before the same step."""
        is_as_long = table.num_microbatches == self.table.num_microbatches
        self._take(table)
        if is_as_long:
            self._schedule.load(table)
        else:
            self._rebuild()

    def _take(self, table: Table) -> None:
        _refuse_misfit(table, self.chunks, self.rank, dist.get_world_size(self.group))
        self.table = table
        self._checksum = zlib.crc32(repr(table.rows).encode())

    def step(self, inputs: Tensor | tuple[Tensor, ...] | None) -> list[Tensor]:
        """Forward and backward of a batch; gradients are added to those that are there.

        Args:
            inputs: of stage 0, (B, ...) each, read on its rank alone; B is divisible by the
                number of micro-batches, which are equal parts in order.

        Returns:
            Detached losses by micro-batch on the rank of the last stage, [] on the others.
        """
        table = self.table
        micro_batches = self._split(inputs) if 0 in self.chunks else [()] * table.num_microbatches
        shapes = self._agree(micro_batches[0])
        if shapes != self._learned:
            self._rebuild()
            with _as_it_was(self.chunks.values()):
                self._schedule.learn(micro_batches[0])
            self._learned = shapes
        self.spans.clear()
        try:
            self._schedule.run(micro_batches)
        except RuntimeError as error:
            error.add_note(f'rank {self.rank} of the pipeline was at or behind '
                           f'{self.spans.current or "the begin of the step"}')
            # torch hides what a module raised behind the shapes of its arguments
            if isinstance(error.__cause__, VisionError):
                raise error.__cause__ from None
            raise
        _refuse_missing_gradients(self.chunks)
        losses = self.stages[-1].losses if table.num_stages - 1 in self.chunks else {}
        return [losses[mb] for mb in sorted(losses)]

    def _rebuild(self) -> None:
        """torch's objects hold shapes and one slot for each micro-batch: new ones."""
        self._learned = 0
        self.stages = [Stage(chunk, stage, self.table.num_stages, self.device, self.group,
                              self.spans, self._loss_of) for stage, chunk in self.chunks.items()]
        self._schedule = Schedule(self.stages, self.table)

    def _loss_of(self, output: Any, mb: int) -> Tensor:
        return self.loss_of(output, mb)  # as it is now: it may be set anew between steps

    def _split(self, inputs: Tensor | tuple[Tensor, ...] | None) -> list[tuple[Tensor, ...]]:
        num = self.table.num_microbatches
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs or ())
        sizes = sorted({tensor.shape[0] for tensor in inputs})
        if len(sizes) != 1 or sizes[0] % num or not sizes[0]:
            raise VisionError(
                'VIS-CONFIG-1543', f'a batch of {", ".join(map(str, sizes)) or "no"} samples for '
                f'{num} micro-batches', why='all micro-batches have one size',
                do=f'make the batch a multiple of {num}, or change the number of micro-batches')
        return list(zip(*(tensor.chunk(num) for tensor in inputs), strict=True))

    def _agree(self, micro_batch: tuple[Tensor, ...]) -> int:
        """Checksum of the shapes of this step, known on all ranks."""
        own = zlib.crc32(repr([(tensor.shape, tensor.dtype) for tensor in micro_batch]).encode())
        told = torch.tensor([own + 1, self._checksum], device=self.device)
        dist.broadcast(told, group=self.group, group_src=self.table.rank_of[0])
        shapes, checksum = told.tolist()
        if checksum != self._checksum:
            raise VisionError(
                'VIS-RUN-1517', f'rank {self.rank} of the pipeline runs another table than rank '
                f'{self.table.rank_of[0]}', why='ranks would wait for each other for ever',
                do='make the table once and give the same one to all ranks before the same step')
        return shapes


class Spans:
    """When each compute action of the last step ran, and how many were in flight."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == 'cuda'
        self.clear()

    def clear(self) -> None:
        """Forget the last step; seconds count from here on."""
        self._found: list[tuple[Action, Any, Any]] = []
        self._in_flight = self.peak_in_flight = 0
        self.current: Action | None = None  # the last one that began
        self.origin = self._now()

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def __call__(self, action: Action) -> Iterator[None]:
        self.current = action
        self._in_flight += action.kind == F
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        start = self._now()
        yield
        self._found.append((action, start, self._now()))
        self._in_flight -= action.kind in (W, B)

    def seconds(self) -> list[tuple[Action, float, float]]:
        """Compute actions in order with start and end, in seconds since the step began."""
        if not self._is_cuda:
            return [(action, start - self.origin, end - self.origin)
                    for action, start, end in self._found]
        torch.cuda.synchronize()
        return [(action, self.origin.elapsed_time(start) / 1e3,
                 self.origin.elapsed_time(end) / 1e3) for action, start, end in self._found]


@contextmanager
def _as_it_was(chunks: Iterator[nn.Module]) -> Iterator[None]:
    chunks = list(chunks)
    buffers = [(module, name, buffer, buffer.clone()) for chunk in chunks
               for module in chunk.modules()
               for name, buffer in module.named_buffers(recurse=False)]
    gradients = [(parameter, parameter.grad) for chunk in chunks
                 for parameter in chunk.parameters()]
    yield
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            buffer.copy_(value)
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)
    for parameter, gradient in gradients:
        parameter.grad = gradient


def _refuse_wrappers(stage: int, chunk: nn.Module) -> None:
    if isinstance(chunk, DistributedDataParallel):
        raise VisionError(
            'VIS-CONFIG-1515', f'stage {stage} is wrapped by DistributedDataParallel',
            why='it would reduce gradients in a backward pass that the table has split',
            do='give the plain module, and reduce its gradients over the data-parallel ranks '
            'after the step, or wrap it with fully_shard(..., reshard_after_forward=False)')
    if is_compiled(chunk):
        raise VisionError(
            'VIS-CONFIG-1546', f'stage {stage} holds a module made by torch.compile',
            why='its backward pass cannot be split into those of inputs and weights',
            do='leave torch.compile out')
    resharded = reshards_after_forward(chunk)
    if resharded:
        raise VisionError(
            'VIS-CONFIG-1512', f'stage {stage} is sharded again after its forward pass: '
            f'{", ".join(resharded[:3])}', why='the gradients of its weights would be lost '
            'without a word, since only the table may shard it', do='wrap the chunk and all in '
            'it with fully_shard(..., reshard_after_forward=False)')


def _refuse_misfit(table: Table, chunks: Mapping[int, nn.Module], rank: int,
                   num_ranks: int) -> None:
    why = ''
    if table.num_ranks != num_ranks:
        why = f'the table is for {table.num_ranks} ranks, the group has {num_ranks}'
    elif table.stages_of(rank) != tuple(chunks):
        why = f'the table has stages {list(table.stages_of(rank))} on rank {rank}, the chunks ' \
              f'are those of {list(chunks)}'
    else:
        why = next(filter(None, (_why_not(table, stage, is_sharded(chunk))
                                 for stage, chunk in chunks.items())), '')
    if why:
        raise VisionError('VIS-CONFIG-1516', f'table {table.name!r} does not fit the chunks',
                          why=why, do='complete it: with_gathers for chunks of fully_shard, then '
                          'with_transfers; and give each rank the stages that it has in the table')


def _why_not(table: Table, stage: int, is_sharded: bool) -> str:
    row = [action for action in table.rows[table.rank_of[stage]] if action.stage == stage]
    kinds = [action.kind for action in row]
    for kind, other in ((RECV_F, stage - 1), (RECV_B, stage + 1)):
        is_remote = 0 <= other < table.num_stages and table.rank_of[other] != table.rank_of[stage]
        if kinds.count(kind) != is_remote * table.num_microbatches:
            return f'it has {kinds.count(kind)} {kind} of stage {stage}, which needs ' \
                   f'{is_remote * table.num_microbatches}'
    if is_sharded:
        changes = [kind for kind in kinds if kind in (UNSHARD, RESHARD)]
        gradients = [kind for kind in kinds if kind in (W, B, REDUCE_GRAD)]
        if changes[:1] != [UNSHARD] or changes[-1:] != [RESHARD]:
            return f'stage {stage} is sharded, and has to be gathered first and sharded last'
        if gradients[-1] != REDUCE_GRAD:
            return f'stage {stage} is sharded, and its gradients are not reduced at the end'
    return ''


def _refuse_missing_gradients(chunks: Mapping[int, nn.Module]) -> None:
    missing = [f'{name} of stage {stage}' for stage, chunk in chunks.items()
               for name, parameter in chunk.named_parameters()
               if parameter.requires_grad and parameter.grad is None]
    if missing:
        raise VisionError(
            'VIS-RUN-1513', f'{len(missing)} trainable parameters have no gradient after the '
            f'step: {", ".join(missing[:3])}', why='either the model does not use them, or '
            'gradients were lost', do='set requires_grad=False for parameters that the model '
            'does not use')
