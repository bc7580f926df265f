"""Are the largest faces of two pictures of one person?

  vision faces compare a.jpg b.jpg
  vision faces compare a.jpg b.jpg --threshold 0.4 --json answer.json

Prints the cosine of the two embeddings and the answer; the exit code is 0 for one person, 1 for
two. The default threshold is that of the default model (vision/faces/README.md); for another model
choose one with "vision faces verify".
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from vision.cli.faces_options import add_model, open_model
from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('a', help='picture')
    add('b', help='picture')
    add('--threshold', type=float, help='least cosine of one person')
    add('--aligned', action='store_true', help='the pictures are aligned faces already')
    add('--json', type=Path, help='write the answer here')
    add_model(parser)
    args = parser.parse_args(argv)
    refuse_unwritable(args.json)
    model = open_model(args, **({} if args.threshold is None else
                                dict(threshold=args.threshold)))
    found = model.compare(args.a, args.b, aligned=args.aligned)
    print(f'cosine {found.cosine:.3f}: {"one person" if found.is_same else "two people"} '
          f'(threshold {found.threshold:g})')
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(dict(a=args.a, b=args.b, **dataclasses.asdict(found)), file, indent=1)
    return 0 if found.is_same else 1


if __name__ == '__main__':
    run_cli(main)
