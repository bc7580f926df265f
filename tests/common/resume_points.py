"""Interrupt runs at chosen steps, resume them, and compare with those that were not, bit by bit.

40 points: after the first step, at the end of an epoch, inside the next one, before the last step;
with no and with two processes that load data; plain, with gradients accumulated over three steps
(every point lies between two updates), with averaged weights, in bfloat16, and all of it. Compared
are weights, averaged weights, optimizer, and the loss of each step.

  python tests/common/resume_points.py --json docs/results/resume_points.json --record
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from runs import NUM_STEPS, config, differences, outcome

STEPS = dict(first=1, edge=8, inside=11, last=NUM_STEPS - 1)  # an epoch has 8 steps
KINDS = dict(plain={}, accumulation=dict(accumulation=3), ema=dict(ema=True), amp=dict(amp=True),
             all=dict(accumulation=3, ema=True, amp=True))


@dataclass(frozen=True)
class Point:
    """Where a run is interrupted, and what run it is."""

    kind: str
    workers: int
    step: str

    @property
    def options(self) -> dict:
        return dict(KINDS[self.kind], workers=self.workers)


POINTS = [Point(kind, workers, step) for kind in KINDS for workers in (0, 2) for step in STEPS]


def check(points: list[Point], folder: Path, build: Callable) -> Iterator[dict]:
    """A row for each point, with the names of what differs.

    Args:
        build: from a config to a runner; it may change the config first.
    """
    straight: dict[tuple, dict] = {}
    for number, point in enumerate(points):
        key = point.kind, point.workers
        if key not in straight:
            straight[key] = run(folder / f'{point.kind}{point.workers}', build, **point.options)
        work_dir, step = folder / f'point{number}', STEPS[point.step]
        try:
            run(work_dir, build, crash=step, interval=step, **point.options)
        except RuntimeError as error:
            assert 'crash' in str(error), error
        ended = run(work_dir, build, is_resumed=True, **point.options)
        yield dict(asdict(point), differs=differences(straight[key], ended))


def run(work_dir: Path, build: Callable, *, is_resumed: bool = False, interval: int = NUM_STEPS,
        **options) -> dict[str, torch.Tensor]:
    """What a run ends with that saves every ``interval`` steps; saving must not matter."""
    cfg = config(work_dir, interval=interval, **options)
    cfg.resume = is_resumed
    cfg.experiment_name += '-resumed' if is_resumed else ''
    runner = build(cfg)
    runner.train()
    return outcome(runner)


def main(argv: list[str] | None = None) -> int:
    from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
    from vision.common.mm.runner import ExactRunner
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(check(POINTS, Path(folder), ExactRunner.from_cfg))
    num_equal = sum(not row['differs'] for row in rows)
    print(f'{num_equal} of {len(rows)} resume points end bit-identical')
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, seed=0)
    return 0 if num_equal == len(rows) else 1


if __name__ == '__main__':
    sys.exit(main())
