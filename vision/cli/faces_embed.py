"""Embeddings of the largest faces of pictures, in one file.

  vision faces embed people/ --out faces.npz
  vision faces embed crops/ --out faces.npz --aligned

The .npz has ``embeddings`` (N, d) float32 rows of length one and ``paths`` (N,); the cosine of two
faces is the product of their rows. "vision faces verify --embeddings" reads it. Pictures without a
face are named and left out; --strict stops there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vision.cli.faces_options import add_model, open_model
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.picture_files import pictures_of


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    add('--out', type=Path, required=True, help='the .npz file to write')
    add('--aligned', action='store_true', help='the pictures are aligned faces already')
    add('--strict', action='store_true', help='stop at a picture without a face')
    add_model(parser)
    args = parser.parse_args(argv)
    refuse_unwritable(args.out)
    paths = pictures_of(args.images)
    model, used = open_model(args), []
    rows = model.embedder(faces(model, paths, args, used))
    if not used:
        from vision.faces.runtime.recognition import no_face
        raise no_face(f'any of {len(paths)} pictures')
    from vision.faces.core.data.embeddings import write_embeddings
    write_embeddings(args.out, used, rows)
    print(f'{args.out}: {rows.shape[0]} faces, {rows.shape[1]} numbers each')
    return 0


def faces(model, paths: list[Path], args, used: list[str]):
    """Aligned faces of pictures, one by one; what gave none is told, and left out of ``used``."""
    for path in paths:
        try:
            crop = model.face(path, aligned=args.aligned)
        except VisionError as error:
            if args.strict:
                raise
            print(f'WARNING {error.what}: left out', file=sys.stderr)
            continue
        used.append(str(path))
        yield crop


if __name__ == '__main__':
    run_cli(main)
