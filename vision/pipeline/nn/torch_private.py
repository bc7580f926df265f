"""Names of torch without a promise that ``vision.pipeline`` uses; here and only here.

Their contract is tested in ``tests/pipeline/test_nn_torch_private.py``: a torch that changes one
of them fails there, and not in the middle of a training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Action, B, F, I, Table, W, looped, v_shaped

_OTHER_TORCH = (f'pipelines are written for torch 2.13, found {torch.__version__}: install that, '
                'or update vision/pipeline/nn/torch_private.py and its contract test')
try:
    from torch._dynamo import OptimizedModule
    from torch.distributed.pipelining import _backward, schedules
    from torch.distributed.pipelining.schedules import _Action as TorchAction
    from torch.distributed.pipelining.schedules import _ComputationType as Kind
    from torch.distributed.pipelining.stage import _make_tensor_from_meta
except ImportError as error:
    raise ImportError(_OTHER_TORCH) from error

_GENERATORS = {'interleaved-zero-bubble': schedules.ScheduleInterleavedZeroBubble,
               'zbv': schedules.ScheduleZBVZeroBubble,
               'dualpipev': schedules.ScheduleDualPipeV}
TORCH_SCHEDULES = tuple(_GENERATORS)


def to_torch(table: Table) -> dict[int, list[TorchAction]]:
    """The rows of a table as torch's runtime takes them, by rank."""
    return {rank: [TorchAction(stage, Kind(kind), mb) for stage, kind, mb in row]
            for rank, row in enumerate(table.rows)}


def torch_table(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> Table:
    """Compute actions of one of torch's own schedules, made without ranks.

    Args:
        name: 'interleaved-zero-bubble', 'zbv' or 'dualpipev'. The last one's pairs of F and B
            that run at once on a GPU stand one after the other.

    Raises:
        VisionError: VIS-CONFIG-1510 for a name or sizes that torch has no schedule of.
    """
    why = _why_not(name, num_ranks, num_chunks, num_microbatches)
    if why:
        raise VisionError(
            'VIS-CONFIG-1510', f'schedule {name!r} for {num_ranks} ranks, {num_chunks} chunks a '
            f'rank, {num_microbatches} micro-batches', why=why,
            do=f'change the sizes, or take another schedule: {", ".join(TORCH_SCHEDULES)} '
            'are those of torch')
    placement = v_shaped(num_ranks) if name != 'interleaved-zero-bubble' else \
        looped(num_ranks, num_chunks)
    order = _generate(_GENERATORS[name], len(placement), num_ranks, num_chunks, num_microbatches)
    rows = tuple(tuple(_flat(order[rank])) for rank in range(num_ranks))
    return Table(name, placement, num_microbatches, rows)


def _why_not(name: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> str:
    if name not in _GENERATORS:
        return f'allowed are {", ".join(_GENERATORS)}'
    if min(num_ranks, num_chunks, num_microbatches) < 1:
        return 'each number must be at least 1'
    if name == 'interleaved-zero-bubble':
        num_rounds = max(1, num_microbatches // num_ranks)
        return '' if num_microbatches % num_rounds == 0 else \
            f'{num_microbatches} micro-batches cannot be dealt to {num_rounds} equal rounds'
    if num_chunks != 2:
        return 'it is V-shaped: two chunks a rank'
    if name == 'dualpipev' and num_microbatches < 2 * num_ranks:
        return f'it needs at least as many micro-batches as stages, {2 * num_ranks}'
    return ''


def _generate(schedule: type, num_stages: int, num_ranks: int, num_chunks: int,
              num_microbatches: int) -> dict[int, list[TorchAction | None]]:
    """torch's order, without its lowering: that is done by ``core``, and takes a process group."""
    class Generator(schedule):
        def _prepare_schedule_with_comms(self, actions, format='compute_only') -> None:
            pass

    stages = [SimpleNamespace(num_stages=num_stages, group_size=num_ranks, group_rank=0,
                              submod=None) for _ in range(num_chunks)]
    return Generator(stages, num_microbatches).pipeline_order


def _flat(row: list[TorchAction | None]) -> list[Action]:
    found = []
    for action in row:
        for part in (action.sub_actions or (action,)) if action else ():
            found.append(Action(part.stage_index, part.computation_type.value,
                                part.microbatch_index))
    return found


class Stage(PipelineStage):
    """A chunk as torch's runtime runs it; what leaves it is contiguous, as transfers need.

    torch alone keeps a buffer for each micro-batch of the step, and what it sent until the end
    of the step; here they live as long as they are needed, so that memory does not grow with the
    number of micro-batches. And where no input needs a gradient (all before is frozen) torch
    finds no weight gradients in I, without a word: there I does nothing and W all, as torch does
    in stage 0. Where a weight is used behind another use of itself (``has_chained_uses``) torch
    fails: there I does all and W nothing.

    Args:
        span: is entered around each compute action.
        loss_of: (output, mb) -> loss, a scalar, of the last stage.
    """

    def __init__(self, chunk: nn.Module, index: int, num_stages: int, device: torch.device,
                 group: dist.ProcessGroup | None, span: Callable[[Action], AbstractContextManager],
                 loss_of: Callable[[Any, int], Tensor]) -> None:
        super().__init__(chunk, index, num_stages, device, group=group)
        self.span, self.loss_of = span, loss_of
        self.losses: dict[int, Tensor] = {}
        # Known once shapes are learned; of one micro-batch.
        self.activation_bytes = self.sent_bytes = 0
        self.sends_gradient = False
        self.is_splittable = True
        self._done_early: set[int] = set()
        self._graph_losses: dict[int, Tensor] = {}
        self._whole_backward: dict[int, Tensor | None] = {}
        self._sends: dict[tuple[str, int], list[dist.Work]] = {}

    def forward_maybe_with_nosync(self, *args, **kwargs) -> Any:
        """The chunk's output, contiguous unless this stage is the last."""
        output = super().forward_maybe_with_nosync(*args, **kwargs)
        return output if self.is_last else _contiguous(output)

    def forward_one_chunk(self, fwd_chunk_id: int, args: tuple, kwargs: dict | None = None,
                          save_forward_output: bool = True) -> Any:
        """F of one micro-batch: its output, and in the last stage its loss. The buffers that it
        was received in are free afterwards."""
        mb = fwd_chunk_id
        with self.span(Action(self.stage_index, F, mb)):
            output = super().forward_one_chunk(mb, args, kwargs, save_forward_output)
            _release(self.args_recv_info[mb])
            if self.is_last:
                loss = self.loss_of(output, mb)
                # torch detaches the loss in place, and that is not possible with a view
                self._graph_losses[mb] = loss.clone() if loss._is_view() else loss
                self.losses[mb] = loss.detach()
                self.fwd_cache[mb] = _tensors(output), self.fwd_cache[mb][1]
        return output

    def take_loss(self, mb: int) -> Tensor | None:
        """The loss of a micro-batch with its graph, a scalar, once, from which the last stage goes
        backward; None in the others."""
        return self._graph_losses.pop(mb) if self.is_last else None

    def backward_one_chunk(self, bwd_chunk_id: int, loss: Tensor | None = None,
                           full_backward: bool = True, last_backward: bool = False) -> None:
        """B of one micro-batch, or I without ``full_backward``; the gradient for the stage before
        is contiguous.

        Args:
            loss: scalar, in the last stage alone.

        Raises:
            VisionError: I of chunks that torch would leave without gradients.
        """
        mb = bwd_chunk_id
        for work in self._sends.pop((F, mb), ()):
            work.wait()  # its gradient is here, so it has long arrived
        inputs = self.fwd_cache[mb][1]
        with self.span(Action(self.stage_index, B if full_backward else I, mb)):
            if not full_backward and not self.is_first and \
                    not any(tensor.requires_grad for tensor in inputs):
                self._whole_backward[mb] = loss
                self.bwd_cache[mb] = (None,) * len(inputs)
                return
            is_split = not full_backward and self.is_splittable
            if is_split:
                self._refuse_sharded()
            elif not full_backward:
                self._done_early.add(mb)
            super().backward_one_chunk(mb, loss, not is_split, last_backward)
            self.bwd_cache[mb] = _contiguous(self.bwd_cache[mb])
            if is_split and not self.is_first:
                self._refuse_no_groups(mb)
        _release(self.grad_recv_info[mb])

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """W of one micro-batch: what its I has left, added to the gradients that are there."""
        mb = bwd_chunk_id
        with self.span(Action(self.stage_index, W, mb)):
            if mb in self._done_early:
                self._done_early.remove(mb)
            elif mb in self._whole_backward:
                super().backward_one_chunk(mb, self._whole_backward.pop(mb), True, last_backward)
                del self.bwd_cache[mb]  # I has sent it
                _release(self.grad_recv_info[mb])
            else:
                super().backward_weight_one_chunk(mb, last_backward)
            accumulate_gradients(self.submod)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Receives of a micro-batch's input, into memory that is taken now."""
        _allocate(self.args_recv_info[fwd_chunk_id], self.device)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Receives of the gradient of a micro-batch's output, into memory that is taken now."""
        _allocate(self.grad_recv_info[bwd_chunk_id], self.device)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def set_local_bwd_input(self, next_stage_bwd_outputs: tuple, mb_index: int) -> None:
        """The gradient of a micro-batch's output from the next stage on the same rank, without a
        message."""
        _allocate(self.grad_recv_info[mb_index], self.device)  # zeros where there is no gradient
        super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send a micro-batch's output at once; nothing is left for torch to send."""
        self._send(F, fwd_chunk_id, super().get_fwd_send_ops(fwd_chunk_id))
        return []

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send the gradient of a micro-batch's input at once; nothing is left for torch
        to send."""
        self._send(B, bwd_chunk_id, super().get_bwd_send_ops(bwd_chunk_id))
        return []

    def _send(self, kind: str, mb: int, ops: list[dist.P2POp]) -> None:
        for key in [key for key, works in self._sends.items()
                    if all(work.is_completed() for work in works)]:
            del self._sends[key]
        self._sends[kind, mb] = [op.op(op.tensor, group=op.group, tag=op.tag,
                                       group_dst=op.group_peer) for op in ops]

    def finish(self) -> None:
        """Wait for what is still under way, at the end of a step."""
        for works in self._sends.values():
            for work in works:
                work.wait()
        self._sends.clear()

    def _to_tensor(self, arg: Any) -> Tensor:
        """Of what torch learns the shapes with: zeros, where it takes memory as it comes, which
        as indices of an embedding would be out of range."""
        tensor = super()._to_tensor(arg)
        if not isinstance(arg, Tensor):
            with torch.no_grad():
                tensor.zero_()
        return tensor

    def _compute_outputs(self, *args: Tensor, module: nn.Module, **kwargs) -> Any:
        """While shapes are learned; what a micro-batch keeps is counted on the way."""
        kept: dict[int, int] = {}  # bytes by storage; all of them live until the end of this

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that its own graph holds would never be freed

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = super()._compute_outputs(*args, module=module, **kwargs)
        if not self.is_last:
            refuse_others_than_tensors(self.stage_index, output)
        output = _tensors(output) if self.is_last else _contiguous(output)
        for tensor in (*args, *_tensors(output)):
            count(tensor)
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                kept.pop(parameter.untyped_storage().data_ptr(), None)
        self.activation_bytes = sum(kept.values())
        self.sent_bytes = 0 if self.is_last else sum(
            tensor.numel() * tensor.element_size() for tensor in _tensors(output))
        self.sends_gradient = not self.is_first and any(tensor.requires_grad for tensor in args)
        self.is_splittable = not (self.sends_gradient and has_chained_uses(
            _tensors(output), args, module.parameters()))
        return output

    def _compute_input_grads(self, *args, **kwargs) -> tuple:
        return _contiguous(super()._compute_input_grads(*args, **kwargs))

    def _refuse_sharded(self) -> None:
        if is_sharded(self.submod) and any(isinstance(parameter, DTensor)
                                           for parameter in self.submod.parameters()):
            raise VisionError(
                'VIS-RUN-1544', f'the parameters of stage {self.stage_index} are sharded while '
                'its input gradient runs', why='the weight gradients would be lost without a word',
                do='wrap it with fully_shard(..., reshard_after_forward=False), and let only the '
                'table gather and shard it')

    def _refuse_no_groups(self, mb: int) -> None:
        groups = self.backward_state[mb][1]
        if not groups and any(parameter.requires_grad for parameter in self.submod.parameters()):
            raise VisionError(
                'VIS-RUN-1545', f'no weight of stage {self.stage_index} was found behind the '
                f'input gradient of micro-batch {mb}', why='its weight gradients would be lost '
                'without a word', do='freeze the parameters of the stage if its output does not '
                'depend on them; otherwise something replaced them after the forward pass')


def has_chained_uses(outputs: Iterable[Tensor], inputs: Iterable[Tensor],
                     weights: Iterable[Tensor]) -> bool:
    """Is a weight used behind another use of itself, as in F(F(x))?

    The way from the later use to the weight then leads through the earlier one and all between
    them; torch would go it for the later one's weight gradient, and again for each layer between,
    whose graph is freed by then. Only the graph behind the tensors counts, so any shapes will do.
    """
    def starts(tensors: Iterable[Tensor]) -> list:
        nodes = (_backward._get_grad_fn_or_grad_acc(tensor) for tensor in tensors
                 if tensor.requires_grad)
        return [node for node in nodes if node is not None]

    reverse = _backward.construct_reverse_graph(starts(outputs))
    for group in _backward.get_param_groups(starts(inputs), starts(weights), reverse):
        uses = group['intermediates']
        for use in uses if len(uses) > 1 else ():
            seen, waiting = {use}, [use]
            while waiting:
                for node, _ in waiting.pop().next_functions:
                    if node in uses:
                        return True
                    if node is not None and node not in seen:
                        seen.add(node)
                        waiting.append(node)
    return False


def refuse_others_than_tensors(stage: int, output: Any) -> None:
    """Check what a stage that is not the last gave.

    Raises:
        VisionError: VIS-CONFIG-1518, something other than a tensor or a flat tuple of tensors, or
            nothing.
    """
    values = output if isinstance(output, (tuple, list)) else (output,)
    others = sorted({type(value).__name__ for value in values if not isinstance(value, Tensor)})
    if others or not values:
        raise VisionError(
            'VIS-CONFIG-1518', f'stage {stage} gives {" and ".join(others) or "nothing"}',
            why='between stages go tensors', do='let its chunk return a tensor or a flat tuple '
            'of tensors')


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _contiguous(output: Any) -> Any:
    """Tensors as gloo and NCCL take them. A view is copied: torch detaches outputs in place."""
    if isinstance(output, (tuple, list)):
        return tuple(map(_contiguous, output))
    if not isinstance(output, Tensor):
        return output
    if output._is_view():
        return output.clone(memory_format=torch.contiguous_format)
    return output.contiguous()


def _allocate(infos: tuple, device: torch.device) -> None:
    for info in infos:
        if info.tensor_meta is not None and not info.is_root_arg:
            info.buffer = _make_tensor_from_meta(info.tensor_meta, device)


def _release(infos: tuple) -> None:
    for info in infos:
        info.buffer = None


class Schedule(schedules._PipelineScheduleRuntime):
    """torch's runtime with a table of ours, and losses by micro-batch: torch numbers them in the
    order in which they come."""

    def __init__(self, stages: list[Stage], table: Table) -> None:
        if not hasattr(PipelineStage, '_to_tensor'):  # torch 2.12 and before: it would fail later
            raise ImportError(_OTHER_TORCH)
        super().__init__(stages, table.num_microbatches, loss_fn=_sum_of, scale_grads=False)
        self.register_custom_function(Kind.REDUCE_GRAD, self._reduce)
        self.load(table)

    def load(self, table: Table) -> None:
        """Run this table from the next step on."""
        self._prepare_schedule_with_comms(to_torch(table), format='compute_comms')

    def learn(self, inputs: tuple[Tensor, ...]) -> None:
        """One micro-batch goes forward and backward, so that each stage knows its shapes.

        Args:
            inputs: of stage 0, a micro-batch; () on other ranks.
        """
        for stage in self._stages:
            stage.has_backward = True
        # Copies: what counts as kept is a micro-batch, and not the batch that it is a part of.
        self._initialize_stages(tuple(tensor.clone() for tensor in inputs), {}, torch.zeros(()))
        for stage in self._stages:
            for infos in (*stage.args_recv_info.values(), *stage.grad_recv_info.values()):
                _release(infos)

    def run(self, inputs: list[tuple[Tensor, ...]]) -> None:
        """One step; ``inputs`` are those of stage 0, (B / M, ...) each, by micro-batch."""
        for stage in self._stages:
            stage.clear_runtime_states()
        level = schedules.logger.level
        schedules.logger.setLevel(logging.CRITICAL)  # it logs whole tables with an error
        try:
            self._step_microbatches(inputs, None, list(range(self._n_microbatches)),
                                    return_outputs=False)
        finally:
            schedules.logger.setLevel(level)
        for stage in self._stages:
            stage.finish()

    def _maybe_compute_loss(self, *args, **kwargs) -> None:
        """The stage has, within its forward pass."""

    def _maybe_get_loss(self, stage: Stage, mb_index: int) -> Tensor | None:
        return stage.take_loss(mb_index)

    def _reduce(self, action: TorchAction, context: Any) -> None:
        stage, = (stage for stage in self._stages if stage.stage_index == action.stage_index)
        reduce_gradients(stage.submod)


def _sum_of(outputs: Any, _: Tensor) -> Tensor:
    """Stands for the loss while shapes are learned."""
    return sum(tensor.float().sum() for tensor in _tensors(outputs) if tensor.requires_grad)


def is_compiled(chunk: nn.Module) -> bool:
    """Is torch.compile's wrapper in it, or a module compiled in place?"""
    return any(isinstance(module, OptimizedModule) or module._compiled_call_impl is not None
               for module in chunk.modules())


def is_sharded(chunk: nn.Module) -> bool:
    """Whether FSDP2 (``fully_shard``) holds its parameters."""
    return isinstance(chunk, FSDPModule)


def _groups(chunk: nn.Module) -> Iterator[Any]:
    for module in chunk.modules():
        if isinstance(module, FSDPModule):
            yield from module._get_fsdp_state()._fsdp_param_groups


def gathered_bytes(chunk: nn.Module) -> int:
    """Memory of a chunk's parameters, whole, in the type in which they are gathered."""
    return _bytes_in(chunk, 'param_dtype')[0]


def reduced_bytes(chunk: nn.Module) -> tuple[int, torch.dtype]:
    """Memory of a chunk's gradients, whole, and the type in which they are reduced."""
    return _bytes_in(chunk, 'reduce_dtype')


def _bytes_in(chunk: nn.Module, field: str) -> tuple[int, torch.dtype]:
    policies = [group.mp_policy for group in _groups(chunk)]
    wanted = next((found for policy in policies if (found := getattr(policy, field) or
                                                     policy.param_dtype)), None)
    parameters = list(chunk.parameters())
    num_bytes = sum(parameter.numel() * (wanted or parameter.dtype).itemsize
                    for parameter in parameters)
    return num_bytes, wanted or (parameters[0].dtype if parameters else torch.float32)


def reshards_after_forward(chunk: FSDPModule) -> list[str]:
    """Names of the modules in it that FSDP shards again after their forward pass."""
    found = []
    for name, module in chunk.named_modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            is_own_choice = module is not chunk or not state._auto_reshard_after_forward
            if is_own_choice and any(group.post_forward_mesh_info is not None
                                     for group in state._fsdp_param_groups):
                found.append(name or 'the chunk itself')
    return found


def accumulate_gradients(chunk: nn.Module) -> None:
    """Add up whole gradients of micro-batches in the type that they are reduced in. FSDP does so
    in its own backward hooks, which a weight gradient alone does not reach: bfloat16 would be
    added to bfloat16."""
    if is_sharded(chunk):
        for group in _groups(chunk):
            for parameter in group.fsdp_params:
                parameter.accumulate_unsharded_grad_if_needed()
                parameter.to_accumulated_grad_if_needed()


def reduce_gradients(chunk: nn.Module) -> None:
    """Reduce-scatter the gradients so far into the sharded ones, and leave the chunk whole.

    torch's own REDUCE_GRAD shards the module while the runtime holds it for whole: what is still
    to be done of the step then runs with sharded parameters, and gradients are lost.
    """
    if not is_sharded(chunk):
        return
    chunk.set_is_last_backward(True)
    chunk.set_reshard_after_backward(False)
    chunk.set_requires_gradient_sync(True)
    for group in _groups(chunk):
        group.post_backward()
    fully_shard.state(chunk)._root_post_backward_final_callback()
