"""Characters to small grey images, drawn by Pillow (FreeType)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.core.data.glyphs import GlyphPlan, Style

EM_SHARE = 0.84  # em square of the font over the image's side: some glyphs reach beyond their em
MANIFEST, IMAGES = 'glyphs.json', 'images.u8'


def load_pillow() -> ModuleType:
    """``PIL.ImageFont``; VIS-ENV-1078 names the package when it is absent."""
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise VisionError('VIS-ENV-1078', 'the package Pillow is not installed',
                          why=str(error), do='pip install pillow') from error
    return ImageFont


class GlyphRenderer:
    """Draw characters of the styles of a plan; fonts are opened once per process.

    Images are (size, size) uint8, white ink (255) on black, the ink's box in the middle. Size and
    proportions are the font's own. The same FreeType version gives the same bytes.
    """

    def __init__(self, styles: tuple[Style, ...], characters: np.ndarray, size: int) -> None:
        self.styles, self.characters, self.size = styles, characters, size
        self._fonts: dict[int, object] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_fonts': {}}  # open fonts do not travel to workers

    def __call__(self, label: int, style: int) -> np.ndarray:
        """Raises VisionError VIS-DATA-1079 when the font draws nothing for this character."""
        character = int(self.characters[label])
        mask = self._font(style).getmask(chr(character), mode='L')
        width, height = mask.size
        ink = np.array(mask, dtype=np.uint8).reshape(height, width)
        if not ink.any():
            found = self.styles[style]
            raise VisionError('VIS-DATA-1079', f'U+{character:04X} is blank in {found.path.name}',
                              where=str(found.path), why='an image without ink has no class',
                              do='leave the family out, or install its package again')
        return _centred(ink, self.size)

    def _font(self, style: int):
        if style not in self._fonts:
            module = load_pillow()
            found = self.styles[style]
            try:
                self._fonts[style] = module.truetype(
                    str(found.path), round(self.size * EM_SHARE), index=found.face,
                    layout_engine=module.Layout.BASIC)
            except OSError as error:
                raise VisionError('VIS-DATA-1076', f'cannot open face {found.face}: {error}',
                                  where=str(found.path), why='not an OpenType font, or damaged',
                                  do='install the font package again') from error
        return self._fonts[style]


class PreparedGlyphs:
    """The images of a plan from a file that ``datasets/glyphs/prepare.py`` made, memory-mapped.

    Workers share the pages. VIS-DATA-1080 when the file was made for another plan.
    """

    def __init__(self, folder: Path, plan: GlyphPlan, size: int) -> None:
        self.folder = Path(folder)
        wanted = manifest(plan, size)
        try:
            found = json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise self._other(f'no readable {MANIFEST}: {error}') from error
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            raise self._other(f'it was made with other {", ".join(differing)}')
        self.place = np.cumsum(plan.covered.ravel()).reshape(plan.covered.shape) - 1
        num_images = int(plan.covered.sum())
        self.images = np.memmap(self.folder / IMAGES, dtype=np.uint8, mode='r')
        if self.images.size != num_images * size * size:
            raise self._other(f'{self.images.size} bytes of images, not '
                              f'{num_images * size * size}')
        self.images = self.images.reshape(num_images, size, size)

    def __call__(self, label: int, style: int) -> np.ndarray:
        return np.array(self.images[self.place[label, style]])

    def _other(self, what: str) -> VisionError:
        return VisionError('VIS-DATA-1080', f'prepared glyphs cannot be used: {what}',
                           where=str(self.folder), why='labels would belong to other images',
                           do='run datasets/glyphs/prepare.py again with the values of the config')


def write_prepared(plan: GlyphPlan, size: int, folder: Path,
                   progress: Callable[[Iterable], Iterable] = iter) -> int:
    """Draw all images of a plan into ``folder`` (by label, then style); how many.

    Args:
        progress: wraps the rows while they are drawn, to show how far it is.
    """
    draw = GlyphRenderer(plan.styles, plan.characters, size)
    rows = np.argwhere(plan.covered)
    # By style: FreeType keeps the outlines of one font at a time; the file is by label.
    order = np.argsort(rows[:, 1], kind='stable')
    images = np.zeros((len(rows), size, size), dtype=np.uint8)
    for place in progress(order):
        images[place] = draw(*(int(value) for value in rows[place]))
    images.tofile(folder / IMAGES)
    (folder / MANIFEST).write_text(json.dumps(manifest(plan, size)))
    return len(rows)


def manifest(plan: GlyphPlan, size: int) -> dict:
    """What a prepared file depends on."""
    return dict(size=size, num_classes=plan.num_classes, characters=plan.characters.tolist(),
                styles=[[style.family, style.path.name, style.face] for style in plan.styles],
                num_images=int(plan.covered.sum()))


def _centred(ink: np.ndarray, size: int) -> np.ndarray:
    """Ink in the middle of a black square; what is larger is cut at its edges evenly."""
    image = np.zeros((size, size), dtype=np.uint8)
    rows, columns = (_overlap(length, size) for length in ink.shape)
    image[rows[1], columns[1]] = ink[rows[0], columns[0]]
    return image


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """(part of the ink, part of the image)."""
    start = (size - length) // 2
    if start >= 0:
        return slice(0, length), slice(start, start + length)
    return slice(-start, -start + size), slice(0, size)
