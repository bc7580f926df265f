"""Enrol faces: a gallery file from folders of pictures, one folder a person.

  vision faces gallery build people/ --out people.npz
  vision faces gallery add   more/   --out people.npz
  vision faces gallery build crops/  --out people.npz --aligned --model CONFIG --weights CKPT
  vision faces gallery list   people.npz
  vision faces gallery check  people.npz
  vision faces gallery remove people.npz NAME

In each picture the largest face is found (YuNet), aligned by its five landmarks and embedded.
Pictures without a face, or that cannot be read, are named and left out, as are people of whom none
is left; --strict stops there. The file keeps embeddings, names, file names and the hash of the
embedder, no pictures. A face is personal data: enrol people who agreed, and delete them with
"remove".
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from vision.cli.faces_options import add_model, open_model
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    actions = parser.add_subparsers(dest='action', required=True)
    for action, text in (('build', 'make a new gallery'), ('add', 'enrol more people')):
        sub = actions.add_parser(action, help=text)
        add = sub.add_argument
        add('folder', type=Path, help='FOLDER/NAME/*.jpg')
        add('--out', type=Path, required=True, help='the gallery file (.npz)')
        add('--aligned', action='store_true', help='the pictures are aligned faces already')
        add('--strict', action='store_true', help='stop at a picture without a face')
        add_model(sub)
    for action, text in (('list', 'who is enrolled'), ('check', 'damage and doubtful rows'),
                         ('remove', 'delete a person')):
        sub = actions.add_parser(action, help=text)
        sub.add_argument('gallery', type=Path, help='the gallery file')
        if action == 'remove':
            sub.add_argument('name', help='as "list" shows it')
        if action == 'check':
            sub.add_argument('--threshold', type=float, default=0.5, help='cosine above which two '
                             'names look like one person (default: 0.5)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return {'build': enrol, 'add': enrol, 'list': show, 'check': check,
            'remove': remove}[args.action](args)


def enrol(args: argparse.Namespace) -> int:
    fault = ()
    if args.action == 'build' and args.out.exists():
        fault = (f'{args.out} exists already', 'a gallery is never overwritten',
                 'use "add", or remove the file')
    elif args.aligned and args.detector:
        fault = ('--aligned and --detector together', 'nothing is looked for in aligned faces',
                 'leave one of them out')
    elif not 0 < args.min_score <= 1:
        fault = (f'--min-score {args.min_score}', 'a score lies in (0, 1]',
                 'leave it out: 0.7')
    if fault:
        raise VisionError('VIS-CONFIG-1104', fault[0], why=fault[1], do=fault[2])
    refuse_unwritable(args.out)
    from rich.console import Console
    from rich.progress import track
    console = Console(stderr=True)
    model = open_model(args)
    people = model.gallery(args.out if args.action == 'add' else None)
    before = set(people.names)
    people.add_folder(args.folder, aligned=args.aligned, strict=args.strict,
                      progress=lambda paths: track(paths, description='faces', console=console))
    people.save(args.out)
    for _, why in people.left_out:
        console.print(f'WARNING {why}: left out', markup=False, soft_wrap=True)
    print(f'{args.out}: {len(people)} faces of {len(people.names)} people')
    report_left_out(args.folder, people, before)
    return 0


def report_left_out(folder: Path, people, before: set[str]) -> None:
    """What is not in the gallery, counted; nothing of it keeps the others out."""
    from vision.faces.core.data.image_lists import read_identity_folders
    found = read_identity_folders(folder)
    if people.left_out:
        print(f'left out: {len(people.left_out)} of {len(found.paths)} pictures')
    without = sorted(set(found.names) - set(people.names) - before)
    if without:
        print(f'WARNING not enrolled, no face in any picture: {", ".join(without[:20])} '
              f'({len(without)} of {len(found.names)} people); bring another picture, or lower '
              '--min-score, and use "add"')


def show(args: argparse.Namespace) -> int:
    from vision.faces.core.gallery.gallery import load_gallery
    gallery = load_gallery(args.gallery)
    for name, count in sorted(Counter(gallery.names.tolist()).items()):
        print(f'{count:5d}  {name}')
    print(f'{len(gallery.names)} faces, {gallery.embeddings.shape[1]} numbers each, embedder '
          f'{gallery.embedder[:12]}')
    return 0


def check(args: argparse.Namespace) -> int:
    from vision.faces.core.gallery.gallery import load_gallery, suspicious_rows
    doubts = suspicious_rows(load_gallery(args.gallery), args.threshold)
    print('\n'.join(doubts) or 'whole; no two names look like one person')
    return 1 if doubts else 0


def remove(args: argparse.Namespace) -> int:
    from vision.faces.core.gallery.gallery import load_gallery
    old = load_gallery(args.gallery)
    new = old.without(args.name)
    if not len(new.names):
        args.gallery.unlink()
        print(f'{args.gallery}: nobody is left, the file is removed')
        return 0
    new.save(args.gallery)
    print(f'{args.gallery}: {len(old.names) - len(new.names)} faces removed')
    return 0


if __name__ == '__main__':
    run_cli(main)
