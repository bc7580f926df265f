"""Published PyTorch weights of Very Deep PolyNet <-> checkpoint of this repository.

Examples:
  vision convert polynet polynet-f71d82a5.pth polynet.pth
  vision convert polynet zoo:polynet-very-deep_in1k polynet.pth
  vision convert polynet polynet.pth back.pth --reverse

The published file is the state_dict of github.com/Cadene/pretrained-models.pytorch. The result is
read by configs/polynet/polynet-very-deep_in1k.py:
  vision test configs/polynet/polynet-very-deep_in1k.py polynet.pth
To start another task, no conversion is needed: name the published file or the result in the
backbone's init_cfg=dict(type='Pretrained', checkpoint=...), with path_scales='released'. A result
of --backbone-only or of another --num-classes is for this use only: it has no classifier.

Every tensor is used exactly once, values and types are not touched, and --reverse gives back the
file's tensors bit by bit. A tensor that is left over, missing or of another shape is an error with
its name. Only tensors are read; nothing in the file runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_same_file, refuse_unwritable, sha256_of


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', metavar='IN', help='file to read, or zoo:NAME')
    parser.add_argument('target', metavar='OUT', type=Path, help='file to write (.pth)')
    parser.add_argument('--reverse', action='store_true', help='from our checkpoint to the port')
    parser.add_argument('--backbone-only', action='store_true', help='leave the classifier out')
    parser.add_argument('--num-classes', type=int, default=1000, metavar='N',
                        help='classes of your network (default %(default)s); a classifier of '
                        '1000 published classes is left out when N differs')
    parser.add_argument('--in-channels', type=int, default=3, metavar='N', help='channels of your '
                        'images (default 3): adapts the first convolution, so that an image of '
                        'equal channels gets the same answer')
    args = parser.parse_args(argv)
    refuse_useless(args)
    refuse_same_file(args.source, args.target)
    refuse_unwritable(args.target)
    from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
    from vision.polynet.nn.port_files import ours_of_port, port_of_ours
    from vision.zoo import resolve
    path = resolve(args.source)
    content = load_checkpoint(path)
    if args.reverse:
        made = state = port_of_ours(content, num_classes=args.num_classes)
    else:
        made = ours_of_port(content['state_dict'], path, num_classes=args.num_classes,
                            in_channels=args.in_channels, is_backbone_only=args.backbone_only)
        state = made['state_dict']
    save_checkpoint(made, args.target)
    print(f'{args.target}: {len(state)} tensors; read {path.name}, SHA-256 {sha256_of(path)}')
    return 0


def refuse_useless(args: argparse.Namespace) -> None:
    """Refuse options that ``--reverse`` would ignore, and numbers below 1.

    Raises:
        VisionError: there is such an option.
    """
    if args.reverse and (args.backbone_only or args.in_channels != 3):
        raise VisionError('VIS-INPUT-058', '--reverse goes with neither --backbone-only nor '
                          '--in-channels', why='the port has a classifier and three channels',
                          do='leave them out')
    if min(args.num_classes, args.in_channels) < 1:
        raise VisionError('VIS-INPUT-071', f'--num-classes {args.num_classes}, --in-channels '
                          f'{args.in_channels}', why='both must be at least 1')


if __name__ == '__main__':
    run_cli(main)
