"""Write docs/licences.md: the licence of every package that an environment of ours installs.

The names are those of the locks in constraints/, torch and mmcv; the licences are what the
packages say in their metadata where this runs, so it needs the full environment.

Example:
  python tools/analysis/licences.py
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'licences.md'
NOT_LOCKED = ('onedl-mmcv', 'torch')
FAMILY = 'License :: OSI Approved :: '
HEAD = """# Licences of what is installed

Ours is Apache-2.0. Made by `python tools/analysis/licences.py` from the metadata of the packages
in `constraints/`; `make test` fails when a name is missing here, or is under the GPL or AGPL. What
wheels carry inside is not in their metadata: FFmpeg and Qt in opencv-python (LGPL), FFmpeg with
x264 and x265 in av (GPL-2.0: whoever hands that wheel on looks at it), NVIDIA's libraries in torch
for CUDA (their own).

| package | licence | in the light environment |
|---|---|---|
"""


def main(argv: list[str] | None = None) -> int:
    command_parser(__doc__).parse_args(argv)
    names = locked('py311') | set(NOT_LOCKED)
    missing = [name for name in sorted(names) if licence(name) is None]
    if missing:
        raise VisionError('VIS-ENV-908', f'{len(missing)} packages are not installed: '
                          f'{", ".join(missing[:10])}', why='their metadata is read here',
                          do='make env')
    light = locked('py311-light')
    rows = ''.join(f'| {name} | {licence(name)} | {"yes" if name in light else ""} |\n'
                   for name in sorted(names))
    with atomic_write(PAGE, 'w') as file:
        file.write(HEAD + rows)
    print(f'{PAGE.relative_to(ROOT)}: {len(names)} packages')
    return 0


def locked(lock: str) -> set[str]:
    text = (ROOT / 'constraints' / f'{lock}.txt').read_text()
    return set(re.findall(r'^([a-z0-9-]+)==', text, re.M))


def licence(name: str) -> str | None:
    """As the package says it: an SPDX expression, else its classifiers, else its licence's text.

    None when it is not installed, 'not said' when it says nothing.
    """
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    families = [line.removeprefix(FAMILY) for line in found.get_all('Classifier') or []
                if line.startswith(FAMILY)]
    text = (found['License'] or '').strip() or 'not said'
    if re.search(r'Apache License,?\s+Version 2\.0', text):
        text = 'Apache-2.0'
    return found['License-Expression'] or ', '.join(families) or text.splitlines()[0]


if __name__ == '__main__':
    run_cli(main)
