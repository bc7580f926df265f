"""The resume points of ``resume_points`` in several processes, by DDP or FSDP2.

Compared on every rank are weights, averaged weights, optimizer and losses, bit by bit; shards as
they lie there.

  python tests/common/rank_points.py --strategy FSDP2Strategy --json docs/results/FILE.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import resume_points
from rank_processes import start_ranks, wait_for_ranks

from vision.common.mm.flexible import ExactFlexibleRunner

STRATEGIES = ('DDPStrategy', 'FSDP2Strategy')


def build(strategy: str):
    """From a config to a runner of this strategy."""
    def built(cfg):
        cfg.strategy = dict(type=strategy)
        cfg.launcher = 'pytorch'
        cfg.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
        # MMEngine asks compilers and drivers for their versions at every start: two seconds.
        with mock.patch('mmengine._strategy.base.collect_env', dict):
            return ExactFlexibleRunner.from_cfg(cfg)
    return built


def local(outcome: dict) -> dict:
    return {name: value.to_local() if hasattr(value, 'to_local') else value
            for name, value in outcome.items()}


def rank_main(strategy: str, folder: Path, numbers: list[int]) -> None:
    outcome = resume_points.outcome
    resume_points.outcome = lambda runner: local(outcome(runner))
    points = [resume_points.POINTS[number] for number in numbers]
    rows = list(resume_points.check(points, folder, build(strategy)))
    Path(folder, f'rows-{dist.get_rank()}.json').write_text(json.dumps(rows))
    dist.barrier()
    os._exit(0)  # torch's gloo now and then aborts while Python shuts down, all work done


def rows_of(strategy: str, folder: Path, numbers: list[int], *, num_ranks: int = 2,
            timeout: float = 300) -> list[dict]:
    """A row for each point; ``differs`` has the names that differ on any rank."""
    folder.mkdir()
    ranks = start_ranks([__file__, '--rank', strategy, str(folder), *map(str, numbers)],
                        num_ranks)
    wait_for_ranks(ranks, timeout)
    found = [json.loads((folder / f'rows-{rank}.json').read_text()) for rank in range(num_ranks)]
    return [dict(rows[0], strategy=strategy, ranks=num_ranks,
                 differs=sorted(set().union(*(row['differs'] for row in rows))))
            for rows in zip(*found, strict=True)]


def main() -> int:
    from vision.common.core.report import write_report
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--strategy', choices=STRATEGIES, action='append')
    parser.add_argument('--json', type=Path, help='write the rows here')
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for strategy in args.strategy or STRATEGIES:
            rows += rows_of(strategy, Path(folder) / strategy,
                            list(range(len(resume_points.POINTS))), timeout=3000)
    num_equal = sum(not row['differs'] for row in rows)
    print(f'{num_equal} of {len(rows)} resume points end bit-identical')
    if args.json:
        write_report(args.json, rows, seed=0)
    return 0 if num_equal == len(rows) else 1


if __name__ == '__main__':
    if sys.argv[1:2] == ['--rank']:
        torch.set_num_threads(1)
        rank_main(sys.argv[2], Path(sys.argv[3]), list(map(int, sys.argv[4:])))
    else:
        sys.exit(main())
