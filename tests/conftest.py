"""What every room's tests share."""

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
