"""MOT challenge sequences (MOT15, MOT16/17, MOT20, DanceTrack) to CocoVID json.

ROOT holds train/SEQUENCE and test/SEQUENCE, or the sequences themselves (then all are "train").
A sequence has seqinfo.ini, img1/ and, for training, gt/gt.txt. Splits: train, test (no boxes:
its frames count as unlabelled), half-train and half-val (first and second half of every training
sequence, as in CenterTrack). Writes OUT/SPLIT_cocoformat.json; file names are relative to ROOT.

Only pedestrians (class 1) whose flag is not 0 are taken; --all-classes adds classes 2 to 7, which
MOT16/17 always flag 0. What is left out is counted. Boxes keep the numbers of gt.txt.

Example: vision data from-mot -i data/MOT17 -o data/MOT17/annotations
"""

from __future__ import annotations

from vision.common.core.errors import run_cli
from vision.lattice.core.conversion import convert_splits, converter_parser
from vision.lattice.core.mot import SPLITS, convert


def main(argv: list[str] | None = None) -> int:
    parser = converter_parser(__doc__, 'folder of the sequences', splits=SPLITS,
                              default=('train',))
    parser.add_argument('--all-classes', action='store_true', help='classes 1 to 7 of MOT16/17')
    parser.add_argument('--class-name', default='pedestrian',
                        help='name of the one class (default: %(default)s)')
    args = parser.parse_args(argv)
    return convert_splits(args, lambda split: convert(args.input, args.output, split,
                                                      args.all_classes, args.class_name))


if __name__ == '__main__':
    run_cli(main)
