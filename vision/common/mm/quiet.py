"""What libraries say that is no business of a user, silenced where it is said and nothing else.

Each message here was met in a run that was in order, and nobody who runs a config can act on it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import warnings

# Of Python's warnings: beginnings of the texts.
WARNINGS = (
    'faster_coco_eval is not installed',  # another metric of mmdet, which no config of ours uses
    'torch.meshgrid: in an upcoming release',  # how mmdet calls it
)
# Of MMEngine's log: calls of its own hooks to its own older names.
LOG_WARNINGS = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')
_PRINTED = 'Could not import OneDL'  # mmdet, of a package that is not needed


def quieten() -> None:
    """Import mmdet's data sets, where mmdet is installed, and say nothing of the above."""
    for text in WARNINGS:
        warnings.filterwarnings('ignore', message=text)
    if importlib.util.find_spec('mmdet') is None:
        return
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        importlib.import_module('mmdet.datasets')
    for line in printed.getvalue().splitlines():
        if not line.startswith(_PRINTED):
            print(line)
