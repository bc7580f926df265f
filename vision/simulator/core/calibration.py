"""A cluster file from what was measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]]


def line_of(points: Points) -> tuple[float, float]:
    """(alpha seconds, beta bytes/s) of seconds = alpha + bytes / beta, relative least squares, so
    that small messages count as much as large ones."""
    sizes, seconds = (np.array(column, float) for column in zip(*points, strict=True))
    matrix = np.stack([1 / seconds, sizes / seconds], axis=1)
    (alpha, slope), *_ = np.linalg.lstsq(matrix, np.ones(len(sizes)), rcond=None)
    slope = max(slope, 1e-15)
    return max(float(alpha), 0.0), 1 / float(slope)


def cluster_text(measured: Mapping[str, Any], *, name: str, ranks: int, memory_bytes: float,
                 provenance: str) -> str:
    """YAML of a cluster of one node.

    Args:
        measured: 'gemm' (FLOPs, FLOP/s) by dtype of cluster files, 'memory' (bytes, bytes/s),
            'host' seconds; and with several ranks 'collectives' (bytes, seconds) by name and
            'slowdown'.
        provenance: date, device and versions.
    """
    peaks = {dtype: max(rate for _, rate in points) for dtype, points in measured['gemm'].items()}
    main = next(iter(measured['gemm']))
    memory_rate = max(rate for _, rate in measured['memory'])
    lines = [f'# Measured by vision calibrate: {provenance}', f'name: {name}', 'nodes: 1',
             f'gpus_per_node: {ranks}', 'device:', f'  name: {name}',
             '  tflops: {' + ', '.join(f'{dtype}: {peak / 1e12:.5g}'
                                       for dtype, peak in peaks.items()) + '}',
             f'  memory_gib: {memory_bytes / 2**30:.4g}',
             f'  memory_bandwidth_gb_per_s: {memory_rate / 1e9:.5g}',
             '  efficiency: {gemm: 1.0, half_size: 0.0, memory: 1.0}', '  curves:',
             f'    gemm: {_points(measured["gemm"][main], peaks[main])}',
             f'    memory: {_points(measured["memory"], memory_rate)}']
    told = {'device': f'measured, {provenance}', 'overheads.host': 'measured'}
    overheads = [f'host_us: {measured["host"] * 1e6:.4g}', 'launch_us: 0.0', 'jitter: 0.02',
                 'collective_us: 0.0']
    if ranks > 1:
        tables = measured['collectives']
        alpha, beta = line_of(tables['all_gather'])
        # An all-gather of n ranks is n - 1 steps and moves (n - 1) / n of the bytes.
        latency = max(alpha / (ranks - 1), 1e-7)
        lines += ['links:', '  intra:', f'    latency_us: {latency * 1e6:.4g}',
                  f'    bandwidth_gb_per_s: {beta * (ranks - 1) / ranks / 1e9:.4g}',
                  '    efficiency: 1.0', '    measured:']
        lines += [f'      {kind}: {_list(points, ".4e")}' for kind, points in tables.items()]
        overheads.append(f'overlap_slowdown: {measured["slowdown"]:.3g}')
        told |= {'links.intra': 'measured', 'overheads.overlap_slowdown': 'measured'}
    lines.append('overheads: {' + ', '.join(overheads) + '}')
    told['overheads.jitter'] = 'assumed'
    return '\n'.join([*lines, 'provenance:', *(f'  {key}: {text}' for key, text in told.items()),
                      ''])


def _points(points: Points, peak: float) -> str:
    # A small product reaches a hundred-thousandth of a GPU's peak: no fixed number of decimals.
    return _list([(size, rate / peak) for size, rate in points], '.4e')


def _list(points: Points, form: str) -> str:
    return '[' + ', '.join(f'[{size:.6e}, {value:{form}}]' for size, value in points) + ']'
