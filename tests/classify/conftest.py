"""A folder of small images in which colour is the class."""

from pathlib import Path

import cv2
import numpy as np
import pytest

COLOURS = dict(blue=(220, 40, 40), green=(40, 220, 40), red=(40, 40, 220))  # BGR


def write_images(folder: Path, num_per_class: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(num_per_class):
            noise = generator.integers(-30, 30, (40, 52, 3))
            image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f'{index}.png'), image)
    return folder


@pytest.fixture
def colour_folder(tmp_path) -> Path:
    write_images(tmp_path / 'data/train', 8)
    write_images(tmp_path / 'data/val', 3, seed=1)
    return tmp_path / 'data'
