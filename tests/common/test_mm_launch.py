"""What starts a run."""

import pytest
import torch
from mmengine.config import Config

from vision.common.core.errors import VisionError
from vision.common.mm import launch


@pytest.mark.parametrize(('has_gpu', 'expected'), [(False, 1), (True, 0)])
def test_freed_memory_is_kept_where_there_is_no_gpu(has_gpu, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: calls.append(True))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
    with pytest.raises(VisionError, match='VIS-CONFIG-315'):
        launch.build_runner(Config(dict(runner_type='Nobody')))
    assert len(calls) == expected
