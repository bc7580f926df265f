"""Make the annotation files of ImageNet VID (+ DET) beside the unpacked archives.

Licence: ImageNet's terms of access (non-commercial research and education); nothing is
downloaded here: get the archives with an account at https://image-net.org and unpack them.

What vision data from-ilsvrc-vid and from-ilsvrc-det write goes into ROOT/annotations, which
appears complete or not at all.

Example: python datasets/imagenet_vid/prepare.py --root data/ILSVRC --nproc 8
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.new_folder import new_folder
from vision.lattice.core import ilsvrc_det, ilsvrc_vid
from vision.lattice.core.cocovid import load_cocovid
from vision.lattice.core.cocovid_stats import print_statistics


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--root', type=Path, default=Path('data/ILSVRC'),
                        help='folder with Annotations, Data, Lists (default: %(default)s)')
    parser.add_argument('--nproc', type=int, default=4, help='processes (default: %(default)s)')
    parser.add_argument('--without-det', action='store_true', help='only VID')
    args = parser.parse_args(argv)
    target = args.root / 'annotations'
    if not args.root.is_dir():
        raise VisionError('VIS-DATA-233', f'{args.root} is not there', why='the archives are '
                          'unpacked there first', do='datasets/imagenet_vid/README.md')
    options = dict(lists=args.root / 'Lists', nproc=args.nproc)
    with new_folder(target) as folder:
        for split in ('train', 'val'):
            print_statistics(load_cocovid(ilsvrc_vid.convert(args.root, folder, split, **options)))
        if not args.without_det:
            ilsvrc_det.convert(args.root, folder, 'train', stats=True, **options)
    print(f'written to {target}')
    return 0


if __name__ == '__main__':
    run_cli(main)
