"""One shape for every error that a user can cause, and one exit code per kind.

A command prints the block of ``VisionError.render`` on stderr and exits with ``exit_code``; the
traceback is shown only with ``-v``. Each code is raised at one place; ``tools/error_pages.py``
reads what it says there for ``vision explain`` and ``docs/errors/``.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection

# Exit code by the kind in the middle of an error code, e.g. VIS-DATA-004 -> 4.
EXIT_CODES = {'INPUT': 2, 'CONFIG': 2, 'RUN': 2, 'ENV': 3, 'DATA': 4, 'VIDEO': 4, 'CKPT': 5,
              'NET': 6, 'DIST': 7}
_CODE = re.compile(r'VIS-([A-Z]+)-\d{3,4}')
_UNKNOWN_OPTION = re.compile(r'unrecognized arguments: (.*)')
_UNKNOWN_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
_UNREADABLE = {errno.ENOENT: 'there is no file',
               errno.EISDIR: 'a folder stands where a file belongs',
               errno.ENOTDIR: 'a file stands where a folder belongs',
               errno.EACCES: 'there is no permission for'}
_called_with = {'-v': False}  # by the command of this process; ``run_cli`` takes it out of argv
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
        """2 to 7, by the kind in the middle of the code; see ``EXIT_CODES``."""
        return EXIT_CODES[_CODE.fullmatch(self.code)[1]]

    def render(self) -> str:
        """The block that commands print: a line for what came, and one each for where,
        why and do."""
        lines = [f'ERROR {self.code}: {self.what}']
        lines += [f'{name}: {text}' for name, text in
                  (('Where', self.where), ('Why', self.why), ('Do', self.do)) if text]
        return '\n'.join(lines)

    def to_dict(self) -> dict[str, str | int]:
        """For JSON: the five parts as they were given, and the exit code."""
        return dict(code=self.code, what=self.what, where=self.where, why=self.why, do=self.do,
                    exit_code=self.exit_code)


def _rebuild(code: str, what: str, where: str, why: str, do: str) -> VisionError:
    return VisionError(code, what, where=where, why=why, do=do)


def find_rendered(text: str) -> VisionError | None:
    """The error inside a traceback that is only text. Torch hands over what happened in a process
    of a data loader so, as a RuntimeError, because it cannot make our error from one string.

    Returns:
        VisionError: of the first block in the text; None without one.
    """
    found = _RENDERED.search(text)
    if not found:
        return None
    rest = dict(re.findall(r'^(Where|Why|Do): (.*)$', found[3], re.M))
    return VisionError(found[1], found[2],
                       **{name.lower(): value for name, value in rest.items()})


def names_like(word: str, known: Collection[str], *, cutoff: float = 0.6) -> list[str]:
    """Up to three known names for one that is not known: those that begin with it, else those
    that are spelt most alike.

    Args:
        cutoff: of ``difflib.get_close_matches``, in [0, 1]; lower takes names less alike.
    """
    begun = [name for name in known if word and name.startswith(word)]
    return begun[:3] or difflib.get_close_matches(word, known, n=3, cutoff=cutoff)


class CommandParser(argparse.ArgumentParser):
    """Says which option or choice is like one that it does not know."""

    def error(self, message: str):
        """As argparse's, with the options or choices that are spelt most alike."""
        if found := _UNKNOWN_OPTION.match(message):
            known = self._all_options()
            wrong = [word.split('=')[0] for word in found[1].split() if word.startswith('-')]
        elif found := _UNKNOWN_CHOICE.search(message):
            known, wrong = re.findall(r"[^\s,']+", found[2]), [found[1]]
        else:
            known, wrong = [], []
        near = dict.fromkeys(name for word in wrong
                             for name in difflib.get_close_matches(word, known, n=2))
        super().error(f'{message}; did you mean {" or ".join(near)}?' if near else message)

    def _all_options(self) -> list[str]:
        """Long options of this parser and of its commands."""
        own = [name for action in self._actions for name in action.option_strings
               if action.help != argparse.SUPPRESS]
        parts = [part for action in self._actions if isinstance(action, argparse._SubParsersAction)
                 for part in action.choices.values()]
        return own + [name for part in parts for name in part._all_options()]


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, as it stands; -v is for ``run_cli``."""
    parser = CommandParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
                        help='say more: the whole start of a run, the traceback of an error')
    return parser


def is_verbose() -> bool:
    """Was the command that runs called with -v (or VISION_TRACEBACK=1)?"""
    return _called_with['-v'] or os.environ.get('VISION_TRACEBACK') == '1'


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process with the exit code of what happened.

    Faults of the user print one block on stderr; a missing package (VIS-ENV-909) and a full disk
    (VIS-ENV-107) are told in the same form. ``-v`` or ``--verbose`` among the arguments, or
    the environment variable ``VISION_TRACEBACK=1``, adds the traceback; they are taken out before
    ``main`` sees the arguments, so that they may stand behind the name of an action too.
    ``VISION_ERROR_JSON=1`` adds the same block as one JSON line for machines.
    """
    _called_with['-v'] = _take_verbose()
    try:
        code = main() or 0
    except VisionError as error:
        code = _tell(error)
    except RuntimeError as error:
        found = find_rendered(str(error))
        if found is None:
            raise
        code = _tell(found)
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package in ('', 'vision'):  # ours: no installation mends that
            raise
        code = _tell(VisionError(
            'VIS-ENV-909', f'the package {package} is not installed', where=sys.executable,
            why='the light environment runs video; training, detectors of MMDetection and '
            'measurements of them need the full one', do='pip install "frugal-vision[train]"; '
            'or in a checkout: make env, then source .venv/bin/activate'))
    except OSError as error:
        told = _of_file(error)
        if told is None:
            raise
        code = _tell(told)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def _of_file(error: OSError) -> VisionError | None:
    """What a user can mend of the file system's errors; None: the error is none of these."""
    # A file system that is full meets every command, wherever it writes.
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VisionError(
            'VIS-ENV-107', 'the disk is full', where=str(error.filename or 'standard output'),
            why=str(error), do='make room and run the same command again; what was finished is '
            'whole, what was being written is removed at the next start')
    if error.errno not in _UNREADABLE or not isinstance(error.filename, str | bytes):
        return None
    path = os.path.abspath(os.fsdecode(error.filename))
    folder, name = os.path.split(path)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    near = difflib.get_close_matches(name, names, n=3)
    return VisionError(
        'VIS-INPUT-1813', f'{_UNREADABLE[error.errno]}: {os.fsdecode(error.filename)}',
        where=path, why=f'near it: {", ".join(near)}' if near else '',
        do='give a path that is there and may be opened; -v shows where it was needed')


def _take_verbose() -> bool:
    words = sys.argv[1:]
    end = words.index('--') if '--' in words else len(words)
    kept = [word for word in words[:end] if word not in ('-v', '--verbose')]
    sys.argv = [*sys.argv[:1], *kept, *words[end:]]
    return len(kept) < end


def _tell(error: VisionError) -> int:
    if is_verbose():
        traceback.print_exc()
    print(error.render(), file=sys.stderr)
    if os.environ.get('VISION_ERROR_JSON') == '1':
        print(json.dumps(error.to_dict()), file=sys.stderr)
    return error.exit_code
