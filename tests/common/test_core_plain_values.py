"""Numbers, names and arrays of others."""

import io
import zipfile

import numpy as np
import pytest

from vision.common.core.plain_values import MOST, read_npz, stays_inside, whole_number


@pytest.mark.parametrize(('text', 'number'), [
    ('0', 0), (' 12\n', 12), ('007', 7), (str(MOST), MOST), (str(MOST + 1), None), ('', None),
    ('-1', None), ('+1', None), ('1.0', None), ('1e3', None), ('²', None), ('٣', None),
    ('9' * 5000, None), ('1_0', None), ('0x1', None)])
def test_whole_numbers(text, number):
    assert whole_number(text) == number


@pytest.mark.fault('R19')
def test_names_stay_inside_of_their_folder():
    for name in ('a.jpg', 'a/b/c.jpg', './a', 'a/../b', 'ü/ñ.png', 'a b', '.hidden', '...'):
        assert stays_inside(name), name
    for name in ('', ' ', '.', '..', '../a', 'a/../..', 'a/../../b', '/a', '//a', '~/a', 'C:/a',
                 'c:a', 'a\\b', 'a\0b', 'a\nb', 'http://a/b', 'file:///a', None, 3, ['a']):
        assert not stays_inside(name), name
    assert stays_inside('../Data/x.jpg', levels_up=1)
    assert not stays_inside('../../x', levels_up=1) and not stays_inside('/x', levels_up=1)


def test_arrays_come_back(tmp_path):
    arrays = dict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(['x', 'long']),
                  c=np.array('text'), d=np.asfortranarray(np.arange(6).reshape(2, 3)),
                  e=np.zeros((0, 4)), f=np.array([True]))
    np.savez(tmp_path / 'x.npz', **arrays)
    found = read_npz((tmp_path / 'x.npz').read_bytes(), tuple(arrays))
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype


def npz(path, header: str | bytes, content: bytes = bytes(16), packed=False):
    text = header.encode() if isinstance(header, str) else header
    data = b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text + content
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED if packed else 0) as archive:
        archive.writestr('a.npy', data)


HEADERS = {
    'rows': "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}",
    'overflow': "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
    'negative': "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}",
    'object': "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
    'parts': "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}",
    'date': "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,)}",
    'call': "__import__('os').mkdir('marker')", 'deep': '(' * 9000, 'list': '[1, 2]',
    'bool': "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}",
    'short': "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
    'empty text': "{'descr': '<U0', 'fortran_order': False, 'shape': (99999999999,)}",
    'other digits': "{'descr': '<U٣', 'fortran_order': False, 'shape': (2,)}",
    'bytes': b'\xff\xfe'}


@pytest.mark.fault('R32')
@pytest.mark.parametrize('name', HEADERS)
def test_headers_that_promise_too_much_or_something_else(tmp_path, name):
    npz(tmp_path / 'x.npz', "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}")
    assert read_npz((tmp_path / 'x.npz').read_bytes(), ['a'])['a'].shape == (4,)
    npz(tmp_path / 'x.npz', HEADERS[name])
    with pytest.raises(ValueError):
        read_npz((tmp_path / 'x.npz').read_bytes(), ['a'])


@pytest.mark.fault('R32')
def test_the_stock_reader_asks_for_room_for_what_a_header_promises(tmp_path):
    npz(tmp_path / 'x.npz', HEADERS['rows'])
    with pytest.raises(MemoryError), np.load(tmp_path / 'x.npz') as content:
        content['a']


@pytest.mark.fault('R32')
def test_archives_that_are_packed_lack_a_name_or_are_none(tmp_path):
    npz(tmp_path / 'x.npz', "{'descr': '|b1', 'fortran_order': False, 'shape': (10000000,)}",
        bytes(10_000_000), packed=True)
    raw = (tmp_path / 'x.npz').read_bytes()
    with pytest.raises(ValueError, match='packed'):
        read_npz(raw, ['a'])
    assert len(read_npz(raw, most_bytes=10_001_000)['a']) == 10_000_000
    with pytest.raises(ValueError, match='more than 10000000 bytes'):
        read_npz(raw, most_bytes=10_000_000)
    np.savez_compressed(tmp_path / 'y.npz', a=np.random.default_rng(0).integers(0, 9, 3000))
    packed = bytearray((tmp_path / 'y.npz').read_bytes())
    packed[300:340] = bytes(40)
    with pytest.raises(ValueError):
        read_npz(bytes(packed), most_bytes=1 << 30)
    with pytest.raises(ValueError, match='has no'):
        read_npz((tmp_path / 'x.npz').read_bytes(), ['b'])
    content = io.BytesIO()
    np.save(content, np.arange(3))
    (tmp_path / 'x.npz').write_bytes(content.getvalue())
    with pytest.raises(ValueError):
        read_npz((tmp_path / 'x.npz').read_bytes(), ['a'])
