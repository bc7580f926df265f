"""What forked ranks of a run do together for the tests of the strategy; results are files.

  python tests/pipeline/run_cases.py CASE FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / 'common'))
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
import runs
import toy  # noqa: F401  registers the data set and hooks
from rank_faults import fork_ranks

from vision.common.mm.flexible import ExactFlexibleRunner
from vision.common.mm.runner import ExactRunner
from vision.common.nn.watchdog import ends_together
from vision.registry import METRICS, MODELS

NUM_STEPS = 6


@MODELS.register_module()
class StackInputs(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = self.cast_data(data)
        return dict(inputs=torch.stack(list(data['inputs'])), data_samples=data['data_samples'])


class Block(nn.Module):
    """With ``norm='twice'`` its body is used twice, with a norm of its own for each."""

    def __init__(self, width, norm, drop):
        super().__init__()
        self.again = nn.LayerNorm(width) if norm == 'twice' else None
        self.norm = nn.BatchNorm1d(width) if norm == 'batch' else nn.LayerNorm(width)
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(drop),
                                  nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.body(self.norm(x))
        return x + (self.body(self.again(y)) if self.again is not None else y)


@MODELS.register_module()
class PipeToy(BaseModel):
    """Regression in six pieces."""

    def __init__(self, width=8, norm='layer', drop=0.0, is_skipping=False):
        super().__init__(dict(type='StackInputs'))
        self.stem = nn.Linear(6, width)
        self.blocks = nn.Sequential(*(Block(width, norm, drop) for _ in range(4)))
        self.head = nn.Linear(width, 1)
        self.is_skipping = is_skipping

    def pipeline_stages(self):
        return ['stem', *(f'blocks.{i}' for i in range(len(self.blocks))), 'head']

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.stem(inputs)
        y = self.blocks(x)
        return self.finish(self.head(y + x if self.is_skipping else y), data_samples, mode)

    def finish(self, outputs, data_samples, mode):
        if mode == 'tensor':
            return outputs
        if mode == 'predict':
            return [dict(value=float(value), target=target)
                    for value, target in zip(outputs[:, 0], data_samples, strict=True)]
        target = torch.tensor(data_samples, dtype=torch.float32, device=outputs.device)
        error = outputs[:, 0].float() - target
        return dict(loss=error.square().mean(), error=error.detach().abs().mean())


@METRICS.register_module()
class MeanError(BaseMetric):
    """Also tells how many samples were seen, and in which order."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [(each['value'], each['target']) for each in data_samples]

    def compute_metrics(self, results):
        order = sum(i * target for i, (_, target) in enumerate(results))
        return dict(error=sum(abs(v - t) for v, t in results) / len(results),
                    count=len(results), order=order)


def config(work_dir, *, steps=NUM_STEPS, batch_size=12, model=None, clip=0.5, ema=False,
           amp=False, drop_last=True, val=False, strategy=None, is_plain=True, **options):
    hooks = [dict(type='EMAHook', momentum=0.1)] if ema else []
    if options.get('crash'):
        hooks.append(dict(type='CrashHook', step=options['crash'], priority='LOWEST'))
    rank, hook = options.get('hook_of_rank', (None, None))
    if os.environ.get('RANK') == str(rank):
        hooks.append(hook)
    cfg = dict(
        default_scope='vision', work_dir=str(work_dir),
        model=dict(type='PipeToy', **(model or {})),
        train_dataloader=dict(batch_size=batch_size, num_workers=0, drop_last=drop_last,
                              sampler=dict(type='DefaultSampler', shuffle=True),
                              dataset=dict(type='ToyDataset', is_plain=is_plain)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=1000),
        custom_hooks=hooks, log_level='ERROR',
        optim_wrapper=dict(type='AmpOptimWrapper' if amp else 'OptimWrapper',
                           clip_grad=dict(max_norm=clip),
                           accumulative_counts=options.get('accumulation', 1),
                           paramwise_cfg=dict(norm_decay_mult=0.0),
                           # Adam makes much of rounding where a gradient is next to nothing.
                           optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1, eps=1e-3)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=20, end=50, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
        load_from=options.get('load_from'), resume=options.get('resume', False),
        experiment_name=f'pipe-{Path(work_dir).name}')
    if val:
        cfg.update(val_dataloader=dict(
            batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='ToyDataset', is_plain=True)), val_evaluator=dict(type='MeanError'),
            val_cfg=dict(type='ValLoop'), test_dataloader=dict(
            batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='ToyDataset', is_plain=True)), test_evaluator=dict(type='MeanError'),
            test_cfg=dict(type='TestLoop'))
    if strategy is not None:
        cfg.update(strategy=strategy, launcher='pytorch',
                   env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=60)))
    return Config(cfg)


def zeropp(**options):
    return dict(dict(type='ZeroPPStrategy', num_microbatches=4, unit=2), **options)


def build(cfg):
    if 'strategy' not in cfg:
        return ExactRunner.from_cfg(cfg)
    with mock.patch('mmengine._strategy.base.collect_env', dict):
        return ExactFlexibleRunner.from_cfg(cfg)


def outcome(runner):
    log = runner.message_hub.log_scalars
    return dict(losses=log['train/loss'].data[0].tolist(),
                norms=log['train/grad_norm'].data[0].tolist(),
                error=log['train/error'].data[0].tolist(),
                lr=[group['lr'] for group in runner.optim_wrapper.param_groups])


def train(folder, name, options):
    """On each rank; leaves NAME-RANK.json, and checkpoints in folder/NAME."""
    with ends_together(60):
        runner = build(config(folder / name, **options))
        runner.train()
    rank = os.environ.get('RANK', '0')
    (folder / f'{name}-{rank}.json').write_text(json.dumps(outcome(runner)))


def test(folder, name, options):
    with ends_together(60):
        metrics = build(config(folder / name, val=True, **options)).test()
    rank = os.environ.get('RANK', '0')
    (folder / f'{name}-{rank}.json').write_text(json.dumps(metrics))


def play(folder, ranks, work, *args, fails=False):
    ended = fork_ranks(work, ranks, folder, *args, wait_s=300)
    texts = [f'--- rank {rank} ended with {end.code}:\n{end.text[-40_000:]}'
             for rank, end in enumerate(ended) if end.code != 0]
    if fails:
        return [end.code for end in ended], '\n'.join(texts)
    if texts:
        print(*texts, file=sys.stderr)
    assert not texts, work.__name__
    return None


def equality(folder):
    """The same run by one process and by pipelines."""
    play(folder, 1, train, 'one', dict())
    for name, ranks, batch, strategy in (
            ('pp2', 2, 12, zeropp(pp=2)),
            ('pp4', 4, 12, zeropp(pp=4, chunks=1, unit='auto', schedule='zeropp')),
            ('pp2dp2', 4, 6, zeropp(pp=2, dp=2, num_microbatches=3, chunks=3)),
            ('bf16', 4, 6, zeropp(pp=2, dp=2, num_microbatches=3, chunks=3,
                                  param_dtype='bfloat16', reduce_grad='per_step')),
            ('gpipe', 2, 12, zeropp(pp=2, schedule='gpipe', unit='auto', checkpoint='full')),
            ('zbv', 2, 12, zeropp(pp=2, schedule='zbv', unit='auto', cut=[2, 2, 1, 1]))):
        play(folder, ranks, train, name, dict(batch_size=batch, strategy=strategy))


def tied(folder):
    """Weights that are used behind another use of themselves."""
    model = dict(norm='twice')
    play(folder, 1, train, 'one', dict(model=model))
    play(folder, 2, train, 'pp2', dict(model=model, strategy=zeropp(pp=2)))


def resumed(folder):
    """Everything that a step depends on, dropout and BatchNorm's averages too, stopped and gone
    on with by the same ranks. Where a unit is chosen by measurement, what goes on is the very run
    that chose it: another one may choose another, and dropout is drawn in another order."""
    for name, ranks, options in (
            ('dp1', 2, dict(strategy=zeropp(pp=2, schedule='zeropp', unit='auto'), amp=True)),
            ('dp2', 4, dict(batch_size=6, strategy=zeropp(pp=2, dp=2, num_microbatches=3,
                                                          chunks=2)))):
        options = dict(options, model=dict(norm='batch', drop=0.3), ema=True, is_plain=False)
        play(folder, ranks, train, f'{name}-whole', options)
        if options['strategy']['unit'] == 'auto':
            (folder / f'{name}-cut').mkdir()
            shutil.copytree(folder / f'{name}-whole' / 'iter_3.pth',
                            folder / f'{name}-cut' / 'iter_3.pth')
        else:
            play(folder, ranks, train, f'{name}-cut', dict(options, crash=4), fails=True)
        play(folder, ranks, train, f'{name}-cut', dict(options, resume=True))


FORMS = (('one', 1, 12, None), ('pp4', 4, 12, zeropp(pp=4, chunks=1)),
         ('pp2dp2', 4, 6, zeropp(pp=2, dp=2, num_microbatches=3, chunks=2)),
         ('full', 2, 12, zeropp(pp=2, checkpoint='full', unit=4)),
         ('fsdp2', 2, 6, dict(type='FSDP2Strategy')), ('pp2', 2, 12, zeropp(pp=2)),
         ('last', 1, 12, None))


def others(folder):
    """One run whose checkpoints are taken up by other numbers and kinds of ranks, one behind the
    other: three steps each."""
    names = [name for name, *_ in FORMS]
    play(folder, 1, train, 'whole', dict(steps=3 * len(FORMS), ema=True))
    for number, (name, ranks, batch, strategy) in enumerate(FORMS):
        options = dict(steps=3 * number + 3, batch_size=batch, strategy=strategy, ema=True)
        if number:
            last = folder / names[number - 1] / f'iter_{3 * number}.pth'
            options.update(load_from=str(last), resume=True)
        play(folder, ranks, train, name, options)


def evaluated(folder):
    """Metrics of one checkpoint by one process and by pipelines; 30 samples in batches of 8."""
    play(folder, 1, train, 'train', dict(model=dict(norm='batch')))
    load = dict(load_from=str(folder / 'train' / 'iter_6.pth'), model=dict(norm='batch'))
    for name, ranks, strategy in (('one', 1, None), ('pp2', 2, zeropp(pp=2)),
                                  ('pp3', 3, zeropp(pp=3, num_microbatches=7)),
                                  ('pp2dp2', 4, zeropp(pp=2, dp=2, chunks=2))):
        play(folder, ranks, test, name, dict(load, strategy=strategy))


WRONG = dict(
    processes=(dict(strategy=zeropp(pp=3)), 'VIS-CONFIG-1530'),
    schedule=(dict(strategy=zeropp(pp=2, schedule='2f2b')), 'VIS-CONFIG-1535'),
    unit=(dict(strategy=zeropp(pp=2, unit=9)), 'VIS-CONFIG-1535'),
    useless=(dict(strategy=zeropp(pp=2, schedule='gpipe', unit=2)), 'VIS-CONFIG-1535'),
    memory=(dict(strategy=zeropp(pp=2, unit='auto', memory='500 B')), 'VIS-CONFIG-1503'),
    ratio=(dict(strategy=zeropp(pp=2, memory='50%')), 'VIS-CONFIG-1535'),
    reshard=(dict(strategy=zeropp(pp=2, reshard_after_forward=True)), 'VIS-CONFIG-1535'),
    layers=(dict(strategy=zeropp(pp=2, chunks=4)), 'VIS-CONFIG-1501'),
    cut=(dict(strategy=zeropp(pp=2, cut=[1, 1, 1, 1])), 'VIS-CONFIG-1535'),
    batch=(dict(batch_size=10, strategy=zeropp(pp=2)), 'VIS-CONFIG-1511'),
    skip=(dict(model=dict(is_skipping=True), strategy=zeropp(pp=2)), 'VIS-CONFIG-1524'),
    names=(dict(strategy=zeropp(pp=2, stages=['stem', 'blocks', 'neck', 'head'])),
           'VIS-CONFIG-1521'),
    accumulation=(dict(accumulation=2, strategy=zeropp(pp=2)), 'VIS-CONFIG-1549'))


def wrong(folder):
    """What each wrong option ends with, on two ranks."""
    found = {name: play(folder, 2, train, name, options, fails=True)
             for name, (options, _) in WRONG.items()}
    (folder / 'wrong.json').write_text(json.dumps(found))


def dies(folder):
    """A rank of the last stage raises, another is killed, in the fifth step."""
    for name, hook in (('raises', dict(type='CrashHook', step=5, priority='LOWEST')),
                       ('killed', dict(type='CrashHook', step=5, kill=True, priority='LOWEST'))):
        found = play(folder, 4, train, name, dict(
            batch_size=6, strategy=zeropp(pp=2, dp=2, num_microbatches=3, chunks=2),
            hook_of_rank=(3, hook)), fails=True)
        (folder / f'{name}.json').write_text(json.dumps(found))


def classifiers(folder, data_root):
    """Configs of this codebase with small networks on pictures: three steps each. BatchNorm looks
    at a micro-batch, so that PolyNet is compared over two pipelines, the ViT with one process."""
    vit = 'configs/pipeline/vit-tiny_pp4_imagenette160.py', dict(
        arch=dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=96),
        drop_path_rate=0.0), dict(in_channels=48)
    polynet = 'configs/pipeline/polynet-small_pp2_imagenette160.py', dict(
        arch=[['1-way', 'poly-2']] * 3), dict()
    for name, ranks, (path, backbone, head), strategy in (
            ('vit-one', 1, vit, None), ('vit-pp2', 2, vit, zeropp(pp=2, num_microbatches=2)),
            ('polynet-gpipe', 2, polynet, zeropp(pp=2, num_microbatches=2, schedule='gpipe',
                                                 unit='auto')),
            ('polynet-zeropp', 2, polynet, zeropp(pp=2, num_microbatches=2))):
        play(folder, ranks, train_pictures, name, path, backbone, head, strategy, data_root)


def train_pictures(folder, name, path, backbone, head, strategy, data_root):
    cfg = Config.fromfile(Path(__file__).parents[2] / path)
    cfg.model.backbone.update(backbone)
    cfg.model.head.update(head)
    cfg.train_dataloader.update(batch_size=8, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = str(data_root)
    for key in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg.pop(f'{key}_{part}', None)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, weight_decay=1e-4)
    cfg.param_scheduler = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=10)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=3)
    cfg.update(work_dir=str(folder / name), log_level='ERROR', experiment_name=name)
    if strategy is None:
        cfg.pop('strategy')
    else:
        cfg.update(strategy=strategy, launcher='pytorch',
                   env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=60)))
    with ends_together(60):
        runner = build(cfg)
        runner.train()
    (folder / f'{name}-{os.environ["RANK"]}.json').write_text(json.dumps(
        runner.message_hub.get_scalar('train/loss').data[0].tolist()))


CASES = dict(classifiers=classifiers, equality=equality, tied=tied, wrong=wrong, dies=dies,
             resumed=resumed, others=others, evaluated=evaluated)

if __name__ == '__main__':
    runs.import_all()
    CASES[sys.argv[1]](*map(Path, sys.argv[2:]))
