"""Accuracy of a recogniser trained with few active classes beside the full softmax.

Task: Han characters in the fonts of this machine (datasets/glyphs), 20,000 classes; whole font
families are held out for verification and identification. One config, three heads, each with
every seed; all through tools/train.py and tools/test.py:

  full      softmax over all classes
  active    1 % of them, found by an index, after random rows in the first half of the steps
            (the config as it stands)
  random    10 % at random (Partial FC), for as much time as 'active' takes

A step of each is timed first, alone and in turn; from this follows for how many steps 'random'
trains. A finished run is written at once; started again, the command goes on with the runs that
are missing.

  python datasets/glyphs/prepare.py --out data/glyphs
  python tools/benchmarks/glyph_accuracy.py --json docs/results/glyph_accuracy.json
  python tools/analysis/plot_glyph_accuracy.py docs/results/glyph_accuracy.json --out x.png
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import commit, write_report

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/faces/iresnet18-small_ivf_glyphs.py'
SELECTOR = 'model.head.selector'
ARMS = {'full': (f'{SELECTOR}._delete_=True', f'{SELECTOR}.type=full',
                 'model.head.correction=none'),
        'active': (),
        'random': (f'{SELECTOR}._delete_=True', f'{SELECTOR}.type=random',
                   f'{SELECTOR}.num_active=2000', 'model.head.correction=none')}
TIMED_STEPS = 400  # of 'active' one half each with random rows and with the index
METRICS = {'accuracy': 'verification/accuracy', 'tar@fpr0.001': 'verification/tar@0.001',
           'rank1': 'identification/rank1', 'tpir@0.01': 'identification/tpir@0.01'}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--data', type=Path, default=Path('data/glyphs'),
        help='prepared glyphs (default: %(default)s)')
    add('--iters', type=int, default=5000, help='steps of full and active (default: 5000)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2],
        help='each arm with each of them (default: 0 1 2)')
    add('--arms', nargs='+', choices=list(ARMS), default=list(ARMS),
        help='of those above (default: all)')
    add('--jobs', type=int, default=1, help='runs at once, one thread each (default: 1)')
    add('--work-dir', type=Path, default=Path('work_dirs/glyph_accuracy'),
        help='folder of the runs (default: %(default)s)')
    add('--json', type=Path, required=True, help='results')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_unwritable(args.json)
    content = earlier(args)
    step_ms = content.get('step_ms') or timed_steps(args)
    rows, running = content.get('rows', []), commit()
    done = {(row['arm'], row['seed']) for row in rows}
    plan = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run_one, args, *each, step_ms) for each in plan]
        for run in as_completed(runs):
            rows.append(run.result() | dict(commit=running))
            write_report(args.json, rows, seeds=args.seeds, settings=settings(args),
                         step_ms=step_ms, summary=summarize(rows))
    print(json.dumps(dict(step_ms=step_ms, summary=summarize(rows)), indent=1))
    return 0


def settings(args: argparse.Namespace) -> dict:
    return dict(config=CONFIG, iters=args.iters, threads=1)


def earlier(args: argparse.Namespace) -> dict:
    """What was written before.

    Raises:
        VisionError: VIS-RUN-1240, with other settings.
    """
    if not args.json.exists():
        return {}
    content = json.loads(args.json.read_text())
    if content['settings'] != settings(args):
        raise VisionError('VIS-RUN-1240', f'{args.json} holds runs of other settings',
                          where=f'{content["settings"]} against {settings(args)}',
                          why='their figures must not be mixed', do='give another --json')
    return content


def timed_steps(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per step of each arm, data loading and upkeep included: the better of two."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(2):
        for arm in ARMS:
            folder = args.work_dir / f'time_{arm}_{turn}'
            call('train.py', args, arm, 0, TIMED_STEPS, folder,
                 f'train_cfg.val_interval={10 * TIMED_STEPS}')
            times = [line['time'] for line in scalars(folder) if 'time' in line]
            found[arm].append(1000 * float(np.mean(times[1:])))  # without the first build
    return {arm: round(min(values), 2) for arm, values in found.items()}


def run_one(args: argparse.Namespace, arm: str, seed: int, step_ms: dict) -> dict:
    iters = args.iters
    if arm == 'random':
        iters = round(iters * step_ms['active'] / step_ms['random'])
    folder = args.work_dir / f'{arm}_{seed}'
    call('train.py', args, arm, seed, iters, folder)
    curve = curve_of(scalars(folder))
    logged = [line for line in scalars(folder) if 'loss' in line]
    losses = [[line['iter'], round(line['loss'], 4)] for line in logged[::max(1, iters // 2500)]]
    metrics = folder / 'metrics.json'
    call('test.py', args, arm, seed, iters, folder / 'test', given=(
        str(folder / f'iter_{iters}.pth'), '--out', str(metrics)))
    final = json.loads(metrics.read_text())
    # Lines are means over 50 steps; the median leaves out what else the machine did.
    seconds = iters * float(np.median([line['time'] for line in logged]))
    row = dict(arm=arm, seed=seed, iters=iters, train_seconds=round(seconds),
               **{name: round(float(final[key]), 5) for name, key in METRICS.items()},
               curve=curve, losses=losses)
    print({key: value for key, value in row.items() if key not in ('curve', 'losses')}, flush=True)
    return row


def curve_of(lines: list[dict]) -> list[dict]:
    """Metrics of each validation, with the step before it: validation lines do not say it."""
    curve, step = [], 0
    for line in lines:
        step = line.get('iter', step)
        if METRICS['accuracy'] in line:
            curve.append(dict(iter=step) | {name: round(float(line[key]), 5)
                                            for name, key in METRICS.items()})
    return curve


def call(tool: str, args: argparse.Namespace, arm: str, seed: int, iters: int, folder: Path,
         *options: str, given: tuple[str, ...] = ()) -> None:
    """Run a tool on the config of one arm; its output goes to ``folder``.log.

    Raises:
        VisionError: VIS-RUN-1241, it failed.
    """
    head = ARMS[arm] or (f'{SELECTOR}.adaptive.warm_steps={iters // 2}',
                         f'{SELECTOR}.adaptive.monitor_every={min(500, iters // 2)}')
    values = [*head, f'randomness.seed={seed}',
              f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={max(1, iters // 5)}',
              f'param_scheduler.1.T_max={iters - 200}', f'param_scheduler.1.end={iters}',
              *(f'{split}_dataloader.dataset.data_root={args.data}'
                for split in ('train', 'val', 'test')), *options]
    command = [sys.executable, str(ROOT / 'tools' / tool), CONFIG, *given, '--work-dir',
               str(folder), '--cfg-options', *values]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix('.log')
    one = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
    with open(log, 'w') as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                              env={**os.environ, **one, 'PYTHONPATH': str(ROOT)}).returncode
    if code:
        raise VisionError('VIS-RUN-1241', f'{tool} ended with {code} for {arm}, seed {seed}',
                          where=str(log), why=log.read_text()[-600:],
                          do='read the log; started again, finished runs are kept')


def scalars(folder: Path) -> list[dict]:
    """Lines of the newest log of figures below a work_dir."""
    def lines() -> Iterator[dict]:
        newest = max(folder.glob('*/vis_data/*.json'), key=lambda path: path.stat().st_mtime,
                     default=None)
        if newest is not None:
            yield from map(json.loads, newest.read_text().splitlines())
    return list(lines())


def summarize(rows: list[dict]) -> dict:
    """Means and spreads over seeds, and the differences from 'full' of the same seed."""
    by = {(row['arm'], row['seed']): row for row in rows}
    summary = {}
    for arm in ARMS:
        own = sorted((row for row in rows if row['arm'] == arm), key=lambda row: row['seed'])
        if not own:
            continue
        summary[arm] = dict(num_seeds=len(own), iters=own[0]['iters'])
        for name in METRICS:
            values = [100 * row[name] for row in own]
            minus = [100 * (row[name] - by['full', row['seed']][name]) for row in own
                     if ('full', row['seed']) in by]
            summary[arm][name] = dict(
                mean=round(float(np.mean(values)), 3),
                std=round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None,
                minus_full=[round(value, 3) for value in minus])
    return summary


if __name__ == '__main__':
    run_cli(main)
