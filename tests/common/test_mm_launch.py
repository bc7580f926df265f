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


@pytest.fixture
def read(tmp_path):
    """``read(**options)`` of a small detector's config."""
    path = tmp_path / 'net_coco.py'
    path.write_text("""
default_scope = 'vision'
model = dict(type='LatticeDetector', detector=dict(type='OnnxDetector', path='x'), num_stages=1)
train_dataloader = dict(batch_size=2, dataset=dict(type='CocoVideoDataset', ann_file='a.json'))
load_from = None
""")

    def read(name='net_coco.py', **options):
        return launch.read_config(argparse.Namespace(
            config=tmp_path / name, local_rank=0, work_dir=None, launcher='none',
            cfg_options=options))
    return read


def test_a_value_of_another_kind_is_refused_wherever_it_stands(read, tmp_path):
    with pytest.raises(VisionError, match="VIS-CONFIG-1802[^$]*model.num_stages is 'two'"):
        read(**{'model.num_stages': 'two'})
    path = tmp_path / 'net_coco.py'
    path.write_text(path.read_text().replace('num_stages=1', "num_stages='two'"))
    with pytest.raises(VisionError, match="VIS-CONFIG-1802[^$]*model.num_stages is 'two'"):
        read()


def test_a_config_that_is_not_there_comes_with_those_like_it(read):
    with pytest.raises(VisionError, match='VIS-CONFIG-313[^$]*near it: [^$]*net_coco.py'):
        read('net_cocoo.py')


def test_data_and_checkpoint_are_looked_for(read, tmp_path):
    with pytest.raises(VisionError, match='VIS-DATA-1800[^$]*a.json'):
        launch.look_first(read(), ('train_dataloader',))
    there = read(**{'train_dataloader.dataset.ann_file': str(tmp_path / 'net_coco.py'),
                    'load_from': str(tmp_path / 'net_cocoo.pth')})
    with pytest.raises(VisionError, match='VIS-CKPT-1801[^$]*near it: [^$]*net_coco.py'):
        launch.look_first(there, ('train_dataloader',))
    with pytest.raises(VisionError, match='VIS-INPUT-602[^$]*nearest: lattice-pru'):
        launch.look_first(Config(dict(load_from='zoo:lattice-pru_moving')), ())


@pytest.mark.parametrize('text', ["expected scalar type Float but found BFloat16",
                                  '"nms" not implemented for \'Half\''])
def test_a_layer_without_mixed_precision_is_explained_where_that_was_asked_for(text):
    amp = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    with pytest.raises(VisionError, match='VIS-RUN-1805[^$]*leave --amp out'), \
            launch.explained(amp):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError), launch.explained(Config()):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError), launch.explained(amp):
        raise RuntimeError('something else')


def test_an_argument_of_a_part_comes_with_the_nearest(read):
    from vision.registry import MODELS
    config = read(**{'model.detector.path': 'x'})
    config.model.refinement = dict(num_class=8)
    with pytest.raises(VisionError, match='VIS-CONFIG-317[^$]*did you mean num_classes'), \
            launch.explained(config):
        MODELS.build(config.model)


def test_a_config_of_the_package_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('vit-tiny_imagenette160', 'configs/classify/vit-tiny_imagenette160.py'):
        config = launch.read_config_alone(name)
        assert config.model.backbone.type == 'VisionTransformer'
    with pytest.raises(VisionError, match='VIS-CONFIG-313[^$]*vit-tiny_imagenette160'):
        launch.read_config_alone('vit-tiny_imagenette161')
    with pytest.raises(VisionError, match='VIS-CONFIG-313[^$]*vit-tiny_imagenette160'):
        launch.read_config_alone('vit-tiny')
