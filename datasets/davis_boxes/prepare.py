"""Boxes around the objects of DAVIS 2016, with class names, as CocoVID.

Licence: BSD, as the DAVIS repository says (https://davischallenge.org; Perazzi et al., CVPR
2016); other hosts call it CC BY-NC 4.0: take it as research use and cite the paper. Nothing is
downloaded here: unpack DAVIS-data.zip (or DAVIS-2017-trainval-480p.zip with single-object masks).

Reads SOURCE/JPEGImages/480p/SEQUENCE and SOURCE/Annotations/480p/SEQUENCE. A box encloses the
parts of the mask that hold at least 3 % of it (smaller ones are splinters). The class of a
sequence was set by hand from its name; a rider and the vehicle are one object, as in DAVIS.
OUT gets JPEGImages/ and annotations/{train,val}.json; complete or not at all.

Example: python datasets/davis_boxes/prepare.py --source DAVIS --out data/davis_boxes
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from scipy import ndimage

from vision.common.core.errors import VisionError, run_cli
from vision.common.core.new_folder import new_folder
from vision.lattice.core.cocovid import CocoVidWriter
from vision.lattice.core.conversion import prepare_parser
from vision.lattice.core.track_files import numbered_frames

SMALLEST_PART = 0.03
FPS = 24
CLASS_OF = dict(
    train={'bear': 'bear', 'bmx-bumps': 'bicycle', 'boat': 'boat', 'breakdance-flare': 'person',
           'bus': 'bus', 'car-turn': 'car', 'dance-jump': 'person', 'dog-agility': 'dog',
           'drift-turn': 'car', 'elephant': 'elephant', 'flamingo': 'bird', 'hike': 'person',
           'hockey': 'person', 'horsejump-low': 'horse', 'kite-walk': 'person',
           'lucia': 'person', 'mallard-fly': 'bird', 'mallard-water': 'bird',
           'motocross-bumps': 'motorcycle', 'motorbike': 'motorcycle', 'paragliding': 'person',
           'rhino': 'rhinoceros', 'rollerblade': 'person', 'scooter-gray': 'motorcycle',
           'soccerball': 'sports ball', 'stroller': 'person', 'surf': 'person',
           'swing': 'person', 'tennis': 'person', 'train': 'train'},
    val={'blackswan': 'bird', 'bmx-trees': 'bicycle', 'breakdance': 'person', 'camel': 'camel',
         'car-roundabout': 'car', 'car-shadow': 'car', 'cows': 'cattle',
         'dance-twirl': 'person', 'dog': 'dog', 'drift-chicane': 'car', 'drift-straight': 'car',
         'goat': 'goat', 'horsejump-high': 'horse', 'kite-surf': 'person', 'libby': 'dog',
         'motocross-jump': 'motorcycle', 'paragliding-launch': 'person', 'parkour': 'person',
         'scooter-black': 'motorcycle', 'soapbox': 'cart'})
CLASSES = tuple(sorted({name for names in CLASS_OF.values() for name in names.values()}))


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """xyxy around the parts with at least 3 % of the mask's pixels; None for an empty mask."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.sum():
        return None
    large = np.flatnonzero(sizes >= SMALLEST_PART * sizes.sum())
    rows, columns = np.nonzero(np.isin(parts, large))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def add_sequence(writer: CocoVidWriter, source: Path, name: str, kind: str, out: Path) -> None:
    frames = numbered_frames(source / 'JPEGImages' / '480p' / name)
    (out / 'JPEGImages' / name).mkdir(parents=True)
    for number, path in enumerate(frames):
        mask_path = source / 'Annotations' / '480p' / name / f'{path.stem}.png'
        mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise VisionError('VIS-DATA-230', f'mask {mask_path} is not there or broken',
                              why='each frame has one', do='unpack the archive again')
        if number == 0:
            writer.add_video(name, width=mask.shape[1], height=mask.shape[0], fps=FPS)
        box = box_of_mask(mask > 0)
        rows = dict(boxes_xyxy=[box], labels=[CLASSES.index(kind)], instance_ids=[1])
        writer.add_frame(f'{name}/{path.name}', **(rows if box else {}))
        shutil.copyfile(path, out / 'JPEGImages' / name / path.name)


def prepare(source: Path, out: Path) -> dict[str, dict[str, int]]:
    """Write the data set; its counts by split.

    Raises:
        VisionError: ``out`` exists; no sequence is in the source.
    """
    frames = source / 'JPEGImages' / '480p'
    counts = {}
    with new_folder(out) as target:
        for split, kinds in CLASS_OF.items():
            there = {name: kind for name, kind in kinds.items() if (frames / name).is_dir()}
            if not there:
                print(f'{split}: none of its {len(kinds)} sequences is in {frames}')
                continue
            writer = CocoVidWriter(CLASSES, info=dict(description='DAVIS 2016 boxes'))
            for name, kind in track(there.items(), f'DAVIS {split}'):
                add_sequence(writer, source, name, kind, target)
            writer.write(target / 'annotations' / f'{split}.json')
            counts[split] = writer.counts() | dict(missing_sequences=len(kinds) - len(there))
        if not counts:
            raise VisionError('VIS-DATA-236', f'no sequence of DAVIS 2016 in {frames}',
                              why='looked for the folders of its 50 names',
                              do='datasets/davis_boxes/README.md shows the tree')
    return counts


def main(argv: list[str] | None = None) -> int:
    args = prepare_parser(__doc__, 'unpacked DAVIS folder', 'data/davis_boxes').parse_args(argv)
    for split, values in prepare(args.source, args.out).items():
        print(f'{split}: ' + ', '.join(f'{value} {name}' for name, value in values.items()))
    print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    run_cli(main)
