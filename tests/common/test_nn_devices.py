"""A device that is not here is said before any work, the same way everywhere."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch

import vision
from vision.cli.main import main
from vision.common.core.errors import VisionError
from vision.common.nn.devices import find_device
from vision.faces.api import open_faces

ABSENT = f'cuda:{torch.cuda.device_count()}'
CLASSIFIER, FACES = 'vit-tiny_imagenette160', 'mobilefacenet_ms1m'
LATTICE = 'configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py'


def test_a_device_that_is_here_is_given_back():
    assert find_device('cpu') == find_device(torch.device('cpu')) == torch.device('cpu')


@pytest.mark.parametrize('name', [ABSENT, torch.device(ABSENT), 'gpu', '', 'cuda:x', 'meta'])
def test_any_other_is_refused(name):
    with pytest.raises(VisionError, match='VIS-ENV-515') as error:
        find_device(name)
    assert 'vision doctor' in error.value.do and '\n' not in error.value.why


def test_what_runs_in_onnxruntime_takes_no_other_device(tmp_path):
    (embedder := tmp_path / 'embedder.onnx').touch()
    for load in (partial(vision.load, 'hanzi'), partial(vision.load, 'lattice_yolox-nano'),
                 partial(open_faces, embedder)):
        with pytest.raises(VisionError, match='VIS-CONFIG-1721'):
            load(device='cuda:0')


@pytest.mark.parametrize('command', [
    ['benchmark', CLASSIFIER],
    ['memory', CLASSIFIER],
    ['classify', 'PICTURE', '--model', CLASSIFIER, '--weights', 'WEIGHTS'],
    ['detect', 'PICTURE', 'configs/detectors/yolox-nano_coco.py', 'WEIGHTS'],
    ['video', 'PICTURES', '--config', LATTICE, '--checkpoint', 'WEIGHTS', '--runtime', 'torch'],
    ['faces', 'embed', 'PICTURE', '--aligned', '--out', 'OUT', '--model', FACES, '--weights',
     'WEIGHTS'],
    ['faces', 'verify', FACES, 'WEIGHTS', '--protocol', 'pairs', '--pairs', 'PAIRS', '--images',
     'PICTURES'],
], ids=' '.join)
def test_commands_say_so(command, tmp_path, monkeypatch):
    given = dict(PICTURES=tmp_path, PICTURE=tmp_path / '000.png', WEIGHTS=tmp_path / 'w.pth',
                 PAIRS=tmp_path / 'pairs.txt', OUT=tmp_path / 'out.npz')
    for name in ('000.png', '001.png'):
        cv2.imwrite(str(tmp_path / name), np.zeros((112, 112, 3), np.uint8))
    given['PAIRS'].write_text('000.png 000.png 1\n000.png 001.png 0\n' * 10)
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), given['WEIGHTS'])
    words = [str(given.get(word, word)) for word in command]
    monkeypatch.setattr('sys.argv', ['vision', *words, '--device', ABSENT])
    with pytest.raises(VisionError, match='VIS-ENV-515'):
        main()
