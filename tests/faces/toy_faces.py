"""A recogniser small enough for tests: flat images, one linear layer, few identities."""

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModule
from mmengine.structures import BaseDataElement
from torch import nn

from vision.registry import DATASETS, MODELS

NUM_CLASSES, DIM, SIZE = 24, 8, 6


@DATASETS.register_module()
class ToyIdentities(BaseDataset):
    """``num_images`` noisy grey images of each of ``NUM_CLASSES`` patterns."""

    def __init__(self, num_images=4, bad_label=None, nan_at=None, num_classes=NUM_CLASSES,
                 **kwargs):
        self.num_images, self.bad_label, self.nan_at = num_images, bad_label, nan_at
        super().__init__(metainfo=dict(num_classes=num_classes), **kwargs)

    def load_data_list(self):
        return [dict(label=i % NUM_CLASSES) for i in range(self.num_images * NUM_CLASSES)]

    def prepare_data(self, idx):
        label = idx % NUM_CLASSES
        pattern = np.random.default_rng(label).normal(size=(1, SIZE, SIZE))
        image = pattern + np.random.default_rng(idx).normal(0, 0.5, pattern.shape)
        image = torch.tensor(image, dtype=torch.float32)
        if idx == self.nan_at:
            image = image * float('nan')
        if idx == 0 and self.bad_label is not None:
            label = self.bad_label
        return dict(inputs=image,
                    data_samples=BaseDataElement(gt_label=torch.tensor([label])))


@MODELS.register_module()
class ToyEmbedding(BaseModule):
    """No batch norm: ranks then compute what one process computes."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 16), nn.Tanh(),
                                 nn.Linear(16, DIM))

    def forward(self, x):
        return self.net(x)


def head_config(**options):
    return dict(dict(type='ActiveClassHead', num_classes=NUM_CLASSES, in_channels=DIM,
                     margin=dict(type='ArcFace', scale=8.0, margin=0.2),
                     selector=dict(type='random', num_active=12),
                     store=dict(optimizer=dict(type='sgd', momentum=0.9, weight_decay=1e-4))),
                **options)


def config(work_dir, *, max_iters=12, interval=4, batch_size=8, head=None, dataset=None,
           launcher='none', **options):
    """Config of a run of a few steps with every hook of configs/_base_/runtime.py."""
    from mmengine.config import Config
    return Config(dict(dict(
        default_scope='vision', runner_type='ExactRunner', work_dir=str(work_dir),
        randomness=dict(seed=3), launcher=launcher, log_level='ERROR',
        env_cfg=dict(dist_cfg=dict(backend='gloo')), log_processor=dict(by_epoch=False),
        model=dict(type='FaceRecognizer', backbone=dict(type='ToyEmbedding'),
                   head=head or head_config()),
        train_dataloader=dict(
            batch_size=batch_size, num_workers=0, dataset=dict(type='ToyIdentities',
                                                               **(dataset or {})),
            sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000),
        optim_wrapper=dict(type='OptimWrapper',
                           optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[5, 9], gamma=0.3,
                              end=1000)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False,
                                           interval=interval),
                           logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='ExactnessHook'), dict(type='NonFiniteHook'),
                      dict(type='ActiveClassHook')]), **options))
