"""Put a file of weights into the package and its row into vision/zoo/index.yml.

Example:
  python tools/zoo_add.py work_dirs/pru/pru.safetensors --name lattice-pru_moving-sprites \\
      --config configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \\
      --source 'this repository, trained on MovingSprites-VID (generated)' \\
      --metric map50=86.73 --metrics-from docs/results/lattice_moving-sprites.json

  python tools/zoo_add.py work_dirs/pru/iter_2000.pth --name ...   # tensors and class names of it

SHA-256 and size are computed, never typed. An entry of the same name is replaced. The package
ships no pickles: of a checkpoint the tensors are taken, and the names of the classes that it was
trained on go into the metadata of the .safetensors file (``--classes``: for files without names).
"""

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.zoo.index import INDEX, PACKAGE, PACKAGE_WEIGHTS, Entry
from vision.zoo.store import sha256_of

MAX_BYTES = 20_000_000  # our choice: every clone carries these files for ever


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('file', type=Path, help='.safetensors file, or .pth of tools/train.py')
    parser.add_argument('--name', required=True, help='model_data, lower case')
    parser.add_argument('--config', required=True, help='config of this repository that uses it')
    parser.add_argument('--source', required=True, help='where the weights come from')
    parser.add_argument('--licence', default='Apache-2.0', help='SPDX name (default %(default)s)')
    parser.add_argument('--metric', action='append', default=[], metavar='NAME=VALUE',
                        help='a figure of the model; may be repeated')
    parser.add_argument('--metrics-from', default='', help='JSON or command the metrics come from')
    parser.add_argument('--classes', help='comma-separated, in the order of the labels; for a '
                        'file that does not name them')
    parser.add_argument('--note', default='', help='what a user should know')
    parser.add_argument('--index', type=Path, default=INDEX, help=argparse.SUPPRESS)
    parser.add_argument('--weights', type=Path, default=PACKAGE_WEIGHTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    check(args.file)
    metrics = dict(map(number, args.metric))
    args.weights.mkdir(exist_ok=True)
    target = args.weights / f'{args.name}.safetensors'
    put(args.file, target, args.classes.split(',') if args.classes else None)
    entry = Entry(
        name=args.name, addresses=(f'{PACKAGE}{target.name}',), sha256=sha256_of(target),
        size_bytes=target.stat().st_size, licence=args.licence, source=args.source,
        config=args.config, metrics=metrics, metrics_from=args.metrics_from, verified=True,
        note=args.note)
    write(entry, args.index)
    print(f'{entry.name}: {entry.size_bytes} bytes, sha256 {entry.sha256}')
    return 0


def check(path: Path) -> None:
    if not path.is_file() or path.suffix not in ('.safetensors', '.pth'):
        raise VisionError('VIS-INPUT-614', f'{path} is no .safetensors or .pth file that exists.',
                          do='save the weights with vision.common.nn.checkpoint.save_weights')
    if path.suffix == '.safetensors' and path.stat().st_size > MAX_BYTES:
        raise VisionError('VIS-INPUT-614', f'{path} has {path.stat().st_size} bytes.',
                          why=f'the package takes at most {MAX_BYTES}',
                          do='publish it at an https address and write the entry by hand')


def put(file: Path, target: Path, classes: list[str] | None) -> None:
    """The weights of ``file`` as ``target``; unchanged where they are as they shall be."""
    from vision.common.nn.checkpoint import class_names, load_checkpoint, save_weights
    content = load_checkpoint(file)
    named = class_names(content)
    if classes and named and tuple(classes) != named:
        raise VisionError('VIS-INPUT-614', f'--classes differ from the names in {file}',
                          why=f'it was trained on {", ".join(named)}', do='leave --classes out')
    if file.suffix == '.pth' or classes and not named:
        save_weights(content['state_dict'], target, classes=classes or named)
    elif file.resolve() != target.resolve():
        shutil.copyfile(file, target)


def number(text: str) -> tuple[str, float]:
    name, _, value = text.partition('=')
    try:
        return name, float(value)
    except ValueError as error:
        raise VisionError('VIS-INPUT-614', f'--metric {text!r} is not NAME=NUMBER.',
                          do='e.g. --metric map50=81.2') from error


def write(entry: Entry, index: Path) -> None:
    """Replace or append the entry; the comment lines at the top of the file stay."""
    text = index.read_text()
    header = text[:text.index('entries:')]
    rows = [row for row in yaml.safe_load(text)['entries'] if row['name'] != entry.name]
    row = {key: list(value) if isinstance(value, tuple) else value
           for key, value in asdict(entry).items() if value or key == 'verified'}
    body = yaml.safe_dump(dict(entries=[*rows, row]), sort_keys=False, width=99,
                          allow_unicode=True)
    index.write_text(header + body)


if __name__ == '__main__':
    run_cli(main)
