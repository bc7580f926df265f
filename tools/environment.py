"""Make the environment in .venv, or say that it is ready.

Needs Python 3.11 or 3.12, and a C++ compiler unless --light is given.
--light: what runs detection, lattice and video, without torch: about a minute, mostly download.
A full environment is a light one too, and a light one is completed in place.
Full, in this order: torch, then mmcv, then everything else under constraints.txt. mmcv compiles
its operators against the torch that is installed, which no published wheel does for us: about 23
CPU-minutes, once. The wheel is kept in ~/.cache/frugal-vision/wheels (or FRUGAL_VISION_CACHE),
keyed by Python, torch and device, so that the next clone takes it from there.
Run: python3.11 tools/environment.py [--light]
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
CONSTRAINTS = ROOT / 'constraints.txt'
STAMP, LIGHT_STAMP = VENV / 'ready', VENV / 'ready-light'
# What mmcv's setup.py imports: it is built without isolation, against the torch that is there.
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy')
NINJA_STEP = re.compile(r'^\[(\d+)/(\d+)\]')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--torch-index', default=os.environ.get('FRUGAL_VISION_TORCH_INDEX'),
                        help='package index to take torch alone from, e.g. the CPU or CUDA index '
                        'that pytorch.org names (default: FRUGAL_VISION_TORCH_INDEX, else '
                        "pip's own)")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='compilers at once while mmcv is built (about 1.5 GB each)')
    parser.add_argument('--light', action='store_true', help='only what runs, no training')
    args = parser.parse_args(argv)
    key = inputs_hash()
    stamps = (STAMP, LIGHT_STAMP) if args.light else (STAMP,)
    if any(stamp.exists() and stamp.read_text() == key for stamp in stamps):
        print(f'environment ready: {VENV.relative_to(ROOT)}')
        return 0
    if fault := missing_on_this_machine(needs_compiler=not args.light):
        print(fault, file=sys.stderr)
        return 3
    start = time.monotonic()
    try:
        if args.light:
            make_light()
        else:
            make(args.torch_index, args.jobs)
    except subprocess.CalledProcessError as error:
        print(f'ERROR VIS-ENV-901: this command failed: {" ".join(map(str, error.cmd))}\n'
              'Do: read the lines above; run the same command again once the cause is mended '
              '(what is done is kept).', file=sys.stderr)
        return 3
    stamps[-1].write_text(key)
    print(f'environment ready: {VENV.relative_to(ROOT)} ({(time.monotonic() - start) / 60:.1f} '
          'min)')
    return 0


def missing_on_this_machine(*, needs_compiler: bool) -> str:
    """The error block for what cannot be installed by pip, or ''."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return (f'ERROR VIS-ENV-902: Python {sys.version.split()[0]} cannot be used.\n'
                'Why: the OpenMMLab packages this project stands on run on Python 3.11 and 3.12.\n'
                'Do: install one of them and name it: make PYTHON=python3.12 test')
    compiler = os.environ.get('CXX', 'c++')
    if needs_compiler and shutil.which(compiler) is None:
        return (f'ERROR VIS-ENV-903: no C++ compiler ({compiler} is not on the PATH).\n'
                'Why: mmcv, which training needs, compiles its operators here.\n'
                'Do: install one (Debian, Ubuntu: apt install g++) or name it with CXX=; '
                'make env-light needs none.')
    return ''


def inputs_hash() -> str:
    """What the environment depends on: a change of any of it makes the stamp stale."""
    digest = hashlib.sha256(f'{sys.version_info[:2]} {ROOT}'.encode())
    for name in ('constraints.txt', 'setup.cfg', 'pyproject.toml', 'tools/environment.py'):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_light() -> None:
    say('.venv and the packages that run the lattice: about a minute, mostly download')
    make_venv()
    pip('install', '-c', CONSTRAINTS, '-e', f'{ROOT}[demo]')


def make_venv() -> None:
    if not PYTHON.exists():
        subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)


def make(torch_index: str | None, jobs: int) -> None:
    say('1/4 .venv and torch: one to five minutes, mostly download')
    make_venv()
    pip('install', '--upgrade', 'pip')
    index = ['--index-url', torch_index] if torch_index else []
    pip('install', '-c', CONSTRAINTS, *index, 'torch')
    pip('install', '-c', CONSTRAINTS, *BUILD_TOOLS)
    wheel = mmcv_wheel(jobs)
    say('3/4 the other packages: one to three minutes')
    pip('install', '-c', CONSTRAINTS, wheel)
    pip('install', '-c', CONSTRAINTS, '-e', f'{ROOT}[train,faces,onnx,demo,dev]')
    say('4/4 do the packages agree?')
    pip('check')


def mmcv_wheel(jobs: int) -> Path:
    """The mmcv wheel for this Python, torch and device, built when the cache has none."""
    cache = Path(os.environ.get('FRUGAL_VISION_CACHE', '~/.cache/frugal-vision')).expanduser()
    folder = cache / 'wheels' / build_key()
    wanted = re.search(r'^onedl-mmcv==(\S+)$', CONSTRAINTS.read_text(), re.M)[1]
    if found := list(folder.glob(f'onedl_mmcv-{wanted}-*.whl')):
        say(f'2/4 mmcv: {found[0]}')
        return found[0]
    say(f'2/4 mmcv {wanted}: compiling, about 23 CPU-minutes (12 minutes on two free cores), once '
        'for this machine')
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        build_wheel(f'onedl-mmcv=={wanted}', Path(scratch), jobs)
        built, = Path(scratch).glob('*.whl')
        return built.rename(folder / built.name)  # nobody ever sees half a wheel


def build_key() -> str:
    code = ('import sys, torch; print("cp%d%d-torch%s-%s" % (*sys.version_info[:2], '
            'torch.__version__.split("+")[0], "cu" + torch.version.cuda.replace(".", "") '
            'if torch.cuda.is_available() else "cpu"))')
    return subprocess.run([PYTHON, '-c', code], check=True, capture_output=True,
                          text=True).stdout.strip()


def build_wheel(requirement: str, target: Path, jobs: int) -> None:
    command = [PYTHON, '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps', '-w',
               target, requirement]
    # Ninja comes from the environment; the compiler count is what bounds memory.
    environ = dict(os.environ, MAX_JOBS=str(jobs), PATH=f'{VENV}/bin:{os.environ["PATH"]}')
    start = said = time.monotonic()
    tail: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors='replace', env=environ) as process:
        for line in process.stdout:
            tail = [*tail[-40:], line]
            step = NINJA_STEP.match(line.strip())
            if step and time.monotonic() - said > 20:
                said = time.monotonic()
                print(f'    {step[1]} of {step[2]} files, {(said - start) / 60:.1f} min',
                      flush=True)
    if process.returncode:
        print(''.join(tail))
        raise subprocess.CalledProcessError(process.returncode, command)


def pip(*arguments: str | Path) -> None:
    subprocess.run([PYTHON, '-m', 'pip', '--disable-pip-version-check', *arguments, '-q'],
                   check=True)


def say(text: str) -> None:
    print(f'[environment] {text}', flush=True)


if __name__ == '__main__':
    sys.exit(main())
