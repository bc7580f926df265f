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

# (strategy, its options); in 'layers' each layer is a unit, in 'whole' they are gathered at once.
CASES = dict(plain=(None, {}), ddp=('DDPStrategy', {}),
             layers=('FSDP2Strategy', dict(wrap=['Linear'])),
             whole=('FSDP2Strategy', dict(wrap=['Sequential'])))


def builder(name):
    strategy, options = CASES[name]
    if strategy:
        return build(strategy, **options)

    def built(cfg):
        cfg.launcher = 'pytorch'
        cfg.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
        return ExactRunner.from_cfg(cfg)
    return built


def case(folder, name):
    """One run without a budget and one under it, each accumulating over two batches."""
    units, outcomes = [], []
    boundary = hooks.MemoryBudget.boundary

    def counted(self, module):
        units.append(module)
        return boundary(self, module)

    with ends_together(60), mock.patch.object(hooks.MemoryBudget, 'boundary', counted):
        # Where layers are units, only swaps are left to do; elsewhere replays are what is tried.
        held = dict(budget=0.5, actions='both' if name == 'layers' else 'recompute')
        for kind, memory in (('free', None), ('held', held)):
            cfg = runs_memory.config(folder / f'{name}-{kind}', memory, accumulation=2)
            runner, outcome = runs_memory.train(cfg, builder(name))
            outcomes.append({key: value.to_local() if hasattr(value, 'to_local') else value
                             for key, value in outcome.items()})
    row = dict(differs=runs_memory.runs.differences(*outcomes), num_units=len(units),
               num_dropped=runs_memory.watch(runner).num_dropped,
               num_replayed=sum(report.replayed_calls
                                for report in runs_memory.watch(runner).reports))
    (folder / f'{name}-{os.environ["RANK"]}.json').write_text(json.dumps(row))


if __name__ == '__main__':
    torch.set_num_threads(1)
    runs_memory.runs.import_all()
    for name in CASES:
        play(Path(sys.argv[1]), 2, case, name)
