"""Find the faces of pictures: boxes, scores and five landmarks.

  vision faces detect group.jpg
  vision faces detect album/ --save out/            (pictures with boxes, and faces.jsonl)

--save writes into its folder NAME.jpg with boxes and landmarks for each picture, and faces.jsonl:
one line a picture, boxes x1 y1 x2 y2 and landmarks in px of the picture.
"""

from __future__ import annotations

import json
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    from vision.common.core.picture_files import pictures_of
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='picture, or folder of pictures')
    add('--save', type=Path, metavar='DIR', help='write pictures and a table here')
    add('--detector', help='YuNet, .onnx or zoo:NAME (default: zoo:yunet_widerface)')
    add('--min-score', type=float, default=0.7, help='leave out weaker faces (default: 0.7)')
    args = parser.parse_args(argv)
    lines = args.save / 'faces.jsonl' if args.save else None
    refuse_unwritable(lines)
    paths = pictures_of(args.images)
    from vision.faces.api import detect_faces, open_finder
    finder = open_finder(args.detector, min_score=args.min_score)
    rows, names = [], set()
    for path in paths:
        found = detect_faces(finder, path)
        print(f'{path}: {len(found)} face{"s" * (len(found) != 1)}' + ''.join(
            f'\n  {score:.2f}  x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f} px'
            for box, score in zip(found.boxes_xyxy, found.scores, strict=True)))
        if args.save:
            target = save_picture(found.draw(), path, args.save, names)
            rows.append(dict(image=str(path), drawn=target.name, faces=found.to_dicts()))
    if args.save:
        with atomic_write(lines) as file:
            file.write(''.join(json.dumps(row) + '\n' for row in rows).encode())
        print(f'written: {lines} and {len(rows)} pictures')
    return 0


def save_picture(image, path: Path, folder: Path, names: set[str]) -> Path:
    """As NAME.jpg, or NAME_2.jpg where another folder had a picture of this name."""
    import cv2
    stem, count = path.stem, 1
    name = f'{stem}.jpg'
    while name in names or (folder / name).exists() and (folder / name).samefile(path):
        count += 1
        name = f'{stem}_{count}.jpg'
    names.add(name)
    with atomic_write(folder / name) as file:
        file.write(cv2.imencode('.jpg', image)[1].tobytes())
    return folder / name


if __name__ == '__main__':
    run_cli(main)
