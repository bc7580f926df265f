"""The wheel of this checkout, installed where nothing else is, does what a newcomer asks of it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.zoo import load_models

ROOT = Path(__file__).resolve().parents[2]
PARTS = ('vision', 'configs', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE')
# What setup.cfg requires without extras, as folders and files of site-packages; opencv-python
# keeps its libraries beside cv2.
BASE = ('numpy', 'numpy.libs', 'scipy', 'scipy.libs', 'cv2', 'opencv_python.libs',
        'opencv_python_headless.libs', 'av', 'av.libs', 'onnxruntime', 'flatbuffers', 'google',
        'rich', 'pygments', 'markdown_it', 'mdurl', 'yaml', '_yaml', 'filelock', 'packaging')
# And what torch and safetensors of the extra [faces] need.
FACES = ('torch', 'torchgen', 'functorch', 'safetensors', 'sympy', 'mpmath', 'networkx', 'jinja2',
         'markupsafe', 'fsspec', 'typing_extensions', 'nvidia', 'triton')
pytestmark = pytest.mark.slow

FIRST_BOXES = """
import vision
for frame in vision.load('lattice_yolox-nano').video('clip.mp4', save='out'):
    print(frame.frame_id, *frame.names)
"""
CLASSIFY = """
import vision
print(vision.load({name!r})('picture.png').top(3))
"""
TWO_FACES = """
import vision
print(vision.load({name!r}).compare('a.jpg', 'b.jpg'))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build folder left in the checkout would travel in it."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / 'source' / name, symlinks=True,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, folder / 'source' / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation',
                    '--quiet', '--wheel-dir', folder, folder / 'source'], check=True,
                   capture_output=True, timeout=300)
    found, = folder.glob('*.whl')
    return found


@pytest.fixture(scope='module')
def home(wheel, tmp_path_factory):
    """(python, folder): an environment of the wheel and the base packages of this one alone, in a
    folder outside of the checkout. Installing those afresh would take a minute and a network."""
    return make_home(tmp_path_factory.mktemp('home'), wheel, BASE)


def make_home(folder: Path, wheel: Path, packages: tuple[str, ...]) -> tuple[Path, Path]:
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'env'], check=True,
                   timeout=120)
    python = folder / 'env' / 'bin' / 'python'
    target, = (folder / 'env' / 'lib').glob('python*/site-packages')
    here = Path(np.__file__).parents[1]
    for name in packages:
        for path in (here / name, here / f'{name}.py'):
            if path.exists():
                (target / path.name).symlink_to(path)
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps',
                    '--no-index', '--quiet', wheel], check=True, capture_output=True, timeout=120)
    (folder / 'work').mkdir()
    return python, folder / 'work'


def run(home, *command, code=0):
    """Standard output of a command of the environment, which sees nothing of this one."""
    python, folder = home
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')}
    done = subprocess.run([python, *command] if command[0] == '-c' else
                          [python.with_name(command[0]), *command[1:]], cwd=folder,
                          env=environment | dict(HOME=str(folder)), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def write_clip(path: Path) -> None:
    """A scene of moving discs and stripes: something to decode, detect in and follow."""
    from vision.stream.io.sinks import VideoSink
    sink = VideoSink(path, fps=25)
    stripes = np.indices((240, 320)).sum(0) // 8 % 2 * 40
    for t in range(20):
        image = np.repeat(stripes[..., None].astype(np.uint8) + 60, 3, axis=2)
        cv2.circle(image, (60 + 6 * t, 120), 40, (40, 90, 220), -1)
        sink.write(image, t / 25)
    sink.close()


def test_what_the_wheel_holds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, patterns in (('configs', ('*.py', '*.yaml', '*.json')),
                             ('vision', ('*.py', 'zoo/*.yml', 'zoo/weights/*'))):
        for pattern in patterns:
            for path in (ROOT / folder).rglob(pattern):
                if '__pycache__' not in path.parts and path.is_file():
                    inside = path.relative_to(ROOT)
                    inside = Path('vision') / inside if folder == 'configs' else inside
                    assert str(inside) in names, f'{inside} is not in the wheel'
    assert any(name.endswith('licenses/LICENSE') for name in names)
    assert not [name for name in names if not name.startswith(('vision/', 'frugal_vision-'))]
    assert wheel.stat().st_size < 40e6


def test_nothing_of_the_training_is_there(home):
    """Otherwise what follows would prove nothing."""
    run(home, '-c', 'import vision, sys; from pathlib import Path; '
        f'assert not Path(vision.__file__).is_relative_to({str(ROOT)!r}); import cv2\n'
        'for name in ("torch", "mmengine", "faiss", "supervision", "pandas"):\n'
        '    try: __import__(name)\n'
        '    except ModuleNotFoundError: continue\n'
        '    sys.exit(name)')


def test_first_boxes_in_python(home):
    write_clip(home[1] / 'clip.mp4')
    lines = run(home, '-c', FIRST_BOXES).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(20))
    assert sorted(path.name for path in (home[1] / 'out').iterdir()) \
        == ['clip.csv', 'clip.jsonl', 'clip.mp4']


def test_first_boxes_by_one_command(home):
    write_clip(home[1] / 'clip.mp4')
    said = run(home, 'vision', 'video', 'clip.mp4', '--config', 'lattice_yolox-nano_flow_coco')
    assert 'written: video_out/clip.mp4' in said
    assert 'video' in run(home, 'vision', '--help')
    assert 'lattice_yolox-nano' in run(home, '-c', 'import vision; print(vision.models())')


def test_what_needs_an_extra_says_which(home):
    write_clip(home[1] / 'clip.mp4')
    for command in (['video', 'clip.mp4', '--config', 'lattice_yolox-nano_t8-s2_coco'],
                    ['train', 'polynet-small_in1k']):
        assert 'frugal-vision[train]' in run(home, 'vision', *command, code=3)


def test_a_picture_is_classified(home):
    names = [model.name for model in load_models().values()
             if model.task == 'classify' and is_packaged(model)]
    if not names:
        pytest.skip('no classifier comes with the package')
    cv2.imwrite(str(home[1] / 'picture.png'),
                np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    for name in names:
        found = eval(run(home, '-c', CLASSIFY.format(name=name)))
        assert len(found) == 3 and all(0 <= probability <= 1 for _, probability in found)


def test_two_faces_are_compared(home, wheel, shared_data, tmp_path, monkeypatch):
    """With published weights out of a folder, since none come with the package."""
    if 'mobilefacenet' not in load_models():
        pytest.skip('the index has no mobilefacenet')
    monkeypatch.setenv('VISION_ZOO_MIRROR', str(shared_data / 'weights'))
    home_with_faces = make_home(tmp_path, wheel, BASE + FACES)
    pictures = sorted((shared_data / 'lfw-aligned-subset' / 'raw250').rglob('*.jpg'))
    for name, source in zip('ab', pictures, strict=False):
        for _, folder in (home, home_with_faces):
            shutil.copy(source, folder / f'{name}.jpg')
    command = ('-c', TWO_FACES.format(name='mobilefacenet'))
    assert 'cosine' in run(home_with_faces, *command)
    assert 'frugal-vision[faces]' in run(home, *command, code=1)  # its weights need torch


def is_packaged(model) -> bool:
    from vision.loading import card_of
    return card_of(model).place == 'package'
