"""RecordIO against bytes made by hand; damage gives one clear error."""

import pickle
import struct
from multiprocessing import get_context

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.data.recordio import (
    MAGIC_BYTES,
    FaceRecords,
    Record,
    RecordReader,
    RecordWriter,
    rebuild_index,
    write_face_records,
)

FILES = [[b'first', b'second!'], [b'third one'], [MAGIC_BYTES + b'x' * 4 + MAGIC_BYTES * 2, b'']]


@pytest.fixture
def face_file(tmp_path):
    write_face_records(tmp_path / 'train.rec', FILES)
    return tmp_path / 'train.rec'


def test_a_record_made_by_hand_is_read(tmp_path):
    payload = struct.pack('<IfQQ', 2, 0.0, 7, 0) + struct.pack('<ff', 3.0, 4.5) + b'abc'
    content = struct.pack('<II', 0xCED7230A, len(payload)) + payload + b'\0'
    (tmp_path / 'a.rec').write_bytes(content)
    (tmp_path / 'a.idx').write_text('7\t0\n')
    record = RecordReader(tmp_path / 'a.rec').read(7)
    assert record.labels.tolist() == [3.0, 4.5] and record.key == 7 and record.content == b'abc'


def test_a_payload_with_the_magic_word_is_cut_as_the_format_says(tmp_path):
    with RecordWriter(tmp_path / 'a.rec') as writer:
        writer.write(Record(np.float32([1]), 5, b'abcd' + MAGIC_BYTES + b'ef'))
    first = struct.pack('<IfQQ', 0, 1.0, 5, 0) + b'abcd'
    expected = (struct.pack('<II', 0xCED7230A, 1 << 29 | len(first)) + first
                + struct.pack('<II', 0xCED7230A, 3 << 29 | 2) + b'ef\0\0')
    assert (tmp_path / 'a.rec').read_bytes() == expected
    assert (tmp_path / 'a.idx').read_text() == '5\t0\n'


@pytest.mark.parametrize('seed', range(20))
def test_what_is_written_is_read(tmp_path, seed):
    rng = np.random.default_rng(seed)
    pieces = [MAGIC_BYTES, b'\x0a', b'abc', b'0123']
    contents = [b''.join(pieces[i] for i in rng.integers(0, 4, rng.integers(0, 9)))
                for _ in range(12)]
    with RecordWriter(tmp_path / 'a.rec') as writer:
        for key, content in enumerate(contents):
            writer.write(Record(np.float32([key]), key, content))
    reader = RecordReader(tmp_path / 'a.rec')
    assert [reader.read(key).content for key in range(12)] == contents
    index = (tmp_path / 'a.idx').read_text()
    assert rebuild_index(tmp_path / 'a.rec') == 12
    assert (tmp_path / 'a.idx').read_text() == index


def test_identities_and_labels_of_a_face_file(face_file):
    records = FaceRecords(face_file)
    assert records.num_classes == 3 and len(records) == 5
    assert records.labels().tolist() == [0, 0, 1, 2, 2]
    assert [records.read(i) for i in range(5)] == [
        (content, label) for label, files in enumerate(FILES) for content in files]


def test_a_plain_list_has_no_class_count(tmp_path):
    with RecordWriter(tmp_path / 'a.rec') as writer:
        for key in range(3):
            writer.write(Record(np.float32([key % 2]), key, b'x'))
    records = FaceRecords(tmp_path / 'a.rec')
    assert records.num_classes is None and records.labels().tolist() == [0, 1, 0]


def read_all(records):
    return [records.read(i) for _ in range(50) for i in range(len(records))]


def test_workers_read_the_same(face_file):
    records = FaceRecords(face_file)
    expected = read_all(records)
    with get_context('fork').Pool(2) as pool:
        assert pool.map(read_all, [records] * 4) == [expected] * 4
    assert read_all(pickle.loads(pickle.dumps(records))) == expected


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / 'a.rec') as writer:
        writer.write(Record(np.float32([0]), 0, b'x'))
        raise RuntimeError('power cut')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', 'x\t0\n', '0 0\n', '0\t0\n0\t0\n', '0\t2\n', '0\t99999\n',
                                  '0\t0\n1\t40\n', '\xff\n'])
def test_broken_index_is_refused(face_file, text):
    face_file.with_suffix('.idx').write_bytes(text.encode('latin1'))
    with pytest.raises(VisionError, match='VIS-DATA-1069'):
        FaceRecords(face_file)


def test_missing_index_is_named(face_file):
    face_file.with_suffix('.idx').unlink()
    with pytest.raises(VisionError, match=r'train\.idx is not there'):
        FaceRecords(face_file)


@pytest.mark.parametrize('place, value', [(0, 0), (7, 0x40), (4, 0xFF), (8, 0x7F)])
def test_damaged_record_is_refused(face_file, place, value):
    records = FaceRecords(face_file)
    content = bytearray(face_file.read_bytes())
    content[records.reader.offsets[3] + place] = value
    face_file.write_bytes(content)
    with pytest.raises(VisionError, match=r'VIS-DATA-1068(.|\n)*record 3, byte'):
        FaceRecords(face_file).read(2)


def test_file_cut_short_is_refused(face_file):
    content = face_file.read_bytes()
    face_file.write_bytes(content[:-6])
    with pytest.raises(VisionError, match='ends too early'):
        rebuild_index(face_file)


@pytest.mark.parametrize('label', [np.nan, np.inf, -1, 0.5, 3, 1e38])
def test_a_label_that_is_no_class(tmp_path, label):
    for name, head in (('a', [3, 5]), ('b', [0])):
        if (name, label) == ('b', 3):
            continue  # a list without record 0 does not say its number of classes
        with RecordWriter(tmp_path / f'{name}.rec') as writer:
            writer.write(Record(np.float32(head), 0, b''))
            writer.write(Record(np.float32([0]), 1, b'x'))
            writer.write(Record(np.float32([label]), 2, b'x'))
            for key in (3, 4):
                writer.write(Record(np.float32([0]), key, b'x'))
        with pytest.raises(VisionError, match='VIS-DATA-1122: label .* of record 2'):
            FaceRecords(tmp_path / f'{name}.rec').labels()


@pytest.mark.parametrize('head', [[np.nan, 5], [3, np.inf], [0, 5], [5, 3]])
def test_record_0_without_a_meaning(tmp_path, head):
    with RecordWriter(tmp_path / 'a.rec') as writer:
        writer.write(Record(np.float32(head), 0, b''))
        writer.write(Record(np.float32([0]), 1, b'x'))
    with pytest.raises(VisionError, match='VIS-DATA-1068(.|\n)*record 0'):
        FaceRecords(tmp_path / 'a.rec')


def test_record_0_that_promises_too_much(tmp_path):
    with RecordWriter(tmp_path / 'a.rec') as writer:
        writer.write(Record(np.float32([2, 1e30]), 0, b''))
        writer.write(Record(np.float32([0]), 1, b'x'))
    with pytest.raises(VisionError, match='VIS-DATA-1069.*first one missing: 2'):
        FaceRecords(tmp_path / 'a.rec')


def test_identity_without_image_in_a_file_of_others(tmp_path):
    for name, head in (('a', [4, 7]), ('b', [0])):
        with RecordWriter(tmp_path / f'{name}.rec') as writer:
            writer.write(Record(np.float32(head), 0, b''))
            for key, label in ((1, 0), (2, 0), (3, 2)):
                writer.write(Record(np.float32([label]), key, b'x'))
            for key in (4, 5, 6) if name == 'a' else ():
                writer.write(Record(np.float32([1, 2]), key, b''))
        with pytest.raises(VisionError, match='VIS-DATA-1121: 1 of 3 .* first: 1'):
            FaceRecords(tmp_path / f'{name}.rec').labels()


def test_label_outside_and_identity_without_image(tmp_path):
    with RecordWriter(tmp_path / 'a.rec') as writer:
        writer.write(Record(np.float32([2, 3]), 0, b''))
        writer.write(Record(np.float32([1]), 1, b'x'))
        writer.write(Record(np.float32([1, 2]), 2, b''))
    with pytest.raises(VisionError, match='label 1 of record 1'):
        FaceRecords(tmp_path / 'a.rec').labels()
    with pytest.raises(VisionError, match=r'first: \[1\]'):
        write_face_records(tmp_path / 'b.rec', [[b'x'], []])
