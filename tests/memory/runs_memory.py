"""Small runs whose activations are worth a budget; what the managed steps did is kept."""

import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / 'common'))
import runs
import toy

from vision.memory.mm.hooks import ActivationMemoryHook
from vision.registry import HOOKS, MODELS

STEPS = 8


@MODELS.register_module()
class DeepToy(toy.ToyModel):
    """Activations are most of a step: 256 rows through six blocks of width 48."""

    def __init__(self, is_plain=False):
        super().__init__()
        blocks = [nn.Linear(6, 48)]
        for _ in range(6):
            blocks += [nn.Linear(48, 48)] + ([] if is_plain else [nn.BatchNorm1d(48)])
            blocks += [nn.ReLU(inplace=True)] + ([] if is_plain else [nn.Dropout(0.2)])
        self.net = nn.Sequential(*blocks, nn.Linear(48, 1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        rows = torch.stack(list(inputs)).repeat(64, 1)
        target = torch.tensor(data_samples).repeat(64)
        loss = (self.net(rows)[:, 0] - target.to(rows)).square().mean()
        return dict(loss=loss * self.factor)


@HOOKS.register_module()
class WatchHook(Hook):
    """Keeps what each step did, and what a run left in its model."""

    priority = 'LOW'

    def __init__(self):
        self.reports, self.steps = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append(vars(runner.model).get('train_step'))
        hook = memory_hook(runner)
        if hook is not None and hook.manager is not None:
            self.reports.append(hook.manager.report())

    @property
    def num_dropped(self) -> int:
        return sum(sum(report.drops.values()) for report in self.reports)


def memory_hook(runner):
    return next((hook for hook in runner.hooks if isinstance(hook, ActivationMemoryHook)), None)


def watch(runner) -> WatchHook:
    return next(hook for hook in runner.hooks if isinstance(hook, WatchHook))


def config(work_dir, memory=None, *, resume=False, is_plain=False, **options):
    """Of a run of ``DeepToy``; ``memory`` are the arguments of ``activation_memory``."""
    cfg = runs.config(work_dir, **dict(dict(steps=STEPS), **options))
    cfg.model = dict(type='DeepToy', is_plain=is_plain)
    cfg.custom_hooks.append(dict(type='WatchHook'))
    cfg.resume = resume
    if memory is not None:
        cfg.activation_memory = dict(dict(min_bytes=1024), **memory)
    cfg.experiment_name = f'{work_dir.name}-{resume}'
    return cfg


def train(cfg, build=runs.ExactRunner.from_cfg):
    """The runner of a finished run, and all that it ended with."""
    runner = build(cfg)
    runner.train()
    return runner, runs.outcome(runner)
