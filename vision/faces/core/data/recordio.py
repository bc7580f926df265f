"""RecordIO: many small files in one (``.rec``) with a text index (``.idx``), read and written.

A record is: the magic word, a word with 3 flag bits and 29 length bits, the payload padded to 4
bytes. A payload that holds the magic word at a multiple of 4 is cut there into parts (flag 1
first, 2 middle, 3 last; the word itself is left out), so that a reader can always find the next
record. The payload begins with uint32 flag, float32 label, two uint64 ids; ``flag`` > 0 means that
so many float32 labels follow and replace the label. All little endian (dmlc-core, Apache-2.0,
documents the format; no code of it is used). The index is text: key TAB offset.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.common.core.plain_values import whole_number

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack('<I', MAGIC)
MAX_PART = (1 << 29) - 1
MAX_LABEL = 1 << 24  # labels are float32: above, not every whole number is one
_HEADER = struct.Struct('<IfQQ')
_WORDS = struct.Struct('<II')


@dataclass(frozen=True)
class Record:
    """One record: its labels (float32, one or more), id and content (an image file)."""

    labels: np.ndarray
    key: int
    content: bytes


def pack(record: Record) -> bytes:
    """Payload of a record: one label goes into the header, several follow it."""
    labels = np.atleast_1d(np.asarray(record.labels, dtype='<f4'))
    if len(labels) == 1:
        return _HEADER.pack(0, float(labels[0]), record.key, 0) + record.content
    return _HEADER.pack(len(labels), 0.0, record.key, 0) + labels.tobytes() + record.content


def unpack(payload: bytes, where: str = '') -> Record:
    """The record of a payload; VIS-DATA-1068 when it is shorter than its own header says."""
    if len(payload) < _HEADER.size:
        raise _damaged(where, f'{len(payload)} bytes where a header has {_HEADER.size}')
    flag, label, key, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if end > len(payload):
        raise _damaged(where, f'{flag} labels promised in {len(payload)} bytes')
    labels = np.frombuffer(payload, '<f4', flag, _HEADER.size) if flag else np.float32([label])
    return Record(labels.astype(np.float32), key, payload[end:])


class RecordReader:
    """Random access to a ``.rec`` file through its ``.idx``.

    Safe in data-loader workers: reading does not move a shared file position, and a reader that is
    pickled or forked opens the file anew.

    Raises:
        VisionError: VIS-DATA-1069, VIS-DATA-1119 for an index that is broken or belongs to another
            file, VIS-DATA-1068 (on reading) for a damaged record.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self.path = Path(path)
        self.index_path = Path(index) if index else self.path.with_suffix('.idx')
        for file in (self.path, self.index_path):
            if not file.is_file():
                raise VisionError('VIS-DATA-1119', f'{file} is not there', why='a record file is '
                                  'read through its index', do='name both files, or make the '
                                  'index again with rebuild_index')
        self.num_bytes = self.path.stat().st_size
        self.offsets = read_index(self.index_path, self.num_bytes)
        self._file: tuple[int, int] | None = None  # process, descriptor

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_file': None}

    def __del__(self) -> None:
        opened = getattr(self, '_file', None)
        if opened and opened[0] == os.getpid():
            os.close(opened[1])

    def read(self, key: int) -> Record:
        """The record of a key of the index.

        Raises:
            VisionError: VIS-DATA-1118, no such key; VIS-DATA-1068, the record is damaged.
        """
        if key not in self.offsets:
            raise VisionError('VIS-DATA-1118', f'record {key} is not in the index',
                              where=str(self.index_path), do='make the index again with '
                              'rebuild_index')
        where = f'{self.path}, record {key}, byte {self.offsets[key]}'
        payload, _ = read_payload(self._descriptor(), self.offsets[key], where)
        return unpack(payload, where)

    def read_labels(self, key: int) -> np.ndarray:
        """(L,) float32 labels only: the first bytes of the record, whatever the size of its
        content."""
        where = f'{self.path}, record {key}, byte {self.offsets[key]}'
        head = os.pread(self._descriptor(), 8 + _HEADER.size, self.offsets[key])
        if len(head) < 8 + _HEADER.size or head[:4] != MAGIC_BYTES:
            raise _damaged(where, 'no record begins here')
        flag, label, _, _ = _HEADER.unpack_from(head, 8)
        # Several labels, or a header over a cut of the payload, are read the long way.
        is_short = _WORDS.unpack_from(head)[1] & MAX_PART < _HEADER.size
        return np.float32([label]) if flag == 0 and not is_short else self.read(key).labels

    def _descriptor(self) -> int:
        if self._file is None or self._file[0] != os.getpid():
            self._file = os.getpid(), os.open(self.path, os.O_RDONLY)
        return self._file[1]


def read_payload(descriptor: int, offset: int, where: str) -> tuple[bytes, int]:
    """Payload of the record at an offset, and the offset behind it."""
    parts: list[bytes] = []
    while True:
        head = os.pread(descriptor, 8, offset)
        if len(head) < 8 or head[:4] != MAGIC_BYTES:
            raise _damaged(where, 'no record begins here' if not parts else 'a part is missing')
        word = _WORDS.unpack(head)[1]
        flag, length = word >> 29, word & MAX_PART
        if flag not in ((0, 1) if not parts else (2, 3)):
            raise _damaged(where, f'part of kind {flag} where a record '
                           f'{"goes on" if parts else "begins"}')
        part = os.pread(descriptor, length, offset + 8)
        if len(part) < length:
            raise _damaged(where, f'{len(part)} of {length} bytes: the file ends too early')
        parts.append(part)
        offset += 8 + -(-length // 4) * 4
        if flag in (0, 3):
            return MAGIC_BYTES.join(parts), offset


def read_index(path: Path, num_bytes: int) -> dict[int, int]:
    """Offset by key; every line is checked against the size of the record file."""
    offsets: dict[int, int] = {}
    try:
        text = path.read_text(encoding='ascii')
    except UnicodeDecodeError as error:
        raise _bad_index(f'{path}', 'not a text file') from error
    for number, line in enumerate(text.splitlines(), 1):
        fields = [whole_number(field) for field in line.split('\t')]
        if len(fields) != 2 or None in fields:
            raise _bad_index(f'{path}, line {number}', f'{line[:60]!r} is not key TAB offset')
        key, offset = fields
        if key in offsets:
            raise _bad_index(f'{path}, line {number}', f'key {key} stands there twice')
        if offset % 4 or offset + 8 > num_bytes:
            raise _bad_index(f'{path}, line {number}', f'offset {offset} of key {key} is not a '
                             f'place in a record file of {num_bytes} bytes')
        offsets[key] = offset
    if not offsets:
        raise _bad_index(str(path), 'the index is empty')
    return offsets


class RecordWriter:
    """Write ``.rec`` and ``.idx``; both appear when the block ends without error.

    with RecordWriter(path) as writer: writer.write(Record(...))
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._keys: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> RecordWriter:
        self._index = self._stack.enter_context(
            atomic_write(self.path.with_suffix('.idx'), 'w'))
        self._records = self._stack.enter_context(atomic_write(self.path))
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def write(self, record: Record) -> None:
        """Append a record under its key."""
        assert record.key not in self._keys, record.key
        self._keys.add(record.key)
        self._index.write(f'{record.key}\t{self._records.tell()}\n')
        for part in framed_parts(pack(record)):
            self._records.write(part)


def framed_parts(payload: bytes) -> Iterator[bytes]:
    """The bytes of a payload as they stand in the file: cut at aligned magic words.

    Raises:
        VisionError: VIS-DATA-1117, the payload is longer than a record can be (512 MiB - 1).
    """
    if len(payload) > MAX_PART:
        raise VisionError('VIS-DATA-1117', f'a record of {len(payload)} bytes',
                          why=f'a record has at most {MAX_PART} bytes', do='make it smaller')
    cuts, place = [], payload.find(MAGIC_BYTES)
    while place >= 0:
        if place % 4 == 0:
            cuts.append(place)
        place = payload.find(MAGIC_BYTES, place + 1)
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        is_first, is_last = number == 0, number == len(cuts)
        flag = 0 if is_first and is_last else 1 if is_first else 3 if is_last else 2
        length = end - start
        yield _WORDS.pack(MAGIC, flag << 29 | length) + payload[start:end] + bytes(-length % 4)


def rebuild_index(path: Path) -> int:
    """Write the index of a record file from the ids in its records; how many there are."""
    path = Path(path)
    lines, seen, offset, num_bytes = [], set(), 0, path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while offset < num_bytes:
            payload, after = read_payload(descriptor, offset, f'{path}, byte {offset}')
            key = unpack(payload, f'{path}, byte {offset}').key
            if key in seen:
                raise _damaged(f'{path}, byte {offset}', f'id {key} stands there twice')
            seen.add(key)
            lines.append(f'{key}\t{offset}\n')
            offset = after
    finally:
        os.close(descriptor)
    with atomic_write(path.with_suffix('.idx'), 'w') as file:
        file.writelines(lines)
    return len(lines)


class FaceRecords:
    """Images and identities of a face record file.

    Record 0 holds two labels (first identity record, end): images are 1 .. first - 1 and each
    identity record holds the range of its images. Files without it (one label in record 0) are
    plain lists: every record is an image.

    Attributes:
        keys: (N,) int64 keys of the images; num_classes: identities, None in a plain list.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self.reader = RecordReader(path, index)
        self.num_classes: int | None = None
        keys = self.reader.offsets
        head = self.reader.read_labels(0) if 0 in keys else np.zeros(1)
        if len(head) == 1:
            self.keys = np.array(sorted(keys), dtype=np.int64)
            return
        if not (np.isfinite(head).all() and 1 < head[0] <= head[1]):
            raise _damaged(f'{self.reader.path}, record 0', f'ranges {head[0]:g} and {head[1]:g}')
        first, end = (int(value) for value in head[:2])
        missing = next((key for key in range(1, end) if key not in keys), None)
        if missing is not None:
            raise _bad_index(str(self.reader.index_path), f'record 0 promises images 1..'
                             f'{first - 1} and identities {first}..{end - 1}; first one missing: '
                             f'{missing}')
        self.keys = np.arange(1, first, dtype=np.int64)
        self.num_classes = end - first

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int) -> tuple[bytes, int]:
        """(image file, label) of an image."""
        record = self.reader.read(int(self.keys[position]))
        return record.content, self._label(record.labels, position)

    def labels(self) -> np.ndarray:
        """(N,) int64 labels of all images, without reading the images.

        Raises:
            VisionError: VIS-DATA-1122, a label that is no class; VIS-DATA-1121, an identity
                without image.
        """
        labels = np.array([self._label(self.reader.read_labels(int(key)), position)
                           for position, key in enumerate(self.keys)], dtype=np.int64)
        counts = np.bincount(labels, minlength=self.num_classes or 0)
        if not counts.all():
            raise VisionError('VIS-DATA-1121', f'{(counts == 0).sum()} of {len(counts)} '
                              f'identities have no image, first: {counts.argmin()}',
                              where=str(self.reader.path), why='an identity without an image '
                              'would stay an untrained class', do='write the record file again '
                              'without them, identities numbered from 0')
        return labels

    def _label(self, labels: np.ndarray, position: int) -> int:
        label, limit = float(labels[0]), self.num_classes or MAX_LABEL
        if not (0 <= label < limit and label.is_integer()):
            raise VisionError('VIS-DATA-1122', f'label {label:g} of record '
                              f'{self.keys[position]}', where=str(self.reader.path),
                              why=f'labels are whole numbers from 0 below {limit}',
                              do='write the record file again')
        return int(label)


def write_face_records(path: Path, images: Sequence[Sequence[bytes]]) -> None:
    """Write a face record file: ``images[label]`` are the image files of that identity.

    Raises:
        VisionError: VIS-DATA-1120, an identity without an image, or none at all.
    """
    empty = [label for label, files in enumerate(images) if not files]
    if empty or not images:
        raise VisionError('VIS-DATA-1120', f'{len(empty) if images else "all"} identities without '
                          f'an image, first: {empty[:1] or 0}', do='leave them out and number the '
                          'others from 0')
    num_images = sum(len(files) for files in images)
    first = num_images + 1
    with RecordWriter(path) as writer:
        writer.write(Record(np.float32([first, first + len(images)]), 0, b''))
        key, ranges = 1, []
        for label, files in enumerate(images):
            ranges.append((key, key + len(files)))
            for file in files:
                writer.write(Record(np.float32([label]), key, file))
                key += 1
        for label, span in enumerate(ranges):
            writer.write(Record(np.float32(span), first + label, b''))


def _damaged(where: str, what: str) -> VisionError:
    return VisionError('VIS-DATA-1068', f'damaged record: {what}', where=where,
                       why='the record file was cut short or overwritten, or the index is of '
                       'another file', do='make the index again with rebuild_index; if that '
                       'stops too, get the file again')


def _bad_index(where: str, what: str) -> VisionError:
    return VisionError('VIS-DATA-1069', f'broken record index: {what}', where=where,
                       why='records are found only through the index',
                       do='make it again with rebuild_index')
