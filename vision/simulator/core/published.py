"""Measured steps that others have published, as decoders, convolution networks and strategies.

A file of them has a row for each, with columns source, gpu, n_gpus, model, layers, hidden, heads,
seq_or_img, vocab, dp, tp, pp, vpp, cp, shard, recompute, micro_batch, global_batch, metric, value,
mem_gib. What a row does not say is known of the software it was measured with (``STACKS``) or
assumed; both are listed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vision.common.core.errors import VisionError
from vision.simulator.core.analytic import Strategy
from vision.simulator.core.cluster import GIB, GIGA, Cluster
from vision.simulator.core.transformers import Decoder

METRICS = ('iteration_time', 'tokens_per_s_per_gpu', 'tflops_per_gpu', 'images_per_s',
           'peak_memory')
_COLUMNS = ('id', 'source', 'gpu', 'n_gpus', 'model', 'family', 'layers', 'hidden', 'heads',
            'seq_or_img', 'vocab', 'precision', 'dp', 'tp', 'pp', 'vpp', 'cp', 'shard',
            'recompute', 'micro_batch', 'global_batch', 'metric', 'value', 'mem_gib', 'hw_note')


# Columns of vTrain's files.
_VTRAIN = dict(n_gpus='# GPUs', global_batch='global batch', micro_batch='micro batch',
               hidden='hidden size', heads='attention heads', layers='# layers',
               seq_or_img='sequence length', tp='tensor parallelism', dp='data parallelism',
               pp='pipeline parallelism', value='iteration time (ms)')


@dataclass(frozen=True)
class Stack:
    """What software does that its tables do not say.

    Args:
        decoder, strategy: fields of ``Decoder`` and ``Strategy`` beside those of the row.
        why: where that is known from.
    """

    decoder: Mapping[str, Any]
    strategy: Mapping[str, Any]
    why: str


_MEGATRON = Stack(
    dict(attention='plain', dropout=True, dtype='float16', is_fused=True),
    dict(gradient_bytes=2, is_overlapped=False, state_bytes=(2, 2, 12), step_bytes=40.0),
    'Megatron-LM of 2021: scores written, fused softmax, gradients of 16 bits reduced behind the '
    'backward')
# Of 2022: products add to gradients themselves (its gradient_accumulation_fusion).
_MEGATRON_2022 = Stack(
    _MEGATRON.decoder, {**_MEGATRON.strategy, 'is_accumulated_apart': False},
    f'{_MEGATRON.why}; products add to gradients themselves, as since 2022')
STACKS: dict[str, Stack] = {
    'vTrain': _MEGATRON_2022, 'Korthikanti': _MEGATRON_2022, 'Narayanan': _MEGATRON,
    'Smith': _MEGATRON,
    'torchtitan': Stack(
        dict(is_gated=True, is_tied=False, has_positions=False),
        dict(gradient_bytes=4, zero=3, state_bytes=(4, 4, 8), step_bytes=36.0,
             is_sequence_parallel=True),
        'torchtitan: parameters of 32 bits sharded (FSDP2), gathered in 16 and reduced in 32'),
    'InternEvo': Stack(
        dict(is_gated=True, is_tied=False, has_positions=False),
        dict(gradient_bytes=2, zero=1, state_bytes=(2, 2, 26), step_bytes=60.0,
             by_broadcast=True),
        'InternEvo: flat gradients of 16 bits and a copy of 32, Adam without fused kernels (8 '
        'bytes of temporaries), parameters broadcast by their owners'),
    'llm-foundry': Stack(
        dict(has_positions=False, is_causal_skipped=False, is_fused=True),
        dict(gradient_bytes=2, zero=3, state_bytes=(4, 4, 8), step_bytes=36.0),
        'llm-foundry: FSDP1, gathered and reduced in 16 bits, norms of 16 bits, no biases, Triton '
        'attention with a bias, which computes the masked half too'),
}
# Not in the rows: heads of keys and inner widths, by the models' own pages.
_INNER = {('Llama 3.1', 4096): 14336, ('Llama 3.1', 8192): 28672, ('Llama 3.1', 16384): 53248,
          ('InternLM', 4096): 11008, ('InternLM', 5120): 13824}


@dataclass(frozen=True)
class Case:
    """A row that can be predicted.

    Args:
        row: as it was read.
        source: its first word, a key of ``STACKS`` or 'NVIDIA' or 'mmdetection'.
        cluster: with the device, links and number of nodes of the row.
        decoder, strategy: of a transformer; None for a vision model.
        assumed: what the row does not say.
    """

    row: Mapping[str, str]
    source: str
    cluster: Cluster
    decoder: Decoder | None
    strategy: Strategy | None
    assumed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_devices(self) -> int:
        """Devices of the run, as the row says."""
        return int(self.row['n_gpus'])

    @property
    def is_multi_node(self) -> bool:
        """Whether the run went over more than one node."""
        return self.cluster.num_nodes > 1

    @property
    def metric(self) -> str:
        """What was measured: 'iteration_time', 'peak_memory' or a rate, as the row's
        column says."""
        return self.row['metric']

    @property
    def measured(self) -> float:
        """In seconds, per second, or bytes."""
        value = float(self.row['value'])
        if self.metric == 'iteration_time':
            return value / 1000
        return value * GIGA if self.metric == 'peak_memory' else value

    @property
    def measured_bytes(self) -> float | None:
        """Peak memory beside another metric; tables say GB or GiB, as the column is named."""
        text = self.row['mem_gib']
        return float(text) * GIB if text and self.metric != 'peak_memory' else None

    def value_of(self, seconds: float, peak_bytes: float) -> float:
        """A prediction in the row's metric."""
        if self.metric == 'peak_memory':
            return peak_bytes
        if self.metric == 'iteration_time':
            return seconds
        if self.metric == 'images_per_s':
            return float(self.row['global_batch']) / seconds
        d, batch = self.decoder, self.strategy.global_batch
        if self.metric == 'tokens_per_s_per_gpu':
            return batch * d.sequence / self.num_devices / seconds
        # Narayanan et al. 2021, equation 3: with the forward that is computed again.
        return d.model_flops(batch * d.sequence) * 4 / 3 / self.num_devices / seconds / 1e12


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows sorted by their ids.

    Raises:
        VisionError: VIS-DATA-1650, the file is not there, is no CSV or lacks columns or rows.
    """
    try:
        with Path(path).open(newline='') as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong('they cannot be read', where=str(path), why=str(error),
                     do='give a CSV file with a header') from error
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise _wrong(f'{len(rows)} rows without the columns {", ".join(missing)}',
                     where=str(path), why='each says what was measured, on what and how',
                     do='add the columns; empty fields are allowed')
    if short := [row['id'] for row in rows if None in row.values()]:
        raise _wrong(f'{len(short)} rows with fewer fields than columns, first: {short[0]}',
                     where=str(path), why='each says what was measured, on what and how',
                     do='add the fields; they may be empty')
    return sorted(rows, key=lambda row: row['id'])


def read_vtrain(folder: Path) -> list[dict[str, str]]:
    """The iteration times of vTrain (github.com/VIA-Research/vTrain, MIT licence) as rows.

    Args:
        folder: with ``ground_truth_single.csv`` and ``ground_truth_multi.csv``.

    Returns:
        1,549 rows; the id has the line of the file, which counts its header.

    Raises:
        VisionError: VIS-DATA-1650, a file is not there or is another one.
    """
    rows = []
    for name, network in (('single', ''), ('multi', '800 Gb/s inter-node')):
        path = Path(folder) / f'ground_truth_{name}.csv'
        try:
            with path.open(newline='', encoding='utf-8-sig') as file:
                rows += [dict.fromkeys(_COLUMNS, '') | {ours: row[theirs] for ours, theirs
                                                        in _VTRAIN.items()}
                         | dict(id=f'{name}{line:05d}', source='vTrain', gpu='A100 80GB',
                                model='GPT', family='transformer', vocab='50257', shard='none',
                                recompute='full', metric='iteration_time', hw_note=network)
                         for line, row in enumerate(csv.DictReader(file), start=2)]
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
            raise _wrong('those of vTrain cannot be read', where=str(path),
                         why=f'{type(error).__name__}: {error}',
                         do='give the folder data of a clone of VIA-Research/vTrain') from error
    return rows


def case_of(row: Mapping[str, str], presets: Callable[[str], Cluster]) -> Case:
    """Raises VIS-DATA-1650 for a row of unknown software, device or metric, or one whose numbers
    are none."""
    try:
        case = _case(row, presets)
        if not (case.num_devices >= 1 and 0 < case.measured < math.inf
                and 0 <= (case.measured_bytes or 0) < math.inf):
            raise ValueError('devices and what was measured are numbers above 0')
    except VisionError:
        raise
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise _wrong(f'row {row["id"]}: {error}', why='its numbers are not those of a step',
                     do='correct the row') from error
    return case


def _case(row: Mapping[str, str], presets: Callable[[str], Cluster]) -> Case:
    source = next((name for name in (*STACKS, 'NVIDIA', 'mmdetection') if name in row['source']),
                  None)
    if source is None or row['metric'] not in METRICS:
        raise _wrong(f'row {row["id"]}: source {row["source"]!r}, metric {row["metric"]!r}',
                     why=f'known are {", ".join(STACKS)}, NVIDIA and mmdetection, and '
                     f'{", ".join(METRICS)}',
                     do='describe the software in STACKS of vision/simulator/core/published.py')
    cluster = cluster_of(row, presets)
    if row['family'] != 'transformer':
        return Case(row, source, cluster, None, None)
    assumed: list[str] = []
    stack = STACKS[source]
    decoder = _decoder(row, stack)
    strategy = _strategy(row, source, stack, assumed)
    return Case(row, source, cluster, decoder, strategy, (stack.why, *assumed))


def cluster_of(row: Mapping[str, str], presets: Callable[[str], Cluster]) -> Cluster:
    """The preset of the row's device with its memory and, where it says them, its adapters.

    Args:
        presets: gives the cluster of a preset's name, such as 'h100'.

    Raises:
        VisionError: VIS-DATA-1650, a device without preset, or more than eight devices that are no
            whole nodes.
    """
    gpu, note = row['gpu'], row['hw_note']
    named = re.search(r'(\w+) table states', note)
    if named and named[1] not in gpu:
        note = ''  # it says so of other devices
    name = next((preset for word, preset in (('H100', 'h100'), ('A100', 'a100-dgx'),
                                             ('A800', 'a100-dgx'), ('V100', 'v100-dgx1'))
                 if word in gpu), None)
    if name is None:
        raise _wrong(f'row {row["id"]}: the device {gpu!r}',
                     why='there are presets of V100, A100, A800 and H100',
                     do='add a cluster file to configs/clusters/')
    cluster = presets(name)
    device, links = cluster.device, dict(cluster.links)
    size = re.search(r'(\d+)\s*GB', gpu)
    if size:
        device = replace(device, memory_bytes=int(size[1]) * GIB)
    if 'A100 40GB' in gpu:
        device = replace(device, memory_rate=1555 * GIGA)  # HBM2, NVIDIA A100 data sheet
    if 'HBM2e' in gpu and name == 'h100':
        device = replace(device, memory_rate=2400 * GIGA)  # as torchtitan's page says
    power = re.search(r'(\d+) W\b', gpu)
    if power and name == 'h100':
        # Power goes with clock times voltage squared, and the voltage with the clock: to the power
        # of two to three (our choice: 2.5). The SXM5 card of the preset has 700 W.
        slower = (int(power[1]) / 700)**0.4
        device = replace(device, flops={dtype: flops * slower
                                        for dtype, flops in device.flops.items()})
    if 'A800' in gpu:
        links['intra'] = replace(links['intra'], rate=200 * GIGA)  # NVLink 400 GB/s both ways
    adapters = re.search(r'(\d+)x(\d+) Gb', note)
    per_node = re.search(r'(\d+) Gb/s (?:inter-node|RoCE node)', note)
    if adapters:
        links['inter'] = replace(links['inter'], rate=int(adapters[2]) / 8 * GIGA,
                                 shared_by=max(1, 8 // int(adapters[1])))
    elif per_node:
        links['inter'] = replace(links['inter'], rate=int(per_node[1]) / 8 * GIGA, shared_by=8)
    cluster = replace(cluster, device=device, links=links)
    world = int(row['n_gpus'])
    if world > 8 and world % 8:
        raise _wrong(f'row {row["id"]}: {world} devices', why='nodes have eight',
                     do='correct the row')
    # A run on fewer devices still has the links of a node, which are not shared by others.
    return replace(cluster, num_nodes=max(1, world // 8))


def _wrong(what: str, *, why: str, do: str, where: str = '') -> VisionError:
    return VisionError('VIS-DATA-1650', f'published rows that cannot be used: {what}',
                       where=where, why=why, do=do)


def _decoder(row: Mapping[str, str], stack: Stack) -> Decoder:
    heads = re.match(r'(\d+)(?: \((\d+) kv\))?', row['heads'])
    precision, hidden = row['precision'], int(row['hidden'])
    family = next((name for name, width in _INNER if name in row['model'] and width == hidden), '')
    dtype = stack.decoder.get('dtype', 'bfloat16')
    return Decoder(int(row['layers']), hidden, int(heads[1]), int(row['seq_or_img']),
                   int(row['vocab']), kv_heads=int(heads[2] or 0),
                   ffn=_INNER.get((family, hidden), 0),
                   gemm_dtype='float8_e4m3fn' if 'fp8' in precision else '',
                   is_compiled='compile' in precision, **{**stack.decoder, 'dtype': dtype})


def _strategy(row: Mapping[str, str], source: str, stack: Stack, assumed: list[str]) -> Strategy:
    def number(name: str, default: int = 1) -> int:
        return int(float(row[name])) if row[name] else default

    data, micro = number('dp'), number('micro_batch')
    if not row['micro_batch']:
        assumed.append('a micro-batch of 1 where the row names none')
    if row['global_batch']:
        num_microbatches = max(1, number('global_batch') // (data * micro))
    else:
        num_microbatches = 4 if row['metric'] == 'peak_memory' else 1
        assumed.append(f'{num_microbatches} micro-batches where the row has no global batch')
    chunks = number('vpp')
    if 'Interleaved' in row.get('notes', '') and not row['vpp']:
        chunks = 2
        assumed.append('2 chunks on each rank of the interleaved schedule')
    fields = {**stack.strategy, **_recompute(row, source), **_shard(row, stack)}
    if 'async TP' in row.get('notes', ''):
        fields['is_tensor_overlapped'] = True
    return Strategy(data, number('tp'), number('pp'), number('cp'), micro, num_microbatches,
                    chunks, **fields)


def _recompute(row: Mapping[str, str], source: str) -> dict[str, Any]:
    text = row['recompute']
    if text.startswith('full'):
        return dict(recompute='full')
    if text.startswith('selective attention'):
        return dict(recompute='selective', is_sequence_parallel='sequence parallel' in text)
    if text.startswith('selective'):
        return dict(recompute='half')
    return dict(recompute='none')


def _shard(row: Mapping[str, str], stack: Stack) -> dict[str, Any]:
    text = row['shard']
    if text.startswith('ZeRO-1'):
        within = re.search(r'within (\d+)', text)
        return dict(zero=1, zero_group=int(within[1]) if within else 0)
    if text.startswith('FSDP'):
        weights, gradients, state = stack.strategy['state_bytes']
        # InternEvo's FSDP: its gradients are flat and sharded as they are, without the copy.
        has_copy = stack.strategy.get('zero') == 1
        return dict(zero=3, by_broadcast=False,
                    state_bytes=(weights, gradients, state - 2 * has_copy))
    return dict(zero=0)
