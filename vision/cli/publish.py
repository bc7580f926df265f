"""A checkpoint for others: vision publish IN OUT

OUT names a .safetensors or .pth file; eight digits of the file's sha256 are put behind its name.
Tensors, class names and the text of the config are kept; optimizer, logs and random state, which
only training needs, are not.

  vision publish work_dirs/small/iter_2600.pth small_moving-sprites.safetensors
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', metavar='IN', help='.pth, .safetensors or zoo:NAME')
    parser.add_argument('target', metavar='OUT', type=Path, help='.safetensors or .pth')
    args = parser.parse_args(argv)
    from vision.common.nn.publish import SUFFIXES, publish
    from vision.zoo import resolve
    if args.target.suffix not in SUFFIXES:
        parser.error(f'OUT ends in {" or ".join(SUFFIXES)}, not {args.target.suffix!r}')
    refuse_unwritable(args.target.with_name('x'))
    source = resolve(args.source)
    path = publish(source, args.target)
    before, after = ((one.stat().st_size if one.is_file() else
                      sum(part.stat().st_size for part in one.rglob('*') if part.is_file()))
                     / 2**20 for one in (source, path))
    print(f'{path}: {after:.2f} MiB of {before:.2f}')
    return 0


if __name__ == '__main__':
    run_cli(main)
