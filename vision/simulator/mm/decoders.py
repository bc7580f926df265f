"""Decoders by name or by their sizes on a cluster: a strategy's step, or the best strategy found.

Nothing of torch is built: operators are counted from sizes (``vision.simulator.core.analytic``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vision.common.core.amounts import format_bytes
from vision.common.core.errors import VisionError
from vision.common.core.plain_values import whole_number
from vision.simulator.core import search as searching
from vision.simulator.core.analytic import Prediction, Strategy, predict
from vision.simulator.core.cluster import Cluster
from vision.simulator.core.graph import Op
from vision.simulator.core.memory import TIGHT
from vision.simulator.core.parameters import read_parameters
from vision.simulator.core.pricing import DEFAULT_INTERVAL, Prices, with_constants
from vision.simulator.core.search import Found
from vision.simulator.core.transformers import Decoder
from vision.simulator.mm.report import print_basis

LLAMA = dict(is_gated=True, is_tied=False, has_positions=False)
# Sizes: The Llama 3 Herd of Models (arXiv:2407.21783), table 3; Brown et al. 2020
# (arXiv:2005.14165), table 2.1, with the vocabulary padded as Megatron-LM does.
PRESETS: dict[str, dict[str, Any]] = {
    'llama3-8b': dict(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocabulary=128256,
                      **LLAMA),
    'llama3-70b': dict(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672,
                       vocabulary=128256, **LLAMA),
    'gpt3-175b': dict(layers=96, hidden=12288, heads=96, vocabulary=51200)}
# Names that a decoder's text has, and what they are in ``Decoder``.
SIZES = dict(layers='layers', hidden='hidden', heads='heads', vocab='vocabulary',
             kv_heads='kv_heads', ffn='ffn')
OPTIONAL = ('kv_heads', 'ffn')
# Fields of a strategy that a text may set; ``data`` and the number of micro-batches follow.
CHOICES = ('tensor', 'pipeline', 'context', 'micro_batch', 'chunks', 'zero', 'recompute')
DEFAULT_STRATEGY = 'zero=3'
Refusal = Callable[[str, str, str], VisionError]  # of what, why and do


@dataclass(frozen=True)
class DecoderStep:
    """A prediction with what it is of.

    Args:
        interval_source: where the half width ``prediction.interval`` comes from.
        peak_flops: of a device, of the dtype of the products.
        found: of a search, None without one.
        assumed: for people.
    """

    decoder: Decoder
    strategy: Strategy
    cluster: Cluster
    prediction: Prediction
    interval_source: str
    peak_flops: float
    assumed: tuple[str, ...]
    found: Found | None = None

    @property
    def tokens_per_second(self) -> float:
        """Rate of one device."""
        tokens = self.strategy.global_batch * self.decoder.sequence
        return tokens / self.prediction.seconds / self.strategy.world_size

    @property
    def mfu(self) -> float:
        """Causal attention is counted whole (see ``Decoder.model_flops``)."""
        return self.decoder.model_flops(1) * self.tokens_per_second / self.peak_flops

    @property
    def verdict(self) -> str:
        """As that of a simulated config."""
        margin = 1 - self.prediction.peak_bytes / self.prediction.capacity_bytes
        return 'out of memory' if margin < 0 else 'tight' if margin < TIGHT else 'fits'

    @property
    def interval_seconds(self) -> tuple[float, float]:
        """(low, high) between which a step is expected."""
        own = self.prediction
        return own.seconds * (1 - own.interval), own.seconds * (1 + own.interval)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; seconds and bytes."""
        own = self.prediction
        text, cannot = searching.config_text(self.strategy)
        told = dict(
            decoder=asdict(self.decoder), strategy=asdict(self.strategy),
            cluster=self.cluster.name, num_ranks=self.strategy.world_size,
            step_seconds=own.seconds, interval_seconds=list(self.interval_seconds),
            interval_source=self.interval_source, tokens_per_second_per_gpu=self.tokens_per_second,
            mfu=self.mfu, verdict=self.verdict, peak_bytes=own.peak_bytes,
            capacity_bytes=own.capacity_bytes, parts=dict(own.parts), memory=dict(own.memory),
            notes=dict(own.notes), assumed=list(self.assumed), config=text, cannot=cannot)
        if self.found:
            told['search'] = dict(
                num_possible=self.found.num_possible, num_dropped=self.found.num_dropped,
                num_played=self.found.num_played, is_complete=self.found.is_complete,
                front=[dict(strategy=asdict(strategy), step_seconds=each.seconds,
                            peak_bytes=each.peak_bytes) for strategy, each in self.found.front])
        return told


def read_decoder(text: str, sequence: int | None = None) -> Decoder:
    """A preset's name or 'layers=32,hidden=4096,heads=32,vocab=128256', with kv_heads and ffn for
    others than Llama takes; such a decoder is built as Llama is.

    Args:
        sequence: tokens of one; None for 8192, or 2048 of GPT-3.

    Raises:
        VisionError: VIS-CONFIG-1652, no such text; VIS-CONFIG-1643, sizes that make no decoder.
    """
    if sequence is None:
        sequence = 2048 if text == 'gpt3-175b' else 8192
    if text in PRESETS:
        return Decoder(sequence=sequence, **PRESETS[text])
    needed = [name for name in SIZES if name not in OPTIONAL]
    allowed = f'one of {", ".join(PRESETS)}, or sizes: {", ".join(needed)}, and if they are ' \
        f'others than usual {" and ".join(OPTIONAL)}'
    given = _pairs(text, _no_decoder, SIZES, allowed)
    if missing := [name for name in needed if name not in given]:
        raise _no_decoder(f'a decoder without {" and ".join(missing)}',
                          f'{text!r} is not all of it', f'give {allowed}')
    sizes = {SIZES[name]: _whole(name, value, _no_decoder, 1) for name, value in given.items()}
    return Decoder(sequence=sequence, **sizes, **LLAMA)


def read_strategy(text: str, num_gpus: int, global_batch: int) -> Strategy:
    """Degrees as 'tensor=8,pipeline=4,recompute=full'; data parallel takes the other devices.

    Raises:
        VisionError: VIS-CONFIG-1653, no such text, or it divides not devices and batch.
    """
    allowed = f'some of {", ".join(CHOICES)}'
    given = _pairs(text, _no_strategy, CHOICES, allowed)
    known = {each.name: each.default for each in fields(Strategy)}
    values = {name: value if name == 'recompute' else _whole(
        name, value, _no_strategy, 0 if name == 'zero' else 1) for name, value in given.items()}
    chosen = {name: values.get(name, known[name]) for name in CHOICES}
    model = chosen['tensor'] * chosen['pipeline'] * chosen['context']
    data, rest = divmod(num_gpus, model)
    micro, odd = divmod(global_batch, max(data, 1) * chosen['micro_batch'])
    if not data or rest or not micro or odd:
        raise _no_strategy(
            f'{text!r} does not divide {num_gpus} devices and a global batch of {global_batch}',
            'tensor x pipeline x context divide the devices; what is left of them, times '
            'micro_batch, divides the global batch',
            'choose other degrees or another batch, or let --search choose')
    return Strategy(data=data, num_microbatches=micro,
                    is_sequence_parallel=chosen['tensor'] > 1, **chosen)


def plan(decoder: Decoder, cluster: Cluster, *, num_gpus: int, global_batch: int,
         strategy: str | None = None, parameters: Path | None = None,
         is_searched: bool = False, budget_seconds: float = 60.0) -> DecoderStep:
    """A step of ``global_batch`` sequences on ``num_gpus`` devices of the cluster's kind.

    Args:
        strategy: text of ``read_strategy``, None for ``DEFAULT_STRATEGY``; a search chooses.
        parameters: fitted constants in the place of the cluster's own.

    Raises:
        VisionError: VIS-CONFIG-1653 and VIS-CONFIG-1656, devices and batch; VIS-CONFIG-1644, a
            strategy that does not divide the decoder; VIS-CONFIG-1645 and VIS-CONFIG-1646, a
            search that finds none; VIS-CONFIG-1651, the constants.
    """
    assert not (strategy and is_searched), strategy
    cluster, assumed = _grown(cluster, num_gpus, global_batch)
    interval, source = DEFAULT_INTERVAL, 'nothing was fitted; the error of presets by source'
    if parameters:
        fitted = read_parameters(parameters)
        cluster, interval = with_constants(cluster, dict(fitted.constants)), fitted.interval
        source = f'fitted on {fitted.source}'
    prices, found = Prices(cluster), None
    if is_searched:
        found = searching.search(decoder, num_gpus, global_batch, prices,
                                 budget_s=budget_seconds, interval=interval)
        chosen, prediction = found.best, found.prediction
    else:
        if strategy is None:
            strategy = DEFAULT_STRATEGY
            assumed += (f'the strategy is {strategy}; none was given',)
        chosen = read_strategy(strategy, num_gpus, global_batch)
        prediction = predict(decoder, chosen, prices, interval=interval)
    bytes_held = ' + '.join(f'{each:g}' for each in chosen.state_bytes)
    assumed += (
        f'attention is {decoder.attention}, the computation {decoder.dtype}, issued by eager '
        'PyTorch', f'weights, gradients and optimizer hold {bytes_held} bytes of a parameter')
    peak = cluster.device.flops[prices.dtype_of(
        Op('product', '', 'gemm', 0.0, 0.0, decoder.dtype))]
    return DecoderStep(decoder, chosen, cluster, prediction, source, peak, assumed, found)


def _grown(cluster: Cluster, num_gpus: int, global_batch: int
           ) -> tuple[Cluster, tuple[str, ...]]:
    """As many nodes as the devices need: a preset describes nodes of a kind, not how many."""
    node = cluster.gpus_per_node
    if num_gpus < 1 or global_batch < 1 or num_gpus > node and num_gpus % node:
        raise VisionError(
            'VIS-CONFIG-1656', f'{num_gpus} devices for a global batch of {global_batch}',
            where='--gpus, --global-batch', why=f'both are at least 1, and beyond one node '
            f'devices are whole nodes of {node}', do=f'give a multiple of {node}, or fewer')
    nodes = -(-num_gpus // node)
    if nodes <= cluster.num_nodes:
        return cluster, ()
    return replace(cluster, num_nodes=nodes), (
        f'{nodes} nodes, of which {cluster.name} describes {cluster.num_nodes}, on one network '
        'that all reach at full rate',)


def _no_decoder(what: str, why: str, do: str) -> VisionError:
    return VisionError('VIS-CONFIG-1652', what, where='--decoder', why=why, do=do)


def _no_strategy(what: str, why: str, do: str) -> VisionError:
    return VisionError('VIS-CONFIG-1653', what, where='--strategy', why=why, do=do)


def _pairs(text: str, refused: Refusal, names: Mapping[str, Any] | tuple[str, ...], allowed: str
           ) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(','))):
        name, equals, value = part.partition('=')
        if not equals or name not in names or name in given:
            reason = 'it is there twice' if name in given else 'there is no such name'
            raise refused(f'{part!r} in {text!r}', reason if equals else 'parts are NAME=VALUE',
                          f'give {allowed}')
        given[name] = value
    return given


def _whole(name: str, value: str, refused: Refusal, least: int) -> int:
    number = whole_number(value)
    if number is None or number < least:
        raise refused(f'{name}={value:.40}', f'it is no whole number from {least} on',
                      f'give {name}={max(least, 1)} or more')
    return number


def describe(strategy: Strategy) -> str:
    """A strategy in words: what differs from one device and one micro-batch."""
    return ' '.join(f'{each.name}={getattr(strategy, each.name)}' for each in fields(Strategy)
                    if getattr(strategy, each.name) != each.default) or 'one device'


def print_step(step: DecoderStep) -> None:
    """The step for people; of a search its front and the winner's text too."""
    console, own = Console(), step.prediction
    if step.found:
        _print_front(console, step)
    low, high = step.interval_seconds
    rows = [('strategy', describe(step.strategy)),
            ('step', f'{own.seconds:.4g} s ({low:.4g} to {high:.4g}; {step.interval_source})'),
            ('throughput', f'{step.tokens_per_second:.4g} tokens/s per GPU'),
            ('MFU', f'{100 * step.mfu:.1f} %'),
            ('peak', f'{format_bytes(own.peak_bytes)} of {format_bytes(own.capacity_bytes)}'),
            ('verdict', step.verdict)]
    rows += [(f'time: {name}', f'{each:.4g} s') for name, each in own.parts.items() if each]
    rows += [(f'memory: {name}', format_bytes(each)) for name, each in own.memory.items() if each]
    table = Table(title=f'one step on {step.strategy.world_size} ranks', show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    print_basis(console, own.notes, step.assumed)


def _print_front(console: Console, step: DecoderStep) -> None:
    found = step.found
    table = Table(title='none is both faster and smaller than one of these')
    for column in ('strategy', 's', 'memory'):
        table.add_column(column, justify='left' if column == 'strategy' else 'right')
    for strategy, each in found.front:
        table.add_row(describe(strategy), f'{each.seconds:.4g}', format_bytes(each.peak_bytes))
    console.print(table)
    end = '' if found.is_complete else '; the time of the search was over before the others'
    console.print(f'{found.num_possible} strategies: {found.num_dropped} could not win, '
                  f'{found.num_played} that fit were simulated{end}', markup=False)
    text, cannot = searching.config_text(found.best)
    console.print(f'best:\n{text or describe(found.best)}', markup=False)
    if cannot:
        console.print(f'not in this codebase: {cannot}', markup=False)
