"""Look at this installation: versions, compiled operators, codecs, devices, space, model zoo.

Examples:
  python tools/doctor.py
  python tools/doctor.py --json > doctor.json

Each problem comes with the command that mends it. Exit code 0: nothing essential is broken;
3: something is. Takes 10 to 30 seconds. Needs only the standard library: it runs, and says so,
when everything else is missing; what may crash is imported in processes of its own.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = f'{sys.executable} -m pip'
PROBE_TIMEOUT_S = 180
OPENCV = ('opencv-python', 'opencv-python-headless')
OPTIONAL = {'onnx': 'converters', 'huggingface_hub': 'hub files',
            'pytest': 'make test', 'ruff': 'make lint'}
FULL_EXTRAS = ('train', 'faces')  # of setup.cfg; what the full environment must have
# Our choice: room for the checkpoints of one run, for weights that are fetched, for batches of
# loader workers.
MIN_DISK_BYTES, MIN_FETCH_BYTES, MIN_SHM_BYTES = 2e9, 2.5e8, 1e9
# Where fonts lie; the recognition benchmark on Han characters draws its images with them.
FONT_FOLDERS = ('/usr/share/fonts', '/usr/local/share/fonts', '~/.local/share/fonts', '~/.fonts')
HAN_FONT = re.compile(r'NotoS(ans|erif)CJK.*\.tt[cf]$')
EXIT_BROKEN = 3


@dataclass
class Finding:
    """One line of the table; state is ok, info, warning or broken; do mends it."""

    name: str
    state: str
    found: str
    expected: str = ''
    do: str = ''


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', action='store_true', help='print JSON instead of tables')
    args = parser.parse_args(argv)
    findings = examine()
    broken = [f for f in findings if f.state == 'broken']
    if args.json:
        print(json.dumps(dict(is_usable=not broken, python=platform.python_version(),
                              platform=platform.platform(),
                              findings=[asdict(f) for f in findings]), indent=2))
    else:
        print_table(findings)
        print_advice([f for f in findings if f.state in ('broken', 'warning')], len(broken))
    return EXIT_BROKEN if broken else 0


def examine() -> list[Finding]:
    """Every check; probes run side by side, since each spends its time importing."""
    names = ('cv2', 'h264', 'vision', 'zoo')
    if not is_light():
        names += ('torch_devices', 'mmcv_ops', 'mmdet', 'torchvision', 'faiss')
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        answers = dict(zip(names, pool.map(run_probe, names), strict=True))
    return [python_version(), *package_versions(), vision_package(answers['vision']),
            probed('cv2 works', answers['cv2'], opencv_command()),
            probed('h264 (PyAV)', answers['h264'], pinned('av', force=True)),
            *(light_environment() if is_light() else training_works(answers)),
            *optional_parts(), *space(answers['zoo'].get('cache')), zoo_state(answers['zoo'])]


def is_light() -> bool:
    """Made by tools/environment.py --light and never completed: nothing is broken that was not
    asked for."""
    prefix = Path(sys.prefix)
    return (prefix / 'ready-light').exists() and not (prefix / 'ready').exists()


def light_environment() -> list[Finding]:
    return [Finding('training', 'info', 'left out of the light environment', do='make env')]


def training_works(answers: Mapping[str, dict]) -> list[Finding]:
    """What the light environment leaves out."""
    return [opencv_wheels(), torch_works(answers['torch_devices']),
            torchvision_works(answers['torchvision']), ops_work(answers['mmcv_ops']),
            probed('mmdet imports', answers['mmdet'], mmdet_command(answers['mmdet'])),
            faiss_works(answers['faiss']), *devices(answers['torch_devices']), han_fonts()]


def run_probe(name: str) -> dict:
    """The probe's answer, or what ended it: an exception, a signal, the time limit."""
    command = [sys.executable, str(Path(__file__).with_name('doctor_probes.py')), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors='replace',
                              timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return dict(ok=False, reason=f'no answer within {PROBE_TIMEOUT_S} s')
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        how = f'signal {-done.returncode}' if done.returncode < 0 else f'exit {done.returncode}'
        return dict(ok=False, reason=f'the process ended with {how}: {last}')


def python_version() -> Finding:
    found, is_good = platform.python_version(), sys.version_info[:2] in ((3, 11), (3, 12))
    return Finding('python', 'ok' if is_good else 'broken', found, '3.11 or 3.12',
                   '' if is_good else 'make PYTHON=python3.12 env')


def requirements() -> dict[str, tuple[str, str]]:
    """Package -> (what setup.cfg requires, what constraints.txt pins)."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lines = config.get('options', 'install_requires', fallback='').split()
    for extra in () if is_light() else FULL_EXTRAS:
        lines += config.get('options.extras_require', extra, fallback='').split()
    needed = dict(_split(line) for line in lines)
    pinned_lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pins = dict(_split(line) for line in pinned_lines if line.strip() and line[0] != '#')
    return {name: (needed.get(name), pins.get(name, '')) for name in {**needed, **pins}}


def _split(requirement: str) -> tuple[str, str]:
    name = re.match(r'[A-Za-z0-9._-]+', requirement)[0]
    return name, requirement[len(name):].strip()


def package_versions() -> list[Finding]:
    """Missing or too old for setup.cfg is broken; other than the tested set is a warning."""
    findings = []
    for name, (needed, pin) in requirements().items():
        found, expected = version_of(name), pin or needed or 'any'
        if found is None and needed is None:
            continue  # a pin of something that nobody asked for
        if found is None or not satisfies(found, needed or ''):
            state = 'broken'
        else:
            state = 'ok' if satisfies(found, pin) else 'warning'
        findings.append(Finding(name, state, found or 'missing', expected,
                                '' if state == 'ok' else pinned(name)))
    return findings


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version meets all of e.g. '>=2.3.2,<2.5'; local parts (+cpu) are ignored."""
    compare = {'==': lambda a, b: a == b, '>=': lambda a, b: a >= b, '<=': lambda a, b: a <= b,
               '>': lambda a, b: a > b, '<': lambda a, b: a < b}
    for part in filter(None, specifier.split(',')):
        operator, wanted = re.fullmatch(r'\s*(==|>=|<=|<|>)\s*(\S+)\s*', part).groups()
        a, b = _release(version), _release(wanted)
        length = max(len(a), len(b))  # 13 equals 13.0
        if not compare[operator](a + (0,) * (length - len(a)), b + (0,) * (length - len(b))):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r'\d+(\.\d+)*', version)[0].split('.')))


def pinned(name: str, *, force: bool = False) -> str:
    options = '--force-reinstall --no-deps ' if force else ''
    return f'{PIP} install {options}-c {ROOT / "constraints.txt"} {name}'


def opencv_command() -> str:
    pins = requirements()
    both = ' '.join(f'{name}{pins[name][1]}' for name in OPENCV[:1 if is_light() else 2])
    return f'{PIP} install --force-reinstall --no-deps {both}'


def opencv_wheels() -> Finding:
    """mmcv asks for one wheel and imaug for both; they own one cv2/ folder, so must be equal."""
    versions = [version_of(name) for name in OPENCV]
    found = ', '.join(f'{name} {version}' for name, version in zip(OPENCV, versions, strict=True))
    state = 'ok' if versions[0] and versions[0] == versions[1] else 'broken'
    return Finding('two opencv wheels', state, found, 'both, of one version',
                   '' if state == 'ok' else opencv_command())


def vision_package(answer: dict) -> Finding:
    do = f'{PIP} install --no-deps -e {ROOT}'
    if not answer['ok']:
        return Finding('frugal-vision', 'broken', answer['reason'], 'importable', do)
    is_here = Path(answer['folder']).resolve() == ROOT / 'vision'
    return Finding('frugal-vision', 'ok' if is_here else 'warning',
                   f'{answer["version"]} from {answer["folder"]}', str(ROOT / 'vision'),
                   '' if is_here else do)


def probed(name: str, answer: dict, do: str) -> Finding:
    if answer['ok']:
        return Finding(name, 'ok', f'yes, {answer["version"]}', 'yes')
    return Finding(name, 'broken', answer['reason'], 'yes', do)


def torch_works(answer: dict) -> Finding:
    return probed('torch runs', answer, pinned('torch', force=True))


def torchvision_works(answer: dict) -> Finding:
    if answer['ok'] and answer['version'] is None:
        return Finding('torchvision', 'ok', 'not installed', 'not needed')
    finding = probed('torchvision', answer, f'{PIP} uninstall -y torchvision')
    if finding.state == 'broken':
        finding.found += ' (built for another torch: no Runner can start)'
    return finding


def faiss_works(answer: dict) -> Finding:
    """Both bring an OpenMP; beside the wrong one the first search ends the process."""
    return probed('faiss beside torch', answer, pinned('faiss-cpu', force=True))


def ops_work(answer: dict) -> Finding:
    pin = requirements()['onedl-mmcv'][1]
    build = (f'{PIP} install --force-reinstall --no-deps --no-cache-dir --no-build-isolation '
             f'"onedl-mmcv{pin}"  (compiles: 10 to 40 minutes)')
    if answer['ok']:
        return Finding('mmcv operators', 'ok', f'nms, roi_align on {", ".join(answer["devices"])}',
                       'load and run')
    # A build for the CPU is the usual reason on a machine with a GPU.
    gpu = 'FORCE_CUDA=1 ' if 'cuda' in answer['reason'].lower() else ''
    return Finding('mmcv operators', 'broken', answer['reason'], 'load and run', gpu + build)


def mmdet_command(answer: dict) -> str:
    missing = re.search(r"No module named '(\w+)'", answer.get('reason', ''))
    # imgaug is the import name of the package imaug.
    names = {'imgaug': 'imaug', 'cv2': 'opencv-python'}
    if missing and missing[1] not in ('mmdet', 'mmcv', 'mmengine'):
        return pinned(names.get(missing[1], missing[1]))
    return pinned('onedl-mmdetection', force=True)


def devices(answer: dict) -> list[Finding]:
    gpus = answer.get('gpus', [])
    findings = [Finding('CPU', 'info', f'{os.cpu_count()} cores, {platform.machine()}'),
                Finding('GPU', 'info', ', '.join(gpus) or 'none (everything runs on the CPU)')]
    if answer['ok'] and not gpus and shutil.which('nvidia-smi'):
        build = answer['cuda_build'] or 'no CUDA'
        findings[1] = Finding('GPU', 'warning', f'nvidia-smi is there, torch (built for {build}) '
                              'sees no GPU', 'a CUDA build of torch',
                              'FRUGAL_VISION_TORCH_INDEX=(the index pytorch.org names) make env')
    return findings


def optional_parts() -> list[Finding]:
    return [Finding(f'{name} (optional)', 'info', version_of(name) or f'missing: no {use}',
                    do='' if version_of(name) else f'{PIP} install {name}')
            for name, use in OPTIONAL.items()]


def han_fonts(environ: Mapping[str, str] = os.environ) -> Finding:
    more = [part for part in environ.get('VISION_FONT_DIR', '').split(os.pathsep) if part]
    found = {name for folder in (*more, *FONT_FOLDERS)
             for _, _, names in os.walk(Path(folder).expanduser())
             for name in names if HAN_FONT.match(name)}
    shown = f'{len(found)} Noto CJK files' if found else 'missing: no benchmark on Han characters'
    return Finding('CJK fonts (optional)', 'info', shown, do='' if found else
                   'apt install fonts-noto-cjk, or export VISION_FONT_DIR=(their folder)')


def space(zoo_cache: str | None) -> list[Finding]:
    findings = []
    places = [('disk, here', Path.cwd(), MIN_DISK_BYTES, 'free some space'),
              ('disk, model zoo', _existing(Path(zoo_cache or '~').expanduser()), MIN_FETCH_BYTES,
               'export VISION_ZOO_CACHE=(a folder on another disk)'),
              ('disk, temporary', Path(tempfile.gettempdir()), MIN_FETCH_BYTES,
               'export TMPDIR=(a folder on another disk)'),
              ('/dev/shm', Path('/dev/shm'), MIN_SHM_BYTES,
               'docker run --shm-size=2g ..., or --cfg-options train_dataloader.num_workers=0 '
               'train_dataloader.persistent_workers=False')]
    for name, path, least, do in places:
        if path.is_dir():
            free = shutil.disk_usage(path).free
            is_enough = free >= least
            findings.append(Finding(name, 'ok' if is_enough else 'warning',
                                    f'{free / 1e9:.1f} GB free', f'>= {least / 1e9:g} GB',
                                    '' if is_enough else do))
    return findings


def _existing(path: Path) -> Path:
    """The folder itself or the nearest one above that exists."""
    return path if path.exists() or path == path.parent else _existing(path.parent)


def zoo_state(answer: dict) -> Finding:
    if not answer['ok']:
        return Finding('model zoo', 'broken', answer['reason'], 'index readable',
                       'vision zoo list')
    places = ', '.join(f'{name}: {place}' for name, place in answer['places'].items())
    network = 'offline' if answer['is_offline'] else 'online'
    mirror = f', mirror {answer["mirror"]}' if answer['mirror'] else ''
    return Finding('model zoo', 'info', f'{places} ({network}, cache {answer["cache"]}{mirror})')


def print_table(findings: list[Finding]) -> None:
    rows = [(f.state, f.name, f.expected, f.found) for f in findings]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # plain columns then: the doctor runs where nothing is installed
        for state, name, expected, found in rows:
            print(f'{state:8} {name:28} {expected:24} {found}')
        return
    colours = dict(ok='green', info='dim', warning='yellow', broken='bold red')
    table = Table('state', 'what', 'expected', 'found')
    for state, *cells in rows:
        table.add_row(f'[{colours[state]}]{state}[/]', *(cell.replace('[', r'\[')
                                                         for cell in cells))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def print_advice(problems: list[Finding], num_broken: int) -> None:
    for finding in problems:
        print(f'{finding.state.upper()} {finding.name}: {finding.found}\n  Do: {finding.do}')
    print(f'{num_broken} broken, {len(problems) - num_broken} warnings'
          if problems else 'everything that was looked at works')


if __name__ == '__main__':
    sys.exit(main())
