"""The machines of a run, read from a YAML file: devices, links, overheads, and where each figure
is from.

Units are in the names of the keys; in Python everything is in seconds, bytes, FLOP/s and bytes/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

from vision.common.core.config_files import CONFIGS, find_cluster
from vision.common.core.data_configs import load_yaml
from vision.common.core.errors import VisionError
from vision.common.core.plain_values import MOST

GIGA, TERA, GIB, MICRO = 1e9, 1e12, 2**30, 1e-6
DTYPES = ('fp8', 'fp16', 'bf16', 'tf32', 'fp32', 'fp64')
CURVES = ('gemm', 'memory')
MOST_FIGURE = 1e30  # of any figure: products of a few of them stay numbers

# Beyond these no machine of 2026 goes; what is beyond them is in another unit. Rates are of one
# direction of one device, as the keys say.
_PLAUSIBLE: Mapping[str, tuple[float, float, str]] = {
    'tflops': (0.001, 20_000, 'GFLOP/s or FLOP/s'),
    'memory_gib': (0.25, 1_024, 'MiB or bytes'),
    'memory_bandwidth_gb_per_s': (2, 30_000, 'MB/s or TB/s'),
    'intra.bandwidth_gb_per_s': (0.05, 1_000, 'Gb/s or MB/s'),
    'inter.bandwidth_gb_per_s': (0.01, 100, 'Gb/s or MB/s'),
    'host.bandwidth_gb_per_s': (0.05, 500, 'Gb/s or MB/s'),
    'latency_us': (0.05, 20_000, 'seconds, milliseconds or nanoseconds'),
}
# Line rates of adapters in Gb/s. One of them as GB/s, faster than the bus it sits in, is the
# usual mistake by 8.
_LINE_RATES_GBIT = (10, 25, 40, 50, 56, 100, 200, 400, 800)


@dataclass(frozen=True)
class Device:
    """One accelerator (or the processor, for runs on gloo).

    Args:
        name: for people.
        flops: peak FLOP/s by dtype.
        memory_bytes: of the device.
        memory_rate: bytes/s, peak.
        gemm_share: share of peak that a large matrix product reaches; by dtype, '' for others.
        half_size: side of a matrix product, in elements, that costs it half: the time is that of
            peak times (1 + half_size / side) for each of its three sides.
        memory_share: share of peak that an element-wise operator reaches.
        conv_share: of convolutions by dtype, as ``gemm_share``; Winograd's way with fewer
            multiplications can bring it near 1 in 32 bits. attention_share: of fused attention.
        curves: measured (size, share of peak) by 'gemm' (size in FLOPs) or 'memory' (in bytes);
            where there is one it takes the place of the constants.
    """

    name: str
    flops: Mapping[str, float]
    memory_bytes: float
    memory_rate: float
    gemm_share: Mapping[str, float]
    half_size: float = 48.0
    memory_share: float = 0.8
    conv_share: Mapping[str, float] = field(default_factory=lambda: {'': 0.5})
    attention_share: float = 0.5
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """A way for bytes: between devices of a node, between nodes, or to the host.

    Args:
        latency: seconds of one step of a collective, or of a transfer.
        rate: bytes/s, peak, of one direction of one device (intra) or adapter (inter).
        shared_by: devices that use one adapter.
        share: of the peak that collectives reach.
        table: measured (bytes, seconds) of a collective by its name; the place of the formula.
    """

    latency: float
    rate: float
    shared_by: int = 1
    share: float = 0.8
    table: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def rate_per_device(self) -> float:
        """While all devices of a node use it."""
        return self.rate * self.share / self.shared_by


@dataclass(frozen=True)
class Overheads:
    """What a step costs besides arithmetic, memory and messages.

    Args:
        launch: seconds between two kernels on the device.
        host: seconds in which the host issues one operator: work below that is host bound.
        collective: seconds to start a collective, whatever its size.
        step: seconds of a step outside of its model and optimizer (logging, schedules, loader).
        jitter: standard deviation of a rank's step over its mean; a synchronous step waits for
            the slowest rank.
        unlisted: share of device time that casts, copies and clears take on top of what counts
            from sizes have, in software without fused kernels.
        slowdown: how much longer compute takes beside a collective of the same device.
        context_bytes: of the driver, libraries and communicators on a device.
        fragmentation: share of live tensors that the allocator holds on top of them.
    """

    launch: float = 2e-6
    host: float = 1e-5
    collective: float = 1.5e-5
    step: float = 0.0
    jitter: float = 0.01
    unlisted: float = 0.1
    slowdown: float = 0.1
    context_bytes: float = 0.0
    fragmentation: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """``num_nodes`` nodes of ``gpus_per_node`` equal devices. ``links`` has 'intra' (between
    devices of a node), 'inter' (between nodes) and perhaps 'host' (device to host memory).
    ``provenance`` says of each figure where it is from."""

    name: str
    num_nodes: int
    gpus_per_node: int
    device: Device
    links: Mapping[str, Link]
    overheads: Overheads = Overheads()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        """Devices of all nodes."""
        return self.num_nodes * self.gpus_per_node

    def link(self, name: str) -> Link:
        """Raises VIS-CONFIG-1640 if the file has it not."""
        if name not in self.links:
            raise _missing_link(name, self.name, self.links, 'the strategy crosses it')
        return self.links[name]


def read_cluster(path: str | Path) -> Cluster:
    """A cluster from its YAML file, or from one of ``configs/clusters`` by its name.

    Raises:
        VisionError: VIS-CONFIG-1640, no link between devices or nodes that there are;
            VIS-CONFIG-1641, a figure that no machine has, so it is in another unit
            (VIS-CONFIG-1648 of a link); VIS-CONFIG-1642, not YAML, a key that is unknown or
            missing, or a value of another type.
    """
    path = find_cluster(path)
    where = str(path)
    try:
        raw = load_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        ours = sorted({file.stem for file in CONFIGS.glob('clusters/*.yaml')} - {'fitted'})
        raise _wrong('it cannot be read', where, why=str(error), do='give a YAML file like those '
                     f'in configs/clusters/, or the name of one: {", ".join(ours)}') from error
    return cluster_from(raw, where=where)


def cluster_from(raw: Any, *, where: str) -> Cluster:
    """A cluster from what a YAML file holds; errors as of ``read_cluster``."""
    top = _Keys(raw, 'the cluster', where)
    nodes, gpus_per_node = top.count('nodes'), top.count('gpus_per_node')
    links = {name: _link(_Keys(value, f'links.{name}', where), name)
             for name, value in _Keys(top.take('links', {}), 'links', where).raw.items()}
    cluster = Cluster(
        name=str(top.take('name', Path(where).stem)), num_nodes=nodes,
        gpus_per_node=gpus_per_node, device=_device(_Keys(top.take('device'), 'device', where)),
        links=links,
        overheads=_overheads(_Keys(top.take('overheads', {}), 'overheads', where)),
        provenance={str(key): str(text)
                    for key, text in _Keys(top.take('provenance', {}), 'provenance',
                                           where).raw.items()})
    top.refuse_rest()
    for name, count in (('intra', gpus_per_node), ('inter', nodes)):
        if count > 1 and name not in links:
            raise _missing_link(name, where, links, f'there are {count} '
                                + ('devices on a node' if name == 'intra' else 'nodes'))
    _refuse_gigabits(links, where)
    return cluster


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear over the logarithm of the size; constant outside of what was measured."""
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if at <= right:
            return low + (high - low) * (log(at) - log(left)) / (log(right) - log(left))
    return points[-1][1]


class _Keys:
    """A mapping whose keys are taken one by one; what is left is unknown."""

    def __init__(self, raw: Any, name: str, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise _wrong(f'{name} is {type(raw).__name__}, not a mapping of keys to values', where,
                         do='write it like the files in configs/clusters/')
        self.raw, self.name, self.where = dict(raw), name, where

    def take(self, key: str, default: Any = None) -> Any:
        value = self.raw.pop(key, default)
        if value is None:
            raise _wrong(f'{self.name} has no {key}', self.where,
                         do=f'give {key}; configs/clusters/ has examples')
        return value

    def number(self, key: str, default: float | None = None, *, plausible: str = '') -> float:
        value = self.take(key, default)
        return self.checked(value, key, plausible)

    def checked(self, value: Any, key: str, plausible: str = '') -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) \
                or not 0 <= value <= MOST_FIGURE:
            raise _wrong(f'{self.name}.{key} is {value!r:.40}', self.where,
                         why='it is a number, 0 or more',
                         do='give one; write 1.0e+9, not 1e9, which YAML reads as text')
        if plausible and value:
            _refuse_implausible(float(value), f'{self.name}.{key}', plausible, self.where)
        return float(value)

    def count(self, key: str) -> int:
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise _wrong(f'{self.name}.{key} is {value!r:.40}', self.where,
                         why='it is a whole number from 1 on', do='give one')
        return value

    def refuse_rest(self) -> None:
        if self.raw:
            raise _wrong(f'{self.name} has unknown keys: {", ".join(map(str, self.raw))}',
                         self.where, do='correct or remove them',
                         why='a key that is not read would be a figure that changes nothing')


def _device(keys: _Keys) -> Device:
    name = str(keys.take('name', 'device'))
    flops = {}
    for dtype, value in _Keys(keys.take('tflops'), 'device.tflops', keys.where).raw.items():
        if dtype not in DTYPES:
            raise _wrong(f'device.tflops has the dtype {dtype!r}', keys.where,
                         why=f'known are {", ".join(DTYPES)}', do='use one of them')
        flops[dtype] = keys.checked(value, f'tflops.{dtype}', 'tflops') * TERA
    share = _Keys(keys.take('efficiency', {}), 'device.efficiency', keys.where)
    gemm, conv = (_by_dtype(share, name, default) for name, default in (('gemm', 0.75),
                                                                        ('conv', 0.5)))
    device = Device(
        name, flops, keys.number('memory_gib', plausible='memory_gib') * GIB,
        keys.number('memory_bandwidth_gb_per_s', plausible='memory_bandwidth_gb_per_s') * GIGA,
        gemm,
        half_size=share.number('half_size', Device.half_size),
        memory_share=share.number('memory', Device.memory_share),
        conv_share=conv,
        attention_share=share.number('attention', Device.attention_share),
        curves=_tables(keys.take('curves', {}), CURVES, 'device.curves', keys.where))
    share.refuse_rest()
    keys.refuse_rest()
    return device


def _by_dtype(keys: _Keys, name: str, default: float) -> dict[str, float]:
    """Shares by dtype; one number is that of all."""
    value = keys.take(name, default)
    shares = value if isinstance(value, Mapping) else {'': value}
    return {str(dtype): keys.checked(share, name) for dtype, share in shares.items()}


def _link(keys: _Keys, name: str) -> Link:
    if name not in ('intra', 'inter', 'host'):
        raise _wrong(f'there is no link {name!r}', keys.where,
                     why='links are intra, inter and host', do='use one of these names')
    link = Link(keys.number('latency_us', plausible='latency_us') * MICRO,
                keys.number('bandwidth_gb_per_s', plausible=f'{name}.bandwidth_gb_per_s') * GIGA,
                shared_by=keys.count('shared_by') if 'shared_by' in keys.raw else 1,
                share=keys.number('efficiency', Link.share),
                table=_tables(keys.take('measured', {}), None, f'links.{name}.measured',
                              keys.where))
    keys.refuse_rest()
    return link


def _overheads(keys: _Keys) -> Overheads:
    default = Overheads()
    overheads = Overheads(
        launch=keys.number('launch_us', default.launch / MICRO) * MICRO,
        host=keys.number('host_us', default.host / MICRO) * MICRO,
        collective=keys.number('collective_us', default.collective / MICRO) * MICRO,
        step=keys.number('step_us', default.step / MICRO) * MICRO,
        jitter=keys.number('jitter', default.jitter),
        unlisted=keys.number('unlisted', default.unlisted),
        slowdown=keys.number('overlap_slowdown', default.slowdown),
        context_bytes=keys.number('context_gib', default.context_bytes / GIB) * GIB,
        fragmentation=keys.number('fragmentation', default.fragmentation))
    keys.refuse_rest()
    return overheads


def _tables(raw: Any, names: Sequence[str] | None, key: str, where: str
            ) -> dict[str, tuple[tuple[float, float], ...]]:
    """Measured points by name, sorted by size."""
    tables = {}
    for name, points in _Keys(raw, key, where).raw.items():
        if names is not None and name not in names:
            raise _wrong(f'{key} has the unknown key {name!r}', where,
                         why=f'known are {", ".join(names)}', do='remove it')
        try:
            table = tuple(sorted((float(size), float(value)) for size, value in points))
        except (TypeError, ValueError, OverflowError) as error:
            raise _wrong(f'{key}.{name} is not a list of [size, value]', where,
                         do='write it like vision calibrate does') from error
        if not table or not all(0 < each <= MOST_FIGURE for point in table for each in point):
            raise _wrong(f'{key}.{name} is empty or has figures that are not above 0', where,
                         do='measure again')
        tables[str(name)] = table
    return tables


def _wrong(what: str, where: str, *, do: str, why: str = '') -> VisionError:
    return VisionError('VIS-CONFIG-1642', f'the cluster file cannot be used: {what}', where=where,
                       why=why, do=do)


def _missing_link(name: str, where: str, links: Mapping, why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1640', f'the cluster has no link {name!r}', where=where,
                       why=f'{why}; links there are: {", ".join(links) or "none"}',
                       do=f'add links.{name} with latency_us and bandwidth_gb_per_s')


def _refuse_implausible(value: float, key: str, rule: str, where: str) -> None:
    low, high, others = _PLAUSIBLE[rule]
    if not low <= value <= high:
        hint = f', as {value / 8:g} would be if it came in Gb/s' if 'bandwidth' in rule and \
            value > high >= value / 8 else ''
        raise VisionError('VIS-CONFIG-1641', f'{key} is {value:g}', where=where,
                          why=f'machines have {low:g} to {high:g}{hint}; it looks like {others}',
                          do='give it in the unit that the key names')


def _refuse_gigabits(links: Mapping[str, Link], where: str) -> None:
    """An adapter is not faster than the bus it sits in."""
    if 'inter' not in links or 'host' not in links:
        return
    inter, host = links['inter'].rate / GIGA, links['host'].rate / GIGA
    if inter > 1.5 * host and any(abs(inter - rate) < 0.02 * rate for rate in _LINE_RATES_GBIT):
        raise VisionError(
            'VIS-CONFIG-1648', f'links.inter.bandwidth_gb_per_s is {inter:g}', where=where,
            why=f'an adapter is not faster than the bus it sits in (links.host, {host:g} GB/s), '
            f'and {inter:g} Gb/s, which is {inter / 8:g} GB/s, is a line rate of adapters',
            do=f'give gigabytes of one adapter: {inter / 8:g}')
