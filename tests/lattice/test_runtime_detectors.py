"""Detectors without training software: slow obvious decoders, mmdet, and refusals."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from vision.common.core.boxes import batched_nms, iou_matrix
from vision.common.core.errors import VisionError
from vision.lattice.core.class_names import COCO_CLASSES
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.detectors import CallableDetector, OnnxDetector, as_detector
from vision.lattice.runtime.onnx_detector import DECODINGS, Letterbox

onnx = pytest.importorskip('onnx')
SIDE = 64
NUM_CELLS = 64 + 16 + 4
NAMES = ('disc', 'square', 'star')


def table(decoding, seed=0):
    """An output as a trained network gives it: boxes near their anchors, some scores high."""
    rng = np.random.default_rng(seed)
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    repeats = 3 if decoding == 'yolov5' else 1
    rows = []
    for x, y, s in cells * repeats:
        offset, side = rng.normal(0.5, 0.7, 2), rng.normal(0.8, 0.5, 2)
        box = [*offset, *side] if decoding == 'yolox' else [
            (x + offset[0]) * s, (y + offset[1]) * s, math.exp(side[0]) * s, math.exp(side[1]) * s]
        classes = rng.uniform(0, 1, len(NAMES))**2
        rows.append([*box, *([] if decoding == 'yolov8' else [rng.uniform(0, 1)**3]), *classes])
    array = np.array(rows, np.float32)
    return array.T if decoding == 'yolov8' else array


def write(path, output, *, size=(SIDE, SIDE), metadata=None, from_red=None, location=None):
    """A graph that gives ``output`` whatever comes in; ``from_red``: index of a number to which
    the mean of the input's first plane is added."""
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    mask = np.zeros_like(output)
    if from_red is not None:
        mask[from_red] = 1
    values = onnx.numpy_helper.from_array(output[None], 'values')
    if location:
        np.asarray(output).tofile(path.parent / location if '/' not in location else location)
        values = onnx.TensorProto(name='values', dims=output[None].shape, data_type=kind,
                                  data_location=onnx.TensorProto.EXTERNAL)
        entry = values.external_data.add()
        entry.key, entry.value = 'location', location
    tensors = [values, onnx.numpy_helper.from_array(mask[None], 'mask'),
               onnx.numpy_helper.from_array(np.array([0], np.int64), 'zero'),
               onnx.numpy_helper.from_array(np.array([1], np.int64), 'one')]
    nodes = [h.make_node('Slice', ['images', 'zero', 'one', 'one'], ['plane']),
             h.make_node('ReduceMean', ['plane'], ['mean'], keepdims=0),
             h.make_node('Mul', ['mean', 'mask'], ['part']),
             h.make_node('Add', ['values', 'part'], ['output'])]
    graph = h.make_graph(
        nodes, 'g', [h.make_tensor_value_info('images', kind, [1, 3, *size])],
        [h.make_tensor_value_info('output', kind, [1, *output.shape])], tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 13)], ir_version=8)
    if metadata:
        h.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def judge(decoding, output, frame_size, *, score_thr, nms_iou=0.65):
    """Anchor by anchor, then the project's own suppression; boxes in frame pixels."""
    height, width = frame_size
    ratio = min(SIDE / height, SIDE / width)
    new_height, new_width = int(height * ratio + 0.5), int(width * ratio + 0.5)
    is_centred = decoding in ('yolov5', 'yolov8')
    left = (SIDE - new_width) // 2 if is_centred else 0
    top = (SIDE - new_height) // 2 if is_centred else 0
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    boxes, scores, labels = [], [], []
    for row, (x, y, s) in zip(output.T if decoding == 'yolov8' else output, cells * 3,
                              strict=False):
        cx, cy, w, h, *rest = (float(v) for v in row)
        objectness, classes = (1.0, rest) if decoding == 'yolov8' else (rest[0], rest[1:])
        score = objectness * max(classes)
        if score < score_thr:
            continue
        if decoding == 'yolox':
            cx, cy, w, h = (cx + x) * s, (cy + y) * s, math.exp(w) * s, math.exp(h) * s
        sx, sy = new_width / width, new_height / height
        boxes.append([(cx - w / 2 - left) / sx, (cy - h / 2 - top) / sy,
                      (cx + w / 2 - left) / sx, (cy + h / 2 - top) / sy])
        scores.append(score)
        labels.append(classes.index(max(classes)))
    boxes, scores, labels = np.array(boxes), np.array(scores), np.array(labels)
    kept = batched_nms(boxes, scores, labels, nms_iou)
    return FrameBoxes(boxes[kept], scores[kept], labels[kept])


def frame(height=48, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refusal(code, make, *args, **kwargs):
    with pytest.raises(VisionError) as caught:
        make(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value.render()


def same(actual, expected, box_atol=1e-3):
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(actual.boxes_xyxy, expected.boxes_xyxy, atol=box_atol)


@pytest.mark.parametrize('size', [(48, 80), (90, 33), (20, 20)])
@pytest.mark.parametrize('decoding', DECODINGS)
def test_decoding_equals_the_obvious_decoder(tmp_path, decoding, size):
    output = table(decoding)
    path = write(tmp_path / 'a.onnx', output)
    options = dict(classes=NAMES, decoding=decoding, score_thr=0.05, nms_iou=0.3)
    detector = OnnxDetector(path, max_per_frame=500, **options)
    expected = judge(decoding, output, size, score_thr=0.05, nms_iou=0.3)
    without = judge(decoding, output, size, score_thr=0.05, nms_iou=1.0)
    assert 10 < len(expected) < len(without)  # suppression had something to do
    for image in (frame(*size), frame(100, 70), frame(*size)):  # the frame size may change
        boxes = detector.detect(image)
    same(boxes, expected)
    few = OnnxDetector(path, max_per_frame=5, **options)
    same(few.detect(frame(*size)), expected.select(np.arange(5)))


@pytest.mark.parametrize('decoding, seen', [('yolox', 0.0), ('yolov5', 1.0)])
def test_input_is_scaled_padded_and_ordered_as_the_family_wants(tmp_path, decoding, seen):
    """A frame that is red in its 64 x 32 middle: the first plane's mean tells all three."""
    output = table(decoding)
    output[:, 4] = 0
    path = write(tmp_path / 'a.onnx', output, from_red=(0, 4))
    detector = OnnxDetector(path, classes=NAMES, decoding=decoding, score_thr=0.0)
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 2] = 255
    best = output[0, 5:].max()
    unit = 255.0 if decoding == 'yolox' else 1.0
    expected = (0.5 * seen + 0.5 * 114 / 255) * unit * best  # half picture, half grey
    assert detector.detect(red).scores[0] == pytest.approx(expected, rel=1e-5)
    swapped = OnnxDetector(path, classes=NAMES, decoding=decoding, score_thr=0.0,
                           colour='rgb' if decoding == 'yolox' else 'bgr')
    expected = (0.5 * (1 - seen) + 0.5 * 114 / 255) * unit * best
    assert swapped.detect(red).scores[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('is_centred', [False, True])
def test_letterbox_equals_resize_and_pad(is_centred):
    box = Letterbox((96, 64), is_centred=is_centred, colour='rgb', scale=0.5)
    for height, width in ((48, 80), (200, 33), (96, 64), (7, 500), (48, 80)):
        image = frame(height, width)
        ratio = min(96 / height, 64 / width)
        small = cv2.resize(image, (int(width * ratio + 0.5), int(height * ratio + 0.5)))
        top = (96 - small.shape[0]) // 2 if is_centred else 0
        left = (64 - small.shape[1]) // 2 if is_centred else 0
        expected = np.full((96, 64, 3), 114, np.uint8)
        expected[top:top + small.shape[0], left:left + small.shape[1]] = small
        images, scale, shift = box.apply(image)
        np.testing.assert_array_equal(images[0], expected[..., ::-1].transpose(2, 0, 1) * 0.5)
        corners = np.array([0, 0, width, height]) * scale + shift
        np.testing.assert_allclose(corners, [left, top, left + small.shape[1],
                                             top + small.shape[0]], atol=1e-4)


@pytest.mark.parametrize('decoding', ['yolox', 'yolov5', 'yolov8'])
def test_decoding_is_told_from_the_file(tmp_path, decoding):
    path = write(tmp_path / 'a.onnx', table(decoding))
    assert OnnxDetector(path, classes=NAMES).decoding == decoding


def test_what_cannot_be_told_is_refused_and_the_choices_are_named(tmp_path):
    path = write(tmp_path / 'a.onnx', table('yolox-decoded'))
    text = refusal('VIS-CONFIG-808', OnnxDetector, path, classes=NAMES)
    assert 'YOLOv6' in text and all(f"'{name}'" in text for name in DECODINGS)
    for output in (np.zeros((300, 6), np.float32), np.zeros((NUM_CELLS, 5), np.float32),
                   np.full((NUM_CELLS, 8), 9, np.float32) * np.float32(100)):
        refusal('VIS-CONFIG-808', OnnxDetector, write(tmp_path / 'b.onnx', output), classes=NAMES)
    refusal('VIS-CONFIG-808', OnnxDetector, path, classes=NAMES, decoding='yolo')
    short = write(tmp_path / 'c.onnx', np.zeros((60, 8), np.float32))
    refusal('VIS-CONFIG-808', OnnxDetector, short, classes=NAMES, decoding='yolox')


def test_input_size_comes_from_the_graph_or_from_the_caller(tmp_path):
    output = table('yolox')
    fixed = write(tmp_path / 'fixed.onnx', output)
    free = write(tmp_path / 'free.onnx', output, size=('h', 'w'))
    assert OnnxDetector(fixed, classes=NAMES).input_size == (SIDE, SIDE)
    same(OnnxDetector(free, classes=NAMES, input_size=SIDE, score_thr=0.05).detect(frame()),
         judge('yolox', output, (48, 80), score_thr=0.05))
    assert '640' in refusal('VIS-CONFIG-809', OnnxDetector, fixed, classes=NAMES, input_size=640)
    refusal('VIS-CONFIG-809', OnnxDetector, free, classes=NAMES)
    refusal('VIS-CONFIG-809', OnnxDetector, free, classes=NAMES, input_size=(64, 60))


def test_class_names_by_argument_file_or_coco(tmp_path):
    plain = write(tmp_path / 'a.onnx', table('yolov8'))
    named = write(tmp_path / 'b.onnx', table('yolov8'), metadata={'names': str(
        dict(enumerate(NAMES)))})
    assert OnnxDetector(named).classes == NAMES
    assert OnnxDetector(named, classes=('a', 'b', 'c')).classes == ('a', 'b', 'c')
    assert '3 classes' in refusal('VIS-CONFIG-816', OnnxDetector, plain)
    refusal('VIS-CONFIG-816', OnnxDetector, named, classes=('a', 'b'))
    for text in ("{0: 'a', 2: 'b', 3: 'c'}", '__import__("os")', '7'):
        bad = write(tmp_path / 'c.onnx', table('yolov8'), metadata={'names': text})
        refusal('VIS-CONFIG-816', OnnxDetector, bad)
    wide = np.zeros((84, NUM_CELLS), np.float32)
    assert OnnxDetector(write(tmp_path / 'd.onnx', wide)).classes == COCO_CLASSES


@pytest.mark.parametrize('change', [dict(score_thr=1.0), dict(nms_iou=0), dict(max_per_frame=0),
                                    dict(threads=0), dict(colour='grey')])
def test_limits_that_mean_nothing(tmp_path, change):
    path = write(tmp_path / 'a.onnx', table('yolox'))
    refusal('VIS-CONFIG-814', OnnxDetector, path, classes=NAMES, **change)


@pytest.mark.fault('S33')
def test_files_that_are_no_detector(tmp_path):
    (tmp_path / 'text.onnx').write_text('no model')
    refusal('VIS-CKPT-807', OnnxDetector, tmp_path / 'text.onnx')
    refusal('VIS-INPUT-611', OnnxDetector, tmp_path / 'missing.onnx')
    grey = write(tmp_path / 'a.onnx', table('yolox'), size=(SIDE,))
    refusal('VIS-CKPT-807', OnnxDetector, grey)
    named = write(tmp_path / 'b.onnx', table('yolov8'), metadata={'names': 'XXXX'})
    named.write_bytes(named.read_bytes().replace(b'XXXX', b'\xff\xfe\xff\xfe'))
    refusal('VIS-CKPT-807', OnnxDetector, named)


@pytest.mark.fault('S33')
def test_tensors_are_read_beside_the_file_and_nowhere_else(tmp_path):
    output, folder = table('yolox'), tmp_path / 'folder'
    folder.mkdir()
    output.tofile(tmp_path / 'w.bin')
    beside = write(folder / 'a.onnx', output, location='w.bin')
    same(OnnxDetector(beside, classes=NAMES, score_thr=0.05).detect(frame()),
         judge('yolox', output, (48, 80), score_thr=0.05))
    for location in (str(tmp_path / 'w.bin'), f'{folder}/../w.bin'):
        refusal('VIS-CKPT-807', OnnxDetector, write(folder / 'b.onnx', output, location=location))
    content = (folder / 'b.onnx').read_bytes()
    up = write(folder / 'c.onnx', output, location=str(tmp_path / 'w.bin'))
    model = onnx.load(str(up), load_external_data=False)
    model.graph.initializer[0].external_data[0].value = '../w.bin'
    up.write_bytes(model.SerializeToString())
    assert content != up.read_bytes()
    refusal('VIS-CKPT-807', OnnxDetector, up, classes=NAMES)


def test_nan_is_an_error_not_an_empty_frame(tmp_path):
    output = table('yolox')
    output[3, 4] = np.nan
    detector = OnnxDetector(write(tmp_path / 'a.onnx', output), classes=NAMES)
    refusal('VIS-RUN-813', detector.detect, frame())


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
                                   np.zeros((0, 4, 3), np.uint8), None])
def test_only_pictures_are_taken(tmp_path, image):
    detector = OnnxDetector(write(tmp_path / 'a.onnx', table('yolox')), classes=NAMES)
    refusal('VIS-INPUT-812', detector.detect, image)
    refusal('VIS-INPUT-812', CallableDetector(lambda image: None, NAMES).detect, image)


GOOD = ([[0, 0, 4, 4], [1, 1, 3, 9.5]], [0.2, 0.9], [2, 0])


def test_a_function_is_a_detector():
    expected = FrameBoxes([[1, 1, 3, 9.5], [0, 0, 4, 4]], [0.9, 0.2], [0, 2])
    same(CallableDetector(lambda image: GOOD, NAMES).detect(frame()), expected, 0)
    boxes, scores, labels = map(np.array, GOOD)
    found = SimpleNamespace(xyxy=boxes, confidence=scores, class_id=labels)
    same(as_detector(lambda image: found, classes=NAMES).detect(frame()), expected, 0)
    none = SimpleNamespace(xyxy=np.zeros((0, 4)), confidence=None, class_id=None)
    for nothing in (none, ([], [], [])):
        assert not len(as_detector(lambda image, n=nothing: n, classes=NAMES).detect(frame()))


@pytest.mark.parametrize('result', [
    None, 3, GOOD[:2], (GOOD[0], GOOD[1], [0]), ([[0, 0, 4]], [1], [0]), (GOOD[0], None, GOOD[2]),
    ([[0, 0, math.nan, 4]], [1], [0]), ([[0, 0, 4, 4]], [math.inf], [0]),
    ([[4, 0, 0, 4]], [1], [0]), ([[0, 0, 4, 4]], [1.5], [0]), ([[0, 0, 4, 4]], [1], [3]),
    ([[0, 0, 4, 4]], [1], [-1]), ([[0, 0, 4, 4]], [1], [0.5]), (['a'], [1], [0]),
    SimpleNamespace(xyxy=np.zeros((1, 4)), confidence=None, class_id=np.zeros(1))])
def test_what_a_function_may_not_return(result):
    refusal('VIS-INPUT-810', CallableDetector(lambda image: result, NAMES).detect, frame())


def test_as_detector_takes_what_the_user_has(tmp_path):
    path = write(tmp_path / 'a.onnx', table('yolox'))
    detector = as_detector(str(path), classes=NAMES, score_thr=0.3)
    assert isinstance(detector, OnnxDetector) and detector.score_thr == 0.3
    assert as_detector(detector) is detector
    assert as_detector(path, classes=NAMES).classes == NAMES
    for source, options in ((detector, dict(score_thr=0.5)), (detector, dict(classes=NAMES)),
                            (len, {}), (len, dict(classes=NAMES, score_thr=0.5)), (7, {})):
        refusal('VIS-CONFIG-811', as_detector, source, **options)
    (tmp_path / 'a.pth').write_bytes(b'1')
    refusal('VIS-CONFIG-817', as_detector, tmp_path / 'a.pth')
    refusal('VIS-INPUT-611', as_detector, 'no-such-model')
    refusal('VIS-INPUT-602', as_detector, 'zoo:no-such-model')


def real_frames(shared_data):
    folder = shared_data / 'mot15-mini' / 'PETS09-S2L1-half' / 'img1'
    frames = [cv2.imread(str(path)) for path in sorted(folder.glob('*.jpg'))[::40][:4]]
    assert len(frames) == 4
    return frames


def test_yolox_nano_of_the_zoo_sees_people(shared_data):
    """Offline: the file comes with the package."""
    for name in ('zoo:yolox-nano_coco', 'yolox-nano_coco'):
        detector = as_detector(name)
        assert detector.decoding == 'yolox' and detector.classes == COCO_CLASSES
        for image in real_frames(shared_data):
            boxes = detector.detect(image)
            sure = boxes.select(boxes.scores > 0.5)
            assert (sure.labels == COCO_CLASSES.index('person')).sum() >= 2
            assert (np.diff(boxes.scores) <= 0).all()


def test_yolox_nano_equals_the_same_network_through_mmdet(shared_data, repository, tmp_path):
    pytest.importorskip('mmdet')
    from vision.cli import convert_yolox as converter
    from vision.lattice.mm.mmdet_adapter import MMDetDetector
    from vision.zoo import resolve
    converter.main([str(resolve('zoo:yolox-nano_coco')), str(tmp_path / 'nano.pth')])
    slow = MMDetDetector(repository / 'configs' / 'detectors' / 'yolox-nano_coco.py',
                         tmp_path / 'nano.pth', score_thr=0.02)
    fast = OnnxDetector('zoo:yolox-nano_coco', score_thr=0.02, fit_frame=False)
    for image in real_frames(shared_data):
        expected, actual = slow.detect(image), fast.detect(image)
        assert len(expected) == len(actual) > 20
        np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-3)
        # Scores that differ in the last digit may change places: each has its partner.
        for box, score, label in zip(expected.boxes_xyxy, expected.scores, expected.labels,
                                     strict=True):
            near = (actual.labels == label) & (np.abs(actual.scores - score) < 1e-3)
            assert (np.abs(actual.boxes_xyxy[near] - box).max(axis=1) < 0.1).sum() == 1


def test_rows_that_a_wide_frame_does_not_fill_are_not_computed_and_hardly_missed(shared_data):
    fitted = OnnxDetector('zoo:yolox-nano_coco', score_thr=0.02)
    padded = OnnxDetector('zoo:yolox-nano_coco', score_thr=0.02, fit_frame=False)
    assert fitted.input_size == padded.input_size == (416, 416)
    for image in real_frames(shared_data):
        few, all_rows = fitted.detect(image), padded.detect(image)
        assert fitted._letterbox.size == (320, 416) and padded._letterbox.size == (416, 416)
        sure = all_rows.select(all_rows.scores > 0.3)
        assert len(sure) >= 3
        for box, label in zip(sure.boxes_xyxy, sure.labels, strict=True):
            overlap = iou_matrix(box[None], few.boxes_xyxy[few.labels == label])
            assert overlap.max() > 0.9
        same(fitted.detect(image[:280, :280]), padded.detect(image[:280, :280]))
    tall = np.ascontiguousarray(real_frames(shared_data)[0].transpose(1, 0, 2))
    fitted.detect(tall)
    assert fitted._letterbox.size == (416, 320)
