"""Hooks of the documentation site: mkdocs build --strict (mkdocs.yml names this file).

Pages that stand beside their code (README.md of rooms and data sets, CONTRIBUTING, CHANGELOG) are
taken into the site, pages of the API are made from the package's folders, and links between all
of them are turned from paths of the repository into paths of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'vision'
LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)')
OUTSIDE = re.compile(r'https?:|mailto:')
LAYERS = ('core', 'runtime', 'io', 'nn', 'mm')


def taken_in() -> dict[str, str]:
    """Path in the repository -> path in the site, of pages outside of docs/."""
    pages = {'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md',
             'configs/README.md': 'configs.md', 'datasets/README.md': 'datasets.md',
             'README.md': 'readme.md'}
    for path in sorted(PACKAGE.glob('*/README.md')):
        pages[f'vision/{path.parent.name}/README.md'] = f'rooms/{path.parent.name}.md'
    for path in sorted((ROOT / 'datasets').glob('*/README.md')):
        pages[f'datasets/{path.parent.name}/README.md'] = f'datasets/{path.parent.name}.md'
    return {source: page for source, page in pages.items() if (ROOT / source).is_file()}


def api_pages() -> dict[str, list[str]]:
    """Path of a page -> modules that it shows: a page for each room, and one for each layer."""
    pages = {'api/vision.md': [PACKAGE / 'loading.py']}
    for room in sorted(path.parent for path in PACKAGE.glob('*/__init__.py')):
        if room.name == 'cli':  # commands say what they do with --help
            continue
        pages[f'api/{room.name}/index.md'] = sorted(room.glob('*.py'))
        for layer in LAYERS:
            pages[f'api/{room.name}/{layer}.md'] = sorted((room / layer).rglob('*.py'))
    names = {page: ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in paths
                    if path.is_file() and path.stem != '__init__']
             for page, paths in pages.items()}
    return {page: found for page, found in names.items() if found}


def on_config(config):
    """Fill the parts of the navigation that follow the folders."""
    rooms = [page for page in taken_in().values() if page.startswith('rooms/')]
    errors = sorted(f'errors/{path.name}' for path in (ROOT / 'docs' / 'errors').glob('*.md'))
    layers: dict[str, list[str]] = {}
    for page in api_pages():
        layers.setdefault(page.split('/')[1].removesuffix('.md'), []).append(page)
    api = [{room: pages if len(pages) > 1 else pages[0]} for room, pages in layers.items()]
    for part in config.nav:
        for name, pages in dict(Rooms=rooms, API=api, Errors=errors).items():
            if name in part:
                part[name] = pages
    return config


def on_files(files: Files, config) -> Files:
    for source, page in taken_in().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, modules in api_pages().items():
        title = page.removeprefix('api/').removesuffix('.md').removesuffix('/index')
        text = f'# {title.replace("/", ".")}\n\n' + '\n\n'.join(
            f'::: {name}' for name in modules) + '\n'
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links of the repository as links of the site; a file that is not in it is only named."""
    sources = {uri: path for path, uri in taken_in().items()}
    here = sources.get(page.file.src_uri, f'docs/{page.file.src_uri}')

    def translated(match: re.Match) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ''
        if not target or OUTSIDE.match(target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        path = f'{path}/index.md' if (ROOT / path / 'index.md').is_file() else path
        uri = taken_in().get(path, path.removeprefix('docs/') if path.startswith('docs/') else '')
        if files.get_file_from_path(uri) is None:
            if mark or not (ROOT / path).exists():
                return match[0]  # mkdocs tells of a link that leads nowhere
            return f'{text} (`{path}`)' if text.strip('`') != path else text
        return f'{mark}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}' \
               f'{anchor})'

    return LINK.sub(translated, markdown)
