"""Does the network of `hanzi` earn its milliseconds? Beside it, what one would do without one.

Pictures of held-out font families, brought to one size (runtime/ink.py) for all, one thread:

  pixels   the nearest class by the cosine of pixels to the mean of its training pictures
  blurred  the same on pictures that were blurred first (sigma 1 px)
  hanzi    the classifier of the package, "unknown" counted as wrong

  python datasets/glyphs/prepare.py --out data/glyphs_all --num-classes 27201 --num-unseen 300
  python benchmarks/hanzi_rivals.py --data data/glyphs_all --json docs/results/hanzi_rivals.json \\
      --record
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from vision.classify.runtime.ink import fit_ink
from vision.common.core.errors import command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.faces.core.data.glyphs import PreparedGlyphs

SEED, BATCH = 0, 200
Ranker = Callable[[list[np.ndarray]], np.ndarray]  # pictures -> (N, classes), higher is nearer


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--data', type=Path, default=Path('data/glyphs_all'),
                        help='prepared glyphs (default: %(default)s)')
    parser.add_argument('--pictures', type=int, default=2000, help='(default: %(default)s)')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    cv2.setNumThreads(1)
    glyphs = PreparedGlyphs(args.data)
    samples = glyphs.samples('known')
    chosen = np.random.default_rng(SEED).permutation(len(samples))[:args.pictures]
    pictures = [glyphs(*samples[i]) for i in chosen]
    labels = samples[chosen, 0]
    rankers = dict(pixels=nearest_mean(glyphs, flat), blurred=nearest_mean(glyphs, blurred),
                   hanzi=packaged(glyphs))
    rows = [measured(name, rank, pictures, labels) for name, rank in rankers.items()]
    print_table(list(rows[0]), [[f'{value:.2f}' if isinstance(value, float) else str(value)
                                 for value in row.values()] for row in rows])
    if args.json:
        write_report(args.json, rows, seed=SEED, is_recorded=args.record)
    return 0


def flat(picture: np.ndarray) -> np.ndarray:
    """(1024,) float32 of length one; zero for a picture without ink."""
    row = fit_ink(picture).astype(np.float32).ravel()
    return row / max(float(np.linalg.norm(row)), 1e-6)


def blurred(picture: np.ndarray) -> np.ndarray:
    """As ``flat``, of the blurred picture."""
    row = cv2.GaussianBlur(fit_ink(picture), (0, 0), 1).astype(np.float32).ravel()
    return row / max(float(np.linalg.norm(row)), 1e-6)


def nearest_mean(glyphs: PreparedGlyphs, features: Callable[[np.ndarray], np.ndarray]) -> Ranker:
    means = np.zeros((glyphs.num_classes, len(features(glyphs.images[0]))), np.float32)
    for label, style in glyphs.samples('train'):
        means[label] += features(glyphs(label, style))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return lambda pictures: np.stack([features(picture) for picture in pictures]) @ means.T


def packaged(glyphs: PreparedGlyphs) -> Ranker:
    """The package's classes in the order of the labels; 'unknown' stays behind them."""
    import vision
    model = vision.load('hanzi')
    place = {name: column for column, name in enumerate(model.classes)}
    order = [place[chr(code)] for code in glyphs.characters[:glyphs.num_classes]]
    order.append(place['unknown'])
    return lambda pictures: model.network(
        [cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) for picture in pictures])[:, order]


def measured(name: str, rank: Ranker, pictures: list[np.ndarray], labels: np.ndarray) -> dict:
    ranks, seconds = [], 0.0
    for top in range(0, len(pictures), BATCH):
        part = pictures[top:top + BATCH]
        begin = time.perf_counter()
        nearness = rank(part)
        seconds += time.perf_counter() - begin
        own = nearness[np.arange(len(part)), labels[top:top + BATCH]]
        ranks += (nearness >= own[:, None]).sum(axis=1).tolist()
    return dict(method=name, top1=100 * float(np.mean(np.array(ranks) <= 1)),
                top5=100 * float(np.mean(np.array(ranks) <= 5)),
                ms_per_picture=1000 * seconds / len(pictures), pictures=len(pictures))


if __name__ == '__main__':
    run_cli(main)
