"""vision zoo list, get and add as commands: what they print, write and refuse."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.numpy import save_file

from vision.zoo.index import INDEX, load_index, load_models
from vision.zoo.store import sha256_of


@pytest.fixture
def command(repository, tmp_path):
    def run(tool, *arguments, **environ):
        env = {k: v for k, v in os.environ.items() if not k.startswith('VISION_ZOO')}
        env |= dict(PYTHONPATH=str(repository), VISION_ZOO_CACHE=str(tmp_path / 'cache'),
                    VISION_ERROR_JSON='1') | environ
        return subprocess.run([sys.executable, '-m', 'vision', 'zoo', tool, *map(str, arguments)],
                              capture_output=True, text=True, env=env)
    return run


def error_of(done) -> dict:
    return json.loads(done.stderr.strip().splitlines()[-1])


def test_list_names_every_model_and_opens_no_connection(command):
    done = command('list', '--files', VISION_OFFLINE='1')
    assert done.returncode == 0 and all(name in done.stdout for name in load_index())
    assert 'not yet' in done.stdout  # YOLOX's hash was recorded from a copy


@pytest.mark.parametrize('arguments, code, exit_code', [
    (['yolox-nanno'], 'VIS-INPUT-602', 2),
    ([], 'VIS-INPUT-613', 2),
    (['polynet-very-deep_in1k', '--offline'], 'VIS-NET-618', 6),
    # An unknown name is noticed before the first byte of the known one.
    (['yolox-nano_coco', 'x'], 'VIS-INPUT-602', 2),
    (['yolox-nano_coco', 'x', '--dest', 'one.onnx'], 'VIS-INPUT-602', 2),
    (['mobilefacenet', '--dest', 'one.onnx'], 'VIS-INPUT-621', 2),
])
def test_refusals_leave_with_the_code_of_their_kind(command, arguments, code, exit_code):
    done = command('get', *arguments)
    error = error_of(done)
    assert (error['code'], done.returncode) == (code, exit_code) and error['do']
    assert 'Traceback' not in done.stderr and done.stdout == ''


def test_a_mirror_with_another_file_is_refused(command, tmp_path):
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    (mirror / 'polynet-f71d82a5.pth').write_bytes(b'something else')
    done = command('get', 'polynet-very-deep_in1k', VISION_ZOO_MIRROR=str(mirror))
    assert done.returncode == 5 and error_of(done)['code'] == 'VIS-CKPT-608'


def test_from_the_package_to_a_folder_without_network(command, tmp_path):
    done = command('get', 'yolox-nano_coco', '--offline', '--dest', tmp_path / 'weights')
    assert done.returncode == 0, done.stderr
    copy = tmp_path / 'weights' / 'yolox-nano_coco.onnx'
    assert done.stdout.strip() == str(copy)
    assert sha256_of(copy) == load_index()['yolox-nano_coco'].sha256
    assert 'not yet been compared with the official file' in done.stderr
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('variable', ['VISION_ZOO_CACHE', '--dest'])
def test_a_file_where_a_folder_should_be(command, tmp_path, variable):
    (tmp_path / 'file').write_text('')
    folder = tmp_path / 'file' / 'folder'
    if variable == '--dest':
        done = command('get', 'yolox-nano_coco', '--dest', folder)
    else:
        done = command('get', 'polynet-very-deep_in1k', **{variable: str(folder)})
    assert done.returncode == 3 and error_of(done)['code'] == 'VIS-ENV-612'


@pytest.fixture
def copy_of_index(tmp_path):
    return shutil.copy(INDEX, tmp_path / 'index.yml'), tmp_path / 'weights'


def add(command, file, index, weights, *more):
    return command('add', file, '--name', 'toy_sprites', '--config', 'configs/x.py',
                   '--source', 'this repository', '--index', index, '--weights', weights, *more)


def test_weights_of_our_own_enter_package_and_index(command, tmp_path, copy_of_index):
    import numpy as np
    index, weights = copy_of_index
    file = tmp_path / 'toy.safetensors'
    for value in (1.0, 2.0):  # the second time replaces the first
        save_file({'w': np.full(5, value, np.float32)}, file)
        done = add(command, file, index, weights, '--metric', 'map50=81.5',
                   '--metrics-from', 'x.json')
        assert done.returncode == 0, done.stderr
    entries = load_index(index)
    assert list(entries) == [*load_index(), 'toy_sprites']
    entry = entries['toy_sprites']
    assert entry.is_packaged and entry.verified and entry.metrics == {'map50': 81.5}
    assert sha256_of(weights / entry.file_name) == entry.sha256 == sha256_of(file)
    assert index.read_text().startswith('# What vision.load takes')
    assert '# Weights this project knows' in index.read_text()
    unchanged = [row for row in yaml.safe_load(index.read_text())['entries']][:-1]
    assert unchanged == yaml.safe_load(INDEX.read_text())['entries']
    assert load_models(index) == load_models()


def test_a_checkpoint_enters_as_tensors_with_its_class_names(command, tmp_path, copy_of_index):
    import torch

    from vision.common.nn.checkpoint import class_names, load_checkpoint, save_checkpoint
    index, weights = copy_of_index
    save_checkpoint(dict(state_dict=dict(w=torch.arange(6.).reshape(2, 3).T),
                         meta=dict(dataset_meta=dict(classes=('disc', 'ring'))),
                         optimizer=dict(big=torch.zeros(100))), tmp_path / 'x.pth')
    done = add(command, tmp_path / 'x.pth', index, weights)
    assert done.returncode == 0, done.stderr
    entry = load_index(index)['toy_sprites']
    content = load_checkpoint(weights / entry.file_name)
    assert content['state_dict'].keys() == {'w'} and entry.size_bytes < 300
    assert content['state_dict']['w'].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert class_names(content) == ('disc', 'ring')
    refused = add(command, tmp_path / 'x.pth', index, weights, '--classes', 'disc,star')
    assert refused.returncode == 2 and 'disc, ring' in error_of(refused)['why']


def test_classes_are_written_into_a_file_without_names(command, tmp_path, copy_of_index):
    import numpy as np

    from vision.common.nn.checkpoint import class_names, load_checkpoint
    index, weights = copy_of_index
    save_file({'w': np.ones(5, np.float32)}, tmp_path / 'toy.safetensors')
    done = add(command, tmp_path / 'toy.safetensors', index, weights, '--classes', 'a,b c')
    assert done.returncode == 0, done.stderr
    entry = load_index(index)['toy_sprites']
    file = weights / entry.file_name
    assert class_names(load_checkpoint(file)) == ('a', 'b c')
    assert sha256_of(file) == entry.sha256 != sha256_of(tmp_path / 'toy.safetensors')


@pytest.mark.parametrize('code, name, more', [
    (625, 'toy.onnx', []), (623, 'missing.safetensors', []),
    (627, 'toy.safetensors', ['--metric', 'map50'])])
def test_what_may_not_enter_the_package(command, tmp_path, copy_of_index, code, name, more):
    index, weights = copy_of_index
    if name.startswith('toy'):
        (tmp_path / name).write_bytes(b'123')
    done = add(command, tmp_path / name, index, weights, *more)
    assert done.returncode == 2 and error_of(done)['code'] == f'VIS-INPUT-{code}'
    assert index.read_bytes() == INDEX.read_bytes() and not weights.exists()
