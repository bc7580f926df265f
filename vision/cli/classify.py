"""What is in a picture?

  vision classify character.png
  vision classify a.png b.png --top 3
  vision classify scans/ --out table.csv                    (all pictures of a folder)
  vision classify cat.jpg --model polynet-very-deep         (weights by hand: vision zoo list)
  vision classify mine.jpg --model CONFIG --weights CHECKPOINT
  vision classify mine.jpg --model mine.onnx

Prints the likeliest classes of each picture with their probabilities. The default model knows
20,000 Han characters and says "unknown" to what resembles none of them.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable

MODEL = 'hanzi'


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    add('--model', default=MODEL, help='name of "vision zoo list", config of an ImageClassifier, '
        'or .onnx file (default: %(default)s)')
    add('--weights', help='.pth, .safetensors, .onnx or zoo:NAME, in place of the model\'s own')
    add('--top', type=int, default=5, metavar='K', help='classes of each picture (default: 5)')
    add('--out', type=Path, help='write all of it as a table (.csv): image, rank, name, '
        'probability')
    add('--device', default='cpu', help='cpu or cuda:N, for what runs in torch (default: cpu)')
    args = parser.parse_args(argv)
    refuse_unwritable(args.out)
    from vision.common.core.picture_files import pictures_of
    from vision.loading import load
    paths = pictures_of(args.images)
    model = load(args.model, args.weights, device=args.device, task='classify')
    rows = []
    for path in paths:
        best = model(path).top(args.top)
        print(f'{path}: ' + ', '.join(f'{name} {100 * share:.1f} %' for name, share in best))
        rows += [(path, rank, name, f'{share:.6f}') for rank, (name, share) in
                 enumerate(best, 1)]
    if args.out:
        write_table(args.out, rows)
        print(f'written: {args.out}')
    return 0


def write_table(path: Path, rows: list[tuple]) -> None:
    """Write (image, rank, name, probability) rows as CSV, whole or not at all."""
    text = io.StringIO(newline='')
    csv.writer(text).writerows([('image', 'rank', 'name', 'probability'), *rows])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


if __name__ == '__main__':
    run_cli(main)
