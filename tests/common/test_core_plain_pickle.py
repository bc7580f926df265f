"""Plain pickles are read as Python reads them; everything else is refused, whatever it is."""

import pickle
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile_pickles
import peak_memory

from vision.common.core.plain_pickle import (
    BrokenPickle,
    NotPlain,
    numpy_names,
    plain_names,
    read_plain,
)


def read(content: bytes):
    return read_plain(content, plain_names() | numpy_names(len(content)))


PLAIN = [None, True, 1, -2**63, 2**127, 1.5, float('inf'), 'text ü', b'\xff\x00' * 200, 1 + 2j,
         (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[], [1]], {}, {'a': {1: (b'x', None)}},
         {('a', 1): 2}, {1, 2}, OrderedDict(a=1, b=OrderedDict(c=2)), Counter('aab')]


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_come_back(protocol):
    for value in PLAIN:
        found = read(pickle.dumps(value, protocol=protocol))
        assert found == value and type(found) is type(value), value


ARRAYS = [np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.).reshape(2, 3)),
          np.arange(4, dtype='>i2'), np.zeros((0, 5), np.float16), np.array(3.5),
          np.array([True, False]), np.array(['a', 'long text']), np.array([b'ab', b'c']),
          np.arange(3, dtype=np.complex64), np.float32(2.5), np.int64(-7), np.bool_(True),
          np.str_('x')]


@pytest.mark.fault('R12')
@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('core', [b'numpy._core', b'numpy.core'])
def test_arrays_and_numbers_of_both_numpys_come_back(protocol, core):
    for value in ARRAYS:
        content = pickle.dumps(value, protocol=protocol)
        if protocol < 4:  # later ones hold the length of the name
            content = content.replace(b'numpy._core', core)
        found = read(content)
        assert found.dtype == value.dtype and found.shape == value.shape
        assert np.all(found == value) and type(found) is type(value)
    several = read(pickle.dumps([ARRAYS[0], ARRAYS[0], ARRAYS[1]], protocol=protocol))
    assert several[0] is several[1] and several[0].flags.writeable


@pytest.mark.fault('R12')
def test_an_array_of_python_2_and_numpy_1_comes_back():
    # Byte strings (U) where Python 3 writes text and bytes.
    dtype = hostile_pickles.PLAIN_DTYPE.replace(b'X\x02\x00\x00\x00', b'U\x02').replace(
        b'X\x01\x00\x00\x00', b'U\x01')
    content = b'U\x10' + np.array([7, -9], '<i8').tobytes()
    found = read(b'\x80\x02' + hostile_pickles.array(b'K\x02\x85', dtype, content, b'numpy.core')
                 + b'.')
    assert found.tolist() == [7, -9]


@pytest.mark.fault('S33')
def test_nothing_hostile_gets_its_way(tmp_path):
    """60 calls and more, and 40 other ways; none may take two seconds, or memory."""
    marker = tmp_path / 'marker'
    cases = hostile_pickles.calls(str(marker)) | hostile_pickles.other_ways(str(marker))
    assert len(hostile_pickles.CALLS) >= 60
    before, accepted = peak_memory.reset(), []
    for name, content in cases.items():
        start = time.perf_counter()
        try:
            read(content)
            accepted.append(name)
        except (NotPlain, BrokenPickle):
            pass
        assert time.perf_counter() - start < 2, name
    assert accepted == ['memo of 2^31'] and not marker.exists()  # there it is one entry of a dict
    assert peak_memory.peak() - before < 200_000  # kB


def test_names_are_refused_as_asked_for_and_damage_as_damage():
    with pytest.raises(NotPlain, match=r'os\.mkdir'):
        read(hostile_pickles.calls('x')['os.mkdir'])
    with pytest.raises(BrokenPickle):
        read(pickle.dumps([1, 2])[:-2])


@pytest.mark.fault('S33')
def test_containers_in_many_places_are_measured_as_if_written_out():
    twice = b'q\x00h\x00\x86'
    assert read(b'\x80\x02)' + twice * 10 + b'.')[0][1] == read(b'\x80\x02)' + twice * 9 + b'.')[0]
    with pytest.raises(BrokenPickle, match='many times as long'):
        read(b'\x80\x02)' + twice * 60 + b'.')
    with pytest.raises(BrokenPickle, match='as a key'):
        read(b'\x80\x02})' + twice * 60 + b'K\x01s.')
    with pytest.raises(BrokenPickle, match='nested'):  # each part is flat, the whole is deep
        deep = b'\x80\x02]' + b'q\x00' + b'](K\x01h\x00eq\x00' * 90
        read(deep + b'](h\x00eq\x00' * 90 + b'.')
    with pytest.raises(BrokenPickle, match='holds itself'):
        read(b'\x80\x02]q\x00h\x00a.')


def test_bytes_that_many_arrays_share_are_not_copied_without_end():
    big = b'B' + (1 << 24).to_bytes(4, 'little') + bytes(1 << 24) + b'q\x010'
    one = hostile_pickles.array(b'J\x00\x00\x20\x00\x85', hostile_pickles.PLAIN_DTYPE, b'h\x01')
    read(b'\x80\x03' + big + b'](' + one * 4 + b'e.')
    with pytest.raises(BrokenPickle, match='many times the bytes'):
        read(b'\x80\x03' + big + b'](' + one * 40 + b'e.')


@pytest.mark.fault('S33')
def test_the_stock_reader_dies_of_what_ours_refuses(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(hostile_pickles.OVERRUN)
    code = 'import pickle, sys; print(pickle.load(open(sys.argv[1], "rb")).tolist()[:3])'
    stock = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'x.pkl')],
                           capture_output=True)
    assert stock.returncode < 0  # a signal: memory was overrun
    with pytest.raises(NotPlain, match='flags 2'):
        read(hostile_pickles.OVERRUN)


@pytest.mark.fault('S33')
def test_mutated_pickles_end_in_a_value_or_in_our_errors():
    content = pickle.dumps(dict(a=ARRAYS, b=PLAIN), protocol=2)
    generator = np.random.default_rng(0)
    for _ in range(3000):
        changed = bytearray(content)
        for place in generator.integers(len(content), size=generator.integers(1, 4)):
            changed[place] = generator.integers(256)
        try:
            read(bytes(changed))
        except (NotPlain, BrokenPickle):
            continue
