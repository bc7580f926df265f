"""A small run with every source of randomness: shuffling, augmentation, dropout."""

import os
import random
import signal
import time

import mmengine.runner.runner
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from vision.registry import DATASETS, HOOKS, METRICS, MODELS

# MMEngine asks compilers and drivers for their versions at every start: two seconds.
mmengine.runner.runner.collect_env = dict


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, nan_from=None, is_plain=False, die=None, **kwargs):
        self.nan_from, self.is_plain, self.die = nan_from, is_plain, die
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=i) for i in range(30)]

    def prepare_data(self, idx):
        if self.die and idx == 17:
            end(self.die)
        generator = np.random.default_rng(idx)
        if self.is_plain:
            return dict(inputs=torch.tensor(generator.normal(size=6), dtype=torch.float32),
                        data_samples=float(idx % 3))
        x = generator.normal(size=6) + np.random.normal(0, 0.3, 6) + random.gauss(0, 0.1)
        x = torch.tensor(x, dtype=torch.float32) + torch.randn(6) * 0.1
        if self.nan_from is not None and idx >= self.nan_from:
            x = x * float('nan')
        return dict(inputs=x, data_samples=float(idx % 3))


def end(how):
    """As a process of the data loader may end."""
    if how == 'memory':
        raise MemoryError
    if how == 'exit':
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


@MODELS.register_module()
class ToyModel(BaseModel):
    factor = 1.0  # of the loss

    def __init__(self, width=16, is_plain=False):
        super().__init__()
        parts = [] if is_plain else [nn.BatchNorm1d(width), nn.Dropout(0.4)]
        self.net = nn.Sequential(nn.Linear(6, width), *parts, nn.ReLU(), nn.Linear(width, 1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        x, target = torch.stack(list(inputs)), torch.tensor(data_samples)
        if mode == 'predict':
            return list(self.net(x)[:, 0])
        loss = (self.net(x)[:, 0] - target.to(x)).square().mean()
        return dict(loss=loss * self.factor)


@METRICS.register_module()
class Better(BaseMetric):
    """Each validation is the best so far."""

    num_validations = 0

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        self.num_validations += 1
        return dict(score=self.num_validations)


@HOOKS.register_module()
class PoisonHook(Hook):
    """Makes data, loss or gradient of some steps (counted from 1) NaN, or the loss jump."""

    def __init__(self, where, steps):
        self.where, self.steps = where, steps

    def before_train(self, runner):
        if self.where == 'gradient':
            next(runner.model.parameters()).register_hook(
                lambda g: g * float('nan') if runner.iter + 1 in self.steps else g)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        is_bad = runner.iter + 1 in self.steps
        if self.where == 'data' and is_bad:
            data_batch['inputs'][0].mul_(float('nan'))
        factors = dict(loss=float('nan'), spike=1000.0)
        runner.model.factor = factors.get(self.where, 1.0) if is_bad else 1.0


@HOOKS.register_module()
class CrashHook(Hook):
    """Ends the process after a step as a power cut would: no clean-up, or an error."""

    def __init__(self, step, kill=False):
        self.step, self.kill = step, kill

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('crash')


@HOOKS.register_module()
class SlowHook(Hook):
    """Steps long enough for a test to send a signal within one."""

    def __init__(self, seconds):
        self.seconds = seconds

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(self.seconds)


@HOOKS.register_module()
class FullDiskHook(Hook):
    """Fills the disk of the work_dir after step ``first``, to the last byte, until ``last``."""

    priority = 'VERY_HIGH'  # before the checkpoint of the same step is written

    def __init__(self, first, last):
        self.first, self.last = first, last

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        filler = os.path.join(runner.work_dir, 'filler')
        if runner.iter + 1 == self.first:
            with open(filler, 'wb', buffering=0) as file:
                for size in (1 << 16, 1 << 10, 1):
                    while True:
                        try:
                            file.write(bytes(size))
                        except OSError:
                            break
        if runner.iter + 1 == self.last:
            os.unlink(filler)
