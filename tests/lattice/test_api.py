"""DetectionModel: paths, arrays, lists and folders to boxes, pictures and tables."""

import json
import sys

import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.api import DetectionModel, find_images, load_detector

SIZE = (40, 60)  # height, width


def bright(image_bgr):
    """The bright square, and a box with a low score."""
    rows, columns = np.nonzero(image_bgr[..., 0] > 128)
    if not len(rows):
        return np.zeros((0, 4)), [], []
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [[0, 0, 5, 5], box], [0.2, 0.9], [0, 1]


def picture(left: int | None = None) -> np.ndarray:
    image = np.full((*SIZE, 3), 20, np.uint8)
    if left is not None:
        image[10:20, left:left + 10] = 250
    return image


@pytest.fixture
def model() -> DetectionModel:
    return load_detector(bright, classes=('corner', 'square'))


@pytest.fixture
def folder(tmp_path):
    for name, left in (('a/1.png', 5), ('a/2.png', None), ('b/1.png', 25)):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / 'in' / name), picture(left))
    (tmp_path / 'in' / 'notes.txt').write_text('no picture')
    return tmp_path / 'in'


def test_a_path_and_an_array_give_one_result(model, folder):
    for source in (picture(5), folder / 'a/1.png', str(folder / 'a/1.png')):
        result = model(source)
        assert result.boxes_xyxy.tolist() == [[5, 10, 15, 20]] and result.names == ['square']
        assert result.boxes_xyxy.dtype == np.float32 and len(result) == 1
    assert [len(model(picture(5), score_thr=thr)) for thr in (0.1, 0.3, 0.95)] == [2, 1, 0]
    assert model(picture(5), score_thr=0.1).scores.tolist() == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_a_folder_and_a_list_give_a_list_in_order(model, folder, batch_size):
    results = model(folder, batch_size=batch_size)
    assert [str(one.path.relative_to(folder)) for one in results] == ['a/1.png', 'a/2.png',
                                                                      'b/1.png']
    assert [one.boxes_xyxy[:, 0].tolist() for one in results] == [[5], [], [25]]
    mixed = model([picture(7), folder / 'b/1.png'], batch_size=batch_size)
    assert [one.boxes_xyxy[0, 0] for one in mixed] == [7, 25]
    assert mixed[0].path is None and mixed[0].image_bgr.shape == (*SIZE, 3)


def test_what_is_written_keeps_folders_apart(model, folder, tmp_path):
    model(folder, out_dir=tmp_path / 'out')
    for name, left in (('a/1.png', 5), ('b/1.png', 25)):
        stored = json.loads((tmp_path / 'out' / 'preds' / f'{name}.json').read_text())
        assert stored['bboxes'] == [[left, 10, left + 10, 20]] and stored['labels'] == [1]
        drawn = cv2.imread(str(tmp_path / 'out' / 'vis' / name))
        changed = np.abs(drawn.astype(int) - picture(left)).max(2) > 40
        assert changed[20, left + 1:left + 9].mean() > 0.6 and not changed[30:].any()
    assert json.loads((tmp_path / 'out/preds/a/2.png.json').read_text())['bboxes'] == []


def test_supervision_gets_the_same_boxes(model):
    detections = model(picture(5)).to_supervision()
    assert detections.xyxy.tolist() == [[5, 10, 15, 20]] and detections.class_id.tolist() == [1]
    assert detections.data['class_name'].tolist() == ['square']
    assert len(model(picture()).to_supervision()) == 0


def test_a_missing_package_is_named_with_what_to_install(model, monkeypatch):
    result = model(picture(5))
    for package, call in (('pandas', result.to_pandas), ('supervision', result.to_supervision)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(VisionError, match=f'(?s)VIS-ENV-1713: .*{package}.*pip install'):
            call()


def test_a_data_frame(model):
    pytest.importorskip('pandas', reason='pandas is not installed')
    frame = model(picture(5)).to_pandas()
    assert frame.to_dict('records')[0] | dict(score=1) == dict(
        x1=5, y1=10, x2=15, y2=20, score=1, label=1, name='square')


def test_what_is_no_picture_is_refused(model, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'clip.mp4').write_bytes(b'x')
    for name, why in (('none.jpg', 'no such file'), ('empty', 'no file in it'),
                      ('clip.mp4', 'vision video')):
        with pytest.raises(VisionError, match=f'(?s)VIS-INPUT-1749.*{why}'):
            find_images(tmp_path / name)
    with pytest.raises(ValueError, match='batch_size=0'):
        model(picture(), batch_size=0)


def test_options_without_effect_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1789'):
        load_detector(bright, 'weights.pth', classes=('a', 'b'))
    with pytest.raises(VisionError, match='(?s)VIS-CONFIG-1789.*takes no classes'):
        load_detector('some.py', classes=('a',))


def test_a_name_with_weights_is_a_config_where_the_zoo_has_it_too():
    with pytest.raises(VisionError, match='VIS-INPUT-611[^$]*no file .nothing.pth'):
        load_detector('yolox-nano_coco', 'nothing.pth')
    with pytest.raises(VisionError, match='VIS-CONFIG-1789[^$]*another task: video'):
        load_detector('lattice_yolox-nano_flow_coco')


def test_importing_needs_no_training_software():
    import subprocess
    code = ("import sys; sys.modules.update(dict.fromkeys(('torch', 'mmengine', 'mmdet', 'mmcv', "
            "'supervision', 'pandas')));\n"
            "import numpy, vision.cli.detect\nfrom vision.lattice.api import load_detector\n"
            "model = load_detector(lambda image: ([[0, 0, 9, 9]], [0.9], [0]), classes=('x',))\n"
            "print(model(numpy.zeros((9, 9, 3), numpy.uint8)).draw().shape)")
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0 and '(9, 9, 3)' in result.stdout, result.stderr


def test_a_real_picture(shared_data, tmp_path):
    """The shipped detector on a frame of a street; the boxes of people are there."""
    from vision.cli.detect import main
    frame = sorted((shared_data / 'mot15-mini').rglob('*.jpg'))[0]
    assert main([str(frame), 'yolox-nano_coco', '--out-dir', str(tmp_path)]) == 0
    found = json.loads(next((tmp_path / 'preds').rglob('*.json')).read_text())
    assert found['names'].count('person') >= 2
