"""Put a file of weights into the package and its row into vision/zoo/index.yml.

Examples:
  vision zoo add work_dirs/pru/pru.safetensors --name lattice-pru_moving-sprites \\
      --config configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \\
      --source 'this repository, trained on MovingSprites-VID (generated)' \\
      --metric map50=86.73 --metrics-from docs/results/lattice_moving-sprites.json

  vision zoo add work_dirs/pru/iter_2000.pth --name ...   # tensors and class names of it
  vision zoo add hanzi.onnx --name ... --task classify --summary ...   # vision.load takes it

SHA-256 and size are computed, never typed. A row of the same name is replaced. The package ships
no pickles: of a checkpoint the tensors are taken, and the names of the classes that it was trained
on go into the metadata of the .safetensors file (--classes: for files without names). An .onnx
file stays as it is. --licence is an SPDX name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.zoo.index import INDEX, PACKAGE_WEIGHTS, TASKS


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('file', type=Path, help='.safetensors or .onnx file, or .pth of a training')
    add('--name', required=True, help='model_data, lower case')
    add('--config', required=True, help='config of this repository that uses it or made it')
    add('--source', required=True, help='where the weights come from')
    add('--licence', default='Apache-2.0', help='SPDX name (default %(default)s)')
    add('--metric', action='append', default=[], metavar='NAME=VALUE',
        help='a figure of the model; may be repeated')
    add('--metrics-from', default='', help='JSON or command the metrics come from')
    add('--classes', help='comma-separated, in the order of the labels; for a file that does not '
        'name them')
    add('--note', default='', help='what a user should know')
    add('--task', choices=TASKS, default='', help='also a model of this name, for vision.load')
    add('--summary', default='', help='one line about that model')
    add('--index', type=Path, default=INDEX, help=argparse.SUPPRESS)
    add('--weights', type=Path, default=PACKAGE_WEIGHTS, help=argparse.SUPPRESS)
    args = vars(parser.parse_args(argv))
    args.pop('verbose', None)
    args['metrics'] = dict(map(number, args.pop('metric')))
    if args['classes']:
        args['classes'] = args['classes'].split(',')
    from vision.zoo.adding import add_weights
    entry = add_weights(args.pop('file'), **args)
    print(f'{entry.name}: {entry.size_bytes} bytes, sha256 {entry.sha256}')
    return 0


def number(text: str) -> tuple[str, float]:
    """Reads ``NAME=NUMBER``.

    Raises:
        VisionError: the text is not of this form.
    """
    name, _, value = text.partition('=')
    try:
        return name, float(value)
    except ValueError as error:
        raise VisionError('VIS-INPUT-627', f'--metric {text!r} is not NAME=NUMBER.',
                          do='e.g. --metric map50=81.2') from error


if __name__ == '__main__':
    run_cli(main)
