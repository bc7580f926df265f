"""Unpack a MOT challenge archive and make its CocoVID files.

Licence: CC BY-NC-SA 3.0 (https://motchallenge.net; annotations and videos, non-commercial
research). Nothing is downloaded here: get MOT15.zip, MOT17.zip or MOT20.zip yourself.

OUT gets train/, test/ (where the archive has it) and annotations/; complete or not at all.

Example: python datasets/mot/prepare.py --source MOT17.zip --out data/MOT17
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vision.common.core.archives import unpack as unpack_archive
from vision.common.core.errors import VisionError, run_cli
from vision.common.core.new_folder import new_folder
from vision.lattice.core.conversion import prepare_parser
from vision.lattice.core.mot import convert


def unpack(source: Path, target: Path) -> None:
    """Copy or unzip into ``target``, without the folders that enclose train/ or the sequences."""
    try:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            unpack_archive(source, target)
    except OSError as error:
        raise VisionError('VIS-DATA-232', f'{source} cannot be unpacked: {error}', why='a zip '
                          'file or a folder is wanted; was the download cut short?',
                          do='get it again') from error
    sequences = sorted(target.rglob('seqinfo.ini'))
    if not sequences:
        raise VisionError('VIS-DATA-234', f'no sequence in {source}', why='a sequence is a folder '
                          'with seqinfo.ini', do='datasets/mot/README.md shows the tree')
    parent = sequences[0].parent.parent
    root = parent.parent if parent.name in ('train', 'test') else parent
    if root == target:
        return
    for part in list(root.iterdir()):
        part.rename(target / part.name)
    while root != target and not any(root.iterdir()):
        root.rmdir()
        root = root.parent


def main(argv: list[str] | None = None) -> int:
    args = prepare_parser(__doc__, 'zip file or unpacked folder', 'data/MOT17').parse_args(argv)
    with new_folder(args.out) as root:
        unpack(args.source, root)
        splits = ['train', 'half-train', 'half-val'] + ['test'] * (root / 'test').is_dir()
        for split in splits:
            convert(root, root / 'annotations', split)
    print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    run_cli(main)
