"""Small runs of ``toy`` that tests start, interrupt and resume, and what they end with."""

import gc
from pathlib import Path

import torch
import toy  # noqa: F401  registers the toy classes
from mmengine.config import Config
from mmengine.hooks import EMAHook

from vision.common.mm.runner import ExactRunner
from vision.registry import import_rooms

NUM_STEPS = 17  # of 4 of 30 samples: two epochs and a step


def config(work_dir: Path, *, loop: str = 'iter', workers: int = 0, crash: int | None = None,
           steps: int = NUM_STEPS, interval: int = 1, endless: bool = False,
           accumulation: int = 1, ema: bool = False, amp: bool = False, **options) -> Config:
    """Names no hook of ours: the runner adds them. ``options`` are those of the data set."""
    hooks = []
    if crash:
        hooks.append(dict(type='CrashHook', step=crash, priority='LOWEST'))
    if ema:
        hooks.append(dict(type='EMAHook', momentum=0.1))
    sampler = dict(type='InfiniteSampler' if endless else 'DefaultSampler', shuffle=True)
    loops = dict(iter=dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=1000),
                 epoch=dict(type='EpochBasedTrainLoop', max_epochs=3))
    return Config(dict(
        default_scope='vision', work_dir=str(work_dir), model=dict(type='ToyModel'),
        train_dataloader=dict(batch_size=4, num_workers=workers, sampler=sampler,
                              persistent_workers=workers > 0,
                              dataset=dict(type='ToyDataset', **options)),
        train_cfg=loops[loop], custom_hooks=hooks, log_level='ERROR',
        optim_wrapper=dict(type='AmpOptimWrapper' if amp else 'OptimWrapper',
                           accumulative_counts=accumulation,
                           optimizer=dict(type='Adam', lr=0.01)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=20, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False,
                                           interval=interval, max_keep_ckpts=3)),
        experiment_name=f'toy-{work_dir.name}-{crash}'))


def import_all() -> None:
    """What a run imports when it begins, so that forks need not: three seconds in each."""
    import_rooms()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    gc.freeze()  # MMEngine collects garbage for each data set, a third of a second over all this


def train(*args, **kwargs) -> dict[str, torch.Tensor]:
    runner = ExactRunner.from_cfg(config(*args, **kwargs))
    return {k: v.clone() for k, v in runner.train().state_dict().items()}


def resumed(work_dir: Path, **kwargs) -> dict[str, torch.Tensor]:
    cfg = config(work_dir, **kwargs)
    cfg.resume = True
    cfg.experiment_name += '-resumed'
    return ExactRunner.from_cfg(cfg).train().state_dict()


def outcome(runner) -> dict[str, torch.Tensor]:
    """All that a run ends with: weights, averaged weights, optimizer, loss of each step."""
    parts = dict(weights=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict(),
                 losses=torch.tensor(runner.message_hub.get_scalar('train/loss').data[0]),
                 ema=[hook.ema_model.state_dict() for hook in runner.hooks
                      if isinstance(hook, EMAHook)])
    return {name: value.clone() for name, value in _tensors(parts, '')}


def _tensors(value, name: str):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f'{name}/{key}')
    elif isinstance(value, int | float):
        yield name, torch.tensor(value, dtype=torch.float64)


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    return sorted(a.keys() ^ b.keys()) + [name for name in sorted(a.keys() & b.keys())
                                          if not torch.equal(a[name], b[name])]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert not differences(a, b)
