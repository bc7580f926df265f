"""Predictions come back from a file bit for bit, and nothing else is read as such."""

import json
import pickle
import zipfile

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.common.core.predictions import read_predictions, write_predictions

SAMPLES = [
    dict(img_id=7, img_path='a/b.jpg', ori_shape=(48, 64), is_labelled=True, nothing=None,
         pred_instances=dict(bboxes=np.array([[1, 2, 3, 4.1]], np.float32),
                             scores=np.array([0.1], np.float32), labels=np.array([3])),
         pred_score=np.array([np.nan, np.inf, 1 / 3], np.float32)),
    dict(img_id=8, img_path='ä "b".jpg', ori_shape=(1, 1), scale=0.1,
         pred_instances=dict(bboxes=np.zeros((0, 4), np.float32),
                             scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64)),
         mask=np.array([[True, False]]), number=np.array(3.5))]


def assert_equal(a, b):
    if isinstance(a, dict):
        assert list(a) and a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    else:
        assert type(a) is type(b) and a == b


@pytest.mark.parametrize('name', ['p.json', 'p.npz'])
def test_every_bit_comes_back(tmp_path, name):
    write_predictions(tmp_path / name, SAMPLES, classes=['a', 'b'], checkpoint=None)
    samples, about = read_predictions(tmp_path / name)
    assert about == dict(classes=('a', 'b'), checkpoint=None)
    assert len(samples) == 2
    for before, after in zip(SAMPLES, samples, strict=True):
        assert_equal(before, after)


def test_the_json_form_can_be_read_by_anybody(tmp_path):
    write_predictions(tmp_path / 'p.json', SAMPLES[:1])
    first = json.loads((tmp_path / 'p.json').read_text())['samples'][0]
    assert first['pred_instances']['labels'] == [3] and first['ori_shape'] == [48, 64]


@pytest.mark.parametrize('name', ['p.json', 'p.npz'])
def test_none_at_all(tmp_path, name):
    write_predictions(tmp_path / name, [])
    assert read_predictions(tmp_path / name) == ([], {})


def test_pickles_and_unknown_endings_are_refused(tmp_path):
    with pytest.raises(VisionError, match=r'(?s)VIS-INPUT-1780.*can run anything'):
        write_predictions(tmp_path / 'p.pkl', [])
    with pytest.raises(VisionError, match="VIS-INPUT-1780"):
        read_predictions(tmp_path / 'p.yaml')


def test_what_is_missing_damaged_or_something_else_is_refused(tmp_path):
    write_predictions(tmp_path / 'p.json', SAMPLES)
    write_predictions(tmp_path / 'p.npz', SAMPLES)
    for name in ('p.json', 'p.npz'):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(VisionError, match='VIS-DATA-1781'):
            read_predictions(path)
    (tmp_path / 'm.json').write_text('{"accuracy": 1}')
    np.savez(tmp_path / 'm.npz', values=np.arange(3))
    (tmp_path / 'evil.npz').write_bytes(pickle.dumps([1]))
    for name in ('none.json', 'm.json', 'm.npz', 'evil.npz'):
        with pytest.raises(VisionError, match='VIS-DATA-1781'):
            read_predictions(tmp_path / name)


@pytest.mark.fault('R32')
@pytest.mark.parametrize('change', [
    dict(arrays=[]), dict(arrays={'a': 3}), dict(samples=['x']), dict(samples={'a': 1}),
    dict(about='x'), dict(arrays=dict(a=dict(dtype='float32', ndim=1e400))),
    dict(arrays=dict(a=dict(dtype='O', ndim=1))), dict(arrays=dict(a=dict(dtype=['x'], ndim=1))),
    dict(arrays=dict(a=dict(dtype='U900000000', ndim=1))),
    dict(samples=[dict(a=dict(shape=[10**6, 10**6]))]), dict(samples=[dict(a=[10**30])])],
    ids=lambda change: json.dumps(change)[:60])
def test_a_json_file_is_not_believed(tmp_path, change):
    whole = dict(format='vision-predictions-1', about={}, samples=[dict(a=[1])],
                 arrays=dict(a=dict(dtype='int64', ndim=1)))
    path = tmp_path / 'p.json'
    path.write_text(json.dumps(whole))
    assert len(read_predictions(path)[0]) == 1
    path.write_text(json.dumps(whole | change).replace('NaN', '1e400'))
    with pytest.raises(VisionError, match='VIS-DATA-1781'):
        read_predictions(path)


@pytest.mark.fault('R32')
@pytest.mark.parametrize('header', [
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (" + b'9' * 30 + b',)}', b"{'descr': ("])
def test_what_an_array_promises_is_not_believed(tmp_path, header):
    path = tmp_path / 'p.npz'
    write_predictions(path, SAMPLES)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in content if name.endswith(':rows.npy'))
    content[name] = b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header + bytes(16)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(VisionError, match='VIS-DATA-1781'):
        read_predictions(path)


def test_many_equal_predictions_come_back(tmp_path):
    """Arrays of zeros shrink to a thousandth: a bound on what is unpacked must let them pass."""
    write_predictions(tmp_path / 'p.npz', [dict(mask=np.zeros((100, 100), bool))] * 200)
    assert len(read_predictions(tmp_path / 'p.npz')[0]) == 200


def test_damage_inside_of_a_packed_array_is_told(tmp_path):
    path = tmp_path / 'p.npz'
    rows = np.random.default_rng(0).integers(0, 9, 3000)
    write_predictions(path, [dict(a=rows)])
    raw = bytearray(path.read_bytes())
    middle = raw.index(b'a:values') + 200
    raw[middle:middle + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(VisionError, match='VIS-DATA-1781'):
        read_predictions(path)
