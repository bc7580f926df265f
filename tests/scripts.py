"""Scripts of the repository as modules for tests: tools, benchmarks, prepare.py of data sets."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = itertools.count()


def load_script(path: str) -> ModuleType:
    """A script as its command runs it, but for its main; a new module at each call.

    Its folder stays on the path: siblings are found there, also by functions that import them
    later and by processes that it starts. Behind all other folders, for tools/test.py is not
    the standard library's test. Siblings are imported as always: once in a process.

    Args:
        path: from the root of the repository, as 'benchmarks/memory.py'.
    Raises:
        FileNotFoundError: there is no such file.
    """
    file = ROOT / path
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    # A number each: eight scripts are named prepare, and what an older module of this script
    # has made is still pickled by that module's name.
    spec = importlib.util.spec_from_file_location(f'{file.stem}_script_{next(NUMBERS)}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module
