"""Verification sets in a pickle: every way they are written is read, nothing else is called."""

import pickle

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.data.insightface_bin import read_bin

IMAGES = [bytes([number]) * 4 + b'\xff\x00' for number in range(40)]
SAME = [row % 2 == 0 for row in range(20)]


class Attack:
    called = False

    def __reduce__(self):
        return mark, ()


def mark():
    Attack.called = True


def save(folder, thing, protocol=4):
    path = folder / 'set.bin'
    path.write_bytes(pickle.dumps(thing, protocol=protocol))
    return path


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('form', [list, np.array, lambda same: [np.bool_(s) for s in same]])
def test_every_pickle_protocol_is_read(tmp_path, protocol, form):
    found = read_bin(save(tmp_path, (IMAGES, form(SAME)), protocol))
    assert found.images == IMAGES and found.same.tolist() == SAME


@pytest.mark.parametrize('protocol', range(6))
def test_images_as_arrays(tmp_path, protocol):
    encoded = [np.frombuffer(image, np.uint8) for image in IMAGES]
    assert read_bin(save(tmp_path, (encoded, SAME), protocol)).images == IMAGES
    pixels = [np.full((2, 2, 3), number, np.uint8) for number in range(40)]
    found = read_bin(save(tmp_path, (pixels, SAME), protocol))
    assert all((a == b).all() for a, b in zip(found.images, pixels, strict=True))


def test_a_file_of_python_2_is_read(tmp_path):
    # Python 2's str opcode (U) for images, booleans as its protocol 2 wrote them.
    text = b''.join(b'U' + bytes([len(image)]) + image for image in IMAGES)
    flags = b''.join(b'\x88' if same else b'\x89' for same in SAME)
    path = tmp_path / 'set.bin'
    path.write_bytes(b'\x80\x02](' + text + b'e](' + flags + b'e\x86.')
    found = read_bin(path)
    assert found.images == IMAGES and found.same.tolist() == SAME


def test_own_writer_and_pairs(tmp_path):
    (tmp_path / 'set.bin').write_bytes(pickle.dumps((IMAGES, SAME)))
    pairs = read_bin(tmp_path / 'set.bin').pairs()
    assert pairs.paths[:3] == ('0', '1', '2') and pairs.same.tolist() == SAME
    assert pairs.num_folds == 10 and np.bincount(pairs.folds).tolist() == [2] * 10


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, protocol):
    Attack.called = False
    with pytest.raises(VisionError, match=r'VIS-DATA-1070.*mark'):
        read_bin(save(tmp_path, (IMAGES, [Attack()]), protocol))
    assert not Attack.called


@pytest.mark.parametrize('content, name', [
    (b'cos\nsystem\n(S"true"\ntR.', r'os\.system'),
    (b'cbuiltins\neval\n(S"1"\ntR.', r'builtins\.eval'),
    (b'\x80\x04\x8c\x05numpy\x8c\x09ctypeslib\x93.', r'numpy\.ctypeslib'),
    (b'cnumpy\nndarray.tofile\n.', r'numpy\.ndarray\.tofile')])
def test_names_of_known_attacks(tmp_path, content, name):
    (tmp_path / 'set.bin').write_bytes(content)
    with pytest.raises(VisionError, match=name):
        read_bin(tmp_path / 'set.bin')


@pytest.mark.parametrize('thing', [
    IMAGES, (IMAGES, SAME[1:]), (IMAGES, [2] * 20), ([], []), (['text'] * 40, SAME),
    ([b''] * 40, SAME), (IMAGES, np.array([None] * 20))])
def test_other_contents_are_refused(tmp_path, thing):
    with pytest.raises(VisionError, match='VIS-DATA-107[01]'):
        read_bin(save(tmp_path, thing))


@pytest.mark.parametrize('length', [0, 1, 30, 200])
def test_files_cut_short_are_refused(tmp_path, length):
    path = save(tmp_path, (IMAGES, SAME))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(VisionError, match='VIS-DATA-1071'):
        read_bin(path)
