"""Python inside of a checkpoint is text: no place of it is ever run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import load_checkpoint, load_model

sys.path.insert(0, str(Path(__file__).parent))
from runs import config


@pytest.fixture
def hostile(tmp_path):
    """A whole checkpoint with a config that makes a folder, in every place that has one."""
    marker = tmp_path / 'marker'
    code = f'import os; os.mkdir({str(marker)!r})\nmodel = dict(type="Toy")\n'
    model = nn.Linear(2, 2)
    texts = dict(config=code, cfg=code, mmengine_version=code, experiment_name=code)
    content = dict(
        state_dict=model.state_dict(), config=code, cfg=code,
        meta=dict(texts, dataset_meta=dict(classes=('a', 'b'), palette=code), iter=1, epoch=0),
        message_hub=dict(log_scalars={}, resumed_keys={},
                         runtime_info=dict(cfg=code, config=code)),
        optimizer=dict(state={}, param_groups=[dict(params=[0], lr=0.1, config=code)]))
    torch.save(content, tmp_path / 'x.pth')
    return tmp_path / 'x.pth', marker, code


@pytest.mark.fault('S34')
def test_reading_and_loading_leave_the_text_alone(hostile):
    path, marker, code = hostile
    content = load_checkpoint(path)
    assert content['meta']['config'] == code
    load_model(nn.Linear(2, 2), content)
    assert not marker.exists()


@pytest.mark.fault('S34')
@pytest.mark.parametrize('resume', [False, True])
def test_a_runner_that_loads_or_resumes_runs_nothing(hostile, tmp_path, resume):
    path, marker, _ = hostile
    if resume:
        runner = ExactRunner.from_cfg(config(tmp_path / 'run'))
        with pytest.raises(VisionError, match='VIS-CKPT-305'):  # read, and of another model
            runner.resume(str(path))
    else:
        runner = ExactRunner(nn.Linear(2, 2), work_dir=str(tmp_path / 'run'),
                             load_from=str(path), experiment_name='hostile')
        runner.load_or_resume()
    assert not marker.exists()


@pytest.mark.fault('S34')
def test_what_infers_and_converts_runs_nothing_of_it(hostile, tmp_path, repository):
    """``tools/test.py`` over such a file: tests/tools/test_test.py."""
    from vision.lattice.mm.mmdet_adapter import MMDetDetector
    path, marker, _ = hostile
    with pytest.raises(VisionError, match='VIS-CKPT-305'):
        MMDetDetector(str(repository / 'configs/detectors/yolox-nano_moving-sprites.py'), path)
    done = subprocess.run(
        [sys.executable, '-m', 'vision', 'convert', 'polynet', str(path),
         str(tmp_path / 'y.pth')], cwd=repository, capture_output=True, text=True, timeout=200,
        env=os.environ | dict(PYTHONPATH=str(repository)))
    assert done.returncode in (2, 5), done.stderr[-2000:]
    assert not marker.exists()


@pytest.mark.fault('S34')
def test_the_stock_way_runs_it(hostile):
    path, marker, code = hostile
    Config.fromstring(torch.load(path, weights_only=True)['meta']['config'], '.py')
    assert marker.exists() and code
