"""What starts a run."""

import argparse

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


def test_a_launcher_that_has_not_started_this_process_is_refused(monkeypatch, tmp_path):
    config = Config(dict(launcher='slurm', runner_type='Nobody', work_dir=str(tmp_path)))
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(VisionError, match='VIS-DIST-346[^$]*SLURM_PROCID'):
        launch.build_runner(config)
    monkeypatch.setenv('SLURM_PROCID', '0')
    with pytest.raises(VisionError, match='VIS-CONFIG-315'):  # looked at next
        launch.build_runner(config)


def test_a_work_dir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(VisionError, match='VIS-ENV-109'):
        launch.build_runner(Config(dict(work_dir=str(tmp_path / 'file' / 'run'))))


@pytest.mark.parametrize(('scope', 'name', 'advice'), [
    ('vision', 'LatticeDetecto', 'did you mean LatticeDetector'),
    ('mmdet', 'mmdet.FasterRCN', 'did you mean FasterRCNN'),
    ('mmengine', 'Zzzzz', 'custom_imports')])
def test_a_type_that_is_not_registered_is_named_with_those_like_it(scope, name, advice):
    from mmengine.registry import MODELS, DefaultScope
    DefaultScope.get_instance(f'of {name}', scope_name=scope)
    with pytest.raises(VisionError, match='VIS-CONFIG-334') as error, \
            launch.explained(Config()):
        if scope == 'mmdet':
            import mmdet.models  # noqa: F401
        MODELS.build(dict(type=name, _scope_=scope))
    assert name in error.value.what and advice in error.value.do


def test_a_key_error_of_our_own_is_not_explained_away():
    with pytest.raises(KeyError), launch.explained(Config()):
        raise KeyError('boxes')


@pytest.mark.parametrize('option', ['max_iters', 'train_cfg.max_iters=[1,2'])
def test_an_option_that_cannot_be_read_is_a_usage_error(option, capsys):
    parser = argparse.ArgumentParser()
    launch.add_config_arguments(parser)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(['--cfg-options', option])
    assert end.value.code == 2 and 'argument --cfg-options: ' in capsys.readouterr().err


def test_a_file_that_is_no_config_is_one_error(tmp_path):
    (tmp_path / 'w.pth').touch()
    args = argparse.Namespace(config=tmp_path / 'w.pth', local_rank=0)
    with pytest.raises(VisionError, match='VIS-CONFIG-338[^$]*a config ends in .py'):
        launch.read_config(args)
