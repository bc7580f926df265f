"""What every room's tests share."""

import gc
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder with real clips and weights (research licences, never in the repository)."""
    folder = Path(os.environ.get('VISION_SHARED_DATA', ROOT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'no real data: {folder} is not there (set VISION_SHARED_DATA)')
    return folder


@pytest.fixture(scope='session')
def repository() -> Path:
    return ROOT


@pytest.fixture(scope='module', autouse=True)
def known_random_numbers():
    """For fixtures of a module; the next one is for tests."""
    seed_all()


@pytest.fixture(autouse=True)
def same_random_numbers_in_any_order(known_random_numbers):
    """What a test draws does not depend on which tests its process ran before."""
    seed_all()


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(0)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that takes a minute and begins last would leave the
    other processes without work. Inside a file the order stays."""
    slow = {item.path for item in items
            if item.get_closest_marker('slow') or item.get_closest_marker('distributed')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch):
    """MMEngine asks compilers and drivers for their versions at every start: two seconds."""
    if 'mmengine.runner.runner' in sys.modules:
        monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.fixture(scope='session')
def frozen() -> set[str]:
    return set()


@pytest.fixture(autouse=True)
def imported_modules_are_no_garbage(frozen):
    """MMEngine collects garbage for each data set: a third of a second, nearly all of it over
    what MMDetection imports and keeps."""
    if 'mmdet' in sys.modules and not frozen:
        gc.freeze()
        frozen.add('mmdet')


@pytest.fixture(autouse=True)
def nothing_is_left_by_runners():
    """A runner leaves process-wide instances behind: its default scope would decide where the
    next test's names are looked up, and one that starts within the same second would log into
    its folder. Without MMEngine, as in the light environment, there are none."""
    yield
    if 'mmengine' not in sys.modules:
        return
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer
    for kind in (DefaultScope, MessageHub, MMLogger, Visualizer):
        kind._instance_dict.clear()


@pytest.fixture(autouse=True)
def freed_memory_is_given_back(monkeypatch):
    """A command that runs in the test's process would change its allocator for all later tests."""
    if 'vision.common.mm.launch' in sys.modules:
        monkeypatch.setattr('vision.common.mm.launch.keep_freed_memory', lambda: False)
