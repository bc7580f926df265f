"""The documentation site builds without a warning, and its tutorials run as they stand."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
notebooks = load_script('tools/notebooks.py')
# What each tutorial needs beside the base install.
NEEDS = dict(own_video=['supervision', 'pandas'], own_classes=['mmdet'], train_lattice=['mmdet'],
             polynet_transfer=['mmengine'], faces=['torch', 'faiss'])
NEEDS_CLIP = ('own_video', 'train_lattice')


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """mkdocs --strict: links, anchors, pages of the API and references are all there."""
    pytest.importorskip('material', reason='needs the extra [docs]')
    pytest.importorskip('mkdocstrings')
    result = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir',
                             str(tmp_path / 'site')], cwd=ROOT, capture_output=True, text=True,
                            env=os.environ | dict(NO_MKDOCS_2_WARNING='1'), timeout=600)
    told = [line for line in result.stderr.splitlines() if line.startswith(('WARNING', 'ERROR'))]
    assert result.returncode == 0 and not told, told or result.stderr[-2000:]
    for page in ('index.html', 'rooms/lattice/index.html', 'api/lattice/core/index.html',
                 'tutorials/own_video/index.html', 'tutorials/own_video.ipynb'):
        assert (tmp_path / 'site' / page).is_file(), page


@pytest.mark.parametrize('page', notebooks.pages(), ids=lambda page: page.stem)
def test_a_notebook_is_its_page(page):
    assert page.with_suffix('.ipynb').read_text() == notebooks.notebook(page.read_text()), \
        'run: python tools/notebooks.py'


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip') / 'photo_clip'  # is not there yet
    subprocess.run([sys.executable, 'datasets/photo_clip/prepare.py', '--out', str(folder)],
                   cwd=ROOT, check=True, capture_output=True,
                   env=os.environ | dict(PYTHONPATH=str(ROOT)))
    return folder / 'photo_clip.mp4'


@pytest.fixture
def people(shared_data, tmp_path, monkeypatch):
    """Two people of real pictures, under the names of the tutorial, and the weights' mirror."""
    import cv2
    monkeypatch.setenv('VISION_ZOO_MIRROR', str(shared_data / 'weights'))
    monkeypatch.setenv('VISION_ZOO_CACHE', str(tmp_path / 'cache'))
    folders = [folder for folder in sorted((shared_data / 'orl-faces').rglob('*'))
               if folder.is_dir() and len(list(folder.glob('*.pgm'))) > 2][:2]
    for name, folder in zip(('anna', 'bela'), folders, strict=True):
        target = tmp_path / 'people' / name
        target.mkdir(parents=True)
        for number, path in enumerate(sorted(folder.glob('*.pgm'))[:3], 1):
            image = cv2.resize(cv2.imread(str(path)), None, fx=3, fy=3)
            cv2.imwrite(str(target / f'{number}.png'), image)


@pytest.mark.slow
@pytest.mark.parametrize('page', notebooks.pages(), ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path, monkeypatch, request):
    for name in NEEDS.get(page.stem, ()):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for folder in ('configs', 'datasets', 'tools'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if page.stem in NEEDS_CLIP:
        shutil.copy(request.getfixturevalue('clip'), 'clip.mp4')
    if page.stem == 'faces':
        request.getfixturevalue('people')
    space: dict = {}
    for kind, content in notebooks.blocks(page.read_text()):
        if kind == 'python':
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(content, f'{page.name}', 'exec'), space)
        elif kind == 'sh':
            for line in content.splitlines():
                run(line, tmp_path)


def run(line: str, folder: Path) -> None:
    program, rest = line.split(maxsplit=1)
    start = dict(vision=[sys.executable, '-m', 'vision'], python=[sys.executable])[program]
    result = subprocess.run([*start, *rest.split()], cwd=folder, capture_output=True, text=True,
                            env=os.environ | dict(PYTHONPATH=str(ROOT)), timeout=600)
    assert result.returncode == 0, f'{line}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}'
