"""verify_faces, gallery and recognize_demo on generated pictures; twins on real faces."""

import json
from importlib.util import module_from_spec, spec_from_file_location

import cv2
import numpy as np
import pytest

from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError

CONFIG = '''model = dict(type='FaceRecognizer', flip_fusion={flip},
    backbone=dict(type='MobileFaceNet', dim=16, image_size=112))'''


@pytest.fixture(scope='module')
def tool():
    from pathlib import Path
    folder = Path(__file__).resolve().parents[2] / 'tools'

    def load(name):
        spec = spec_from_file_location(name, folder / f'{name}.py')
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """[config, checkpoint] of an embedder with random weights."""
    import torch

    from vision.common.nn.checkpoint import save_checkpoint
    from vision.registry import MODELS
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    built = MODELS.build(dict(type='FaceRecognizer', backbone=dict(
        type='MobileFaceNet', dim=16, image_size=112)))
    save_checkpoint(dict(state_dict=built.state_dict()), folder / 'm.pth')
    (folder / 'm.py').write_text(CONFIG.format(flip=False))
    (folder / 'flip.py').write_text(CONFIG.format(flip=True))
    return [str(folder / 'm.py'), str(folder / 'm.pth')]


def picture(path, seed, noise=0.0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3)).astype(np.float32)
    grain = np.random.default_rng(9).normal(0, noise, (112, 112, 3))
    image = cv2.resize(coarse, (112, 112)) + grain
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))


@pytest.fixture
def pairs(tmp_path):
    lines = []
    for row in range(10):
        picture(tmp_path / f'p{row}/a.png', row)
        picture(tmp_path / f'p{row}/b.png', row, noise=2)
        lines += [f'p{row}/a.png p{row}/b.png 1\n', f'p{row}/a.png p{(row + 3) % 10}/b.png 0\n']
    (tmp_path / 'pairs.txt').write_text(''.join(lines))
    return ['--pairs', str(tmp_path / 'pairs.txt'), '--images', str(tmp_path)]


def test_verification_writes_its_report(tool, model, pairs, tmp_path, capsys):
    target = tmp_path / 'v.json'
    assert tool('verify_faces').main([*model, *pairs, '--far', '0.1', '--json', str(target)]) == 0
    row, = json.loads(target.read_text())['rows']
    assert row['num_pairs'] == 20 and row['num_images'] == 20 and row['flip_fusion'] is False
    assert row['accuracy'] >= 0.9  # near copies against other pictures, even at random weights
    assert len(row['fold_thresholds']) == 10 and 'accuracy' in capsys.readouterr().out


def test_verification_refuses(tool, model, pairs, tmp_path):
    verify = tool('verify_faces')
    with pytest.raises(VisionError, match='VIS-CONFIG-1085'):
        verify.main([*model, '--pairs', pairs[1]])
    with pytest.raises(VisionError, match='VIS-DATA-1064'):
        verify.main([*model, *pairs, '--far', '0.001'])
    cv2.imwrite(str(tmp_path / 'p3/a.png'), np.zeros((90, 112, 3), np.uint8))
    with pytest.raises(VisionError, match='112 x 90 px'):
        verify.main([*model, *pairs])
    (tmp_path / 'empty.py').write_text('x = 1')
    with pytest.raises(VisionError, match='VIS-CONFIG-1083'):
        verify.main([str(tmp_path / 'empty.py'), model[1], *pairs])


def test_gallery_life(tool, model, tmp_path, capsys):
    gallery, out = tool('gallery').main, str(tmp_path / 'g.npz')
    for name, seed in (('ada', 1), ('bob', 2)):
        picture(tmp_path / 'people' / name / '1.png', seed)
    picture(tmp_path / 'more' / 'eve' / '1.png', 3)
    enrol = [*model, '--out', out, '--aligned']
    assert gallery(['build', str(tmp_path / 'people'), *enrol]) == 0
    with pytest.raises(VisionError, match='VIS-CONFIG-1104'):
        gallery(['build', str(tmp_path / 'people'), *enrol])
    assert gallery(['add', str(tmp_path / 'more'), *enrol]) == 0
    assert gallery(['add', str(tmp_path / 'more'), *enrol]) == 0  # again: no second row
    gallery(['remove', out, 'bob'])
    capsys.readouterr()
    gallery(['list', out])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:2]] == [
        ['1', 'ada'], ['1', 'eve']]
    flip = [model[0].replace('m.py', 'flip.py'), model[1], '--out', out, '--aligned']
    with pytest.raises(VisionError, match='VIS-CONFIG-1102'):
        gallery(['add', str(tmp_path / 'people'), *flip])
    with pytest.raises(VisionError, match='VIS-CONFIG-1105'):
        gallery(['remove', out, 'nobody'])
    (tmp_path / 'g.npz').write_bytes(b'PK nonsense')
    with pytest.raises(VisionError, match='VIS-DATA-1101'):
        gallery(['list', out])


def test_doubtful_rows_are_named():
    from vision.faces.core.gallery import Gallery, suspicious_rows
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.0, -1]], dtype=np.float32)
    names, files = np.array(['a', 'b', 'a', 'c']), np.array(['1', '2', '3', '4'])
    doubts = suspicious_rows(Gallery(rows, names, files, 'x'), 0.7)
    assert len(doubts) == 2 and doubts[0] == '1 (a) looks like 2 (b): cosine 0.80'


def test_detected_faces_are_those_of_the_annotation(shared_data):
    import xml.etree.ElementTree as ElementTree

    from vision.faces.nn.face_finder import FaceFinder, align_faces
    finder = FaceFinder(shared_data / 'weights' / 'yunet_n_dynamic.onnx')
    folder = shared_data / 'dlib-faces-landmarks'
    found = total = 0
    for image in ElementTree.parse(folder / 'training_with_face_landmarks.xml').iter('image'):
        pixels = cv2.imread(str(folder / image.get('file')))
        faces = finder(pixels)
        boxes = np.array([[int(box.get(key)) for key in ('left', 'top', 'width', 'height')]
                          for box in image.iter('box')], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        found += (iou_matrix(boxes, faces.boxes_xyxy).max(axis=1, initial=0) > 0.3).sum()
        total += len(boxes)
        assert align_faces(pixels, faces.landmarks).shape == (len(faces), 112, 112, 3)
    assert total > 10 and found / total >= 0.8


def test_missing_detector_is_named(tmp_path):
    from vision.faces.nn.face_finder import FaceFinder
    with pytest.raises(VisionError, match='VIS-CKPT-1103'):
        FaceFinder(tmp_path / 'none.onnx')


@pytest.mark.slow
def test_real_faces_are_recognised(tool, shared_data, tmp_path, repository):
    """The public weights on 24 originals: enrol the aligned picture, find its original."""
    spec = tool('model_converters/mobilefacenet')
    weights = shared_data / 'weights'
    spec.main([str(weights / 'mobilefacenet.pt'), str(tmp_path / 'm.pth')])
    model = [str(repository / 'configs/faces/mobilefacenet_ms1m.py'), str(tmp_path / 'm.pth')]
    data = shared_data / 'lfw-aligned-subset'
    raws = sorted((data / 'raw250').glob('*.jpg'))[:24:6]
    for raw in raws:
        person = raw.stem[:-5]
        (tmp_path / 'people' / person).mkdir(parents=True)
        (tmp_path / 'people' / person / raw.name).write_bytes(
            (data / 'images' / person / raw.name).read_bytes())
    gallery = str(tmp_path / 'g.npz')
    tool('gallery').main(['build', str(tmp_path / 'people'), *model, '--out', gallery,
                          '--aligned'])
    for raw in raws:
        tool('recognize_demo').main([
            str(raw), *model, '--gallery', gallery, '--out-dir', str(tmp_path / 'out'),
            '--detector', str(weights / 'yunet_n_dynamic.onnx')])
        faces = json.loads((tmp_path / 'out' / f'{raw.stem}.jsonl').read_text())['faces']
        assert raw.stem[:-5] in [face['name'] for face in faces]
