"""Put a file of weights into the package and its row into vision/zoo/index.yml.

Example:
  python tools/zoo_add.py work_dirs/pru/pru.safetensors --name lattice-pru_moving-sprites
      --config configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py
      --source 'this repository, trained on MovingSprites-VID (generated)'
      --metric map50=81.2 --metrics-from 'docs/results/lattice_sprites.json'

SHA-256 and size are computed, never typed. An entry of the same name is replaced. Only safetensors
are taken: the package ships no pickles.
"""

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from vision.common.core.errors import VisionError, run_cli
from vision.zoo.index import INDEX, PACKAGE, PACKAGE_WEIGHTS, Entry
from vision.zoo.store import sha256_of

MAX_BYTES = 20_000_000  # our choice: every clone carries these files for ever


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', type=Path, help='.safetensors file')
    parser.add_argument('--name', required=True, help='model_data, lower case')
    parser.add_argument('--config', required=True, help='config of this repository that uses it')
    parser.add_argument('--source', required=True, help='where the weights come from')
    parser.add_argument('--licence', default='Apache-2.0', help='SPDX name (default %(default)s)')
    parser.add_argument('--metric', action='append', default=[], metavar='NAME=VALUE')
    parser.add_argument('--metrics-from', default='', help='JSON or command the metrics come from')
    parser.add_argument('--note', default='', help='what a user should know')
    parser.add_argument('--index', type=Path, default=INDEX, help=argparse.SUPPRESS)
    parser.add_argument('--weights', type=Path, default=PACKAGE_WEIGHTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    check(args.file)
    entry = Entry(
        name=args.name, addresses=(f'{PACKAGE}{args.name}.safetensors',),
        sha256=sha256_of(args.file), size_bytes=args.file.stat().st_size, licence=args.licence,
        source=args.source, config=args.config, metrics=dict(map(number, args.metric)),
        metrics_from=args.metrics_from, verified=True, note=args.note)
    args.weights.mkdir(exist_ok=True)
    target = args.weights / entry.file_name
    if args.file.resolve() != target.resolve():
        shutil.copyfile(args.file, target)
    write(entry, args.index)
    print(f'{entry.name}: {entry.size_bytes} bytes, sha256 {entry.sha256}')
    return 0


def check(path: Path) -> None:
    if not path.is_file() or path.suffix != '.safetensors':
        raise VisionError('VIS-INPUT-614', f'{path} is not a .safetensors file that exists.',
                          do='save the weights with safetensors.torch.save_file')
    if path.stat().st_size > MAX_BYTES:
        raise VisionError('VIS-INPUT-614', f'{path} has {path.stat().st_size} bytes.',
                          why=f'the package takes at most {MAX_BYTES}',
                          do='publish it at an https address and write the entry by hand')


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
