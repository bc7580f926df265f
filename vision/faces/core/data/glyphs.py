"""Han characters as classes: the folder that ``datasets/glyphs/prepare.py`` makes (our task).

A class is a character, a style is one font file. Training has some styles of the classes; the
other styles, of all characters, are for verification and identification.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError

MANIFEST, IMAGES = 'glyphs.json', 'images.u8'
SPLITS = ('train', 'val', 'known', 'unseen')


class PreparedGlyphs:
    """The pictures of a prepared folder, memory-mapped: workers share the pages.

    Attributes:
        characters: (C,) int64 code points; a label is a position here.
        num_classes: labels below it are trained on, the others are strangers.
        num_train_styles: the training styles come first.
        covered: (C, S) bool, which picture exists; place: (C, S) int64, where in ``images``.
        images: (N, size, size) uint8, by label, then style.

    Raises:
        VisionError: VIS-DATA-1080 when the folder is absent, damaged or made by an older command.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            found = json.loads((self.folder / MANIFEST).read_text())
            self.characters = np.array(found['characters'], dtype=np.int64)
            masks = np.array(found['covered'], dtype=np.int64)
            size, num_styles = int(found['size']), len(found['styles'])
            self.num_classes = int(found['num_classes'])
            self.num_train_styles = int(found['num_train_styles'])
            self.images = np.memmap(self.folder / IMAGES, dtype=np.uint8, mode='r')
        except KeyError as error:
            raise self._unusable(f'{MANIFEST} has no {error}') from error
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise self._unusable(str(error)) from error
        if masks.shape != self.characters.shape or masks.ndim != 1 or size < 1 or not (
                2 <= self.num_classes <= len(masks) and 0 < self.num_train_styles < num_styles):
            raise self._unusable(f'{MANIFEST} does not add up')
        self.covered = (masks[:, None] >> np.arange(num_styles) & 1).astype(bool)
        num_images = int(self.covered.sum())
        if self.images.size != num_images * size * size:
            raise self._unusable(f'{self.images.size} bytes of pictures, not '
                                 f'{num_images * size * size}')
        self.images = self.images.reshape(num_images, size, size)
        self.place = np.cumsum(self.covered.ravel()).reshape(self.covered.shape) - 1

    def __reduce__(self):
        return PreparedGlyphs, (self.folder,)  # a pickled map would carry all pictures

    def __call__(self, label: int, style: int) -> np.ndarray:
        """Picture (size, size) uint8."""
        return np.array(self.images[self.place[label, style]])

    def samples(self, split: str) -> np.ndarray:
        """(N, 2) int64 rows (label, style) of one of ``SPLITS``, by label, then style.

        'train' has the training styles of the classes; 'val' the held-out styles of all
        characters, 'known' those of the classes alone, 'unseen' those of the strangers.
        """
        assert split in SPLITS, split
        is_used = np.zeros_like(self.covered)
        rows = dict(val=slice(None), unseen=slice(self.num_classes, None)).get(
            split, slice(self.num_classes))
        styles = slice(self.num_train_styles) if split == 'train' else \
            slice(self.num_train_styles, None)
        is_used[rows, styles] = True
        return np.argwhere(self.covered & is_used).astype(np.int64)

    def _unusable(self, what: str) -> VisionError:
        return VisionError('VIS-DATA-1080', f'prepared glyphs cannot be used: {what}',
                           where=str(self.folder), why='pictures are read from a folder that is '
                           'made once', do='python datasets/glyphs/prepare.py --out '
                           f'{self.folder}')


def warp_matrix(rng: np.random.Generator, size: int, *, degrees: float, scale: float,
                shear: float, shift: float) -> np.ndarray:
    """(2, 3) affine map of an image of ``size`` px about its middle, drawn evenly.

    Args:
        degrees, shear, shift: largest angle, slant (px per px) and move (px) to either side.
        scale: largest relative change of size to either side.
    """
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    slant, factor = rng.uniform(-shear, shear), 1 + rng.uniform(-scale, scale)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = factor * turn @ np.array([[1, slant], [0, 1]])
    middle = (size - 1) / 2 * np.ones(2)
    move = middle - linear @ middle + rng.uniform(-shift, shift, 2)
    return np.concatenate([linear, move[:, None]], axis=1)
