"""Published PyTorch weights of Very Deep PolyNet <-> checkpoint of this repository.

Examples:
  python tools/model_converters/polynet_cadene.py polynet-f71d82a5.pth polynet.pth
  python tools/model_converters/polynet_cadene.py zoo:polynet-very-deep_in1k polynet.pth
  python tools/model_converters/polynet_cadene.py polynet.pth back.pth --reverse

The published file is the state_dict of github.com/Cadene/pretrained-models.pytorch. The result is
read by configs/polynet/polynet-very-deep_in1k.py:
  python tools/test.py configs/polynet/polynet-very-deep_in1k.py polynet.pth
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

from torch import Tensor

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_same_file, refuse_unwritable, sha256_of
from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
from vision.polynet.nn.cadene import check_shapes, convert, is_port_state, missing_counters
from vision.polynet.nn.pretrained import adapt_first_conv
from vision.zoo import resolve

STEM = 'backbone.trunk.stem.entry.0.conv.weight'
HEAD = 'head.fc.'
NUM_CLASSES = 1000  # ImageNet


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', metavar='IN', help='file to read, or zoo:NAME')
    parser.add_argument('target', metavar='OUT', type=Path, help='file to write (.pth)')
    parser.add_argument('--reverse', action='store_true', help='from our checkpoint to the port')
    parser.add_argument('--backbone-only', action='store_true', help='leave the classifier out')
    parser.add_argument('--num-classes', type=int, default=NUM_CLASSES, metavar='N',
                        help='classes of your network (default %(default)s); a classifier of '
                        '1000 published classes is left out when N differs')
    parser.add_argument('--in-channels', type=int, default=3, metavar='N', help='channels of your '
                        'images (default 3): adapts the first convolution, so that an image of '
                        'equal channels gets the same answer')
    args = parser.parse_args(argv)
    refuse_useless(args)
    refuse_same_file(args.source, args.target)
    refuse_unwritable(args.target)
    path = resolve(args.source)
    content = load_checkpoint(path)
    if args.reverse:
        num_written = write_port(content, args.target, args.num_classes)
    else:
        num_written = write_ours(content['state_dict'], path, args)
    print(f'{args.target}: {num_written} tensors; read {path.name}, SHA-256 {sha256_of(path)}')
    return 0


def refuse_useless(args: argparse.Namespace) -> None:
    if args.reverse and (args.backbone_only or args.in_channels != 3):
        raise VisionError('VIS-INPUT-058', '--reverse goes with neither --backbone-only nor '
                          '--in-channels', why='the port has a classifier and three channels',
                          do='leave them out')
    if min(args.num_classes, args.in_channels) < 1:
        raise VisionError('VIS-INPUT-058', f'--num-classes {args.num_classes}, --in-channels '
                          f'{args.in_channels}', why='both must be at least 1')


def write_ours(state: dict[str, Tensor], path: Path, args: argparse.Namespace) -> int:
    if not is_port_state(state):
        raise VisionError('VIS-CKPT-059', f'{path.name} is no state_dict of the published port',
                          where=str(path), why=f'it has names such as {sorted(state)[:2]}',
                          do='add --reverse for a checkpoint of this repository')
    ours = convert(state)
    classes = len(ours.get(HEAD + 'bias', ()))
    if not classes:
        print('the file has no classifier: the result is a trunk, for init_cfg')
    is_published_head = classes == NUM_CLASSES != args.num_classes
    check_shapes(ours, num_classes=NUM_CLASSES if is_published_head else args.num_classes)
    if args.backbone_only or is_published_head:
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith(HEAD)}
        print(f'the classifier ({classes} classes) is left out')
    ours[STEM] = adapt_first_conv(ours[STEM], args.in_channels).contiguous()
    counters = missing_counters(ours)
    # path_scales are constants of the published code; a backbone that loads this compares them.
    meta = dict(source=path.name, source_sha256=sha256_of(path), has_counters=not counters,
                path_scales='released')
    save_checkpoint(dict(state_dict=ours | counters, meta=meta), args.target)
    return len(ours | counters)


def write_port(content: dict, target: Path, num_classes: int) -> int:
    state = content['state_dict']
    if not any(name.startswith('backbone.trunk.') for name in state):
        raise VisionError('VIS-CKPT-059', 'not a checkpoint of a PolyNet classifier',
                          why=f'it has names such as {sorted(state)[:2]}',
                          do='give one that this tool or tools/train.py wrote')
    if not content.get('meta', {}).get('has_counters', True):
        # The file this came from had no batch counters: neither has its reverse.
        state = {name: tensor for name, tensor in state.items()
                 if not name.endswith('num_batches_tracked')}
    port = convert(state, reverse=True)
    check_shapes(state, num_classes=num_classes)
    save_checkpoint(port, target)
    return len(port)


if __name__ == '__main__':
    run_cli(main)
