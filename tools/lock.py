"""Write the lock of this Python: every package of the environment with its SHA-256.

pip's own resolver says what constraints.txt and setup.cfg come to on PyPI; nothing is installed.
constraints/py311.txt is the full environment, constraints/py311-light.txt the light one; both are
for Linux on x86_64. Of torch there are builds for processors and for each CUDA, with other hashes
and other packages behind them, and users choose one by its index: torch and what differs between
its builds is not locked. mmcv is compiled here; constraints/mmcv.txt has the hash of its source.

Examples:
  .venv/bin/python tools/lock.py
  .venv/bin/python tools/lock.py --python python3.12   (one whose pip is 23.3 or newer)
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER, CONSTRAINTS = ROOT / 'constraints', ROOT / 'constraints.txt'
INDEX = 'https://pypi.org/simple'
# What tools/environment.py installs besides the extras: pip itself, and what builds mmcv and us.
TOOLS = {'full': ('pip', 'setuptools', 'wheel', 'ninja', 'psutil'), 'light': ('setuptools',)}
EXTRAS = {'full': ('train', 'faces', 'onnx', 'results', 'demo', 'docs', 'dev'), 'light': ('demo',),
          'web': ('web',)}
# gradio wants a pillow below 13, and those write outside of their memory (CVE-2026-96639): the web
# extra is resolved without this one's pin, and what the full environment has stays.
HELD_BACK = 'pillow'
OF_TORCH = re.compile(r'torch|triton|nvidia-.*|cuda-.*')
COMPILED = 'onedl-mmcv'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', default=sys.executable,
                        help='the interpreter to lock for (default: this one)')
    args = parser.parse_args(argv)
    tag = subprocess.run([args.python, '-c', 'import sys; print("py%d%d" % sys.version_info[:2])'],
                         check=True, capture_output=True, text=True).stdout.strip()
    FOLDER.mkdir(exist_ok=True)
    full = resolve(args.python, requirements('full'), [CONSTRAINTS])
    others = {name: found for name, found in full.items() if name != HELD_BACK}
    full = dict(sorted((resolve(args.python, requirements('web'), [pins(others)]) | full).items()))
    target = write(FOLDER / f'{tag}.txt', full)
    write(FOLDER / f'{tag}-light.txt',
          resolve(args.python, requirements('light'), [CONSTRAINTS, pins(full)]))
    print(f'{target.name}: {len(full)} packages')
    has_torch = subprocess.run([args.python, '-c', 'import torch'], capture_output=True)
    if has_torch.returncode:
        print('mmcv.txt: as it was, since mmcv can be asked for its name beside torch alone')
    else:
        wanted = re.search(rf'^{COMPILED}==\S+', CONSTRAINTS.read_text(), re.M)[0]
        write(FOLDER / 'mmcv.txt', resolve(args.python, ['--no-deps', '--no-build-isolation',
                                                         '--no-binary', COMPILED, wanted], []))
    return 0


def requirements(kind: str) -> list[str]:
    """Of setup.cfg, without what is compiled here."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    texts = [config['options']['install_requires']]
    texts += [config['options.extras_require'][extra] for extra in EXTRAS[kind]]
    found = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in found if line and line[0] != '#' and not line.startswith(COMPILED)
            ] + list(TOOLS.get(kind, ()))


def resolve(python: str, wanted: list[str], constraints: list[Path]) -> dict[str, tuple[str, str]]:
    """Package -> (version, SHA-256 of its file on PyPI), without torch's own."""
    # The indexes and folders of this machine's configuration would make a lock for it alone.
    environ = {name: value for name, value in os.environ.items()
               if name not in ('PIP_FIND_LINKS', 'PIP_EXTRA_INDEX_URL', 'PIP_CONSTRAINT')}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / 'report.json'
        limits = [part for path in constraints for part in ('-c', str(path))]
        subprocess.run([python, '-m', 'pip', 'install', '--dry-run', '--ignore-installed', '-q',
                        '--report', str(report), '--index-url', INDEX, *limits, *wanted],
                       check=True, env=environ | dict(PIP_CONFIG_FILE=os.devnull))
        installed = json.loads(report.read_text())['install']
    found = {}
    for item in installed:
        name = re.sub('[-_.]+', '-', item['metadata']['name']).lower()
        if not OF_TORCH.fullmatch(name):
            found[name] = (item['metadata']['version'],
                           item['download_info']['archive_info']['hashes']['sha256'])
    return dict(sorted(found.items()))


def pins(found: dict[str, tuple[str, str]]) -> Path:
    """A constraints file of these versions, so that both environments have the same ones."""
    path = Path(tempfile.mkdtemp()) / 'pins.txt'
    path.write_text(''.join(f'{name}=={version}\n' for name, (version, _) in found.items()))
    return path


def write(path: Path, found: dict[str, tuple[str, str]]) -> Path:
    path.write_text('# Made by tools/lock.py for Linux on x86_64; do not edit.\n' + ''.join(
        f'{name}=={version} --hash=sha256:{digest}\n'
        for name, (version, digest) in found.items()))
    return path


if __name__ == '__main__':
    sys.exit(main())
