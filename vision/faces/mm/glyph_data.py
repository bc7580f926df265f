"""Han characters as a data set of tens of thousands of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.data.font_files import FAMILIES, FontFamily
from vision.faces.core.data.glyphs import HELD_OUT, IDEOGRAPHS, GlyphPlan, plan_glyphs, warp_matrix
from vision.faces.mm.datasets import LabelledImages
from vision.faces.nn.data.glyph_images import GlyphRenderer, PreparedGlyphs
from vision.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class GlyphDataset(LabelledImages):
    """Pictures of characters in the fonts of this machine, (size, size, 1) uint8.

    Args:
        split: 'train': the training families; 'val': the held-out ones, of which the first style
            is the gallery (unseen characters have no gallery picture).
        num_classes, num_unseen, min_families, seed, ranges: see ``plan_glyphs``; equal in both
            splits, or labels mean different characters.
        families: for training; default: all of ``FAMILIES`` but the held-out ones. A dict
            describes a family of one's own (name, package, files, licence).
        every: keep each so-many-th character only: a quicker look while training.
        size: px of the side.
        prepared: folder that ``datasets/glyphs/prepare.py`` made with the same values; None: draw
            on the fly (a tenth of a millisecond each).
    """

    def __init__(self, split: str = 'train', pipeline: Sequence[dict] | None = None, *,
                 num_classes: int = 20_000, num_unseen: int = 2_000, min_families: int = 5,
                 families: Sequence[str | dict] | None = None,
                 held_out: Sequence[str | dict] = HELD_OUT,
                 ranges: Sequence[tuple[int, int]] = IDEOGRAPHS, size: int = 32, seed: int = 0,
                 every: int = 1, prepared: str | None = None,
                 font_folders: Sequence[str] | None = None) -> None:
        if split not in ('train', 'val'):
            raise VisionError('VIS-CONFIG-1077', f'split={split!r}', where='GlyphDataset',
                              do="use 'train' or 'val'")
        self.plan = glyph_plan(families, held_out, num_classes=num_classes, num_unseen=num_unseen,
                               min_families=min_families, ranges=ranges, seed=seed,
                               folders=font_folders)
        samples = self.plan.samples(split)
        samples = samples[samples[:, 0] % every == 0]
        self.styles, self.is_val = samples[:, 1], split == 'val'
        self.source = (GlyphRenderer(self.plan.styles, self.plan.characters, size)
                       if prepared is None else PreparedGlyphs(Path(prepared), self.plan, size))
        super().__init__(samples[:, 0], pipeline, num_classes=num_classes,
                         characters=self.plan.characters)

    def read(self, position: int) -> np.ndarray:
        return self.source(int(self.labels[position]), int(self.styles[position]))[:, :, None]

    def is_gallery(self, position: int) -> bool:
        is_first = self.styles[position] == self.plan.num_train_styles
        return bool(self.is_val and is_first and self.labels[position] < self.num_classes)


@TRANSFORMS.register_module()
class GlyphWarp:
    """Mild affine changes of a character, about its middle; see ``warp_matrix`` for the units."""

    def __init__(self, *, degrees: float = 8.0, scale: float = 0.1, shear: float = 0.1,
                 shift: float = 2.0) -> None:
        self.ranges = dict(degrees=degrees, scale=scale, shear=shear, shift=shift)

    def __call__(self, results: dict) -> dict:
        image = results['img']
        # NumPy's global state is what the runner seeds for each sample.
        rng = np.random.default_rng(np.random.randint(1 << 31))
        matrix = warp_matrix(rng, image.shape[0], **self.ranges)
        warped = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
        results['img'] = warped if warped.ndim == 3 else warped[:, :, None]
        return results


def glyph_plan(families: Sequence[str | dict] | None, held_out: Sequence[str | dict],
               **options) -> GlyphPlan:
    """A plan from the names (or descriptions) of families, as they stand in a config."""
    aside = [_family(value) for value in held_out]
    names = {family.name for family in aside}
    chosen = [name for name in FAMILIES if name not in names] if families is None else families
    return plan_glyphs([_family(value) for value in chosen], aside, **options)


def _family(value: str | dict) -> FontFamily:
    if isinstance(value, str):
        if value not in FAMILIES:
            raise VisionError('VIS-CONFIG-1077', f'font family {value!r} is not known',
                              where='GlyphDataset', do=f'use one of {", ".join(FAMILIES)}, or '
                              'describe it: dict(name=, package=, files=, licence=)')
        return FAMILIES[value]
    return FontFamily(**{**value, 'files': tuple(value['files'])})
