"""What every room's tests share."""

import os
from pathlib import Path

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
