"""Draw the glyph data set: Han characters in installed fonts, into one memory-mapped file.

A class is a character, a style is one font file, a picture is a character in a style. Whole
families are held out: their designs are met for the first time in verification, as new pictures
of known people are. Some characters are kept out of training too: the strangers of open-set
identification. The fonts stay where they are; see README.md here for packages and licences.

  python datasets/glyphs/prepare.py --out data/glyphs
  python datasets/glyphs/prepare.py --out data/glyphs_5k --num-classes 5000 --num-unseen 500

In the config: GlyphDataset(split='train', data_root='data/glyphs'). Pictures are white ink (255)
on black, the ink's box in the middle; size and proportions are the font's own. The same FreeType
gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.new_folder import new_folder
from vision.faces.core.data.glyphs import IMAGES, MANIFEST

FOLDERS = ('/usr/share/fonts', '/usr/local/share/fonts', '~/.local/share/fonts', '~/.fonts')
FOLDERS_VARIABLE = 'VISION_FONT_DIR'  # more folders, divided as in PATH; searched first
# CJK unified ideographs, extension A, and the supplementary planes.
IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x32400))
HELD_OUT = ('noto-serif', 'cns-kai', 'wqy-zenhei')  # a serif, a brush and a sans design
EM_SHARE = 0.84  # em square of the font over the image's side: some glyphs reach beyond their em


@dataclass(frozen=True)
class FontFamily:
    """One design: its files (weights) and the Debian package that brings them.

    ``face`` is the position in a collection (.ttc); the Noto collections begin with Japanese
    forms, 2 is simplified Chinese.
    """

    name: str
    package: str
    files: tuple[str, ...]
    face: int = 0


FAMILIES = {family.name: family for family in (
    FontFamily('noto-sans', 'fonts-noto-cjk', ('NotoSansCJK-Regular.ttc', 'NotoSansCJK-Bold.ttc'),
               face=2),
    FontFamily('noto-serif', 'fonts-noto-cjk',
               ('NotoSerifCJK-Regular.ttc', 'NotoSerifCJK-Bold.ttc'), face=2),
    FontFamily('wqy-zenhei', 'fonts-wqy-zenhei', ('wqy-zenhei.ttc',)),
    FontFamily('hanazono', 'fonts-hanazono', ('HanaMinA.ttf',)),
    FontFamily('babelstone', 'fonts-babelstone-han', ('BabelStoneHan.ttf',)),
    FontFamily('cns-kai', 'fonts-cns11643-kai', ('TW-Kai-98_1.ttf',)),
    FontFamily('cns-sung', 'fonts-cns11643-sung', ('TW-Sung-98_1.ttf',)),
    FontFamily('uming', 'fonts-arphic-uming', ('uming.ttc',)),
    FontFamily('ukai', 'fonts-arphic-ukai', ('ukai.ttc',)),
    FontFamily('ipa-mincho', 'fonts-ipafont-mincho', ('ipam.ttf',)),
    FontFamily('droid', 'fonts-droid-fallback', ('DroidSansFallbackFull.ttf',)),
    FontFamily('unifont', 'fonts-unifont', ('unifont.otf',)))}


@dataclass(frozen=True)
class Style:
    """One font file: its family, its place, the face in a collection."""

    family: str
    path: Path
    face: int


@dataclass(frozen=True)
class GlyphPlan:
    """Which picture exists: (C,) code points x styles, the training styles first.

    Labels below ``num_classes`` are trained on; ``covered`` is (C, S) bool.
    """

    characters: np.ndarray
    num_classes: int
    styles: tuple[Style, ...]
    num_train_styles: int
    covered: np.ndarray


def plan_glyphs(families: Sequence[FontFamily], held_out: Sequence[FontFamily], *,
                num_classes: int, num_unseen: int = 0, min_families: int = 5,
                ranges: Sequence[tuple[int, int]] = IDEOGRAPHS, seed: int = 0) -> GlyphPlan:
    """Draw characters that enough training families and all held-out families have.

    Args:
        num_classes, num_unseen: drawn with ``seed`` from the characters that qualify.
        min_families: training families that must have a character.
        ranges: code points that count, [first, end).
    Raises:
        VisionError: VIS-ENV-1074 for a missing family, VIS-CONFIG-1128 when one is on both sides,
            1129 when there are too few characters.
    """
    names = [family.name for family in (*families, *held_out)]
    if len(set(names)) < len(names) or not families or not held_out:
        raise VisionError('VIS-CONFIG-1128', f'font families {", ".join(names) or "none"}',
                          why='training and verification need families of their own',
                          do='name each family once, at least one on each side')
    styles = [Style(family.name, path, family.face) for family in (*families, *held_out)
              for path in find_font_files(family)]
    maps = [read_characters(style.path, style.face) for style in styles]
    points = np.unique(np.concatenate(maps))
    points = points[np.any([(points >= low) & (points < high) for low, high in ranges], axis=0)]
    covered = np.stack([np.isin(points, found) for found in maps], axis=1)
    rows = _qualified(covered, [style.family for style in styles], len(families), min_families)
    wanted = num_classes + num_unseen
    if len(rows) < wanted or num_classes < 2:
        raise VisionError('VIS-CONFIG-1129', f'{wanted} characters wanted, {len(rows)} are in at '
                          f'least {min_families} of the {len(families)} training families and in '
                          f'all of {", ".join(family.name for family in held_out)}',
                          do='lower --num-classes or --min-families, or add families')
    chosen = np.random.default_rng(seed).permutation(rows)[:wanted]
    chosen = np.concatenate([np.sort(chosen[:num_classes]), np.sort(chosen[num_classes:])])
    return GlyphPlan(points[chosen], num_classes, tuple(styles),
                     sum(len(family.files) for family in families), covered[chosen])


def _qualified(covered: np.ndarray, names: list[str], num_train: int,
               min_families: int) -> np.ndarray:
    """Rows that every style of a family has, for enough families of the one and all of the other
    side: a family counts only when it can give every weight."""
    has = np.stack([covered[:, [name == family for name in names]].all(axis=1)
                    for family in dict.fromkeys(names)], axis=1)
    enough = has[:, :num_train].sum(axis=1) >= min_families
    return np.flatnonzero(enough & has[:, num_train:].all(axis=1))


def find_font_files(family: FontFamily) -> list[Path]:
    """The files of a family; VIS-ENV-1074 names the package when one is not installed."""
    more = [part for part in os.environ.get(FOLDERS_VARIABLE, '').split(os.pathsep) if part]
    found: dict[str, Path] = {}
    for folder in (*more, *FOLDERS):
        for base, _, names in os.walk(os.path.expanduser(folder)):
            for name in set(names) & set(family.files):
                found.setdefault(name, Path(base) / name)
    missing = [name for name in family.files if name not in found]
    if missing:
        raise VisionError('VIS-ENV-1074', f'the font family {family.name} is not installed: '
                          f'{missing[0]} is not there', where=', '.join((*more, *FOLDERS)),
                          why='another font would give other images without a word',
                          do=f'apt install {family.package}, set {FOLDERS_VARIABLE} to the folder '
                          'of the file, or leave the family out of --families')
    return [found[name] for name in family.files]


def read_characters(path: Path, face: int = 0) -> np.ndarray:
    """Sorted int64 code points that have a glyph of their own, with an outline.

    Glyph 0 is the box for unknown characters. Some TrueType fonts map characters to blanks (AR PL
    UKai: 37), which take no room in the table of outlines.

    Raises:
        VisionError: VIS-DATA-1076 when the file is no font, or has no character map.
    """
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise _missing('fonttools', error) from error
    try:
        with TTFont(path, fontNumber=face, lazy=True) as font:
            glyph_of = {point: font.getGlyphID(name) for point, name in font.getBestCmap().items()}
            places = np.array(font['loca'].locations) if 'loca' in font else None
    except Exception as error:  # fontTools has an exception of its own for each table
        raise _no_font(path, face, error) from error
    points, glyphs = (np.array(part, dtype=np.int64) for part in
                      (list(glyph_of), list(glyph_of.values())))
    has_ink = glyphs != 0
    if places is not None:
        has_ink &= (places[1:] != places[:-1])[glyphs]
    return np.sort(points[has_ink])


class GlyphRenderer:
    """Draw characters of the styles of a plan as (size, size) uint8."""

    def __init__(self, plan: GlyphPlan, size: int) -> None:
        self.plan, self.size, self._fonts = plan, size, {}

    def __call__(self, label: int, style: int) -> np.ndarray:
        """VIS-DATA-1079 when the font draws nothing for this character."""
        character, found = int(self.plan.characters[label]), self.plan.styles[style]
        mask = self._font(style).getmask(chr(character), mode='L')
        width, height = mask.size
        ink = np.array(mask, dtype=np.uint8).reshape(height, width)
        if not ink.any():
            raise VisionError('VIS-DATA-1079', f'U+{character:04X} is blank in {found.path.name}',
                              where=str(found.path), why='an image without ink has no class',
                              do='leave the family out, or install its package again')
        image = np.zeros((self.size, self.size), dtype=np.uint8)
        rows, columns = (_overlap(length, self.size) for length in ink.shape)
        image[rows[1], columns[1]] = ink[rows[0], columns[0]]
        return image

    def _font(self, style: int):
        if style not in self._fonts:
            try:
                from PIL import ImageFont
            except ImportError as error:
                raise _missing('pillow', error) from error
            found = self.plan.styles[style]
            try:
                self._fonts[style] = ImageFont.truetype(
                    str(found.path), round(self.size * EM_SHARE), index=found.face,
                    layout_engine=ImageFont.Layout.BASIC)
            except OSError as error:
                raise _no_font(found.path, found.face, error) from error
        return self._fonts[style]


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """(part of the ink, part of the image): what is too large is cut at both edges evenly."""
    start = (size - length) // 2
    if start >= 0:
        return slice(0, length), slice(start, start + length)
    return slice(-start, -start + size), slice(0, size)


def write_glyphs(plan: GlyphPlan, size: int, folder: Path,
                 progress: Callable[[Iterable], Iterable] = iter) -> int:
    """Draw all pictures of a plan into ``folder`` (by label, then style); how many.

    Args:
        progress: wraps the rows while they are drawn, to show how far it is.
    """
    draw = GlyphRenderer(plan, size)
    rows = np.argwhere(plan.covered)
    # By style: FreeType keeps the outlines of one font at a time; the file is by label.
    order = np.argsort(rows[:, 1], kind='stable')
    images = np.zeros((len(rows), size, size), dtype=np.uint8)
    for place in progress(order):
        images[place] = draw(*(int(value) for value in rows[place]))
    images.tofile(folder / IMAGES)
    (folder / MANIFEST).write_text(json.dumps(dict(
        size=size, num_classes=plan.num_classes, characters=plan.characters.tolist(),
        styles=[[style.family, style.path.name, style.face] for style in plan.styles],
        num_train_styles=plan.num_train_styles, num_images=len(rows),
        # One number a character: bit s says whether style s has it.
        covered=(plan.covered @ (1 << np.arange(len(plan.styles)))).tolist())))
    return len(rows)


def _missing(package: str, error: ImportError) -> VisionError:
    return VisionError('VIS-ENV-1078', f'the package {package} is not installed', why=str(error),
                       do=f'pip install {package}')


def _no_font(path: Path, face: int, error: Exception) -> VisionError:
    return VisionError('VIS-DATA-1076', f'cannot read face {face}: {type(error).__name__} {error}',
                       where=str(path), why='not an OpenType font, or a damaged one',
                       do='install the font package again')


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder to make')
    add('--num-classes', type=int, default=20_000, help='characters to train on (default: 20000)')
    add('--num-unseen', type=int, default=2_000, help='characters kept out (default: 2000)')
    add('--min-families', type=int, default=5,
        help='training families that must have a character (default: 5)')
    add('--families', nargs='+', choices=FAMILIES, metavar='NAME',
        help=f'training families, of {", ".join(FAMILIES)} (default: all but the held-out ones)')
    add('--held-out', nargs='+', choices=FAMILIES, metavar='NAME', default=list(HELD_OUT),
        help='(default: %(default)s)')
    add('--size', type=int, default=32, help='px (default: 32)')
    add('--seed', type=int, default=0, help='of the choice of characters (default: 0)')
    args = parser.parse_args(argv)
    names = args.families or [name for name in FAMILIES if name not in args.held_out]
    plan = plan_glyphs([FAMILIES[name] for name in names],
                       [FAMILIES[name] for name in args.held_out], num_classes=args.num_classes,
                       num_unseen=args.num_unseen, min_families=args.min_families, seed=args.seed)
    with new_folder(args.out) as folder:
        count = write_glyphs(plan, args.size, folder,
                             lambda rows: track(rows, description='glyphs'))
    print(f'{args.out}: {count} pictures of {len(plan.characters)} characters in '
          f'{len(plan.styles)} styles')
    return 0


if __name__ == '__main__':
    run_cli(main)
