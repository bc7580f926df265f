"""MOT challenge sequences (MOT15, MOT16/17, MOT20, DanceTrack) as CocoVID files."""

from __future__ import annotations

import configparser
from pathlib import Path

import numpy as np
from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import stays_inside, whole_number
from vision.lattice.core.cocovid import CocoVidWriter
from vision.lattice.core.conversion import write_split
from vision.lattice.core.track_files import MAX_SIDE, numbered_frames, read_mot_text

CLASSES = ('pedestrian', 'person_on_vehicle', 'car', 'bicycle', 'motorbike', 'non_mot_vehicle',
           'static_person')
SPLITS = ('train', 'test', 'half-train', 'half-val')


def read_seqinfo(folder: Path) -> dict[str, str]:
    """The [Sequence] part of seqinfo.ini.

    Raises:
        VisionError: it lacks a key or is no ini file.
    """
    info = configparser.ConfigParser()
    try:
        info.read_string((folder / 'seqinfo.ini').read_text())
        values = dict(info['Sequence'])
        for key in ('imwidth', 'imheight', 'framerate'):
            if not 0 < float(values[key]) < MAX_SIDE:
                raise ValueError(f'{key} = {values[key]:.40}')
        for key in ('imdir', 'seqlength'):
            is_good = stays_inside if key == 'imdir' else whole_number
            if key in values and is_good(values[key]) in (False, None):
                raise ValueError(f'{key} = {values[key]:.40}')
        return values
    except (OSError, configparser.Error, KeyError, ValueError) as error:
        raise VisionError('VIS-DATA-238', f'{folder}/seqinfo.ini cannot be read: {error!r}',
                          where=str(folder), why='[Sequence] with imWidth, imHeight and frameRate '
                          'is wanted', do='get the file from the data set again') from error


def find_sequences(root: Path, split: str) -> list[Path]:
    """Folders with ``seqinfo.ini``, sorted; below ``root/train`` or ``root/test`` where there is
    one.

    Raises:
        VisionError: there is none.
    """
    kind = 'test' if split == 'test' else 'train'
    folder = root / kind if (root / kind).is_dir() else root
    found = [] if kind == 'test' and folder == root else sorted(
        path.parent for path in folder.glob('*/seqinfo.ini'))
    if not found:
        raise VisionError('VIS-DATA-242', f'no sequence for {split} in {root}', where=str(folder),
                          why='a sequence is a folder with seqinfo.ini',
                          do='datasets/mot/README.md shows the tree')
    return found


def add_sequence(writer: CocoVidWriter, root: Path, folder: Path, split: str,
                 all_classes: bool) -> int:
    """Add (half of) a sequence; the number of rows of gt.txt that were left out on purpose.

    Raises:
        VisionError: gt.txt speaks of frames that are not there.
    """
    info = read_seqinfo(folder)
    frames = numbered_frames(folder / info.get('imdir', 'img1'))
    if int(info.get('seqlength', len(frames))) != len(frames):
        print(f'{folder.name}: {len(frames)} frames, seqinfo.ini says {info["seqlength"]}')
    rows = np.zeros((0, 9)) if split == 'test' else read_mot_text(folder / 'gt' / 'gt.txt')
    if len(rows) and rows[:, 0].max() > len(frames):
        raise VisionError('VIS-DATA-243', f'{folder}/gt/gt.txt speaks of frame '
                          f'{rows[:, 0].max():.0f}, {len(frames)} images are there',
                          why='boxes without an image would be lost', do='get all images')
    flag, kind = rows[:, 6], rows[:, 7]
    wanted = (kind == 1) & (flag != 0)
    if all_classes:  # MOT17 has flag 0 on all that is no pedestrian
        wanted |= (kind > 1) & (kind <= len(CLASSES))
    kept = rows[wanted]
    middle = len(frames) // 2
    first, last = {'half-train': (0, middle), 'half-val': (middle, len(frames))}.get(
        split, (0, len(frames)))
    writer.add_video(folder.name, width=int(float(info['imwidth'])),
                     height=int(float(info['imheight'])),
                     fps=float(info['framerate']))
    for number in range(first, last):
        here = kept[kept[:, 0] == number + 1]
        writer.add_frame(
            frames[number].relative_to(root).as_posix(),
            boxes_xyxy=np.concatenate([here[:, 2:4], here[:, 2:4] + here[:, 4:6]], 1),
            labels=here[:, 7].astype(int) - 1, instance_ids=here[:, 1].astype(int),
            visibility=here[:, 8],
            image_fields=dict(is_labelled=split != 'test', mot_frame_id=number + 1))
    return len(rows) - len(kept)


def convert(root: Path, out: Path, split: str, all_classes: bool = False,
            class_name: str = 'pedestrian') -> Path:
    """Convert one split; the file written, ``out/SPLIT_cocoformat.json``.

    Args:
        root: holds train/SEQUENCE and test/SEQUENCE, or the sequences.
        split: of ``SPLITS``.
        all_classes: classes 1 to 7 of MOT16/17, else pedestrians under ``class_name``.

    Raises:
        VisionError: VIS-DATA-217, -219, -220: see the parts above.
    """
    names = CLASSES if all_classes else (class_name,)
    writer = CocoVidWriter(names, info=dict(source='MOT challenge', split=split))
    left_out = sum(add_sequence(writer, root, folder, split, all_classes)
                   for folder in track(find_sequences(root, split), f'MOT {split}'))
    path = out / f'{split}_cocoformat.json'
    return write_split(writer, path, f'{left_out} rows of other classes or with flag 0')
