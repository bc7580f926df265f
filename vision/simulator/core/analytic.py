"""One step of a decoder under a strategy: its operators priced, its real schedule played, its
states and activations counted.

What is exact about it is the schedule: stages are tables of vision.pipeline, and what waits for
what comes out of their simulation. Layers are equal, so one is priced and the rest counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from vision.common.core.errors import VisionError
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.simulate import simulate
from vision.pipeline.core.tasks import Costs
from vision.simulator.core.graph import Op
from vision.simulator.core.pricing import DEFAULT_INTERVAL, Group, Prices, issued
from vision.simulator.core.transformers import (
    Decoder,
    Part,
    backward_of,
    embedding_forward,
    head_forward,
    kept_bytes,
    layer_forward,
    scores_forward,
)

RECOMPUTE = ('none', 'selective', 'half', 'full')
# Operators that the host issues for one that is counted from sizes: biases, casts, transposes,
# masks and views come on top (our choice; a forward of Megatron's layer has 30 to 40 kernels where
# 13 are counted).
_ISSUED = 3
# Rounds of a steady pipeline after which one more round costs the same as the one before.
_STEADY_ROUNDS = 4


@dataclass(frozen=True)
class Strategy:
    """How a decoder is spread over devices.

    Ranks are numbered as Megatron does: tensor, then context, then data, then pipeline; so tensor
    parallel groups are within a node as far as they go.

    Args:
        data, tensor, pipeline, context: devices of each kind; their product is the world.
        micro_batch: sequences of one rank and micro-batch; num_microbatches: of a step.
        chunks: stages on each pipeline rank; schedule: of ``vision.pipeline``.
        zero: 0 none, 1 optimizer state, 2 and gradients, 3 and parameters sharded.
        zero_group: ranks that share a state, 0 for all that hold the same layers.
        recompute: one of ``RECOMPUTE``; 'selective' is the scores of plain attention, 'half' every
            second product (torchtitan's operator policy).
        is_sequence_parallel: what is between products is shared by tensor parallel ranks too.
        is_overlapped: gradients are reduced beside the backward, and parameters of the next layer
            gathered (zero=3) beside the work of this one.
        is_tensor_overlapped: products beside their own communication (asynchronous tensor
            parallel).
        is_accumulated_apart: gradients of a micro-batch are added to those before by an operator
            of its own, and not by the product that makes them.
        by_broadcast: with ``zero=1``, parameters come back rank by rank.
        gradient_bytes: of one number as it is reduced.
        state_bytes: (weights, gradients, optimizer) of one parameter as it is held.
        step_bytes: read and written by the optimizer for one parameter, norm and casts included.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    micro_batch: int = 1
    num_microbatches: int = 1
    chunks: int = 1
    schedule: str = '1f1b'
    zero: int = 0
    zero_group: int = 0
    recompute: str = 'none'
    is_sequence_parallel: bool = False
    is_overlapped: bool = True
    is_tensor_overlapped: bool = False
    is_accumulated_apart: bool = True
    by_broadcast: bool = False
    gradient_bytes: int = 4
    state_bytes: tuple[float, float, float] = (2, 4, 12)
    step_bytes: float = 40.0

    @property
    def world_size(self) -> int:
        """Devices of the run."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def keeps_gathered(self) -> bool:
        """Sharded parameters are gathered once a step and gradients reduced once: what torchtitan
        does under a pipeline, where every micro-batch would gather them again otherwise."""
        return self.zero == 3 and self.pipeline > 1

    @property
    def global_batch(self) -> int:
        """Sequences in a step, over all ranks and micro-batches."""
        return self.data * self.micro_batch * self.num_microbatches


@dataclass(frozen=True)
class Prediction:
    """One step of a decoder: its time, and the memory of the device that needs most.

    Args:
        seconds: of a step.
        peak_bytes: of the device that needs most, with context and fragmentation.
        capacity_bytes: of a device.
        parts: seconds by what they are spent on; they sum up to ``seconds``.
        memory: bytes by what they are for, on that device.
        interval: relative half width of ``seconds``.
        notes: what was measured, fitted, taken from data sheets, assumed.
    """

    seconds: float
    peak_bytes: float
    capacity_bytes: float
    parts: Mapping[str, float]
    memory: Mapping[str, float]
    interval: float = DEFAULT_INTERVAL
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the device that needs most has room for it."""
        return self.peak_bytes <= self.capacity_bytes


def predict(decoder: Decoder, strategy: Strategy, prices: Prices, *,
            interval: float = DEFAULT_INTERVAL) -> Prediction:
    """A step's time and peak memory.

    Raises:
        VisionError: VIS-CONFIG-1644, sizes that do not divide; VIS-CONFIG-1640, a link that the
            strategy crosses is not in the cluster.
    """
    refuse_uneven(decoder, strategy)
    run = _Run(decoder, strategy, prices)
    parts = run.parts()
    seconds = sum(parts.values())
    waiting = seconds * (prices.waiting(strategy.world_size) - 1)
    parts = {**parts, 'waiting for the slowest rank': waiting}
    memory = run.memory()
    prices.notes.say('assumed', 'operators of the decoder are counted from its sizes')
    return Prediction(sum(parts.values()), sum(memory.values()),
                      prices.cluster.device.memory_bytes, parts, memory, interval,
                      prices.notes.to_dict())


def refuse_uneven(decoder: Decoder, strategy: Strategy) -> None:
    """Raises VIS-CONFIG-1644 for a strategy that does not divide the decoder."""
    s = strategy
    faults = [
        (min(s.data, s.tensor, s.pipeline, s.context, s.micro_batch, s.num_microbatches,
             s.chunks) < 1, 'all degrees and batches are at least 1'),
        (decoder.heads % s.tensor, f'tensor={s.tensor} divides the {decoder.heads} heads'),
        (decoder.inner % s.tensor, f'tensor={s.tensor} divides the inner width '
         f'{decoder.inner}'),
        (s.pipeline * s.chunks > decoder.layers,
         f'{s.pipeline} x {s.chunks} stages have at least one of {decoder.layers} layers'),
        (s.recompute not in RECOMPUTE, f'recompute is one of {", ".join(RECOMPUTE)}'),
        (s.zero not in (0, 1, 2, 3), 'zero is 0, 1, 2 or 3'),
    ]
    for is_fault, rule in faults:
        if is_fault:
            raise VisionError('VIS-CONFIG-1644', f'the strategy does not divide: {strategy}',
                              why=rule, do='choose degrees that divide the model')


class _Run:
    """One prediction: device and host seconds of layers, stages, step."""

    def __init__(self, decoder: Decoder, strategy: Strategy, prices: Prices) -> None:
        self.decoder, self.strategy, self.prices = decoder, strategy, prices
        s, node = strategy, prices.cluster.gpus_per_node
        self.part = Part(s.micro_batch, s.tensor, s.is_sequence_parallel, s.context)
        self.tokens = s.micro_batch * decoder.sequence / s.context
        self.tensor = Group.strided(s.tensor, 1, node)
        self.sharing = Group.strided(s.data * s.context, s.tensor, node)
        size = min(s.zero_group or self.sharing.size, self.sharing.size)
        self.zero = Group.strided(size, s.tensor, node)
        self.layers_of = stage_layers(decoder.layers, s.pipeline * s.chunks)

    # Time.

    def parts(self) -> dict[str, float]:
        """Seconds of a step by what they are spent on."""
        s = self.strategy
        forward, backward = self._layer_times()
        first, last = self._ends()
        fronts = [count * forward for count in self.layers_of]
        backs = [count * backward for count in self.layers_of]
        fronts[0] += first[0]
        backs[0] += first[1]
        fronts[-1] += last[0]
        backs[-1] += last[1]
        busiest = max(sum(fronts[rank::s.pipeline]) + sum(backs[rank::s.pipeline])
                      for rank in range(s.pipeline)) * s.num_microbatches
        whole = makespan(s.schedule, s.pipeline, s.chunks, s.num_microbatches,
                         tuple(fronts), tuple(backs), self._boundary())
        reduce, gather = self._data_times(window=busiest / s.num_microbatches
                                          * (backward / (forward + backward)))
        return {'busiest stage': busiest, 'pipeline bubble': whole - busiest,
                'gradients': reduce, 'parameters': gather, 'optimizer': self._optimizer(),
                'around the step': self.prices.cluster.overheads.step}

    def _layer_times(self) -> tuple[float, float]:
        """(forward, backward with recomputation) of a layer, bound by device, host or gather."""
        s, prices = self.strategy, self.prices
        front = layer_forward(self.decoder, self.part)
        back = backward_of(front)
        again = self._again(front)
        comm = self._tensor_comm()
        num_comm = 4 if s.tensor > 1 else 0
        repeats = 1 if s.recompute == 'full' else 0
        forward = self._bound(front, comm, num_comm)
        backward = self._bound([*again, *back], comm * (1 + repeats), num_comm * (1 + repeats))
        whole = self.decoder.layer_parameters / s.tensor
        if s.zero < 3 or s.keeps_gathered:
            return forward, backward + self._accumulate(whole)
        gather = prices.all_gather(2 * whole, self.zero)
        scatter = prices.reduce_scatter(s.gradient_bytes * whole, self.zero)
        return self._beside(forward, gather), self._beside(backward, gather + scatter)

    def _accumulate(self, num_parameters: float) -> float:
        """Of a layer's gradients onto those of the micro-batches before: two reads, one write.
        With one micro-batch they are there as the products wrote them."""
        if self.strategy.num_microbatches == 1 or not self.strategy.is_accumulated_apart:
            return 0.0
        return self.prices.device_seconds(Op(
            'accumulate', '', 'elementwise', 0.0,
            3 * self.strategy.gradient_bytes * num_parameters))

    def _bound(self, ops: list[Op], comm: float, num_comm: int) -> float:
        """Of a device and the host that issues its work. Compiled code is issued in one piece by
        layer: its host time is a few operators' worth of guards (our choice)."""
        prices = self.prices
        device = sum(map(prices.device_seconds, ops))
        if not (self.decoder.is_fused or self.decoder.is_compiled):
            device *= 1 + prices.cluster.overheads.unlisted
        device = max(device, comm) + 0.1 * min(device, comm) \
            if self.strategy.is_tensor_overlapped else device + comm
        host = (_ISSUED * len(ops) + num_comm) * prices.cluster.overheads.host
        return issued(device, 0.3 * host if self.decoder.is_compiled else host)

    def _beside(self, compute: float, comm: float) -> float:
        """Communication of the next layer beside the compute of this: the longer of both, compute
        being slower while it is overlapped."""
        if not self.strategy.is_overlapped:
            return compute + comm
        slowdown = self.prices.cluster.overheads.slowdown
        return max(compute + slowdown * min(compute, comm), comm)

    def _again(self, front: list[Op]) -> list[Op]:
        recompute = self.strategy.recompute
        if recompute == 'full':
            return front
        if recompute == 'half':
            products = [op for op in front if op.kind == 'gemm']
            return [op for op in front if op.kind in ('elementwise', 'norm')] + products[1::2]
        if recompute == 'selective' and self.decoder.attention == 'plain':
            return scores_forward(self.decoder, self.part)
        return []

    def _tensor_comm(self) -> float:
        """Of one direction of a layer: two all-reduces, or as many bytes gathered and scattered
        with sequence parallel; and the exchange of keys and values of context parallel."""
        size = 2 * self.tokens * self.decoder.hidden
        comm = 2 * self.prices.all_reduce(size, self.tensor)
        if self.strategy.context > 1:
            group = Group.strided(self.strategy.context, self.strategy.tensor,
                                  self.prices.cluster.gpus_per_node)
            width = 2 * self.decoder.num_kv_heads * self.decoder.head_size / self.strategy.tensor
            comm += self.prices.all_gather(2 * self.tokens * self.strategy.context * width, group)
        return comm

    def _ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(forward, backward) of embedding and of logits with loss."""
        size = 2 * self.tokens * self.decoder.hidden
        comm = self.prices.all_reduce(size, self.tensor)
        first = embedding_forward(self.decoder, self.part)
        last = head_forward(self.decoder, self.part)
        return ((self._bound(first, comm, 1), self._bound(backward_of(first), 0.0, 0)),
                (self._bound(last, 0.0, 0), self._bound(backward_of(last), comm, 1)))

    def _boundary(self) -> float:
        """Seconds of what one stage sends the next; each tensor parallel rank sends its part."""
        s, node = self.strategy, self.prices.cluster.gpus_per_node
        if s.pipeline == 1:
            return 0.0
        stride = s.tensor * s.context * s.data
        return self.prices.p2p(2 * self.tokens * self.decoder.hidden / s.tensor,
                               is_crossing=stride * s.pipeline > node)

    def _data_times(self, window: float) -> tuple[float, float]:
        """(gradients, parameters): what is left of their communication outside of compute.

        Args:
            window: seconds of the last backward, beside which gradients may go.
        """
        s, prices = self.strategy, self.prices
        count = self._parameters()
        if self.sharing.size == 1 or s.zero == 3 and not s.keeps_gathered:
            outer = 0.0
            if s.zero == 3 and self.zero.size < self.sharing.size:
                outer = prices.all_reduce(s.gradient_bytes * count / self.zero.size, Group(
                    self.sharing.size // self.zero.size, 1))
            return outer + self._tied(), 0.0
        size = s.gradient_bytes * count
        reduce = prices.all_reduce(size, self.sharing)
        if s.zero and self.zero.size == self.sharing.size:
            reduce = prices.reduce_scatter(size, self.sharing)
        if s.is_overlapped:
            # The first layers' gradients come last and have nothing to go beside.
            slowdown = prices.cluster.overheads.slowdown
            hidden = min(reduce * 0.9, window)
            reduce = reduce - hidden + slowdown * hidden
        gather = 0.0
        if s.zero:
            weights = (2 if s.keeps_gathered else s.state_bytes[0]) * count
            gather = prices.broadcasts(weights, self.zero) if s.by_broadcast \
                else prices.all_gather(weights, self.zero)
        return reduce + self._tied(), gather

    def _tied(self) -> float:
        """First and last stage add up gradients of an embedding that they share."""
        s, d = self.strategy, self.decoder
        if s.pipeline == 1 or not d.is_tied:
            return 0.0
        return self.prices.p2p(s.gradient_bytes * d.vocabulary * d.hidden / s.tensor,
                               is_crossing=s.world_size > self.prices.cluster.gpus_per_node)

    def _optimizer(self) -> float:
        s, prices = self.strategy, self.prices
        shares = self.zero.size if s.zero else 1
        op = Op('optimizer', '', 'elementwise', 0.0, s.step_bytes * self._parameters() / shares)
        return prices.device_seconds(op)

    # Memory.

    def _parameters(self, rank: int = 0) -> float:
        """Of a pipeline rank, on one of its tensor parallel devices; the first has the embedding,
        the last the output matrix, which is a copy of it where they are tied."""
        s, d = self.strategy, self.decoder
        count = sum(self.layers_of[rank::s.pipeline]) * d.layer_parameters
        if rank == 0:
            count += d.embedding_parameters
        if rank == s.pipeline - 1:
            count += d.head_parameters or (d.vocabulary * d.hidden if s.pipeline > 1 else 0)
        return count / s.tensor

    def memory(self) -> dict[str, float]:
        """Bytes by use on the pipeline rank that needs most."""
        ranks = {0, self.strategy.pipeline - 1}
        each = [self._memory_of(rank) for rank in sorted(ranks)]
        return max(each, key=lambda memory: sum(memory.values()))

    def _memory_of(self, rank: int) -> dict[str, float]:
        s, d = self.strategy, self.decoder
        count = self._parameters(rank)
        shares = [1 / self.zero.size if s.zero >= level else 1.0 for level in (3, 2, 1)]
        weights, gradients, state = (num_bytes * count * share for num_bytes, share
                                     in zip(s.state_bytes, shares, strict=True))
        whole = 0.0
        if s.zero == 3:  # one gathered ahead of the one in use, and the gradient of that
            largest = max(d.layer_parameters, d.vocabulary * d.hidden) / s.tensor
            whole = 2 * 2 * largest + s.gradient_bytes * largest
        if s.keeps_gathered:
            whole = (2 + s.gradient_bytes) * count
        per_layer = kept_bytes(d, self.part, s.recompute)
        held = self._in_flight(rank) * per_layer
        working = self._working(rank)
        overheads = self.prices.cluster.overheads
        live = dict(weights=weights, gradients=gradients, optimizer=state, gathered=whole,
                    activations=held, working=working)
        return {**live, 'fragmentation': overheads.fragmentation * (held + working + whole),
                'context': overheads.context_bytes}

    def _in_flight(self, rank: int) -> float:
        """Layers times micro-batches whose activations a rank holds at most."""
        s = self.strategy
        layers = sum(self.layers_of[rank::s.pipeline]) / s.chunks
        if s.schedule in ('gpipe', 'breadth-first'):
            return layers * s.chunks * s.num_microbatches
        warm = (s.chunks - 1) * s.pipeline + 2 * (s.pipeline - 1 - rank) + 1 \
            if s.chunks > 1 else s.pipeline - rank
        return layers * min(warm, s.chunks * s.num_microbatches)

    def _working(self, rank: int) -> float:
        """Of the moment of the backward that needs most: a layer computed again, or logits in 16
        and 32 bits with their gradient."""
        s, d = self.strategy, self.decoder
        layer = kept_bytes(d, self.part, 'none') if s.recompute in ('full', 'half') else 0.0
        logits = 0.0
        if rank == s.pipeline - 1:
            logits = self.tokens * d.vocabulary / s.tensor * (2 + 4 + 4 + 2)
        return max(layer, logits)


def stage_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage; what does not divide goes to stages from the second on, since the
    first has the embedding and the last the logits."""
    small, rest = divmod(num_layers, num_stages)
    return tuple(small + (1 <= stage <= rest if num_stages > rest + 1 else stage < rest)
                 for stage in range(num_stages))


@lru_cache(maxsize=4096)
def makespan(schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int,
             forward: tuple[float, ...], backward: tuple[float, ...], latency: float) -> float:
    """Of the schedule's table. A long step is folded: once the pipeline is steady, every further
    round of P micro-batches takes as long as the one before."""
    schedule = 'interleaved-1f1b' if num_chunks > 1 and schedule == '1f1b' else schedule
    if num_ranks == 1 and schedule != 'breadth-first':
        return num_microbatches * (sum(forward) + sum(backward))

    def played(count: int) -> float:
        table = _table(schedule, num_ranks, num_chunks, count)
        zeros = (0.0,) * len(forward)
        return simulate(table, Costs(forward, backward, zeros, latency=latency)).makespan

    rounds = num_microbatches // num_ranks
    can_fold = num_chunks == 1 or num_microbatches % num_ranks == 0
    if rounds <= _STEADY_ROUNDS or not can_fold:
        return played(num_microbatches)
    short = num_microbatches - (rounds - _STEADY_ROUNDS) * num_ranks
    at_short = played(short)
    return at_short + (rounds - _STEADY_ROUNDS) * (at_short - played(short - num_ranks))


_table = lru_cache(maxsize=64)(make_table)
