"""ImageNet VID (xml per frame) to CocoVID json, one file per split.

Reads ROOT/Annotations/VID/{train,val} and, where it is, ROOT/Lists (or --lists):
  VID_train_15frames.txt  which 15 frames of a video train a still-image detector
  VID_val_videos.txt      the validation videos and their lengths
Without lists all videos are taken, and the 15 frames are spread evenly. Images are not opened.
Writes OUT/imagenet_vid_{train,val}.json; file names are relative to ROOT/Data/VID.

Example:
  vision data from-ilsvrc-vid -i data/ILSVRC \\
      -o data/ILSVRC/annotations --nproc 8 --stats
"""

from __future__ import annotations

from vision.common.core.errors import run_cli
from vision.lattice.core.conversion import convert_splits, ilsvrc_parser
from vision.lattice.core.ilsvrc_vid import convert


def main(argv: list[str] | None = None) -> int:
    args = ilsvrc_parser(__doc__, default=('train', 'val')).parse_args(argv)
    lists = args.lists or args.input / 'Lists'
    return convert_splits(args, lambda split: convert(args.input, args.output, split, lists=lists,
                                                      nproc=args.nproc))


if __name__ == '__main__':
    run_cli(main)
