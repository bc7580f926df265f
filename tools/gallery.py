"""Enrol faces: a gallery file from folders of pictures, one folder a person.

  python tools/gallery.py build people/ --out people.npz --detector yunet.onnx CONFIG CKPT
  python tools/gallery.py add   more/   --out people.npz --detector yunet.onnx CONFIG CKPT
  python tools/gallery.py build crops/  --out people.npz --aligned CONFIG CKPT
  python tools/gallery.py list   people.npz
  python tools/gallery.py check  people.npz
  python tools/gallery.py remove people.npz NAME

In each picture the largest face is found (YuNet), aligned by its five landmarks to 112 px and
embedded. Pictures without a face, or that cannot be read, are named and left out, as are people of
whom none is left; --strict stops there. The file keeps embeddings, names, file names and the hash
of the embedder, no pictures. A face is personal data: enrol people who agreed, and delete them
with "remove".
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable

SIDE = 112  # px of an aligned face


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    actions = parser.add_subparsers(dest='action', required=True)
    for action, text in (('build', 'make a new gallery'), ('add', 'enrol more people')):
        add = actions.add_parser(action, help=text).add_argument
        add('folder', type=Path, help='FOLDER/NAME/*.jpg')
        add('config', help='config of a FaceRecognizer')
        add('checkpoint', help='its weights: .pth, .safetensors or zoo:NAME')
        add('--out', type=Path, required=True, help='the gallery file (.npz)')
        add('--detector', type=Path, help='YuNet .onnx, which finds the faces; '
            'needed unless --aligned')
        add('--aligned', action='store_true', help='the pictures are aligned 112 px faces already')
        add('--min-score', type=float, default=0.7, help='leave out weaker faces (default: 0.7)')
        add('--strict', action='store_true', help='stop at a picture without a face')
        add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
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
    from vision.faces.core.data.image_lists import read_identity_folders
    from vision.faces.core.gallery.gallery import Gallery, load_gallery
    from vision.faces.mm.loading import embed_images, load_embedder
    from vision.faces.runtime.face_finder import embedder_hash
    if args.action == 'build' and args.out.exists():
        raise VisionError('VIS-CONFIG-1104', f'{args.out} exists already', why='a gallery is '
                          'never overwritten', do='use "add", or remove the file')
    if not 0 < args.min_score <= 1:
        raise VisionError('VIS-CONFIG-1104', f'--min-score {args.min_score}', where='--min-score',
                          why='a score lies in (0, 1]', do='see gallery.py build --help')
    if args.aligned and args.detector:
        raise VisionError('VIS-CONFIG-1104', '--aligned and --detector together',
                          why='nothing is looked for in aligned faces', do='leave one of them out')
    refuse_unwritable(args.out)
    old = load_gallery(args.out) if args.action == 'add' else None
    found = read_identity_folders(args.folder)
    finder = None if args.aligned else open_finder(args)
    embedder = load_embedder(args.config, args.checkpoint, device=args.device)
    identity = embedder_hash(embedder)
    if old is not None:
        old.require(identity, str(args.out))  # before the work, not after it
    rows: list[int] = []
    embeddings = embed_images(embedder, find_faces(args, finder, found, rows))
    if not rows:
        raise _no_face(f'any of {len(found.paths)} pictures')
    names = [found.names[found.labels[row]] for row in rows]
    new = Gallery(embeddings, *(_array(part) for part in (
        names, [found.paths[row] for row in rows])), identity)
    gallery = new if old is None else old.joined(new)
    gallery.save(args.out)
    print(f'{args.out}: {len(gallery.names)} faces of {len(set(gallery.names.tolist()))} people')
    report_left_out(found, rows)
    return 0


def report_left_out(found, rows: list[int]) -> None:
    """What is not in the gallery, counted; nothing of it keeps the others out."""
    if num_pictures := len(found.paths) - len(rows):
        print(f'left out: {num_pictures} of {len(found.paths)} pictures')
    without = sorted(set(found.names) - {found.names[found.labels[row]] for row in rows})
    if without:
        print(f'WARNING not enrolled, no face in any picture: {", ".join(without[:20])} '
              f'({len(without)} of {len(found.names)} people); bring another picture, or lower '
              '--min-score, and use "add"')


def find_faces(args: argparse.Namespace, finder, found, rows: list[int]) -> Iterator:
    """Aligned crops; the rows of the list that gave one are added to ``rows``.

    One at a time: the crops of a large gallery would fill the memory.
    """
    from rich.console import Console
    from rich.progress import track

    from vision.faces.mm.datasets import read_image
    console = Console(stderr=True)
    for row, path in enumerate(track(found.paths, description='faces', console=console)):
        try:
            image = read_image(found.root / path)
            crop = as_aligned(image, path) if finder is None else largest_face(finder, image, path)
        except VisionError as error:
            if args.strict:
                raise
            console.print(f'WARNING {error.what}: left out', markup=False, soft_wrap=True)
            continue
        rows.append(row)
        yield crop


def as_aligned(image, path: str):
    if image.shape[:2] != (SIDE, SIDE):
        raise VisionError('VIS-DATA-1082', f'{path} is {image.shape[1]} x {image.shape[0]} px',
                          why=f'an aligned face has {SIDE} x {SIDE} px',
                          do='leave --aligned out and give --detector')
    return image


def open_finder(args: argparse.Namespace):
    from vision.faces.runtime.face_finder import FaceFinder
    if args.detector is None:
        raise VisionError('VIS-CONFIG-1104', 'no face detector is named', why='pictures are '
                          'searched for faces', do='give --detector yunet.onnx, or --aligned for '
                          'aligned faces')
    return FaceFinder(args.detector, min_score=args.min_score)


def largest_face(finder, image, path: str):
    from vision.common.core.boxes import box_areas
    from vision.faces.runtime.face_finder import align_faces
    faces = finder(image)
    if not len(faces):
        raise _no_face(path)
    best = int(box_areas(faces.boxes_xyxy).argmax())
    return align_faces(image, faces.landmarks[best:best + 1])[0]


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


def _array(values: list[str]):
    import numpy as np
    return np.array(values, dtype='U')


def _no_face(where: str) -> VisionError:
    return VisionError('VIS-DATA-1106', f'no face in {where}', why='a person needs a picture '
                       'with a face that the detector finds', do='bring another picture, or '
                       'lower --min-score')


if __name__ == '__main__':
    run_cli(main)
