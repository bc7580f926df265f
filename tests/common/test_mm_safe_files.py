"""Configs of YAML and JSON run nothing; what MMEngine loads by itself runs nothing either."""

import contextlib
import json
import os
import pickle
import sys
import time
from argparse import Namespace
from pathlib import Path

import mmengine
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.fileio.handlers import PickleHandler, YamlHandler, file_handlers

sys.path.insert(0, str(Path(__file__).parent))
import hostile_pickles
import runs

from vision.common.core.data_configs import read_data_config
from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config
from vision.common.mm.runner import ExactRunner
from vision.common.mm.safe_files import read_plain_files_everywhere

# MARKER: a folder that must not be made.
TAGS = ('python/object/apply:os.mkdir [MARKER]', 'python/object/new:os.mkdir [MARKER]',
        'python/object/apply:os.system ["mkdir MARKER"]', 'python/name:os.mkdir',
        'python/object/apply:subprocess.Popen [[mkdir, MARKER]]', 'python/module:os',
        'python/object/apply:builtins.eval ["__import__(\'os\').mkdir(\'MARKER\')"]',
        'python/object:os.mkdir {}', 'python/tuple [1]', 'python/bytes aGk=', 'set {a}',
        'python/object/apply:builtins.exec ["import os; os.mkdir(\'MARKER\')"]', 'binary aGk=',
        'timestamp 2001-01-01', 'unknown 1')
TYPES = ('os.mkdir', 'os.system', 'subprocess.Popen', 'builtins.eval', 'builtins.exec', 'exec',
         'evil', 'class', 'mmengine.load', 'mmengine.fileio.load', 'mmengine.Config.fromfile',
         'torch.load',
         'mmdet.apis.init_detector', 'vision.common.core.errors.run_cli', 'antigravity',
         "__import__('os').mkdir('MARKER')", 'mmdet.os', 'vision.registry', '..os.mkdir', '')
OTHERS = (dict(custom_imports=dict(imports=['os'])), dict(custom_imports=None),
          dict(_base_='evil.py'), dict(_base_=['evil.py']), dict(_base_=[1]),
          dict(default_scope='evil'), dict(model=dict(_scope_='evil', type='ResNet')),
          dict(runner_type='os.system'), dict(model=dict(type=['os.mkdir'])), dict(model=dict(
              nms=dict(type="__import__('os').mkdir('MARKER')"))),
          dict(optim_wrapper=dict(constructor='os.mkdir', type='OptimWrapper')),
          dict(_base_='self.json'), [], 1, 'text', None)
SIZES = ('{"a": ' * 5000 + '1' + '}' * 5000, '{"a": ' + '9' * 5000 + '}', '{"a": 1', '\ufeff{',
         '{"a": NaN, "b": ' + '[' * 100_000, '{"a": "' + 'x' * 200_000 + '"}')
YAMLS = ('a: &a [1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n' + ''.join(
    f'{chr(c + 1)}: &{chr(c + 1)} [' + ', '.join([f'*{chr(c)}'] * 9) + ']\n'
    for c in range(98, 110)),
    'a: &a [*a]', '[' * 20_000, '? ' * 20_000, 'a: !!float x', '? [a]\n: 1', 'a: b: c', '\x00',
    'a: 1:' + '59:' * 3000 + '1')


def read(path: Path) -> Config:
    return read_config(Namespace(config=str(path), local_rank=0, cfg_options=None,
                                 launcher='none', work_dir=None))


@pytest.mark.fault('S35')
def test_no_hostile_config_runs_anything_or_takes_long(tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    (tmp_path / 'evil.py').write_text(f'import os\nos.mkdir({str(marker)!r})\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'good.json').write_text('{"model": {"type": "LatticeDetector"}}')
    read(tmp_path / 'good.json')  # mmdet is imported now, and not by the clock below
    cases = [('x.yaml', f'model: !!{tag}') for tag in TAGS]
    cases += [('x.json', json.dumps(dict(model=dict(type=name)))) for name in TYPES]
    cases += [('self.json', json.dumps(content)) for content in OTHERS]
    cases += [('x.json', text) for text in SIZES] + [('x.yml', text) for text in YAMLS]
    assert len(cases) > 40
    for name, text in cases:
        path = tmp_path / name
        path.write_text(text.replace('MARKER', str(marker)))
        start = time.perf_counter()
        with pytest.raises(VisionError, match='VIS-CONFIG-(314|351|355)'):
            read(path)
            pytest.fail(f'{text[:100]} was read')
        assert time.perf_counter() - start < 5, text[:100]
    assert not marker.exists()


@pytest.mark.fault('S35')
def test_the_stock_reader_runs_what_a_yaml_config_names(tmp_path, monkeypatch):
    from mmengine.fileio.handlers.registry_utils import file_handlers
    from mmengine.fileio.handlers.yaml_handler import YamlHandler
    monkeypatch.setitem(file_handlers, 'yaml', YamlHandler())
    marker = tmp_path / 'marker'
    (tmp_path / 'x.yaml').write_text(f'a: !!python/object/apply:os.mkdir [{marker}]')
    with contextlib.suppress(FileExistsError):  # it reads the file more than once
        Config.fromfile(tmp_path / 'x.yaml')
    assert marker.exists()


def test_data_configs_inherit_and_build_registered_classes(tmp_path):
    (tmp_path / 'base.json').write_text(json.dumps(dict(
        model=dict(type='LatticeDetector', num_stages=2), log_level='INFO')))
    (tmp_path / 'x.yaml').write_text(
        '_base_: base.json\ndefault_scope: vision\nmodel: {num_stages: 1}\n'
        'train_dataloader: {sampler: {type: DefaultSampler, shuffle: true}}\n'
        'optim_wrapper: {type: OptimWrapper, optimizer: {type: SGD, lr: 0.1},'
        ' clip_grad: {type: norm, max_norm: 1}}\n')
    config = read(tmp_path / 'x.yaml')
    assert config.model == dict(type='LatticeDetector', num_stages=1)
    assert config.log_level == 'INFO' and config.optim_wrapper.optimizer.lr == 0.1


def test_a_config_of_ours_is_the_same_when_it_is_written_as_json(tmp_path, repository):
    source = repository / 'configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py'
    config = Config.fromfile(source)
    keys = {key: value for key, value in config.to_dict().items()
            if key in ('model', 'train_dataloader', 'optim_wrapper', 'default_scope', 'train_cfg',
                       'val_dataloader', 'val_evaluator', 'val_cfg', 'param_scheduler')}
    (tmp_path / 'x.json').write_text(json.dumps(keys))
    found = read(tmp_path / 'x.json')
    assert json.loads(json.dumps(found.model)) == keys['model'] | json.loads(
        json.dumps(keys['model']))


@pytest.mark.fault('S33')
def test_what_mmengine_loads_by_itself_is_data(tmp_path):
    read_plain_files_everywhere()
    marker = tmp_path / 'marker'
    (tmp_path / 'x.pkl').write_bytes(hostile_pickles.calls(str(marker))['os.mkdir'])
    (tmp_path / 'x.yaml').write_text(f'!!python/object/apply:os.mkdir [{marker}]')
    for name, code in (('x.pkl', 'VIS-DATA-352'), ('x.yaml', 'VIS-DATA-356')):
        with pytest.raises(VisionError, match=code):
            mmengine.load(tmp_path / name)
    assert not marker.exists()
    mmengine.dump(dict(a=[np.arange(3)]), str(tmp_path / 'y.pkl'))
    assert mmengine.load(str(tmp_path / 'y.pkl'))['a'][0].tolist() == [0, 1, 2]
    assert mmengine.load(str(tmp_path / 'y.pkl'))['a'][0].dtype == pickle.loads(
        (tmp_path / 'y.pkl').read_bytes())['a'][0].dtype
    for content in (b'a: \xff', b'[' * 2000, b'a: 2001-13-45'):
        (tmp_path / 'x.yaml').write_bytes(content)
        with pytest.raises(VisionError, match='VIS-DATA-356'):
            mmengine.load(str(tmp_path / 'x.yaml'))
    with (tmp_path / 'y.yaml').open('w') as file:
        mmengine.dump(dict(a='ü'), file, file_format='yaml')
    assert mmengine.load(str(tmp_path / 'y.yaml')) == dict(a='ü')
    mmengine.dump(dict(a=[1]), str(tmp_path / 'y.yaml'))
    assert mmengine.load(str(tmp_path / 'y.yaml')) == dict(a=[1])


@pytest.mark.fault('S33')
def test_a_runner_that_no_command_started_reads_them_as_data(tmp_path, monkeypatch):
    for suffix, stock in (('pkl', PickleHandler), ('yaml', YamlHandler)):
        monkeypatch.setitem(file_handlers, suffix, stock())
    marker = tmp_path / 'marker'
    (tmp_path / 'x.pkl').write_bytes(hostile_pickles.calls(str(marker))['os.mkdir'])
    ExactRunner.from_cfg(runs.config(tmp_path / 'run'))
    with pytest.raises(VisionError, match='VIS-DATA-352'):
        mmengine.load(tmp_path / 'x.pkl')
    assert not marker.exists()


@pytest.mark.fault('S35')
def test_a_detector_config_in_yaml_is_data(tmp_path, monkeypatch):
    from vision.lattice.mm.mmdet_adapter import read_config as read_detector_config
    monkeypatch.setitem(file_handlers, 'yaml', YamlHandler())
    marker = tmp_path / 'marker'
    (tmp_path / 'x.yaml').write_text(f'!!python/object/apply:os.mkdir [{marker}]')
    with pytest.raises(VisionError, match='VIS-DATA-356'):
        read_detector_config(tmp_path / 'x.yaml')
    assert not marker.exists()


def test_a_base_elsewhere_is_read_from_its_place(tmp_path):
    os.makedirs(tmp_path / 'a' / 'b')
    (tmp_path / 'a' / 'base.yml').write_text('work_dir: x')
    (tmp_path / 'a' / 'b' / 'x.json').write_text('{"_base_": "../base.yml"}')
    assert read_data_config(tmp_path / 'a/b/x.json') == [dict(work_dir='x'), {}]
