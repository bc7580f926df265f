"""Time and memory of "vision faces verify" on generated lists as large as the public ones.

The lists and embeddings are made up (people are random directions, pictures lie around them), so
the rates that come out say nothing about any network. What is measured is the command: seconds and
the most memory of its own process, without and with the pages of memory-mapped files, which the
system takes back when it needs them.

  ijbc      23,124 templates of 469,375 pictures, 15,658,489 pairs, two galleries of 1,772 and
            1,759 people, 19,593 probes: the sizes of IJB-C
  megaface  people's pictures among a million distractors; --people FILE.npz takes embeddings with
            paths NAME/PICTURE, as --save-embeddings writes them, in place of made-up ones

  python benchmarks/face_protocols.py ijbc --json ijbc.json
  python benchmarks/face_protocols.py megaface --dim 128 --people lfw.npz --json mf.json
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.plain_values import read_npz
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report

TOOL = ('-m', 'vision', 'faces', 'verify')
PEOPLE, PICTURES, TEMPLATES, PAIRS, PROBES = 3_531, 469_375, 23_124, 15_658_489, 19_593
BLOCK = 1 << 16
POLL_S = 0.1


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('protocol', choices=('ijbc', 'megaface'))
    add('--dim', type=int, default=512, help='numbers of an embedding (default: 512)')
    add('--share', type=float, default=1.0, help='of pairs or distractors, for a try (default: 1)')
    add('--people', type=Path, help='megaface: embeddings of people instead of made-up ones')
    add('--scratch', type=Path, help='folder with some GB of room (default: the system\'s)')
    add('--seed', type=int, default=0, help='(default: 0)')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        rng = np.random.default_rng(args.seed)
        make = make_ijbc if args.protocol == 'ijbc' else make_megaface
        options = make(args, Path(scratch), rng)
        row = measured([sys.executable, *TOOL, '--protocol', args.protocol, *options],
                       Path(scratch) / 'answer.json')
    row = dict(protocol=args.protocol, dim=args.dim, share=args.share,
               people='made up' if args.people is None else args.people.name) | row
    Console().print(row)
    if args.json:
        write_report(args.json, [row], is_recorded=args.record, seed=args.seed)
    return 0


def make_ijbc(args: argparse.Namespace, folder: Path, rng: np.random.Generator) -> list[str]:
    """Each person has a gallery template, probes are shared out; G1 has the first half of them."""
    num_pairs = int(PAIRS * args.share)
    subject = np.concatenate([np.arange(PEOPLE), rng.integers(0, PEOPLE, TEMPLATES - PEOPLE)])
    template = np.concatenate([np.arange(TEMPLATES),
                               rng.integers(0, TEMPLATES, PICTURES - TEMPLATES)])
    media = rng.integers(0, 1 << 20, PICTURES)
    write_lines(folder / 'ijbc_face_tid_mid.txt', PICTURES, lambda i: (
        f'{n}.jpg {template[n]} {media[n]}' for n in i))
    points = ' '.join(['56.0'] * 10)
    write_lines(folder / 'ijbc_name_5pts_score.txt', PICTURES, lambda i: (
        f'{n}.jpg {points} 0.9' for n in i))
    first, second = rng.integers(0, TEMPLATES, (2, num_pairs), dtype=np.int32)
    of_person = {person: rows for person, rows in enumerate(
        np.split(np.argsort(subject, kind='stable'), np.cumsum(np.bincount(subject))[:-1]))}
    for row in range(0, num_pairs, 800):  # IJB-C: one pair in 801 is of one person
        second[row] = rng.choice(of_person[subject[first[row]]])
    write_lines(folder / 'ijbc_template_pair_label.txt', num_pairs, lambda i: (
        f'{a} {b} {int(same)}' for a, b, same in zip(
            first[i].tolist(), second[i].tolist(), (subject[first[i]] == subject[second[i]]),
            strict=True)))
    for part, rows in (('gallery_G1', range(1_772)), ('gallery_G2', range(1_772, PEOPLE)),
                       ('probe_mixed', range(PEOPLE, TEMPLATES))):
        (folder / f'ijbc_1N_{part}.csv').write_text('TEMPLATE_ID,SUBJECT_ID\n' + ''.join(
            f'{row},{subject[row]}\n' for row in rows))
    centres = rng.normal(size=(PEOPLE, args.dim)).astype(np.float32)
    write_rows(folder / 'e.npy', PICTURES, args.dim,
               lambda i: centres[subject[template[i]]] + noise(rng, len(i), args.dim))
    return ['--lists', str(folder), '--embeddings', str(folder / 'e.npy')]


def make_megaface(args: argparse.Namespace, folder: Path, rng: np.random.Generator) -> list[str]:
    """3,530 pictures of 80 people unless ``--people`` are given."""
    if args.people:
        try:
            content = read_npz(args.people.read_bytes(), ('embeddings', 'paths'))
        except (OSError, ValueError) as error:
            raise VisionError('VIS-DATA-1132', f'embeddings that do not fit: {error}',
                              where=str(args.people), do='make it with --save-embeddings of '
                              'vision faces verify') from error
        people, paths = content['embeddings'], content['paths'].tolist()
        names = [path.split('/')[0] for path in paths]
        labels = np.unique(names, return_inverse=True)[1]
    else:
        labels = np.arange(3_530) % 80
        people = rng.normal(size=(80, args.dim))[labels] + noise(rng, len(labels), args.dim)
        paths = [f'{row}.jpg' for row in range(len(labels))]
    np.save(folder / 'e.npy', np.asarray(people, dtype=np.float32))
    (folder / 'list.txt').write_text(''.join(f'{path}\t{label}\n' for path, label in
                                             zip(paths, labels, strict=True)))
    write_rows(folder / 'd.npy', int(1_000_000 * args.share), args.dim,
               lambda i: noise(rng, len(i), args.dim))
    return ['--list', str(folder / 'list.txt'), '--embeddings', str(folder / 'e.npy'),
            '--distractors', str(folder / 'd.npy')]


def noise(rng: np.random.Generator, num: int, dim: int) -> np.ndarray:
    return rng.standard_normal((num, dim), dtype=np.float32)


def write_lines(path: Path, num: int, lines) -> None:
    with path.open('w') as file:
        for top in track(range(0, num, BLOCK), description=path.name,
                         console=Console(stderr=True)):
            file.write('\n'.join(lines(np.arange(top, min(num, top + BLOCK)))) + '\n')


def write_rows(path: Path, num: int, dim: int, rows) -> None:
    with path.open('wb') as file:
        np.lib.format.write_array_header_1_0(file, dict(descr='<f4', fortran_order=False,
                                                        shape=(num, dim)))
        for top in track(range(0, num, BLOCK), description=path.name,
                         console=Console(stderr=True)):
            rows(np.arange(top, min(num, top + BLOCK))).astype('<f4').tofile(file)


def measured(command: list[str], answer: Path) -> dict:
    """The report's row with seconds and peak memory of the process, seen every ``POLL_S``."""
    start, own, whole = time.perf_counter(), 0, 0
    with subprocess.Popen([*command, '--json', str(answer)], stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            status = Path(f'/proc/{child.pid}/status').read_text()
            found = {key: int(value) for key, value in
                     re.findall(r'^(RssAnon|VmHWM):\s+(\d+) kB', status, re.M)}
            own, whole = max(own, found.get('RssAnon', 0)), max(whole, found.get('VmHWM', 0))
            time.sleep(POLL_S)
    if child.returncode:
        raise VisionError('VIS-RUN-1088', f'vision faces verify ended with {child.returncode}',
                          do='its message stands above')
    import json
    row = json.loads(answer.read_text())['rows'][0]
    return {key: value for key, value in row.items() if key not in ('lists', 'list',
                                                                    'distractors', 'protocol')} \
        | dict(seconds=round(time.perf_counter() - start, 1), threads=os.environ.get(
            'OMP_NUM_THREADS', 'all'), peak_own_bytes=own * 1024,
            peak_with_mapped_bytes=whole * 1024)


if __name__ == '__main__':
    run_cli(main)
