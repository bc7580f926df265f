"""Make the environment in .venv, or say that it is ready.

Needs Python 3.11 or 3.12, and a C++ compiler unless --light is given.
--light: what runs detection, lattice and video, without torch: about a minute, mostly download.
A full environment is a light one too, and a light one is completed in place.
Full, in this order: what is locked, torch, mmcv, this package. Locked is, for Linux on x86_64,
everything but torch: constraints/ has each version with its SHA-256, and pip takes no other file.
Elsewhere the versions are those of constraints.txt, without hashes. torch comes from the index
that you name; its builds for processors and for each CUDA have other hashes, so it is held to its
version alone. mmcv compiles its operators, from a source of known hash, against the torch that is
installed, which no published wheel does for us: about 9 CPU-minutes, once. The wheel is kept in
~/.cache/frugal-vision/wheels (or FRUGAL_VISION_CACHE), keyed by Python, torch and device, so that
the next clone takes it from there, if it is yours, nobody else may write it, and its hash is as it
was.
Run: python3.11 tools/environment.py [--light]
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
CONSTRAINTS = ROOT / 'constraints.txt'
LOCKS = ROOT / 'constraints'  # made by tools/lock.py
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
    for path in (*sorted(LOCKS.glob('*.txt')), *(ROOT / name for name in (
            'constraints.txt', 'setup.cfg', 'pyproject.toml', 'tools/environment.py'))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_light() -> None:
    say('.venv and the packages that run the lattice: about a minute, mostly download')
    make_venv()
    if lock := locked('-light'):
        install_locked(lock)
        install_this('--no-deps')
    else:
        pip('install', '-c', CONSTRAINTS, '-e', f'{ROOT}[demo]')


def make_venv() -> None:
    if not PYTHON.exists():
        subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)


def make(torch_index: str | None, jobs: int) -> None:
    say('1/4 .venv, the packages, torch: two to six minutes, mostly download')
    make_venv()
    lock = locked()
    if lock:
        install_locked(lock)
    else:
        pip('install', '--upgrade', 'pip')
        pip('install', '-c', CONSTRAINTS, *BUILD_TOOLS)
    index = ['--index-url', torch_index] if torch_index else []
    pip('install', '-c', CONSTRAINTS, *index, 'torch')
    wheel = mmcv_wheel(jobs)
    say('3/4 mmcv and this package')
    if lock:
        pip('install', '--no-deps', wheel)
        install_this('--no-deps')
    else:
        pip('install', '-c', CONSTRAINTS, wheel)
        pip('install', '-c', CONSTRAINTS, '-e',
            f'{ROOT}[train,faces,onnx,results,demo,docs,dev]')
    say('4/4 do the packages agree?')
    check()


def check() -> None:
    """``pip check``, but for what the lock overrules on purpose (HELD_BACK of tools/lock.py)."""
    command = [PYTHON, '-m', 'pip', '--disable-pip-version-check', 'check']
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    faults = [line for line in lines
              if not re.match(r'gradio \S+ has requirement pillow<13', line)]
    if done.returncode and (faults or not lines):
        print('\n'.join(faults), file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)


def locked(kind: str = '') -> Path | None:
    """The lock for this Python and machine; None where there is none."""
    path = LOCKS / f'py{sys.version_info[0]}{sys.version_info[1]}{kind}.txt'
    if (platform.system(), platform.machine()) == ('Linux', 'x86_64') and path.is_file():
        return path
    say('no lock for this platform: versions as in constraints.txt, hashes are not compared')
    return None


def install_locked(lock: Path) -> None:
    pip('install', '--no-deps', '--require-hashes', '-r', lock)


def install_this(*options: str) -> None:
    """This checkout, built by the setuptools that is installed."""
    pip('install', *options, '--no-build-isolation', '-e', ROOT)


def mmcv_wheel(jobs: int) -> Path:
    """The mmcv wheel for this Python, torch and device, built when the cache has none."""
    cache = Path(os.environ.get('FRUGAL_VISION_CACHE', '~/.cache/frugal-vision')).expanduser()
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = cache.resolve() / 'wheels' / build_key()
    wanted = re.search(r'^onedl-mmcv==(\S+)$', CONSTRAINTS.read_text(), re.M)[1]
    # Whoever may write a folder may put another file in it, so the folders count as well.
    folders = (folder.parents[1], folder.parent, folder)
    for path in folders:
        path.mkdir(mode=0o755, exist_ok=True)
    if fault := fault_of(folders):
        say(f'2/4 the cache of wheels is left alone: {fault}')
        folder = VENV / 'wheels'
        folder.mkdir(exist_ok=True)
    for found in folder.glob(f'onedl_mmcv-{wanted}-*.whl'):
        fault = fault_of([found]) or fault_of_content(found)
        if not fault:
            say(f'2/4 mmcv: {found}')
            return found
        say(f'2/4 a wheel is thrown away: {fault}')
        found.unlink()
    say(f'2/4 mmcv {wanted}: compiling, about 9 CPU-minutes (5 minutes on two free cores), once '
        'for this machine')
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        build_wheel(Path(scratch), jobs)
        built, = Path(scratch).glob('*.whl')
        built.chmod(0o644)
        recorded(folder / built.name).write_text(sha256_of(built))
        return built.rename(folder / built.name)  # nobody ever sees half a wheel


def fault_of(paths: Iterable[Path]) -> str:
    """Why these are not to be trusted: of somebody else, or others may write them; or ''."""
    for path in paths:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return f'{path} is a link'
        if status.st_uid != os.getuid():
            return f'{path} belongs to user {status.st_uid}, not to you'
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f'others may write {path}'
    return ''


def fault_of_content(wheel: Path) -> str:
    """Its hash is that which was recorded when it was built.

    A wheel of before hashes were recorded is taken once its archive is whole: it is the user's.
    """
    if not recorded(wheel).is_file():
        with zipfile.ZipFile(wheel) as archive:
            if broken := archive.testzip():
                return f'{broken} in {wheel} is damaged'
        recorded(wheel).write_text(sha256_of(wheel))
        return ''
    return '' if recorded(wheel).read_text() == sha256_of(wheel) else \
        f'{wheel} is not the file that was built'


def recorded(wheel: Path) -> Path:
    return wheel.with_name(f'{wheel.name}.sha256')


def sha256_of(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def build_key() -> str:
    code = ('import sys, torch; print("cp%d%d-torch%s-%s" % (*sys.version_info[:2], '
            'torch.__version__.split("+")[0], "cu" + torch.version.cuda.replace(".", "") '
            'if torch.cuda.is_available() else "cpu"))')
    return subprocess.run([PYTHON, '-c', code], check=True, capture_output=True,
                          text=True).stdout.strip()


def build_wheel(target: Path, jobs: int) -> None:
    # pip's own cache has wheels by their sources alone: one of another torch would be taken.
    command = [PYTHON, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-build-isolation',
               '--no-deps', '--require-hashes', '-w', target, '-r', LOCKS / 'mmcv.txt']
    # Ninja comes from the environment; the compiler count is what bounds memory. Python's own
    # flags ask for debug information: half of the time, and 97 % of the bytes.
    environ = dict(os.environ, MAX_JOBS=str(jobs), PATH=f'{VENV}/bin:{os.environ["PATH"]}',
                   CFLAGS=f'-g0 {os.environ.get("CFLAGS", "")}'.strip())
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
