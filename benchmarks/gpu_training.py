"""Training steps on one GPU: networks by precision, what a runner costs, what is predicted.

  step      median of a step (forward, backward, optimizer) of a plain loop over one batch that
            lies on the device: ResNet-50 and Faster R-CNN of MMDetection, Very Deep PolyNet.
            'default' is what torch does unasked: convolutions in TF32, matrix products not.
  runner    the same ResNet-50 fed by a data loader of pictures in memory, by a plain loop, by
            MMEngine's Runner and by ours: what seeds, checks and exactness cost a step.
  predicted of vision simulate, from a calibration of this device in the same run.

A row that fails holds its error; what does not fit into --seconds is left out, and said.

  python benchmarks/gpu_training.py --json docs/results/gpu_training.json --record
  python benchmarks/gpu_training.py --device cpu --batch 2 --size 64 --steps 2 --models resnet50
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper as MMEngineAmp
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.common.mm.optim import AmpOptimWrapper
from vision.common.mm.runner import ExactRunner
from vision.common.nn.devices import find_device
from vision.registry import MODELS
from vision.simulator.core.calibration import cluster_text
from vision.simulator.core.cluster import Cluster, read_cluster
from vision.simulator.mm.configs import read_training
from vision.simulator.mm.prediction import predict
from vision.simulator.nn.calibrate import TF32, alone
from vision.simulator.nn.measure import Budget

WARM_UP, RUNNER_STEPS, NUM_BOXES, NUM_WORKERS = 3, 60, 8, 8
PREDICTION_S = 22  # kept free for the calibration and all predictions
COLUMNS = ('part', 'model', 'variant', 'batch', 'step_ms', 'images_per_s', 'peak_gib',
           'predicted_ms', 'predicted_gib', 'error')
# variant -> (TF32 of convolutions, of products; autocast; channels last; compiled)
VARIANTS: dict[str, tuple[bool, bool, str | None, bool, bool]] = {
    'float32': (False, False, None, False, False), 'default': (True, False, None, False, False),
    'tf32': (True, True, None, False, False),
    'bfloat16': (True, True, 'bfloat16', False, False),
    'float16': (True, True, 'float16', False, False),
    'bfloat16 channels_last': (True, True, 'bfloat16', True, False),
    'bfloat16 channels_last compiled': (True, True, 'bfloat16', True, True)}
FEW = ('default', 'bfloat16', 'bfloat16 channels_last')


def classifier(backbone: dict) -> dict:
    return dict(type='ImageClassifier', backbone=backbone,
                head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048))


# model -> (config, batch, (height, width), variants)
def models(args: argparse.Namespace) -> dict[str, tuple[dict, int, tuple[int, int], tuple]]:
    side = args.size
    found: dict[str, Any] = dict(
        resnet50=lambda: (classifier(dict(type='mmdet.ResNet', depth=50, out_indices=(3,))),
                          args.batch, (side, side), tuple(VARIANTS)),
        polynet=lambda: (classifier(dict(type='PolyNet', arch='very-deep',
                                         path_scales='released')),
                         max(2, args.batch // 4), (331, 331), FEW),
        faster_rcnn=lambda: (_faster_rcnn(), max(2, args.batch // 16), (800, 1344),
                             ('default', 'float16')))
    return {name: found[name]() for name in args.models}


def _faster_rcnn() -> dict:
    import mmdet
    path = Path(mmdet.__file__).parent / '.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    model = Config.fromfile(path).model
    model.backbone.init_cfg = None
    return dict(model, type='mmdet.FasterRCNN', _scope_='mmdet')


@contextmanager
def precision(variant: str) -> Iterator[None]:
    """TF32 as the variant has it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = VARIANTS[variant][:2]
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


class Clock:
    """Times of steps: by events on a GPU, which nobody waits for until the end."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda, self.marks = device.type == 'cuda', []

    def mark(self) -> None:
        """The end of a step; the first one is that of nothing."""
        mark: Any = time.perf_counter()
        if self.is_cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.append(mark)

    def step_ms(self, num_warm_up: int = 0) -> float:
        marks = self.marks[num_warm_up:]
        if self.is_cuda:
            torch.cuda.synchronize()
            return statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:],
                                                                       strict=False))
        return statistics.median(1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False))


def sample(height: int, width: int, device: torch.device, is_detector: bool) -> Any:
    """Labels of a picture, on the device."""
    if not is_detector:
        made = BaseDataElement(metainfo=dict(img_shape=(height, width)))
        made.gt_label = torch.randint(1000, (1,), device=device)
        return made
    from mmdet.structures import DetDataSample
    made = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width),
                                       pad_shape=(height, width), scale_factor=(1.0, 1.0),
                                       batch_input_shape=(height, width), flip=False))
    left_top = torch.rand(NUM_BOXES, 2) * torch.tensor([width, height]) / 2
    sides = (0.05 + 0.4 * torch.rand(NUM_BOXES, 2)) * torch.tensor([width, height])
    boxes = torch.cat([left_top, left_top + sides], 1).to(device)
    made.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(
        80, (NUM_BOXES,), device=device))
    made.ignored_instances = InstanceData(bboxes=boxes[:0],
                                          labels=made.gt_instances.labels[:0])
    return made


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: dict,
               dtype: torch.dtype | None, scaler: torch.amp.GradScaler) -> None:
    """What a user's own loop does in a step."""
    optimizer.zero_grad()
    device = data['inputs'].device.type
    with torch.autocast(device, dtype, enabled=dtype is not None):
        losses = model(**data, mode='loss')
    loss = sum(part if isinstance(part, Tensor) else sum(part)
               for name, part in losses.items() if 'loss' in name)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def step_row(config: dict, batch: int, size: tuple[int, int], variant: str,
             args: argparse.Namespace) -> dict[str, Any]:
    """Median of a step and the most memory of it."""
    device = args.device
    _, _, autocast, is_channels_last, is_compiled = VARIANTS[variant]
    form = torch.channels_last if is_channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = MODELS.build(config).to(device, memory_format=form).train()
    is_detector = hasattr(model, 'rpn_head')
    if is_compiled:
        model.backbone = torch.compile(model.backbone)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    data = dict(inputs=torch.randn(batch, 3, *size, device=device).to(memory_format=form),
                data_samples=[sample(*size, device, is_detector) for _ in range(batch)])
    dtype = autocast and getattr(torch, autocast)
    step = partial(plain_step, model, optimizer, data, dtype,
                   torch.amp.GradScaler(device.type, enabled=autocast == 'float16'))
    with precision(variant):
        for _ in range(WARM_UP):
            step()
        if device.type == 'cuda':
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        clock = Clock(device)
        clock.mark()
        for _ in range(args.steps):
            step()
            clock.mark()
        ms = clock.step_ms()
    return dict(step_ms=ms, images_per_s=1e3 * batch / ms, peak_gib=peak_gib(device))


def peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == 'cuda' else None


# What a runner costs.
class Pictures(torch.utils.data.Dataset):
    """Pictures of noise in memory, with a label each."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.randint(256, (64, 3, size, size), dtype=torch.uint8)
        self.count, self.size, self.metainfo = count, size, {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        made = BaseDataElement(metainfo=dict(img_shape=(self.size, self.size)))
        made.gt_label = torch.tensor([int(index) % 1000])
        return dict(inputs=self.images[index % 64], data_samples=made)


class ClockHook(Hook):
    priority = 'LOWEST'

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.clock.mark()


def loader_of(args: argparse.Namespace, num_steps: int) -> dict:
    is_cuda = args.device.type == 'cuda'
    return dict(batch_size=args.batch, num_workers=NUM_WORKERS if is_cuda else 0,
                persistent_workers=is_cuda, pin_memory=is_cuda,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=Pictures(args.batch * num_steps, args.size))


def runner_row(kind: str, config: dict, args: argparse.Namespace) -> dict[str, Any]:
    """A step of ResNet-50 in bfloat16 behind a data loader."""
    device = args.device
    num_steps = args.steps if device.type == 'cpu' else max(args.steps, RUNNER_STEPS)
    torch.manual_seed(0)
    clock, loader = Clock(device), loader_of(args, num_steps)
    config = dict(config, data_preprocessor=dict(mean=[127.5] * 3, std=[60.0] * 3,
                                                 non_blocking=True))
    if kind == 'plain loop':
        _plain_loop(MODELS.build(config).to(device).train(), loader, clock, device)
    else:
        cls, amp = (ExactRunner, AmpOptimWrapper) if kind == 'ExactRunner' else \
            (Runner, MMEngineAmp)
        with tempfile.TemporaryDirectory() as folder:
            cls(model=MODELS.build(config), work_dir=folder, train_dataloader=loader,
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=num_steps,
                               val_interval=10**9),
                optim_wrapper=dict(type=amp, dtype='bfloat16', optimizer=dict(
                    type='SGD', lr=1e-3, momentum=0.9)),
                default_hooks=dict(checkpoint=dict(
                    type='CheckpointHook', by_epoch=False, interval=10**9, save_last=False)),
                custom_hooks=[ClockHook(clock)], default_scope='vision', log_level='ERROR',
                experiment_name=f'{kind}-{time.time_ns()}').train()
    ms = clock.step_ms(num_warm_up=num_steps // 4)
    return dict(step_ms=ms, images_per_s=1e3 * args.batch / ms)


def _plain_loop(model: nn.Module, loader: dict, clock: Clock, device: torch.device) -> None:
    from torch.utils.data import DataLoader
    loader = dict(loader, shuffle=True, collate_fn=_stacked)
    loader.pop('sampler')
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    for images, labels in DataLoader(**loader):
        optimizer.zero_grad()
        images = images.to(device, non_blocking=True).float().sub_(127.5).div_(60.0)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(images, mode='tensor')
            loss = nn.functional.cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()
        optimizer.step()
        clock.mark()


def _stacked(samples: list[dict]) -> tuple[Tensor, Tensor]:
    return (torch.stack([each['inputs'] for each in samples]),
            torch.cat([each['data_samples'].gt_label for each in samples]))


# What is predicted.
def calibrated(args: argparse.Namespace) -> tuple[Cluster, str]:
    """The device as a cluster of one, and the file's text."""
    is_cuda = args.device.type == 'cuda'
    dtypes = ['bfloat16', 'float16', 'float32', TF32] if is_cuda else ['float32', 'bfloat16']
    measured = alone('cuda' if is_cuda else 'cpu', dtypes, Budget(0.05 if is_cuda else 0.001, 0.5))
    memory = torch.cuda.get_device_properties(0).total_memory if is_cuda else 2**33
    text = cluster_text(measured, name=device_name(args.device), ranks=1, memory_bytes=memory,
                        provenance=f'torch {torch.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'cluster.yaml'
        path.write_text(text)
        return read_cluster(path), text


def predicted(config: dict, batch: int, size: tuple[int, int], variant: str,
              cluster: Cluster) -> dict[str, float]:
    """Of a step; 'default' is priced as TF32, which nearly all of these networks' work is."""
    autocast = VARIANTS[variant][2]
    wrapper = dict(type='AmpOptimWrapper', dtype=autocast) if autocast else \
        dict(type='OptimWrapper')
    found = predict(read_training(Config(dict(
        model=config, train_dataloader=dict(batch_size=batch), train_cfg=dict(by_epoch=False),
        optim_wrapper=dict(wrapper, optimizer=dict(type='SGD', lr=1e-3, momentum=0.9)))),
        num_gpus=1, image_size=size), cluster, tf32=VARIANTS[variant][0])
    return dict(predicted_ms=1e3 * found.step_seconds,
                predicted_gib=found.verdict.needed_bytes / 2**30)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'


def rows_of(args: argparse.Namespace, found: list[dict], save: Callable[[], None]) -> None:
    """Fill ``found``, the dearest variants last; each row is written as it comes."""
    known = models(args)
    work: list[tuple] = [
        ('step', name, variant, batch, partial(step_row, config, batch, size, variant, args))
        for name, (config, batch, size, variants) in known.items() for variant in variants
        if not VARIANTS[variant][4]]
    if 'resnet50' in known:
        config, batch, size, _ = known['resnet50']
        work[len(VARIANTS) - 1:len(VARIANTS) - 1] = [
            ('runner', 'resnet50', kind, batch, partial(runner_row, kind, config, args))
            for kind in ('plain loop', 'MMEngine Runner', 'ExactRunner')]
        compiled = list(VARIANTS)[-1]
        work.append(('step', 'resnet50', compiled, batch,
                     partial(step_row, config, batch, size, compiled, args)))
    for part, name, variant, batch, measure in work:
        row = dict(part=part, model=name, variant=variant, batch=batch)
        left = args.seconds - PREDICTION_S - (time.monotonic() - args.began)
        # A compilation takes most of a minute and cannot be cut short.
        if left < (45 if variant in VARIANTS and VARIANTS[variant][4] else 3):
            row['left_out'] = f'{left:.0f} s were left'
        else:
            row |= tried(measure)
        found.append(row)
        print({key: round(value, 2) if isinstance(value, float) else value
               for key, value in row.items()}, flush=True)
        save()


def tried(measure: Callable[[], dict]) -> dict[str, Any]:
    """What it gives, or its error: the other rows are measured all the same."""
    try:
        return measure()
    except Exception as error:  # of any library
        return dict(failed=f'{type(error).__name__}: {error}'[:600])
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def add_predictions(args: argparse.Namespace, found: list[dict], cluster: Cluster) -> None:
    for row in found:
        if row['part'] == 'step' and 'step_ms' in row and not VARIANTS[row['variant']][4]:
            config, batch, size, _ = models(args)[row['model']]
            row |= tried(partial(predicted, config, batch, size, row['variant'], cluster))
            if 'predicted_ms' in row:
                row['error'] = row['predicted_ms'] / row['step_ms'] - 1


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--device', default='cuda', help='cuda or cpu (default: cuda)')
    add('--models', nargs='+', default=['resnet50', 'polynet', 'faster_rcnn'],
        choices=('resnet50', 'polynet', 'faster_rcnn'), help='default: all')
    add('--batch', type=int, default=64, help="pictures of ResNet-50's step; PolyNet has a "
        'quarter, Faster R-CNN a sixteenth (default: 64)')
    add('--size', type=int, default=224, help="side of ResNet-50's pictures (default: 224)")
    add('--steps', type=int, default=20, help='timed steps (default: 20)')
    add('--seconds', type=float, default=70.0, help='in all (default: 70; 120 let it compile)')
    add_report_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    args.device, args.began = find_device(args.device), time.monotonic()
    init_default_scope('vision')
    rows: list[dict] = []
    extra = dict(accelerator=device_name(args.device), cluster='')

    def save() -> None:
        if args.json:
            write_report(args.json, rows, is_recorded=args.record, seed=0, **extra)
    rows_of(args, rows, save)
    cluster, extra['cluster'] = calibrated(args)
    save()
    add_predictions(args, rows, cluster)
    save()
    print_table(COLUMNS, [[shown(row, key) for key in COLUMNS] for row in rows], num_left=3)
    return 0


def shown(row: dict, key: str) -> str:
    value = row.get(key, row.get('failed', row.get('left_out', ''))[:40] if key == 'step_ms'
                    else '')
    if key == 'error' and value != '':
        return f'{100 * value:+.0f} %'
    return f'{value:.4g}' if isinstance(value, float) else str('' if value is None else value)


if __name__ == '__main__':
    run_cli(main)
