"""A small run with every source of randomness: shuffling, augmentation, dropout."""

import os
import random
import signal
import time

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from vision.registry import DATASETS, HOOKS, MODELS


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, nan_from=None, **kwargs):
        self.nan_from = nan_from
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=i) for i in range(30)]

    def prepare_data(self, idx):
        generator = np.random.default_rng(idx)
        x = generator.normal(size=6) + np.random.normal(0, 0.3, 6) + random.gauss(0, 0.1)
        x = torch.tensor(x, dtype=torch.float32) + torch.randn(6) * 0.1
        if self.nan_from is not None and idx >= self.nan_from:
            x = x * float('nan')
        return dict(inputs=x, data_samples=float(idx % 3))


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, width=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(),
                                 nn.Dropout(0.4), nn.Linear(width, 1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        x, target = torch.stack(list(inputs)), torch.tensor(data_samples)
        return dict(loss=(self.net(x)[:, 0] - target.to(x)).square().mean())


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
