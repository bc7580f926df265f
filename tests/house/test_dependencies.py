"""What is imported is declared, what is declared is used, and its licence is known."""

import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import name of a package that is called otherwise.
PACKAGES = {'PIL': 'pillow', 'fontTools': 'fonttools', 'cv2': 'opencv-python',
            'faiss': 'faiss-cpu', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection',
            'mmengine': 'onedl-mmengine', 'mkdocs': 'mkdocs-material', 'yaml': 'pyyaml'}
# Declared and not imported by name.
USED_OTHERWISE = {
    'gradio': 'vision web',
    'mkdocs-material': 'the pages as a site',
    'mkdocstrings': 'the pages as a site',
    'pandas': 'to_pandas() imports it by name',
    'pytest-timeout': 'the limit in setup.cfg',
    'pytest-xdist': 'make test',
    'ruff': 'make lint',
    'scikit-image': 'datasets/photo_clip reads the photographs in its folder',
    'tensorboard': 'the visualisation backend that configs may name',
}
# Imported and not declared: looked for as a fault, or there with pytest.
NOT_NEEDED = {'torchvision', 'packaging'}


def by_extra(node: ast.AST) -> bool:
    """Is it ``import_extra('PACKAGE', ...)``?"""
    return (isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'import_extra'
            and isinstance(node.args[0], ast.Constant))


def imported(*folders: str) -> dict[str, set[str]]:
    """Package -> files that import it; modules of the standard library and ours left out."""
    found: dict[str, set[str]] = {}
    paths = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
    ours = {'vision', *(path.stem for folder in ('tools', 'benchmarks')
              for path in (ROOT / folder).rglob('*.py')),
            *(path.stem for path in paths)}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) else \
                [node.args[0].value] if by_extra(node) else []
            for name in {name.split('.')[0] for name in names}:
                if name not in sys.stdlib_module_names and name not in ours:
                    found.setdefault(PACKAGES.get(name, name), set()).add(
                        str(path.relative_to(ROOT)))
    return found


def declared() -> dict[str, set[str]]:
    """Extra, '' for the base, -> packages."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    texts = {'': config['options']['install_requires'], **config['options.extras_require']}
    return {extra: {re.match(r'[\w.-]+', line.strip())[0] for line in text.splitlines()
                    if line.strip() and line.strip()[0] != '#'} for extra, text in texts.items()}


def test_what_is_imported_is_declared():
    of_users = set().union(*(names for extra, names in declared().items() if extra != 'dev'))
    found = imported('vision', 'tools', 'benchmarks', 'datasets', 'configs')
    assert not {name: files for name, files in found.items()
                if name not in of_users | NOT_NEEDED}
    known = of_users | declared()['dev'] | NOT_NEEDED
    assert not {name: files for name, files in imported('tests').items() if name not in known}


def test_what_is_declared_is_used():
    used = set(imported('vision', 'tools', 'benchmarks', 'datasets', 'configs',
                        'tests')) | set(USED_OTHERWISE)
    names = set().union(*declared().values())
    assert names - used == set() and set(USED_OTHERWISE) <= names


def test_every_package_of_the_locks_has_a_licence_that_allows_it():
    page = (ROOT / 'docs' / 'licences.md').read_text()
    rows = dict(re.findall(r'^\| ([a-z0-9-]+) \| (.+?) \|', page, re.M))
    locked = {name for path in (ROOT / 'constraints').glob('py*.txt')
              for name in re.findall(r'^([a-z0-9-]+)==', path.read_text(), re.M)}
    assert locked | {'torch', 'onedl-mmcv'} <= set(rows), 'run: python tools/analysis/licences.py'
    known = re.compile(r'Apache|MIT|BSD|ISC|PSF|Python Software Foundation|MPL|Mozilla|CMU')
    assert not {name: text for name, text in rows.items()
                if name != 'package' and (not known.search(text)
                                          or re.search(r'\bA?GPL|Affero', text))}
