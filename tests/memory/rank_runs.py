"""Two forked ranks train with and without a budget: python tests/memory/rank_runs.py FOLDER"""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))
import runs_memory
from rank_cases import build, play

from vision.common.mm.runner import ExactRunner
from vision.common.nn.watchdog import ends_together
from vision.memory.mm import hooks

STRATEGIES = dict(none={}, DDPStrategy={}, FSDP2Strategy=dict(wrap=['Linear']))


def builder(strategy):
    if strategy != 'none':
        return build(strategy, **STRATEGIES[strategy])

    def built(cfg):
        cfg.launcher = 'pytorch'
        cfg.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
        return ExactRunner.from_cfg(cfg)
    return built


def case(folder, strategy):
    """One run without a budget and one under it, each accumulating over two batches."""
    units, outcomes = [], []
    boundary = hooks.MemoryBudget.boundary

    def counted(self, module):
        units.append(module)
        return boundary(self, module)

    with ends_together(60), mock.patch.object(hooks.MemoryBudget, 'boundary', counted):
        for name, memory in (('free', None), ('held', dict(budget=0.5))):
            cfg = runs_memory.config(folder / f'{strategy}-{name}', memory, steps=4,
                                     accumulation=2)
            runner, outcome = runs_memory.train(cfg, builder(strategy))
            outcomes.append({key: value.to_local() if hasattr(value, 'to_local') else value
                             for key, value in outcome.items()})
    row = dict(differs=runs_memory.runs.differences(*outcomes), num_units=len(units),
               num_dropped=runs_memory.watch(runner).num_dropped)
    (folder / f'{strategy}-{os.environ["RANK"]}.json').write_text(json.dumps(row))


if __name__ == '__main__':
    torch.set_num_threads(1)
    runs_memory.runs.import_all()
    for strategy in STRATEGIES:
        play(Path(sys.argv[1]), 2, case, strategy)
