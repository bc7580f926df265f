"""What a classifier takes for what, and its worst images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vision.common.core.confusion import class_matrix, class_rows
from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.nn.images import read_image
from vision.common.nn.plots import plot_matrix

TILE = 180  # px, side of a picture on the sheet
NUM_COLUMNS = 6


def write_analysis(samples: Sequence[dict], classes: Sequence[str], folder: Path, *,
                   topk: int = 20) -> dict[str, Any]:
    """Write ``confusion_matrix.png``, ``worst.jpg`` (the ``topk`` images whose own class got
    least) and ``analysis.json``.

    Args:
        samples: predictions with gt_label, pred_score (C,) and img_path.

    Returns:
        what ``analysis.json`` holds: totals, classes, matrix (row: true) and worst.

    Raises:
        VisionError: VIS-DATA-1798, they do not say what is true.
    """
    if not samples or not all('gt_label' in sample for sample in samples):
        raise VisionError('VIS-DATA-1798', 'the predictions do not say what is true',
                          why='a sample has no gt_label',
                          do='test on labelled images: ImageFolder, ImageNet1k')
    truth = np.array([int(np.ravel(sample['gt_label'])[0]) for sample in samples])
    scores = np.stack([sample['pred_score'] for sample in samples])
    found = scores.argmax(1)
    matrix = class_matrix(truth, found, len(classes))
    own = scores[np.arange(len(truth)), truth]
    worst = [dict(image=samples[i].get('img_path'), true=classes[truth[i]],
                  found=classes[found[i]], probability_of_true=float(own[i]),
                  probability_of_found=float(scores[i, found[i]]))
             for i in np.argsort(own, kind='stable')[:topk]]
    report = dict(totals=dict(images=len(truth), right=int((truth == found).sum()),
                              accuracy=float((truth == found).mean())),
                  classes=class_rows(matrix, classes), matrix=matrix.tolist(), worst=worst)
    plot_matrix(matrix, classes, classes, folder / 'confusion_matrix.png',
                title=f'{len(truth)} images')
    if worst and all(row['image'] for row in worst):
        with atomic_write(folder / 'worst.jpg') as file:
            file.write(cv2.imencode('.jpg', _sheet(worst))[1].tobytes())
    with atomic_write(folder / 'analysis.json', 'w') as file:
        json.dump(report, file, indent=1)
    return report


def captioned(image_bgr: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 BGR with lines of text below it, which makes it
    higher."""
    height = 16 * len(lines) + 6
    canvas = np.full((image_bgr.shape[0] + height, image_bgr.shape[1], 3), 32, np.uint8)
    canvas[:image_bgr.shape[0]] = image_bgr
    for number, line in enumerate(lines):
        cv2.putText(canvas, line, (3, image_bgr.shape[0] + 14 + 16 * number),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _sheet(rows: Sequence[dict]) -> np.ndarray:
    tiles = []
    for row in rows:
        image = read_image(row['image'])
        scale = TILE / max(image.shape[:2])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        tile = np.zeros((TILE, TILE, 3), np.uint8)
        tile[:small.shape[0], :small.shape[1]] = small[:TILE, :TILE]
        tiles.append(captioned(tile, [f'true {row["true"]} {row["probability_of_true"]:.2f}',
                                      f'found {row["found"]} {row["probability_of_found"]:.2f}']))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % NUM_COLUMNS)
    return np.concatenate([np.concatenate(tiles[i:i + NUM_COLUMNS], 1)
                           for i in range(0, len(tiles), NUM_COLUMNS)])
