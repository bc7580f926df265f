"""Speed and memory of a PolyNet, variants side by side in one run.

Inference: every variant runs in turn, round after round, so that a slow minute hits all of them.
As many multiply-adds as plain float32 matrix products take their turn too: 'of limit' is the time
of these over that of the network in the same round, the median of all rounds. (The best single
product, a rate that a processor holds for a moment only, is in the JSON as matrix_gflops_peak.)
'error' is the greatest difference of the logits from the plain network's, over the greatest logit.
A pass over all weights that only adds them up stands beside: what it takes to bring them from
memory, which few images share and which the matrix products, of small matrices, do not have.

All of them in a process that keeps freed memory (vision.common.nn.freed_memory): else half of the
time may go to the system for new pages, and differs from minute to minute.

With --port FILE, the model file of the published PyTorch port (public; polynet.py of
Cadene/pretrained-models.pytorch), the port with the same weights stands beside it all: what our
options (output_stride, padding_mode, sharing, ...) cost where nobody uses them.

Training: forward and backward, plain and with_cp, time and peak bytes of live tensors beyond
parameters and gradients (vision.common.nn.live_memory says why not the resident set).

Examples:
  python benchmarks/backbone.py very-deep --batch 1 4 --threads 2 --port polynet.py
  python benchmarks/backbone.py small --size 160 --variants plain fused_channels_last \\
      --rounds 3 --no-training --json small.json
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table, write_markdown
from vision.common.nn.freed_memory import keep_freed_memory
from vision.common.nn.live_memory import LiveMemory
from vision.common.nn.macs import counted_macs
from vision.polynet.core.arch import PRESETS
from vision.polynet.nn.cadene import convert
from vision.polynet.nn.fuse import fuse
from vision.polynet.nn.trunk import CHANNELS

VARIANTS = ('plain', 'channels_last', 'fused', 'fused_channels_last', 'compile', 'fused_bf16')
PORT, MATRIX, READING = 'published port', 'matrix products', 'weights read once'
MATRIX_SIZES = (1024, 2048, 3072)
EXACT = 1e-4  # relative; what counts as the same logits
COLUMNS = ('task', 'variant', 'batch', 'min_ms', 'median_ms', 'gflops', 'of_limit', 'error',
           'activation_mb')
SEED = 0


def build(arch: str, **options) -> nn.Module:
    """The classifier; images in, logits out. ``options`` are of the backbone."""
    from mmengine.registry import DefaultScope

    from vision.registry import MODELS
    with DefaultScope.overwrite_default_scope('vision'):
        return MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(type='PolyNet', arch=arch, path_scales='released', **options),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=CHANNELS[-1])))


def build_port(path: Path, ours: nn.Module) -> nn.Module:
    """The published port with the weights of our network."""
    spec = importlib.util.spec_from_file_location('published_port', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    port = module.PolyNet(num_classes=1000)
    port.load_state_dict(convert(ours.state_dict(), reverse=True))
    return port.train(ours.training)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('arch', nargs='?', default='very-deep', help='a preset of PolyNet (default: very-deep)')
    add('--size', type=int, default=331, help='image side, pixels (default: 331)')
    add('--batch', type=int, nargs='+', default=[1, 4], help='of inference (default: 1 4)')
    add('--variants', nargs='+', default=list(VARIANTS), metavar='NAME',
        help=f'of inference: {", ".join(VARIANTS)} (default: all)')
    add('--rounds', type=int, default=7, help='timed runs of each variant (default: 7)')
    add('--train-batch', type=int, default=2, help='of the training step (default: 2)')
    add('--train-rounds', type=int, default=3, help='timed steps of each kind (default: 3)')
    add('--no-training', action='store_true', help='inference only')
    add('--threads', type=int, help="torch's threads (default: its own choice)")
    add('--port', type=Path, metavar='FILE', help='the published port, as a rival (very-deep)')
    add_report_options(parser, what='rows, and a table beside them (.md),')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    check(args)
    keeps_memory = keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    console, peak, rows = Console(), peak_rate(), []
    with Progress(console=console) as progress:
        for batch in args.batch:
            rows += inference_rows(args, batch, progress)
        if not args.no_training:
            rows += training_rows(args, progress)
    write(args, rows, console, matrix_gflops_peak=max(peak, peak_rate()),
          keeps_freed_memory=keeps_memory)
    return 0


def check(args: argparse.Namespace) -> None:
    unknown = sorted(set(args.variants) - set(VARIANTS))
    if unknown or 'plain' not in args.variants:
        raise VisionError('VIS-CONFIG-047', f'variants {unknown} do not exist' if unknown else
                          "the variant 'plain' is missing: all others are compared with it",
                          where='--variants', do=f'plain and any of: {", ".join(VARIANTS[1:])}')
    if args.arch not in PRESETS:
        raise VisionError('VIS-CONFIG-048', f'no PolyNet preset is called {args.arch!r}',
                          where='arch', do=f'one of {", ".join(sorted(PRESETS))}')
    if args.port and (args.arch != 'very-deep' or not args.port.is_file()):
        raise VisionError('VIS-CONFIG-1242', 'the published port is a file for very-deep only',
                          where=f'--port {args.port}',
                          do='give its polynet.py, and the preset very-deep')
    if min(args.rounds, args.train_rounds, args.train_batch, *args.batch) < 1:
        raise VisionError('VIS-INPUT-049', 'a number of rounds or images is below 1',
                          where='--rounds, --batch', do='give at least 1')


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def matrix_products(gflop: float, size: int = 2048) -> Callable[[], None]:
    """Square float32 products of about so many operations in all."""
    a, b, c = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    times = max(1, round(gflop / (2e-9 * size**3)))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=c)
    return run


def peak_rate() -> float:
    """GFLOP/s of the best single product."""
    return max(2e-9 * size**3 / min(seconds(matrix_products(0, size)) for _ in range(9))
               for size in MATRIX_SIZES)


def make_variant(name: str, model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """What one timed run calls: image in, logits out. ``model`` is the plain network."""
    layout = torch.channels_last
    if name == 'plain':
        return lambda: model(x)
    if name == 'channels_last':
        copied = copy.deepcopy(model).to(memory_format=layout)
        images = x.contiguous(memory_format=layout)
        return lambda: copied(images)
    if name == 'compile':
        # Freezing folds norms and packs weights, as fusion does; it needs inference.
        compiled = torch.compile(model, options={'freezing': True})
        return lambda: compiled(x)
    if name == 'fused_bf16':
        halved, images = fuse(copy.deepcopy(model).bfloat16()), x.bfloat16()
        return lambda: halved(images).float()
    fused = fuse(model, is_channels_last=name != 'fused')
    return lambda: fused(x)


@torch.no_grad()
def inference_rows(args: argparse.Namespace, batch: int, progress: Progress) -> list[dict]:
    model = lively(build(args.arch)).eval()
    x = torch.randn(batch, 3, args.size, args.size)
    with counted_macs(model) as macs:
        expected = model(x)
    gflop = 2e-9 * sum(macs.values())
    task = progress.add_task(f'inference, batch {batch}',
                             total=(len(args.variants) + bool(args.port) + 2) * (args.rounds + 1))
    calls, errors = {}, {}
    variants = [*args.variants, *([PORT] if args.port else [])]
    for name in variants:
        calls[name] = make_variant(name, model, x) if name != PORT else \
            partial(build_port(args.port, model), x)
        errors[name] = float((calls[name]() - expected).abs().max() / expected.abs().max())
        progress.advance(task)
    calls[MATRIX] = matrix_products(gflop)
    errors[MATRIX] = 0.0
    weights = [parameter.flatten() for parameter in model.parameters()]
    calls[READING] = lambda: [weight.sum() for weight in weights]
    times = interleaved(calls, args.rounds, lambda: progress.advance(task))
    rows = [row('inference', name, batch, times[name], gflop, error=errors[name],
                is_exact=errors[name] <= EXACT, of_limit=of_limit(times, name))
            for name in calls if name != READING]
    megabytes = sum(weight.nbytes for weight in weights) / 1e6
    return [*rows, row('inference', READING, batch, times[READING], 0.0, megabytes=megabytes)]


def of_limit(times: dict[str, list[float]], name: str) -> float:
    """Median over the rounds: times of one round share the machine's mood."""
    return float(np.median(np.divide(times[MATRIX], times[name])))


def lively(model: nn.Module) -> nn.Module:
    """Norms as after training, so that a norm fused wrongly shows; small projections keep the
    sums of deep networks finite."""
    generator = torch.Generator().manual_seed(SEED)
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            gain = 0.1 if 'projection' in name else 1.0
            norm.weight.data.uniform_(0.5 * gain, 1.5 * gain, generator=generator)
            norm.bias.data.normal_(0, 0.1 * gain, generator=generator)
    return model


def interleaved(calls: dict[str, Callable], rounds: int, advance) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
            advance()
    return times


def training_rows(args: argparse.Namespace, progress: Progress) -> list[dict]:
    x = torch.randn(args.train_batch, 3, args.size, args.size)
    plain = build(args.arch).train()
    models = dict(plain=plain, with_cp=build(args.arch, with_cp=True).train())
    if args.port:
        models[PORT] = build_port(args.port, plain)
    with counted_macs(plain) as macs, torch.no_grad():
        plain(x)
    calls = {}
    for name, model in models.items():
        for p in model.parameters():  # gradients exist before, so they are no activations
            p.grad = torch.zeros_like(p)
        calls[name] = lambda model=model: model(x).square().mean().backward()
    task = progress.add_task('training', total=len(calls) * (args.train_rounds + 1))
    peaks = {}
    for name, call in calls.items():
        with LiveMemory() as memory:
            call()
        peaks[name] = memory.peak_bytes
        progress.advance(task)
    times = interleaved(calls, args.train_rounds, lambda: progress.advance(task))
    # Backward is two products for each one of forward; recomputation is no useful work.
    return [row('training', name, args.train_batch, times[name], 6e-9 * sum(macs.values()),
                activation_mb=peaks[name] / 1e6, memory_ratio=peaks[name] / peaks['plain'],
                time_ratio=min(times[name]) / min(times['plain'])) for name in calls]


def row(task: str, variant: str, batch: int, times: list[float], gflop: float,
        **more) -> dict:
    return dict(task=task, variant=variant, batch=batch, min_ms=1e3 * min(times),
                median_ms=1e3 * float(np.median(times)), runs=len(times),
                gflops=gflop / min(times),
                **dict(error=None, activation_mb=None, of_limit=None) | more)


def write(args: argparse.Namespace, rows: list[dict], console: Console, **settings) -> None:
    lines = [[shown(column, each[column]) for column in COLUMNS] for each in rows]
    print_table(COLUMNS, lines, num_left=0, title=f'{args.arch} at {args.size} px, '
                f'{torch.get_num_threads()} threads')
    if not args.json:
        return
    write_report(args.json, rows, is_recorded=args.record, seed=SEED, arch=args.arch,
                 size=args.size, threads=torch.get_num_threads(), **settings)
    write_markdown(args.json.with_suffix('.md'), COLUMNS, lines)
    console.print(f'rows: {args.json}\ntable: {args.json.with_suffix(".md")}', soft_wrap=True)


def shown(column: str, value) -> str:
    if value is None:
        return '-'
    if column == 'error':
        return f'{value:.1e}'
    return f'{value:.2f}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    run_cli(main)
