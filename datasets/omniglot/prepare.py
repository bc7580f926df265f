"""Unpack an Omniglot archive into one folder per character (MIT licence; Lake et al., 2015).

  python datasets/omniglot/prepare.py images_background_small1.zip --out data/omniglot_small1

Writes OUT/ALPHABET.characterNN/*.png; OUT appears complete or not at all.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vision.common.core.archives import unpack
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.new_folder import new_folder


def prepare(archive: Path, out: Path) -> tuple[int, int]:
    """(classes, pictures) that were written."""
    try:
        with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            unpack(archive, Path(scratch))
            pictures = sorted(Path(scratch).rglob('*.png'))
            for path in pictures:
                parts = path.relative_to(scratch).parts
                if len(parts) < 3:
                    raise _other(archive, f'{"/".join(parts)} is not ALPHABET/CHARACTER/*.png')
                target = folder / f'{parts[-3]}.{parts[-2]}' / parts[-1]
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
            if not pictures:
                raise _other(archive, 'there is no png in it')
            return len(list(folder.iterdir())), len(pictures)
    except OSError as error:
        raise _other(archive, str(error)) from error


def _other(archive: Path, why: str) -> VisionError:
    return VisionError('VIS-DATA-1086', f'{archive} is no Omniglot archive', why=why,
                       do='get images_*.zip of brendenlake/omniglot again')


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('archive', type=Path, help='images_background*.zip or images_evaluation*')
    parser.add_argument('--out', type=Path, required=True, help='folder to make')
    args = parser.parse_args(argv)
    num_classes, num_pictures = prepare(args.archive, args.out)
    print(f'{args.out}: {num_pictures} pictures of {num_classes} characters')
    return 0


if __name__ == '__main__':
    run_cli(main)
