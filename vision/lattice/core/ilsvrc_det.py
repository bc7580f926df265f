"""ImageNet DET (xml per image) as a COCO file with VID's 30 classes and a 31st, "other"."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.core.plain_values import stays_inside
from vision.common.core.workers import ordered_map
from vision.lattice.core.imagenet_vid import WORDNET_IDS
from vision.lattice.core.track_files import XmlFrame, named, read_voc_xml

CATEGORIES = [dict(id=i, name=name, encode_name=code)
              for i, (name, code) in enumerate([*WORDNET_IDS.items(), ('other', 'other')], 1)]
IDS = {row['encode_name']: row['id'] for row in CATEGORIES}
OTHER = IDS['other']


def find_images(root: Path, split: str, lists: Path) -> tuple[list[str], bool]:
    """Image names without ending, relative to the DET folder; and whether a list chose them.

    Raises:
        VisionError: the list names a file outside of the folder, or there is no annotation.
    """
    folder = root / 'Annotations' / 'DET'
    file = lists / 'DET_train_30classes.txt'
    if split == 'train' and file.is_file():
        return read_list(file), True
    names = sorted(path.relative_to(folder).with_suffix('').as_posix()
                   for path in (folder / split).rglob('*.xml'))
    if not names:
        raise VisionError('VIS-DATA-219', f'no xml under {folder / split}', why='-i is the folder '
                          'that holds Annotations and Data', do='datasets/imagenet_vid/README.md '
                          'shows the tree')
    return names, False


@named('list of ImageNet DET')
def read_list(path: Path) -> list[str]:
    """First words of the lines of a list file, each once.

    Raises:
        VisionError: a name that leads out of the folder, or no text.
    """
    lines = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    out = next((line for line in lines if not stays_inside(line)), None)
    if out is not None:
        raise VisionError('VIS-DATA-217', f'{path} names {out[:80]!r}', where=str(path),
                          why='a name stays inside of the folder', do='get the list again')
    return list(dict.fromkeys(lines))


def collect(names: list[str], frames, *, keep_all: bool) -> dict:
    """The COCO dict of the images; those without a box of the 30 classes only with keep_all."""
    images, annotations = [], []
    for name, frame in zip(names, frames, strict=True):
        rows = boxes_of(frame)
        if not keep_all and all(category == OTHER for category, _ in rows):
            continue
        image = dict(id=len(images) + 1, file_name=f'{name}.JPEG', height=frame.height,
                     width=frame.width)
        images.append(image)
        for category, (x1, y1, x2, y2) in rows:
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image['id'], category_id=category,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0))
    return dict(categories=CATEGORIES, images=images, annotations=annotations)


def boxes_of(frame: XmlFrame) -> list[tuple[int, tuple[float, float, float, float]]]:
    """(category id, xyxy) of the boxes with an area."""
    return [(IDS.get(name, OTHER), box) for name, _, box, *_ in frame.rows
            if box[2] > box[0] and box[3] > box[1]]


def convert(root: Path, out: Path, split: str, *, lists: Path, nproc: int, stats: bool) -> None:
    """Write ``out/imagenet_det_30plus1cls.json`` (of val: ``..._val.json``) and say what it holds.

    Args:
        root: with Annotations/DET.
        lists: folder that may hold DET_train_30classes.txt.
        nproc: processes that read xml.
        stats: count boxes by class too.

    Raises:
        VisionError: VIS-DATA-217, -219, a list or a tree that is none.
    """
    names, chosen = find_images(root, split, lists)
    paths = [root / 'Annotations' / 'DET' / f'{name}.xml' for name in names]
    frames = ordered_map(read_voc_xml, paths, nproc, chunk=64)
    data = collect(names, track(frames, f'ImageNet DET {split}', total=len(paths)),
                   keep_all=chosen)
    ending = '' if split == 'train' else f'_{split}'
    path = out / f'imagenet_det_30plus1cls{ending}.json'
    with atomic_write(path, 'w') as file:
        json.dump(data, file)
    print(f'{path}: {len(data["images"])} of {len(names)} images, '
          f'{len(data["annotations"])} boxes')
    if stats:
        count = Counter(row['category_id'] for row in data['annotations'])
        print('  ' + ', '.join(f'{row["name"]} {count[row["id"]]}' for row in CATEGORIES))
