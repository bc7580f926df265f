"""One shape for every error that a user can cause, and one exit code per kind.

A command prints the block of ``VisionError.render`` on stderr and exits with ``exit_code``; the
traceback is shown only with ``-v``. ``docs/errors.md`` has a section for each code, and a test
compares both lists.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable

# Exit code by the kind in the middle of an error code, e.g. VIS-DATA-004 -> 4.
EXIT_CODES = {'INPUT': 2, 'CONFIG': 2, 'RUN': 2, 'ENV': 3, 'DATA': 4, 'VIDEO': 4, 'CKPT': 5,
              'NET': 6, 'DIST': 7}
_CODE = re.compile(r'VIS-([A-Z]+)-\d{3,4}')
_RENDERED = re.compile(r'\bVisionError: ERROR (VIS-[A-Z]+-\d{3,4}): (.*)'
                       r'((?:\n(?:Where|Why|Do): .*)*)')


class VisionError(ValueError):
    """A fault that a user can cause and mend.

    Args:
        code: ``VIS-KIND-NNN``; KIND is a key of ``EXIT_CODES``.
        what: what came, with counts and the first example: one sentence.
        where: file, line, key or frame.
        why: the rule that was broken.
        do: the command or the edit that mends it.
    """

    def __init__(self, code: str, what: str, *, where: str = '', why: str = '',
                 do: str = '') -> None:
        match = _CODE.fullmatch(code)
        assert match and match[1] in EXIT_CODES, code
        self.code, self.what, self.where, self.why, self.do = code, what, where, why, do
        super().__init__(self.render())

    def __reduce__(self):
        return _rebuild, (self.code, self.what, self.where, self.why, self.do)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[_CODE.fullmatch(self.code)[1]]

    def render(self) -> str:
        lines = [f'ERROR {self.code}: {self.what}']
        lines += [f'{name}: {text}' for name, text in
                  (('Where', self.where), ('Why', self.why), ('Do', self.do)) if text]
        return '\n'.join(lines)

    def to_dict(self) -> dict[str, str | int]:
        return dict(code=self.code, what=self.what, where=self.where, why=self.why, do=self.do,
                    exit_code=self.exit_code)


def _rebuild(code: str, what: str, where: str, why: str, do: str) -> VisionError:
    return VisionError(code, what, where=where, why=why, do=do)


def find_rendered(text: str) -> VisionError | None:
    """The error inside a traceback that is only text. Torch hands over what happened in a process
    of a data loader so, as a RuntimeError, because it cannot make our error from one string."""
    found = _RENDERED.search(text)
    if not found:
        return None
    rest = dict(re.findall(r'^(Where|Why|Do): (.*)$', found[3], re.M))
    return VisionError(found[1], found[2],
                       **{name.lower(): value for name, value in rest.items()})


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, as it stands; -v is for ``run_cli``."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
                        help='show the traceback of an error too')
    return parser


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process with the exit code of what happened.

    Faults of the user print one block on stderr. ``-v`` or ``--verbose`` among the arguments, or
    the environment variable ``VISION_TRACEBACK=1``, adds the traceback; they are taken out before
    ``main`` sees the arguments, so that they may stand behind the name of an action too.
    ``VISION_ERROR_JSON=1`` adds the same block as one JSON line for machines.
    """
    is_verbose = _take_verbose() or os.environ.get('VISION_TRACEBACK') == '1'
    try:
        code = main() or 0
    except VisionError as error:
        code = _tell(error, is_verbose)
    except RuntimeError as error:
        found = find_rendered(str(error))
        if found is None:
            raise
        code = _tell(found, is_verbose)
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package in ('', 'vision'):  # ours: no installation mends that
            raise
        code = _tell(VisionError(
            'VIS-ENV-909', f'the package {package} is not installed', where=sys.executable,
            why='the light environment runs video; training, detectors of MMDetection and '
            'measurements of them need the full one', do='pip install "frugal-vision[train]"; '
            'or in a checkout: make env, then source .venv/bin/activate'), is_verbose)
    except OSError as error:
        # A file system that is full meets every command, wherever it writes.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _tell(VisionError(
            'VIS-ENV-107', 'the disk is full', where=str(error.filename or 'standard output'),
            why=str(error), do='make room and run the same command again; what was finished is '
            'whole, what was being written is removed at the next start'), is_verbose)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def _take_verbose() -> bool:
    words = sys.argv[1:]
    end = words.index('--') if '--' in words else len(words)
    kept = [word for word in words[:end] if word not in ('-v', '--verbose')]
    sys.argv = [*sys.argv[:1], *kept, *words[end:]]
    return len(kept) < end


def _tell(error: VisionError, is_verbose: bool) -> int:
    if is_verbose:
        traceback.print_exc()
    print(error.render(), file=sys.stderr)
    if os.environ.get('VISION_ERROR_JSON') == '1':
        print(json.dumps(error.to_dict()), file=sys.stderr)
    return error.exit_code
