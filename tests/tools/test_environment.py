"""Which wheels of the cache are taken, and what the locks hold."""

import configparser
import os
import re
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from scripts import load_script

PYTHONS = ('py311', 'py312')


@pytest.fixture
def tool():
    return load_script('tools/environment.py')


@pytest.fixture
def cache(tool, tmp_path, monkeypatch):
    """(the cached wheel, what build_wheel was asked for): building writes a wheel of its own."""
    monkeypatch.setenv('FRUGAL_VISION_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(tool, 'build_key', lambda: 'key')
    monkeypatch.setattr(tool, 'VENV', tmp_path / 'venv')
    (tmp_path / 'venv').mkdir()
    version = re.search(r'^onedl-mmcv==(\S+)$', tool.CONSTRAINTS.read_text(), re.M)[1]
    built = []

    def build(target, jobs):
        built.append(target)
        write_wheel(target / f'onedl_mmcv-{version}-any.whl', b'new')
    monkeypatch.setattr(tool, 'build_wheel', build)
    return tmp_path / 'cache' / 'wheels' / 'key' / f'onedl_mmcv-{version}-any.whl', built


def write_wheel(path, content):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('mmcv/__init__.py', content)


def test_a_wheel_is_built_once_and_then_taken(tool, cache):
    wheel, built = cache
    assert tool.mmcv_wheel(1) == wheel and len(built) == 1
    assert tool.mmcv_wheel(1) == wheel and len(built) == 1
    assert wheel.stat().st_mode & 0o022 == 0


def test_a_changed_wheel_is_built_again(tool, cache, capsys):
    wheel, built = cache
    tool.mmcv_wheel(1)
    write_wheel(wheel, b'something else')
    assert tool.mmcv_wheel(1) == wheel and len(built) == 2
    assert 'is not the file that was built' in capsys.readouterr().out
    assert zipfile.ZipFile(wheel).read('mmcv/__init__.py') == b'new'


@pytest.mark.parametrize('who', ['others may write', 'belongs to user', 'is a link'])
def test_a_wheel_of_others_is_built_again(tool, cache, tmp_path, monkeypatch, capsys, who):
    wheel, built = cache
    tool.mmcv_wheel(1)
    if who == 'others may write':
        wheel.chmod(0o664)
    elif who == 'is a link':
        wheel.rename(tmp_path / 'elsewhere.whl')
        wheel.symlink_to(tmp_path / 'elsewhere.whl')
    elif os.getuid() == 0:
        os.chown(wheel, 54321, -1)
    else:  # to the program, the wheel is of another user
        other = os.getuid() + 1
        monkeypatch.setattr(os, 'getuid', lambda: other)
    tool.mmcv_wheel(1)
    assert len(built) == 2 and who in capsys.readouterr().out


def test_a_cache_that_others_may_write_is_left_alone(tool, cache, capsys):
    wheel, built = cache
    tool.mmcv_wheel(1)
    wheel.parent.chmod(0o777)
    before = wheel.read_bytes()
    assert tool.mmcv_wheel(1) == tool.VENV / 'wheels' / wheel.name and len(built) == 2
    assert wheel.read_bytes() == before
    assert 'the cache of wheels is left alone: others may write' in capsys.readouterr().out


def test_a_wheel_of_before_hashes_is_taken_when_it_is_whole(tool, cache):
    wheel, built = cache
    tool.mmcv_wheel(1)
    tool.recorded(wheel).unlink()
    assert tool.mmcv_wheel(1) == wheel and len(built) == 1
    content = bytearray(wheel.read_bytes())
    content[content.index(b'new')] ^= 1
    wheel.write_bytes(content)
    tool.recorded(wheel).unlink()
    tool.mmcv_wheel(1)
    assert len(built) == 2


def locked(path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line[0] != '#']
    found = [re.fullmatch(r'([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})', line)
             for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: match[2] for match in found}


def normal(name: str) -> str:
    return re.sub('[-_.]+', '-', name).lower()


@pytest.mark.parametrize('python', PYTHONS)
def test_the_lock_is_what_setup_and_constraints_ask_for(tool, python):
    """All but torch and mmcv, at versions that both allow; the light one is a part of it."""
    full = locked(tool.LOCKS / f'{python}.txt')
    light = locked(tool.LOCKS / f'{python}-light.txt')
    assert light.items() <= full.items()
    config = configparser.ConfigParser()
    config.read(tool.ROOT / 'setup.cfg')
    texts = {'': config['options']['install_requires'], **config['options.extras_require']}
    for extra, text in texts.items():
        for line in text.splitlines():
            if line.strip() and line.strip()[0] != '#':
                wanted = Requirement(line)
                if wanted.name in ('torch', 'onedl-mmcv'):
                    continue
                for lock in (full, light) if extra in ('', 'demo') else (full,):
                    assert Version(lock[normal(wanted.name)]) in wanted.specifier, line
    for line in tool.CONSTRAINTS.read_text().splitlines():
        if line[0] != '#' and normal(Requirement(line).name) in full:
            wanted = Requirement(line)
            assert Version(full[normal(wanted.name)]) in wanted.specifier, line


def test_the_source_of_mmcv_is_held_by_its_hash(tool):
    version = re.search(r'^onedl-mmcv==(\S+)$', tool.CONSTRAINTS.read_text(), re.M)[1]
    assert locked(tool.LOCKS / 'mmcv.txt') == {'onedl-mmcv': version}


@pytest.mark.parametrize(('lines', 'agrees'), [
    (['gradio 6.31.0 has requirement pillow<13.0,>=8.0, but you have pillow 13.0.0.'], True),
    (['gradio 6.31.0 has requirement pillow<13.0,>=8.0, but you have pillow 13.0.0.',
      'mmdet 3 requires torch, which is not installed.'], False),
    ([], False)])
def test_packages_agree_but_for_what_the_lock_overrules(tool, tmp_path, monkeypatch, lines,
                                                        agrees):
    """A pip that says these lines and ends with 1, as it does for the first of them."""
    pip = tmp_path / 'python'
    pip.write_text('#!/bin/sh\n' + ''.join(f"echo '{line}'\n" for line in lines) + 'exit 1\n')
    pip.chmod(0o755)
    monkeypatch.setattr(tool, 'PYTHON', pip)
    if agrees:
        tool.check()
    else:
        with pytest.raises(tool.subprocess.CalledProcessError):
            tool.check()
