"""Leave the input size of a YOLOX .onnx file open, so that it runs at any multiple of 32.

  vision convert yolox-open-size yolox_nano.onnx yolox_nano_any.onnx --size 416

The weights stay as they are, bit by bit; only the declared sizes of input and output change, and
the side that the network was trained for is written into the file (metadata ``input_size``), with
``--note`` beside it. Files exported with their decoding hold constants of one size and are
refused.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_same_file, refuse_unwritable
from vision.lattice.runtime.open_size import check, with_open_size


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', type=Path, help='.onnx file of YOLOX without decoding')
    parser.add_argument('target', type=Path, help='.onnx file to write')
    parser.add_argument('--size', type=int, default=416,
                        help='side in px that it was trained for (default: %(default)s)')
    parser.add_argument('--note', default='', help='origin and licence, kept in the file')
    args = parser.parse_args(argv)
    if args.size < 32 or args.size % 32:
        parser.error(f'--size {args.size}: a multiple of 32 px is wanted')
    refuse_same_file(args.source, args.target)
    refuse_unwritable(args.target)
    content = with_open_size(args.source, args.size, args.note)
    check(args.source, content, args.size)
    with atomic_write(args.target) as file:
        file.write(content)
    print(f'{args.target}: runs at any multiple of 32, equal to {args.source.name} at its own')
    return 0


if __name__ == '__main__':
    run_cli(main)
