"""ImageNet VID (xml per frame) as CocoVID files, one a split."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import stays_inside, whole_number
from vision.common.core.workers import ordered_map
from vision.lattice.core.cocovid import CocoVidWriter
from vision.lattice.core.conversion import write_split
from vision.lattice.core.imagenet_vid import CLASSES, WORDNET_IDS, train_frames
from vision.lattice.core.track_files import XmlFrame, named, read_video_xmls

LABELS = {wordnet: label for label, wordnet in enumerate(WORDNET_IDS.values())}


def find_videos(root: Path, split: str) -> dict[str, list[Path]]:
    """xml files of each video of a split, by the video's path under the split's folder.

    Raises:
        VisionError: there are none, or the frames of a video have a gap.
    """
    folder = root / 'Annotations' / 'VID' / split
    videos = defaultdict(list)
    for where, _, names in os.walk(folder):
        found = sorted(name for name in names if name.endswith('.xml'))
        if found:
            videos[Path(where).relative_to(folder).as_posix()] = [Path(where, n) for n in found]
    if not videos:
        raise VisionError('VIS-DATA-241', f'no xml under {folder}', why='-i is the folder that '
                          'holds Annotations and Data', do='datasets/imagenet_vid/README.md shows '
                          'the tree')
    for name, paths in videos.items():
        wanted = [f'{i:06d}.xml' for i in range(len(paths))]
        if [path.name for path in paths] != wanted:
            odd = next(p for p, want in zip(paths, wanted, strict=True) if p.name != want)
            raise VisionError('VIS-VIDEO-218', f'video {name} has a gap: {odd.name} of '
                              f'{len(paths)} files', where=str(odd), why='frames are numbered '
                              'from 000000 without a gap', do='unpack the archive again')
    return dict(sorted(videos.items()))


@named('list of ImageNet VID')
def read_list(path: Path, split: str) -> dict[str, list[tuple[int, int]]]:
    """Lines ``path a b N`` of a list file: (b, N) by video, without the split in the path.

    Raises:
        VisionError: another line, a path that leads out of the folder, or no text.
    """
    rows = defaultdict(list)
    for i, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        numbers = [whole_number(part) for part in parts[1:]]
        if len(parts) != 4 or None in numbers or not stays_inside(parts[0]):
            raise VisionError('VIS-DATA-237', f'{path} line {i}: {line!r:.80}', where=str(path),
                              why='"path number number number" is wanted',
                              do='get the list again')
        rows[parts[0].removeprefix(f'{split}/')].append(tuple(numbers[1:]))
    return dict(rows)


def choose(videos: dict[str, list[Path]], split: str, lists: Path) -> dict[str, list[int]]:
    """Training frames (from 0) of each video that is converted.

    Raises:
        VisionError: a list that counts other frames than there are.
    """
    file = lists / ('VID_train_15frames.txt' if split == 'train' else 'VID_val_videos.txt')
    if not file.is_file():
        print(f'{split}: no {file}; all {len(videos)} videos, training frames spread evenly')
        return {name: train_frames(len(paths)) if split == 'train' else []
                for name, paths in videos.items()}
    rows = read_list(file, split)
    for name, entries in rows.items():
        length = len(videos.get(name, ()))
        if any(total != length for _, total in entries):
            raise VisionError('VIS-DATA-220', f'{file} says {entries[0][1]} frames for {name}, '
                              f'{length} are there', where=str(file), why='list and xml files '
                              'belong to different sets', do='use the list of this set, or none')
    if split != 'train':
        return {name: [] for name in rows}
    # The list counts frames from 1. A video that it leaves out is kept, without training frames.
    return {name: sorted({number - 1 for number, _ in rows.get(name, ())}) for name in videos}


def add_video(writer: CocoVidWriter, name: str, frames: list[XmlFrame],
              training: set[int]) -> int:
    """Add one video; the number of boxes without area, which are left out.

    Raises:
        VisionError: a class that is none of ImageNet VID's.
    """
    num_empty = 0
    writer.add_video(name, width=frames[0].width, height=frames[0].height,
                     vid_train_frames=sorted(training))
    for number, frame in enumerate(frames):
        rows = [row for row in frame.rows if row[2][2] > row[2][0] and row[2][3] > row[2][1]]
        num_empty += len(frame.rows) - len(rows)
        for row in rows:
            if row[0] not in LABELS:
                raise VisionError('VIS-DATA-221', f'{frame.path} has the class {row[0]!r}',
                                  where=str(frame.path), why='it is none of the 30 WordNet ids of '
                                  'ImageNet VID', do='is -i the VID tree?')
        writer.add_frame(
            f'{name}/{number:06d}.JPEG', boxes_xyxy=[row[2] for row in rows],
            labels=[LABELS[row[0]] for row in rows], instance_ids=[row[1] for row in rows],
            occluded=[row[3] for row in rows], generated=[row[4] for row in rows],
            image_fields=dict(is_vid_train_frame=number in training, height=frame.height,
                              width=frame.width))
    return num_empty


def convert(root: Path, out: Path, split: str, *, lists: Path, nproc: int) -> Path:
    """Convert one split; the file written, ``out/imagenet_vid_SPLIT.json``.

    Args:
        root: with Annotations/VID.
        lists: folder that may hold VID_train_15frames.txt and VID_val_videos.txt.
        nproc: processes that read xml.

    Raises:
        VisionError: VIS-DATA-217 to -221, VIS-VIDEO-218: see the parts above.
    """
    videos = find_videos(root, split)
    training = choose(videos, split, lists)
    writer = CocoVidWriter(CLASSES, encode_names=list(WORDNET_IDS.values()))
    num_empty = 0
    jobs = [videos[name] for name in training]
    rows = zip(training.items(), ordered_map(read_video_xmls, jobs, nproc, chunk=4), strict=True)
    for (name, frames), xmls in track(rows, f'ImageNet VID {split}', total=len(jobs)):
        num_empty += add_video(writer, f'{split}/{name}', xmls, set(frames))
    path = out / f'imagenet_vid_{split}.json'
    return write_split(writer, path, f'{num_empty} boxes without area')
