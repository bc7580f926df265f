"""A hook that draws what a test finds; rooms say how a sample is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.hooks import Hook

from vision.common.core.files import atomic_write, name_below


def image_root(dataset: Any) -> str:
    """The folder that all images of a data set lie in."""
    prefix = getattr(dataset, 'data_prefix', None) or {}
    return str(prefix.get('img') or prefix.get('img_path') or getattr(dataset, 'data_root', '')
               or '.')


class DrawHook(Hook):
    """Writes a picture of each tested sample below ``out_dir``, under the name that its file has
    below the image folder of the data set: frames of equal names in several videos stay apart.

    Args:
        out_dir: a relative one lies in work_dir/TIMESTAMP.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self.num_written = 0

    def before_test(self, runner) -> None:
        """Take the folder of this test, and the image folder of its data set."""
        self.out_dir = Path(runner.work_dir) / runner.timestamp / self.out_dir
        self.dataset = runner.test_dataloader.dataset
        self.root = image_root(self.dataset)

    def after_test_iter(self, runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence | None = None) -> None:
        """Write the pictures of this batch; formats that cannot be written become .jpg."""
        for sample in outputs or ():
            picture = self.draw(sample)
            target = self.out_dir / name_below(sample.img_path, self.root)
            if not cv2.haveImageWriter(target.name):
                target = target.with_name(f'{target.name}.jpg')
            with atomic_write(target) as file:
                file.write(cv2.imencode(target.suffix, picture)[1].tobytes())
            self.num_written += 1

    def after_test(self, runner) -> None:
        """Say how many there are, and where."""
        runner.logger.info(f'{self.num_written} pictures: {self.out_dir}')

    def draw(self, sample: Any) -> np.ndarray:
        """(H, W, 3) uint8 BGR."""
        raise AssertionError('each room draws its own')
