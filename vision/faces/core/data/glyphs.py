"""Han characters as classes: tens of thousands of real classes from installed fonts (our task).

A class is a character, a style is one font file, an image is a character in a style. Whole
families are held out: their designs are met for the first time in verification, as new pictures of
known people are. Some characters can be kept out of training too (``num_unseen``): the strangers
of open-set identification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.data.font_files import FontFamily, find_font_files, read_characters

# CJK unified ideographs, extension A, and the supplementary planes.
IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x32400))
HELD_OUT = ('noto-serif', 'cns-kai', 'wqy-zenhei')  # a serif, a brush and a sans design


@dataclass(frozen=True)
class Style:
    """One font file: its family, its place, the face in a collection."""

    family: str
    path: Path
    face: int


@dataclass(frozen=True)
class GlyphPlan:
    """Which image exists: classes x styles.

    Attributes:
        characters: (C,) int64 code points; a label is a position here.
        num_classes: labels below it are trained on; the others are the unseen characters.
        styles: training styles first, ``num_train_styles`` of them.
        covered: (C, S) bool.
    """

    characters: np.ndarray
    num_classes: int
    styles: tuple[Style, ...]
    num_train_styles: int
    covered: np.ndarray

    def samples(self, split: str) -> np.ndarray:
        """(N, 2) int64 rows (label, style) of 'train' or 'val', by label, then style.

        'train' has the training styles of the classes; 'val' the held-out styles of all
        characters, unseen ones too.
        """
        assert split in ('train', 'val'), split
        is_used = np.zeros_like(self.covered)
        if split == 'train':
            is_used[:self.num_classes, :self.num_train_styles] = True
        else:
            is_used[:, self.num_train_styles:] = True
        return np.argwhere(self.covered & is_used).astype(np.int64)


def plan_glyphs(families: Sequence[FontFamily], held_out: Sequence[FontFamily], *,
                num_classes: int, num_unseen: int = 0, min_families: int = 5,
                ranges: Sequence[tuple[int, int]] = IDEOGRAPHS, seed: int = 0,
                folders: Sequence[str] | None = None) -> GlyphPlan:
    """Choose characters that enough training families and all held-out families have.

    Args:
        num_classes, num_unseen: drawn with ``seed`` from the characters that qualify.
        min_families: training families that must have a character.
        ranges: code points that count, [first, end).
        folders: of fonts, instead of the usual ones.
    Raises:
        VisionError: VIS-ENV-1074 for a missing family, VIS-CONFIG-1077 when there are too few
            characters or a family is on both sides.
    """
    names = [family.name for family in (*families, *held_out)]
    if len(set(names)) < len(names) or not families or not held_out:
        raise VisionError('VIS-CONFIG-1077', f'font families {", ".join(names) or "none"}',
                          why='training and verification need families of their own',
                          do='name each family once, at least one on each side')
    styles, maps = [], []
    for family in (*families, *held_out):
        for path in find_font_files(family, folders):
            styles.append(Style(family.name, path, family.face))
            maps.append(read_characters(path, family.face))
    points = np.unique(np.concatenate(maps))
    points = points[np.any([(points >= low) & (points < high) for low, high in ranges], axis=0)]
    covered = np.stack([np.isin(points, found) for found in maps], axis=1)
    num_train_styles = sum(len(family.files) for family in families)
    rows = _qualified(covered, [style.family for style in styles], len(families), min_families)
    wanted = num_classes + num_unseen
    if len(rows) < wanted or num_classes < 2:
        raise VisionError('VIS-CONFIG-1077', f'{wanted} characters wanted, {len(rows)} are in at '
                          f'least {min_families} of the {len(families)} training families and in '
                          f'all of {", ".join(family.name for family in held_out)}',
                          do='lower num_classes or min_families, or add families')
    chosen = np.random.default_rng(seed).permutation(rows)[:wanted]
    chosen = np.concatenate([np.sort(chosen[:num_classes]), np.sort(chosen[num_classes:])])
    return GlyphPlan(points[chosen], num_classes, tuple(styles), num_train_styles,
                     covered[chosen])


def _qualified(covered: np.ndarray, names: list[str], num_train: int,
               min_families: int) -> np.ndarray:
    """Rows that every style of a family has, for enough families of the one and all of the other
    side: a family counts only when it can give every weight."""
    families = list(dict.fromkeys(names))
    has = np.stack([covered[:, [name == family for name in names]].all(axis=1)
                    for family in families], axis=1)
    enough = has[:, :num_train].sum(axis=1) >= min_families
    return np.flatnonzero(enough & has[:, num_train:].all(axis=1))


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
