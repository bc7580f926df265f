"""What commands write into the checkout never shows up as something to commit."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def default_folders() -> set[str]:
    """Default of each ``--out-dir`` and ``--work-dir`` in the sources."""
    texts = [path.read_text() for folder in ('vision', 'tools', 'benchmarks')
             for path in (ROOT / folder).rglob('*.py')]
    return {name for text in texts for name in
            re.findall(r"'--(?:out|work)-dir'[^)]*?default=Path\('([\w/]+)'", text)}


def is_ignored(path: str) -> bool:
    return subprocess.run(['git', 'check-ignore', '-q', '--no-index', path],
                          cwd=ROOT).returncode == 0


def test_outputs_at_their_default_places_are_ignored():
    folders = default_folders()
    assert {'video_out', 'faces_out'} <= folders
    assert [name for name in sorted(folders) if not is_ignored(f'{name}/a.txt')] == []


@pytest.mark.parametrize('name', ['work_dirs/a/1.log', 'demo_out/a.mp4', 'metrics.json',
                                  'polynet.pth', 'sprites.onnx', 'look.mp4', 'gallery.npz',
                                  'sheet.jpg', 'curve.png', 'data/mine/annotations.json'])
def test_files_that_the_pages_let_one_write_are_ignored(name):
    assert is_ignored(name)


def test_nothing_that_belongs_to_the_project_is_ignored():
    hidden = subprocess.run(['git', 'ls-files', '-ci', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    assert hidden == ''
