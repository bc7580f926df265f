"""Do one per cent of the classes, well chosen, train as well as all, and better than random ones?

Task: Han characters (datasets/glyphs), 20,000 classes; whole font families are held out. A seed
has one trunk (2,000 steps with a random tenth of the classes, weighed); every arm starts from it
and sees the same batches for 12,000 steps:

  full                  softmax over all classes
  positives             the batch's own classes alone
  random-1, random-10   1 and 10 % at random, weighed (Partial FC with its correction)
  oracle-1              1 %, the best there are (all logits are computed to find them)
  ivf-1, forest-1       1 %, found by an index

Decided before any of these runs (``RULE``, applied by ``decide``). Backbone, learning rates and
schedule were chosen with 'full' alone on seed 100 (--pilot), then frozen in
active_class_task.Settings. A finished arm is written at once, and started again the command goes
on with the missing ones. Rows of other settings are refused, as are those of code that computes
something else: each row keeps the losses of a small fixed training.

  python datasets/glyphs/prepare.py --out data/glyphs
  python benchmarks/active_class_experiment.py \\
      --json docs/results/active_class_experiment.json --record

--plan says what would run and for how long; --time measures the heads on a quiet machine.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from active_class_task import ARMS, OBJECTIVES, TRUNK, Glyphs, Run, Settings, measure, trace

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import (
    add_report_options,
    commit,
    earlier_report,
    refuse_no_evidence,
    write_report,
)
from vision.common.nn.checkpoint import save_checkpoint
from vision.common.nn.freed_memory import keep_freed_memory

PILOT_SEED = 100
NEAR_POINTS = 0.3
RULE = dict(
    near_full=f'mean rank-1 over seeds at most {NEAR_POINTS} points below full',
    better_than_random='rank-1 above random-1 in every seed, and its mean over seeds not below '
                       'that of random-10',
    refuted='mean rank-1 of oracle-1 not above that of random-1',
    primary='rank-1 of all held-out pictures; full softmax loss of 4,096 training and 4,096 '
            'held-out samples; intervals: 95 %, bootstrap over characters, all seeds')
NUM_RESAMPLES = 2000
CURVE_STEPS = 250  # losses of the curve are means of so many
NUM_LIVE = 4096  # features kept for active_class.py --rows
NUM_ROUNDS, HEAD_STEPS = 3, 200  # of --time: two intervals of ivf-1


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--data', type=Path, default=Path('data/glyphs'),
        help='prepared glyphs (default: %(default)s)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(default: 0 1 2)')
    add('--arms', nargs='+', choices=list(ARMS), default=list(ARMS), help='(default: all)')
    add('--objective', choices=list(OBJECTIVES), default='cosface',
        help='softmax-16 has no margin and spreads the mass (default: cosface)')
    add('--pilot', nargs='*', metavar='NAME=VALUE',
        help=f'the full arm on seed {PILOT_SEED} with these values of Settings')
    add('--jobs', type=int, default=1, help='runs at once, one thread each (default: 1)')
    add('--again', nargs='+', choices=list(ARMS), default=[],
        help='drop the rows of these arms first')
    add('--plan', action='store_true', help='print what would run, with measured minutes; no run')
    add('--time', action='store_true', help='measure the heads on the rows of a finished full arm')
    add('--work-dir', type=Path, default=Path('work_dirs/active_class_experiment'),
        help='trunks and checkpoints (default: %(default)s)')
    add_report_options(parser, is_required=True)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    torch.set_num_threads(1)
    settings = Settings() if args.pilot is None else with_values(Settings(), args.pilot)
    content = earlier_report(args.json)
    rows = [row for row in content.get('rows', []) if row['arm'] not in args.again]
    plan = [(PILOT_SEED, 'full')] if args.pilot is not None else \
        [(seed, arm) for seed in args.seeds for arm in args.arms]
    plan = [each for each in plan
            if key_of(dict(arm=each[1], seed=each[0], objective=args.objective,
                           settings=asdict(settings))) not in map(key_of, rows)]
    if args.pilot is None:
        refuse_others(rows, settings)
    glyphs = load_glyphs(args.data, settings)
    if args.plan:
        print_plan(plan, glyphs, args.objective)
        return 0
    if args.time:
        content['head_ms'] = head_times(args, glyphs, settings)
        write(args, rows, content['head_ms'])
    for row in [] if args.time else finished(args, settings, glyphs, plan):
        rows.append(row)
        write(args, rows, content.get('head_ms'))
    print(json.dumps(dict(summary=summarize(rows), decision=decide(rows)), indent=1))
    return 0


def load_glyphs(folder: Path, settings: Settings) -> Glyphs:
    glyphs = Glyphs(folder)
    if glyphs.num_classes != settings.num_classes:
        raise VisionError('VIS-RUN-1240', f'{glyphs.num_classes} classes in {folder}, not '
                          f'{settings.num_classes}', do='python datasets/glyphs/prepare.py --out '
                          f'FOLDER --num-classes {settings.num_classes}, and give it as --data')
    return glyphs


def with_values(settings: Settings, texts: list[str]) -> Settings:
    """Settings with NAME=VALUE changed, for a pilot."""
    types = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    changes = {}
    for text in texts:
        name, _, value = text.partition('=')
        try:
            changes[name] = types[name](value)
        except (KeyError, ValueError) as error:
            raise VisionError('VIS-RUN-1241', f'--pilot {text}', where='Settings',
                              do=f'NAME=VALUE with a name among {", ".join(types)}') from error
    return replace(settings, **changes)


def key_of(row: dict) -> tuple:
    return (row['arm'], row['seed'], row['objective'],
            json.dumps(row['settings'], sort_keys=True))


def refuse_others(rows: list[dict], settings: Settings) -> None:
    """Rows that must not stand beside new ones.

    Raises:
        VisionError: VIS-RUN-1240, other settings, or the code computes something else now.
    """
    for row in rows:
        where = f'arm {row["arm"]}, seed {row["seed"]}, commit {row["commit"]}'
        if row['settings'] != asdict(settings):
            raise VisionError('VIS-RUN-1248', 'a row of other settings', where=where,
                              why='their figures must not be mixed', do='give another --json')
    for arm, objective in {(row['arm'], row['objective']) for row in rows}:
        now = trace(ARMS[arm], objective)
        for row in rows:
            if (row['arm'], row['objective']) == (arm, objective) \
                    and not np.allclose(row['trace'], now, rtol=1e-3):
                raise VisionError(
                    'VIS-RUN-1249', f'the code trains {arm} otherwise than in commit '
                    f'{row["commit"]}', where=f'losses {row["trace"][:4]} against {now[:4]}',
                    why='its rows would be of two methods', do=f'add --again {arm}')


def finished(args: argparse.Namespace, settings: Settings, glyphs: Glyphs,
             plan: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    """Rows of the plan as they are done, by ``--jobs`` processes; trunks first, one by one."""
    if args.jobs == 1 or len(plan) < 2:
        for seed, arm in plan:
            yield run_one(args, settings, glyphs, seed, arm)
        return
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = []
        for seed in dict.fromkeys(seed for seed, _ in plan):
            trunk_of(args, settings, glyphs, seed)
            runs += [pool.submit(run_alone, args, settings, seed, arm)
                     for each, arm in plan if each == seed]
        for run in as_completed(runs):
            yield run.result()


def run_alone(args: argparse.Namespace, settings: Settings, seed: int, arm: str
              ) -> dict[str, Any]:
    """``run_one`` in a process of its own."""
    torch.set_num_threads(1)
    return run_one(args, settings, load_glyphs(args.data, settings), seed, arm)


def run_one(args: argparse.Namespace, settings: Settings, glyphs: Glyphs, seed: int,
            arm: str) -> dict[str, Any]:
    """Trunk, arm, measures: one row."""
    curve, means = [], []

    def report(step: int, loss: float) -> None:
        means.append(loss)
        if step % CURVE_STEPS == 0:
            curve.append([step, round(float(np.mean(means)), 4)])
            print(f'{args.objective} {arm} seed {seed}: step {step}, loss {curve[-1][1]}',
                  flush=True)
            means.clear()

    run = trunk_of(args, settings, glyphs, seed)
    start = run.digest()
    seconds = run.train(ARMS[arm], glyphs, settings.steps, report)
    found = measure(run, glyphs)
    if arm == 'full':
        save_live(run, glyphs, args.work_dir / f'live_{args.objective}_{seed}.pth')
    row = dict(arm=arm, seed=seed, objective=args.objective, commit=commit(),
               settings=asdict(settings), trunk=start, trace=trace(ARMS[arm], args.objective),
               loss_own=curve[-1][1], train_cpu_seconds=round(seconds), curve=curve,
               rank1=round(found['rank1'], 5), rank1_unseen=round(found['rank1_unseen'], 5),
               loss_train=round(found['loss_train'], 4),
               loss_held_out=round(found['loss_held_out'], 4), hits=packed(found['hits']))
    print({name: value for name, value in row.items()
           if name not in ('curve', 'hits', 'settings', 'trace')}, flush=True)
    return row


def trunk_of(args: argparse.Namespace, settings: Settings, glyphs: Glyphs, seed: int) -> Run:
    """The state that all arms of a seed start from, out of its file."""
    run = Run(settings, seed, OBJECTIVES[args.objective]())
    path = args.work_dir / f'trunk_{args.objective}_{seed}.pth'
    if not run.load(path):
        run.train(TRUNK, glyphs, settings.trunk_steps, lambda *_: None)
        run.save(path)
        run.load(path)  # the first arm starts from the file as the others do
    return run


def save_live(run: Run, glyphs: Glyphs, path: Path) -> None:
    """Trained rows with features and labels of training batches, as a step sees them."""
    features, labels = [], []
    with torch.no_grad():
        for step in range(-(-NUM_LIVE // run.settings.batch)):
            pictures, own = glyphs.batch(run.seed, run.step + step, run.settings)
            features.append(run.network(pictures))
            labels.append(own)
    save_checkpoint(dict(state_dict=dict(
        rows=run.store.snapshot(torch.float32), features=torch.cat(features),
        labels=torch.cat(labels))), path)


def packed(hits: np.ndarray) -> str:
    """Probes found of each character, for later intervals: a few kilobytes of text."""
    return base64.b64encode(zlib.compress(hits.astype(np.uint8).tobytes(), 9)).decode()


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(int)


def summarize(rows: list[dict]) -> dict[str, Any]:
    """By objective and arm: each seed's figures, and points of rank-1 less full, random-1 and
    random-10 of the same seeds, with 95 % intervals."""
    summary: dict[str, Any] = {}
    for objective in OBJECTIVES:
        own = [row for row in rows if row['objective'] == objective]
        by = {(row['arm'], row['seed']): row for row in own}
        for arm in ARMS:
            seeds = sorted(seed for name, seed in by if name == arm)
            if not seeds:
                continue
            picked = [by[arm, seed] for seed in seeds]
            entry = dict(seeds=seeds) | {
                name: [round(row[name], 5) for row in picked]
                for name in ('rank1', 'rank1_unseen', 'loss_train', 'loss_held_out', 'loss_own')}
            for other in ('full', 'random-1', 'random-10'):
                pairs = [(by[arm, seed], by[other, seed]) for seed in seeds
                         if (other, seed) in by]
                if other != arm and pairs:
                    entry[f'minus_{other}'] = difference(pairs)
            summary.setdefault(objective, {})[arm] = entry
    return summary


def difference(pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
    """Points of rank-1 between the runs of each pair, and the interval of their mean.

    Characters are drawn with replacement, all their probes and seeds together.
    """
    num_probes = [hits_and_probes(a)[1] for a, _ in pairs][0]
    each = np.stack([hits_and_probes(a)[0] - hits_and_probes(b)[0] for a, b in pairs])
    means, rng = each.mean(axis=0), np.random.default_rng(0)
    drawn = [means[rng.integers(0, len(means), len(means))].mean() for _ in range(NUM_RESAMPLES)]
    scale = 100 * len(means) / num_probes
    low, high = np.percentile(drawn, [2.5, 97.5]) * scale
    return dict(points=[round(float(value), 3) for value in scale * each.mean(axis=1)],
                mean=round(float(scale * means.mean()), 3),
                interval=[round(float(low), 3), round(float(high), 3)])


def hits_and_probes(row: dict) -> tuple[np.ndarray, float]:
    """Hits (characters,) and how many probes there were in all: each character has as many."""
    hits = unpacked(row['hits'])
    return hits, hits.sum() / row['rank1']


def decide(rows: list[dict]) -> dict[str, Any]:
    """``RULE`` applied to the main objective; None where rows are missing."""
    points = {(row['arm'], row['seed']): 100 * row['rank1'] for row in rows
              if row['objective'] == 'cosface'}
    seeds = sorted({seed for _, seed in points})

    def of(arm: str) -> np.ndarray | None:
        found = [points.get((arm, seed)) for seed in seeds]
        return None if not seeds or None in found else np.array(found)

    full, one, ten = of('full'), of('random-1'), of('random-10')
    verdict: dict[str, Any] = dict(seeds=seeds)
    for arm in ('oracle-1', 'ivf-1', 'forest-1'):
        own = of(arm)
        verdict[arm] = dict(
            near_full=None if own is None or full is None else
            bool(np.mean(own - full) >= -NEAR_POINTS - 1e-9),
            better_than_random=None if own is None or one is None or ten is None else
            bool((own > one).all() and np.mean(own - ten) >= -1e-9))
    oracle = of('oracle-1')
    verdict['refuted'] = None if oracle is None or one is None else \
        bool(oracle.mean() <= one.mean())
    return verdict


def write(args: argparse.Namespace, rows: list[dict], head_ms: dict | None) -> None:
    write_report(args.json, rows, is_recorded=args.record, rule=RULE, decision=decide(rows),
                 summary=summarize(rows), head_ms=head_ms, kind='real pictures')


def print_plan(plan: list[tuple[int, str]], glyphs: Glyphs, objective: str) -> None:
    """What is missing; minutes of CPU from a few steps of each arm, evaluation included."""
    settings, total, costs = Settings(), 0.0, {}
    for seed, arm in plan:
        if arm not in costs:
            costs[arm] = step_seconds(arm, glyphs, objective)
        minutes = costs[arm] * settings.steps / 60 + 1
        total += minutes
        print(f'seed {seed}  {arm:10s} {1000 * costs[arm]:6.1f} ms a step, {minutes:5.1f} min')
    print(f'{len(plan)} runs, {total:.0f} minutes of one core, and '
          f'{costs.get("random-10", 0.04) * settings.trunk_steps / 60:.1f} for each trunk')


def step_seconds(arm: str, glyphs: Glyphs, objective: str, num_steps: int = 20) -> float:
    """CPU seconds of a step; a renewal of an index counts as much as its first build."""
    run = Run(Settings(), 0, OBJECTIVES[objective]())
    upkeep = dict(ARMS[arm].options).get('upkeep')
    first, more = (run.train(ARMS[arm], glyphs, count, lambda *_: None)
                   for count in (1, num_steps))
    if upkeep is None:
        return more / num_steps
    # Both made a new selector, which built its index.
    return max(0.0, more - first) / (num_steps - 1) + first / upkeep['interval']


def head_times(args: argparse.Namespace, glyphs: Glyphs, settings: Settings) -> dict[str, Any]:
    """Wall milliseconds of a head's step, all upkeep included, in turn, on live features.

    From the state of the first seed's trunk.
    """
    found: dict[str, list[float]] = {name: [] for name in ('backbone', *args.arms)}
    trunk = args.work_dir / f'trunk_{args.objective}_{args.seeds[0]}.pth'
    for _ in range(NUM_ROUNDS):
        for name in found:
            run = Run(settings, args.seeds[0], OBJECTIVES[args.objective]())
            if not run.load(trunk):
                raise VisionError('VIS-RUN-1250', 'no trunk of these settings', where=str(trunk),
                                  do='run an arm of this seed first')
            found[name].append(time_of(backbone_steps(run, glyphs) if name == 'backbone'
                                       else head_steps(run, glyphs, name)))
    return {name: dict(best=round(min(values), 3), all=[round(value, 3) for value in values])
            for name, values in found.items()}


def backbone_steps(run: Run, glyphs: Glyphs) -> list[Callable[[], None]]:
    batches = [glyphs.batch(run.seed, step, run.settings) for step in range(HEAD_STEPS // 5 + 1)]

    def step(pictures: torch.Tensor) -> None:
        run.network(pictures).sum().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
    return [lambda x=pictures: step(x) for pictures, _ in batches]


def head_steps(run: Run, glyphs: Glyphs, arm: str) -> list[Callable[[], Any]]:
    selector, batches = run.selector(ARMS[arm]), []
    with torch.no_grad():
        for step in range(20):
            pictures, labels = glyphs.batch(run.seed, step, run.settings)
            batches.append((run.network(pictures), labels))

    def step(number: int) -> None:
        features, labels = batches[number % len(batches)]
        run.head_step(selector, ARMS[arm], features.clone().requires_grad_(), labels, 1.0)
        run.step += 1
    return [lambda n=number: step(n) for number in range(HEAD_STEPS + 1)]


def time_of(calls: list[Callable[[], Any]]) -> float:
    """Milliseconds of a call, all but the first (which builds and warms up) together."""
    calls[0]()
    start = time.perf_counter()
    for call in calls[1:]:
        call()
    return 1000 * (time.perf_counter() - start) / (len(calls) - 1)


if __name__ == '__main__':
    keep_freed_memory()  # a third of a step went into clearing pages of logits that came back
    run_cli(main)
