"""Small PolyNets trained from scratch: against plain twins at equal compute, and by insertion.

Runs, each with every seed (40 px images, padding 'same', widths of the published network):
  poly           1-2-1 modules: A mpoly-2, B mpoly-3, C mpoly-2; --epochs epochs
  twin           1-2-1 plain units (1-way), trained for more epochs: equal training MACs
  inserted       the trained twin's weights in the poly net (new blocks random), half the epochs
  deeper-twin    2-6-2 plain units, as many epochs as poly: equal MACs by more modules
Each has its own warm-up and cosine schedule over its own length. A finished run is written at
once; started again, the command goes on with the runs that are missing.

  python benchmarks/polynet_training.py --data DATA/imagenette160-mini \\
      --json docs/results/polynet_training.json --record
  python benchmarks/plot_polynet_training.py docs/results/polynet_training.json --out x.png
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vision.classify.core.folders import list_image_folder
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write
from vision.common.core.report import (
    add_report_options,
    earlier_report,
    refuse_no_evidence,
    running_commit,
    write_report,
)
from vision.common.nn.checkpoint import load_checkpoint
from vision.polynet.core.arch import Arch, uniform
from vision.polynet.core.insertion import plan_insertion
from vision.polynet.nn.insertion import grow

POLY = Arch((('mpoly-2',), ('mpoly-3',) * 2, ('mpoly-2',)))
ARCHS = {'twin': uniform(1, 2, 1), 'poly': POLY, 'inserted': POLY,
         'deeper-twin': uniform(2, 6, 2)}
SIZE, STORED = 40, 45  # training crops out of images stored at 45 px; the centre is judged
# AdamW, our choice, the same for all runs. The classifier learns slower: its 2048 pooled features
# are all positive, so one Adam step of rate r moves a logit by about 2048 r times their mean.
BATCH, LR, HEAD_LR, WEIGHT_DECAY = 16, 5e-4, 5e-5, 0.05
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def load_split(folder: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All images as (N, 3, STORED, STORED) uint8 RGB, their labels and the number of classes."""
    import cv2

    from vision.common.nn.images import read_image
    images = list_image_folder(folder)
    pixels = []
    for path in images.paths:
        image = read_image(folder / path)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[top:top + side, left:left + side, ::-1]
        pixels.append(cv2.resize(square, (STORED, STORED), interpolation=cv2.INTER_AREA))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.from_numpy(images.labels), len(images.classes)


def build(arch: Arch, num_classes: int, seed: int) -> torch.nn.Module:
    from mmengine.registry import DefaultScope

    from vision.registry import MODELS
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('vision'):
        model = MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(type='PolyNet', arch=arch.stages, padding_mode='same',
                          # beta of the paper's summary; without it these nets learn too
                          residual_scale=0.3),
            head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=2048,
                      dropout=0.2, label_smoothing=0.1),
            data_preprocessor=dict(mean=MEAN, std=STD)))
    for module in model.modules():  # what init_weights does, without its page of log
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    torch.nn.init.normal_(model.head.fc.weight, std=0.01)
    torch.nn.init.zeros_(model.head.fc.bias)
    return model.to(memory_format=torch.channels_last)


def gmac_per_image(arch: Arch) -> float:
    model = build(arch, 10, 0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() / 2e9


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop and mirroring for each image: (B, 3, STORED, STORED) -> (B, 3, SIZE, SIZE)."""
    room = STORED - SIZE + 1
    crops = []
    for image in images:
        top, left, mirror = (int(torch.randint(n, (), generator=generator))
                             for n in (room, room, 2))
        crop = image[:, top:top + SIZE, left:left + SIZE]
        crops.append(crop.flip(-1) if mirror else crop)
    return torch.stack(crops)


def judge(model, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Cross entropy (no smoothing) and top-1 in percent, on centre crops."""
    model.eval()
    edge = (STORED - SIZE) // 2
    centre = images[:, :, edge:edge + SIZE, edge:edge + SIZE]
    with torch.no_grad():
        logits = torch.cat([model(model.data_preprocessor(dict(inputs=part))['inputs'])
                            for part in centre.split(50)])
    return (float(functional.cross_entropy(logits, labels)),
            100 * float((logits.argmax(1) == labels).float().mean()))


def train(model, data: dict, *, num_epochs: int, seed: int, title: str) -> list[dict]:
    """One row per epoch: train_loss (smoothed targets), val_loss, val_top1."""
    images, labels = data['train']
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(
        [dict(params=model.backbone.parameters()),
         dict(params=model.head.parameters(), lr=HEAD_LR)], lr=LR, weight_decay=WEIGHT_DECAY)
    num_steps = num_epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / 40, 0.5 * (1 + math.cos(math.pi * step / num_steps))))
    curve, start = [], time.perf_counter()
    for epoch in track(range(num_epochs), description=title):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        losses = []
        for picked in order.split(BATCH)[:len(images) // BATCH]:
            inputs = model.data_preprocessor(dict(inputs=augmented(images[picked], generator)))
            logits = model(inputs['inputs'].contiguous(memory_format=torch.channels_last))
            loss = model.head.loss(logits, labels[picked])['loss']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        val_loss, val_top1 = judge(model, *data['val'])
        curve.append(dict(epoch=epoch + 1, train_loss=round(float(np.mean(losses)), 4),
                          val_loss=round(val_loss, 4), val_top1=round(val_top1, 2),
                          seconds=round(time.perf_counter() - start, 1)))
        print(f'{title}: {curve[-1]}', flush=True)
    return curve


def insert(model, weights: Path, num_classes: int) -> dict:
    """Trunk and classifier of the trained twin into the poly net, as the tool for insertion does
    (random new blocks); numbers of copied and new tensors."""
    trained = build(ARCHS['twin'], num_classes, 0)
    trained.load_state_dict(load_checkpoint(weights)['state_dict'])
    growth = grow(trained.backbone.trunk, model.backbone.trunk,
                  plan_insertion(ARCHS['twin'], ARCHS['inserted']))
    model.head.load_state_dict(trained.head.state_dict())
    return dict(copied=len(growth.copied), new=len(growth.new))


def run_one(name: str, seed: int, args: argparse.Namespace, data: dict, macs: dict) -> dict:
    num_epochs = {'twin': round(args.epochs * macs['poly'] / macs['twin']),
                  'inserted': max(1, args.epochs // 2)}.get(name, args.epochs)
    weights = args.work_dir / f'twin_{seed}.pth'
    model = build(ARCHS[name], data['num_classes'], seed)
    row = dict(run=name, seed=seed)
    if name == 'inserted':
        row |= insert(model, weights, data['num_classes'])
    start = time.perf_counter()
    curve = train(model, data, num_epochs=num_epochs, seed=seed, title=f'{name}, seed {seed}')
    if name == 'twin':
        with atomic_write(weights) as file:
            torch.save(model.state_dict(), file)
    num_images = len(data['train'][1]) // BATCH * BATCH * num_epochs
    return row | dict(
        arch=[list(stage) for stage in ARCHS[name].stages], epochs=num_epochs,
        million_parameters=round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        gmac_per_image=round(macs[name], 4),
        # A training step counts as three forward passes.
        training_tmac=round(3 * macs[name] * num_images / 1000, 2),
        seconds=round(time.perf_counter() - start), commit=running_commit(),
        final_train_loss=curve[-1]['train_loss'], final_val_loss=curve[-1]['val_loss'],
        final_val_top1=curve[-1]['val_top1'], curve=curve)


def epochs_to(curve: list[dict], key: str, target: float) -> int | None:
    return next((point['epoch'] for point in curve if point[key] <= target), None)


def summarize(rows: list[dict]) -> dict:
    """Means and spreads over seeds; epochs that the inserted net needs to reach the from-scratch
    net's final losses (None: not reached)."""
    found = {(row['run'], row['seed']): row for row in rows}
    summary = {}
    for name in ARCHS:
        own = [row for row in rows if row['run'] == name]
        if own:
            summary[name] = dict(num_seeds=len(own), training_tmac=own[0]['training_tmac']) | {
                f'{key}_{form}': round(float(function([row[f'final_{key}'] for row in own])), 3)
                for key in ('val_top1', 'val_loss', 'train_loss')
                for form, function in (('mean', np.mean), ('std', lambda v: np.std(
                    v, ddof=1 if len(v) > 1 else 0)))}
    summary['insertion'] = [
        dict(seed=seed, epochs_from_scratch=found['poly', seed]['epochs']) | {
            f'epochs_to_same_{key}': epochs_to(row['curve'], key,
                                               found['poly', seed][f'final_{key}'])
            for key in ('train_loss', 'val_loss')}
        for (name, seed), row in found.items() if name == 'inserted' and ('poly', seed) in found]
    return summary


def settings(args: argparse.Namespace) -> dict:
    return dict(epochs=args.epochs, size=SIZE, batch=BATCH, lr=LR, head_lr=HEAD_LR,
                weight_decay=WEIGHT_DECAY,
                threads=torch.get_num_threads(), data=args.data.name)


def earlier_rows(args: argparse.Namespace) -> list[dict]:
    """Finished runs of the same settings.

    Raises:
        VisionError: VIS-RUN-1238, the file is of other settings.
    """
    content = earlier_report(args.json)
    if not content:
        return []
    if content['settings'] | dict(threads=0) != settings(args) | dict(threads=0):
        raise VisionError('VIS-RUN-1238', f'{args.json} holds runs of other settings',
                          where=f'{content["settings"]} against {settings(args)}',
                          why='their figures must not be mixed', do='give another --json')
    return content['rows']


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--data', type=Path, help='folder with train/CLASS and val/CLASS '
                        '(default: imagenette160-mini in $VISION_SHARED_DATA)')
    add_report_options(parser, what='rows, after each run,', is_required=True)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/polynet_training'),
                        help='weights that insertion starts from (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=8, help='of poly (default: %(default)s)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2],
                        help='each run with each of them (default: 0 1 2)')
    parser.add_argument('--runs', nargs='+', choices=list(ARCHS), default=list(ARCHS),
                        help='of those above (default: all)')
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    if args.data is None:
        args.data = Path(os.environ.get('VISION_SHARED_DATA', '../shared/data')) / \
            'imagenette160-mini'
    rows = earlier_rows(args)
    *train_data, num_classes = load_split(args.data / 'train')
    data = dict(train=train_data, val=load_split(args.data / 'val')[:2], num_classes=num_classes)
    macs = {name: gmac_per_image(arch) for name, arch in ARCHS.items()}
    # Rivals of one seed come together, the extra twin last: a part of the table is of use.
    plan = [(name, seed) for seed in args.seeds for name in args.runs if name != 'deeper-twin']
    plan += [(name, seed) for seed in args.seeds for name in args.runs if name == 'deeper-twin']
    for name, seed in plan:
        if (name, seed) not in {(row['run'], row['seed']) for row in rows}:
            rows.append(run_one(name, seed, args, data, macs))
            write_report(args.json, rows, is_recorded=args.record, summary=summarize(rows),
                         settings=settings(args), seeds=args.seeds)
    print(json.dumps(summarize(rows), indent=1))
    return 0


if __name__ == '__main__':
    run_cli(main)
