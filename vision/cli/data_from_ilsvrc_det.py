"""ImageNet DET (xml per image) to COCO json with VID's 30 classes and a 31st, "other".

Reads ROOT/Annotations/DET/SPLIT and, where it is, ROOT/Lists/DET_train_30classes.txt (or in
--lists); images named twice there are taken once. Without the list the images with at least one
box of the 30 classes are taken. Images are not opened.
Writes OUT/imagenet_det_30plus1cls.json for train, OUT/imagenet_det_30plus1cls_val.json for val;
file names are relative to ROOT/Data/DET. These are still images: no video_id, no instance_id.

Example:
  vision data from-ilsvrc-det -i data/ILSVRC \\
      -o data/ILSVRC/annotations --nproc 8
"""

from __future__ import annotations

from vision.common.core.errors import run_cli
from vision.lattice.core.conversion import ilsvrc_parser
from vision.lattice.core.ilsvrc_det import convert


def main(argv: list[str] | None = None) -> int:
    args = ilsvrc_parser(__doc__, default=('train',)).parse_args(argv)
    for split in args.splits:
        convert(args.input, args.output, split, lists=args.lists or args.input / 'Lists',
                nproc=args.nproc, stats=args.stats)
    return 0


if __name__ == '__main__':
    run_cli(main)
