"""Seconds of operators and of communication on a cluster, and what stands behind each figure.

Operators are bound by arithmetic, by memory or by the host that issues them (roofline: Williams
et al. 2009; that matrix products lose with each short side by one constant is our choice: it
needs one number where a table by shape would need a machine to measure). Communication is alpha +
bytes / beta, rings inside a node, trees and rings between nodes, reduce-scatter inside, all-reduce
between and all-gather inside for what crosses nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log2, sqrt
from statistics import NormalDist

from vision.simulator.core.cluster import Cluster, Device, Link, interpolate
from vision.simulator.core.graph import Op

# Names of torch and of cluster files; what a device has no figure for runs as the next one.
DTYPE_NAMES = dict(float32='fp32', float16='fp16', bfloat16='bf16', float64='fp64',
                   float8_e4m3fn='fp8', float8_e5m2='fp8')
_NEXT_DTYPE = dict(fp8='bf16', bf16='fp16', fp16='fp32', tf32='fp32', fp32='fp64')
# Relative half width of the interval around a prediction, if nothing was fitted: the mean error of
# presets on published rows is about this, by source (docs/results/simulator_rows_unfitted.json).
DEFAULT_INTERVAL = 0.25
_QUEUE = 3.0  # how fast device and host come apart, see ``issued``


@dataclass(frozen=True)
class Group:
    """Ranks that communicate.

    Args:
        size: of them.
        per_node: of them on each node; ``size`` if they are all on one.
    """

    size: int
    per_node: int

    @property
    def num_nodes(self) -> int:
        """Nodes that the ranks are spread over."""
        return ceil(self.size / self.per_node)

    @classmethod
    def strided(cls, size: int, stride: int, gpus_per_node: int) -> Group:
        """``size`` ranks, each ``stride`` behind the one before, from rank 0 on."""
        return cls(size, max(1, min(size, gpus_per_node // stride)))


@dataclass
class Notes:
    """What a prediction rests on: texts by 'measured', 'fitted', 'datasheet' and 'assumed'; and
    operators that nobody priced, with how often they occur."""

    sources: dict[str, set[str]] = field(default_factory=dict)
    unpriced: Counter = field(default_factory=Counter)

    def say(self, kind: str, text: str) -> None:
        """Add a text of a kind: 'measured', 'fitted', 'datasheet' or 'assumed'; equal texts stand
        once."""
        self.sources.setdefault(kind, set()).add(text)

    def to_dict(self) -> dict:
        """For JSON: sorted texts by kind, and under 'unpriced' how often each operator
        occurred."""
        return {**{kind: sorted(texts) for kind, texts in sorted(self.sources.items())},
                'unpriced': dict(self.unpriced)}


class Prices:
    """Prices of one cluster. ``notes`` fills up with what was used.

    Args:
        cluster: the machines.
        tf32: products of float32 matrices run on tensor cores (torch.backends' switch).
    """

    def __init__(self, cluster: Cluster, *, tf32: bool = False) -> None:
        self.cluster, self.tf32 = cluster, tf32
        self.notes = Notes()
        for key, text in cluster.provenance.items():
            kind = next((word for word in ('measured', 'assumed', 'fitted')
                         if text.startswith(word)), 'datasheet')
            self.notes.say(kind, f'{key}: {text}')

    # Operators.

    def dtype_of(self, op: Op) -> str:
        """As cluster files name it, of the peak that is used for it."""
        device = self.cluster.device
        dtype = DTYPE_NAMES.get(op.dtype, op.dtype)
        if dtype == 'fp32' and self.tf32 and op.kind in ('gemm', 'conv', 'attention'):
            dtype = 'tf32'
        while dtype not in device.flops:
            following = _NEXT_DTYPE.get(dtype)
            if following is None:
                dtype = next(iter(device.flops))
                break
            dtype = following
        return dtype

    def device_seconds(self, op: Op) -> float:
        """On the device, without the host: the longer of arithmetic and memory, and the gap to
        the next kernel. Nothing is free: an operator without FLOPs is priced by its bytes, and
        one that is not priced is listed."""
        device = self.cluster.device
        if not op.is_priced:
            self.notes.unpriced[op.name] += 1
        arithmetic = self._arithmetic(op, device)
        memory = op.bytes_moved / (device.memory_rate * self._memory_share(op.bytes_moved, device))
        return max(arithmetic, memory) + self.cluster.overheads.launch

    def seconds(self, ops: Iterable[Op]) -> float:
        """Time of operators one after the other, issued by a host that runs ahead."""
        total, count = 0.0, 0
        for op in ops:
            total += self.device_seconds(op)
            count += 1
        return issued(total, count * self.cluster.overheads.host)

    def _arithmetic(self, op: Op, device: Device) -> float:
        if not op.flops:
            return 0.0
        dtype = self.dtype_of(op)
        peak = device.flops[dtype]
        if op.kind == 'gemm':
            if 'gemm' in device.curves:
                return op.flops / (peak * interpolate(device.curves['gemm'], op.flops))
            share = _of_dtype(device.gemm_share, dtype)
            sides = [side for side in (op.m, op.n, op.k) if side]
            loss = 1.0
            for side in sides:
                loss *= 1 + device.half_size / side
            return op.flops * loss / (peak * share)
        if op.kind in ('conv', 'attention'):
            share = device.attention_share if op.kind == 'attention' \
                else _of_dtype(device.conv_share, dtype)
            return op.flops / (peak * share)
        # Element-wise arithmetic has no tensor cores; it is bound by memory nearly always.
        plain = device.flops.get('fp32', peak)
        return op.flops / (plain * 0.5)

    @staticmethod
    def _memory_share(num_bytes: float, device: Device) -> float:
        if 'memory' in device.curves and num_bytes > 0:
            return interpolate(device.curves['memory'], num_bytes)
        return device.memory_share

    # Communication; each in seconds, of ``num_bytes`` of the whole tensor.

    def all_reduce(self, num_bytes: float, group: Group) -> float:
        """Seconds; ``num_bytes`` of the whole tensor. Measured where the cluster file has it, else
        a ring inside a node and a tree between nodes."""
        if group.size == 1 or not num_bytes:
            return 0.0
        measured = self._measured('all_reduce', num_bytes, group)
        if measured is not None:
            return measured
        inside, between = self._parts(group)
        seconds = self.cluster.overheads.collective
        if group.per_node > 1:
            seconds += 2 * self._ring(num_bytes, group.per_node, inside)
        if group.num_nodes > 1:
            # A tree has 2 log2 n steps and the volume of a ring; NCCL takes it for many nodes.
            part = num_bytes / group.per_node
            nodes = group.num_nodes
            seconds += (2 * (nodes - 1) / nodes * part / between.rate_per_device
                        + 2 * ceil(log2(nodes)) * between.latency)
        return seconds

    def all_gather(self, num_bytes: float, group: Group) -> float:
        """Seconds; ``num_bytes`` of the whole tensor. A reduce-scatter takes as long: the same
        volume the other way."""
        if group.size == 1 or not num_bytes:
            return 0.0
        measured = self._measured('all_gather', num_bytes, group)
        if measured is not None:
            return measured
        inside, between = self._parts(group)
        seconds = self.cluster.overheads.collective
        if group.num_nodes == 1:
            return seconds + self._ring(num_bytes, group.size, inside)
        # One ring through all ranks: every node takes in all bytes of the others over all of its
        # adapters; inside it they pass on at the link's rate at the same time.
        nodes, size = group.num_nodes, group.size
        crossing = (nodes - 1) / nodes * num_bytes / group.per_node / between.rate_per_device
        passing = (size - 1) / size * num_bytes / (inside.rate * inside.share) \
            if group.per_node > 1 else 0.0
        return seconds + max(crossing, passing) + (nodes - 1) * between.latency \
            + (group.per_node - 1) * (inside.latency if inside else 0.0)

    reduce_scatter = all_gather

    def broadcasts(self, num_bytes: float, group: Group) -> float:
        """Every rank sends its part of ``num_bytes`` to all others, one broadcast after the
        other: an all-gather's volume and a chain through all nodes for each rank."""
        if group.size == 1:
            return 0.0
        _, between = self._parts(group)
        latency = between.latency * (group.num_nodes - 1) if group.num_nodes > 1 else 0.0
        return self.all_gather(num_bytes, group) + group.size * (
            latency + self.cluster.overheads.collective)

    def all_to_all(self, num_bytes: float, group: Group) -> float:
        """``num_bytes`` leave each rank, in equal parts to all of the group."""
        if group.size == 1 or not num_bytes:
            return 0.0
        inside, between = self._parts(group)
        seconds = self.cluster.overheads.collective
        crossing = (group.size - group.per_node) / group.size * num_bytes
        staying = (group.per_node - 1) / group.size * num_bytes
        if crossing:
            seconds += crossing / between.rate_per_device + (group.num_nodes - 1) * between.latency
        if staying:
            seconds += staying / (inside.rate * inside.share) \
                + (group.per_node - 1) * inside.latency
        return seconds

    def scatter(self, num_bytes: float, group: Group) -> float:
        """Also of a gather: one rank sends each of the others its part of ``num_bytes``, or takes
        it in, over its own link, one after the other."""
        if group.size == 1 or not num_bytes:
            return 0.0
        inside, between = self._parts(group)
        part, near = num_bytes / group.size, group.per_node - 1
        far = group.size - group.per_node
        seconds = self.cluster.overheads.collective
        if near:
            seconds += near * (part / (inside.rate * inside.share) + inside.latency)
        if far:
            seconds += far * (part / between.rate_per_device + between.latency)
        return seconds

    gather = scatter

    def p2p(self, num_bytes: float, *, is_crossing: bool) -> float:
        """Seconds of one message, with ``is_crossing`` to another node."""
        if is_crossing:
            link = self.cluster.link('inter')
            return link.latency + num_bytes / link.rate_per_device
        link = self.cluster.link('intra')
        return link.latency + num_bytes / (link.rate * link.share)

    def host_copy(self, num_bytes: float) -> float:
        """Device to host memory or back, pinned. 50 us to start (Proteus' public code)."""
        link = self.cluster.link('host')
        return max(link.latency, 5e-5) + num_bytes / link.rate_per_device

    def waiting(self, num_ranks: int) -> float:
        """Factor by which a synchronous step of ``num_ranks`` is longer than the mean step of
        one: the expected largest of as many normal deviations, by Blom's approximation."""
        if num_ranks < 2:
            return 1.0
        deviations = NormalDist().inv_cdf((num_ranks - 0.375) / (num_ranks + 0.25))
        return 1 + self.cluster.overheads.jitter * deviations

    def _ring(self, num_bytes: float, size: int, link: Link) -> float:
        return (size - 1) / size * num_bytes / (link.rate * link.share) + (size - 1) * link.latency

    def _parts(self, group: Group) -> tuple[Link | None, Link | None]:
        return (self.cluster.link('intra') if group.per_node > 1 else None,
                self.cluster.link('inter') if group.num_nodes > 1 else None)

    def _measured(self, name: str, num_bytes: float, group: Group) -> float | None:
        """Of a calibration, for groups as large as a node; outside of the sizes that were
        measured the last slope goes on."""
        if group.num_nodes > 1 or group.size != self.cluster.gpus_per_node:
            return None
        points = self.cluster.link('intra').table.get(name)
        if not points:
            return None
        self.notes.say('measured', f'{name} inside a node')
        if num_bytes > points[-1][0]:
            self.notes.say('assumed', f'{name} beyond {points[-1][0]:g} bytes: extrapolated')
        return along(points, num_bytes)


def issued(device_s: float, host_s: float) -> float:
    """Seconds of work that a host issues while the device does what was issued before.

    The longer of both where one is much longer. Where they are near each other the device waits
    in some parts and is late in others: the sum of both in the norm of ``_QUEUE`` (our choice,
    developed on a quarter of vTrain's published rows: docs/results/simulator_rows.md).
    """
    longer, shorter = max(device_s, host_s), min(device_s, host_s)
    return longer * (1 + (shorter / longer)**_QUEUE)**(1 / _QUEUE) if longer else 0.0


def _of_dtype(shares: Mapping[str, float], dtype: str) -> float:
    return shares.get(dtype, shares.get('', next(iter(shares.values()))))


def along(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear through (size, seconds); the first value below, the last slope above."""
    if at <= points[0][0] or len(points) == 1:
        return points[0][1]
    index = next((i for i in range(1, len(points)) if at <= points[i][0]), len(points) - 1)
    (left, low), (right, high) = points[index - 1:index + 1]
    return low + (high - low) * (at - left) / (right - left)


# Constants that may be fitted: name, of what, and the range that is physically possible.
CONSTANTS: dict[str, tuple[str, float, float]] = {
    'gemm_share': ('share of peak of large 16-bit matrix products, Ampere and before', 0.5, 1.0),
    'gemm_share_hopper': ('the same on Hopper, whose clock falls under load', 0.3, 0.9),
    'half_size': ('side of a matrix product that costs it half', 1.0, 400.0),
    'memory_share': ('share of peak of element-wise operators', 0.4, 1.0),
    'host_us': ('host time of an operator in eager mode', 1.0, 50.0),
    'intra_share': ('share of peak of links inside a node', 0.3, 1.0),
    'inter_share': ('share of peak of links between nodes', 0.2, 1.0),
    'unlisted': ('device time beside what sizes tell, in software without fused kernels', 0.0,
                 0.5),
    # Equal devices of a cluster differ by 8 % between the usual best and worst (Sinha et al. 2022,
    # arXiv:2208.11035), which are four to six deviations apart; a step of many operators by less
    # (our choice).
    'jitter': ('deviation of a rank over its mean step', 0.0, 0.01),
}


def with_constants(cluster: Cluster, values: dict[str, float]) -> Cluster:
    """The cluster with fitted constants (keys of ``CONSTANTS``) in the place of its own."""
    assert set(values) <= set(CONSTANTS), set(values) - set(CONSTANTS)
    device, overheads = cluster.device, cluster.overheads
    is_hopper = 'fp8' in device.flops
    gemm = values.get('gemm_share_hopper' if is_hopper else 'gemm_share')
    if gemm is not None:
        device = replace(device, gemm_share={**device.gemm_share, **dict.fromkeys(
            ('fp8', 'bf16', 'fp16'), gemm)})
    names = {'half_size', 'memory_share'} & set(values)
    device = replace(device, **{name: values[name] for name in names})
    if 'host_us' in values:
        overheads = replace(overheads, host=values['host_us'] * 1e-6)
    overheads = replace(overheads, **{name: values[name] for name in ('jitter', 'unlisted')
                                      if name in values})
    links = {name: replace(link, share=values.get(f'{name}_share', link.share))
             for name, link in cluster.links.items()}
    told = {name: f'fitted, {CONSTANTS[name][0]}: {value:.4g}' for name, value in values.items()
            if name.endswith('hopper') == is_hopper or not name.startswith('gemm')}
    return replace(cluster, device=device, overheads=overheads, links=links,
                   provenance={**cluster.provenance, **told})


def mean_error(pairs: Iterable[tuple[float, float]]) -> float:
    """Mean of |predicted - measured| / measured."""
    errors = [abs(predicted - measured) / measured for predicted, measured in pairs]
    return sum(errors) / len(errors)


def spread(pairs: Sequence[tuple[float, float]]) -> float:
    """Root mean square of the relative residuals: the half width of a fitted interval."""
    return sqrt(sum(((p - m) / m)**2 for p, m in pairs) / len(pairs))
