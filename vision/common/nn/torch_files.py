"""What ``torch.save`` writes, read as data: both of its forms, tensors and plain values.

``torch.load(weights_only=True)`` would read them too. This reader also bounds what a file may
take (``plain_pickle``), knows NumPy's arrays without NumPy's own functions, compares the check
sums of the archive, and needs nothing of torch but tensors: how safe it is does not depend on the
version of torch.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vision.common.core.plain_pickle import (
    BrokenPickle,
    Maker,
    NotPlain,
    Unfinished,
    numpy_names,
    plain_names,
    read_plain,
)

LEAVES = (torch.Tensor, torch.dtype, torch.device)
MapLocation = str | torch.device | Callable | None
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {name: getattr(torch, name) for name in (
    'float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8',
    'uint16', 'uint32', 'uint64', 'bool', 'complex64', 'complex128', 'float8_e4m3fn',
    'float8_e5m2')}
_STORAGES = dict(DoubleStorage='float64', FloatStorage='float32', HalfStorage='float16',
                 BFloat16Storage='bfloat16', LongStorage='int64', IntStorage='int32',
                 ShortStorage='int16', CharStorage='int8', ByteStorage='uint8',
                 BoolStorage='bool', ComplexFloatStorage='complex64',
                 ComplexDoubleStorage='complex128')


@dataclass(frozen=True)
class _StorageKind:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    """Bytes of tensors; ``dtype``: what a tensor has that does not say its own."""

    content: torch.UntypedStorage
    dtype: torch.dtype


class _LogBuffer(Unfinished):
    """MMEngine's ``HistoryBuffer``: its numbers, without the methods that it names."""

    def finish(self, state: Any) -> dict:
        arrays = state['_log_history'], state['_count_history']
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise BrokenPickle('a log buffer whose numbers are no arrays')
        values, counts = map(torch.as_tensor, arrays)
        return dict(values=values, counts=counts, max_length=int(state['max_length']))


def read_torch_file(path: Path, map_location: MapLocation = None, *,
                    is_mapped: bool = False) -> Any:
    """The content of a file of ``torch.save``.

    Args:
        map_location: as for ``torch.load``; None: the CPU.
        is_mapped: tensors are read from the file when they are used, which must stay there. Their
            check sums are then not compared: for files whose hash was. Not of the old form.

    Raises:
        NotPlain: it asks for other things than tensors and plain values.
        BrokenPickle: damaged, or no such file. OSError: it cannot be read.
    """
    with Path(path).open('rb') as file:
        if not file.seek(0, 2):
            raise BrokenPickle('the file is empty')
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                if content[:4] == b'PK\x03\x04':
                    with zipfile.ZipFile(file) as archive:
                        mapped = torch.UntypedStorage.from_file(str(path), False, len(content)) \
                            if is_mapped else None
                        return _read_archive(archive, content, map_location, mapped)
                return _read_legacy(content, map_location)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, KeyError,
                    TypeError, EOFError, struct.error) as error:
                raise BrokenPickle(f'{type(error).__name__}: {error}'[:200]) from error


def _read_archive(archive: zipfile.ZipFile, content: mmap.mmap, map_location: MapLocation,
                  mapped: torch.UntypedStorage | None) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise BrokenPickle('the archive has two entries of one name')
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()) \
            or sum(info.file_size for info in entries.values()) > len(content):
        raise BrokenPickle('the archive is packed: torch.save writes plain bytes')
    roots = [name.removesuffix('/data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(roots) != 1:
        raise BrokenPickle(f'{len(roots)} pickles in the archive where one belongs')
    root = roots[0]
    if f'{root}/constants.pkl' in entries:
        raise NotPlain('TorchScript, which is code')
    order = entries.get(f'{root}/byteorder')
    if order is not None and archive.read(order) != b'little':
        raise BrokenPickle('it was written on a machine of another byte order')
    storages: dict[str, _Storage] = {}

    def storage(identity: Any) -> _Storage:
        kind, key, location, number = _identity(identity, 5)
        if key not in storages:
            entry = entries[f'{root}/data/{key}']
            start, end = _span(content, entry)
            data = _as_storage(_stored(content, entry)) if mapped is None or start == end \
                else mapped[start:end]
            storages[key] = _Storage(_moved(data, location, map_location), kind.dtype)
        found = storages[key]
        if found.dtype != kind.dtype or found.content.nbytes() != number * kind.dtype.itemsize:
            raise BrokenPickle(f'storage {key} has {found.content.nbytes()} bytes, {number} of '
                               f'{kind.dtype} are promised')
        return found

    pickled = archive.read(entries[f'{root}/data.pkl'])
    return read_plain(pickled, _names(len(pickled)), persistent=storage, leaves=LEAVES)


def _stored(content: mmap.mmap, info: zipfile.ZipInfo) -> bytearray:
    """The bytes of an entry, compared with its check sum; ``ZipFile.read`` copies them twice."""
    start, end = _span(content, info)
    with memoryview(content) as whole, whole[start:end] as part:
        data = bytearray(part)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise BrokenPickle(f'the bytes of {info.filename[:60]} are not those of its check sum')
    return data


def _span(content: mmap.mmap, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin and end."""
    lengths = struct.unpack_from('<HH', content, info.header_offset + 26)  # of name and extras
    start = info.header_offset + 30 + sum(lengths)
    if start + info.file_size > len(content):
        raise BrokenPickle(f'{info.filename[:60]} reaches beyond the end of the file')
    return start, start + info.file_size


def _read_legacy(content: mmap.mmap, map_location: MapLocation) -> Any:
    """Until torch 1.6: pickles of three numbers, of the object and of the storages' keys; then
    the storages, each as its number of elements (int64) and its bytes."""
    names, size = _names(len(content)), len(content)
    if (read_plain(content, {}), read_plain(content, {})) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise BrokenPickle('no mark of torch.save at its beginning')
    read_plain(content, {})  # sizes of C's types on the machine that wrote it
    storages: dict[str, _Storage] = {}
    num_bytes = 0

    def storage(identity: Any) -> _Storage:
        nonlocal num_bytes
        kind, key, _, number, view = _identity(identity, 6)
        if view is not None:
            raise BrokenPickle('it is of a torch older than 0.4: load and save it with a newer')
        if key not in storages:
            num_bytes += number * kind.dtype.itemsize
            if num_bytes > size:
                raise BrokenPickle(f'storage {key} promises more bytes than the file has')
            storages[key] = _Storage(torch.UntypedStorage(number * kind.dtype.itemsize),
                                     kind.dtype)
        if storages[key].dtype != kind.dtype:
            raise BrokenPickle(f'storage {key} is named with two types')
        return storages[key]

    if callable(map_location) or map_location not in (None, 'cpu', torch.device('cpu')):
        raise BrokenPickle('files of this old form are read to the CPU only')
    value = read_plain(content, names, persistent=storage, leaves=LEAVES)
    keys = read_plain(content, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise BrokenPickle('the list of its storages does not fit')
    for key in keys:
        number = int.from_bytes(content.read(8), 'little')
        target = storages[key]
        if number * target.dtype.itemsize != target.content.nbytes():
            raise BrokenPickle(f'storage {key} has another number of elements than promised')
        data = content.read(target.content.nbytes())
        if len(data) != target.content.nbytes():
            raise BrokenPickle(f'the file ends in storage {key}')
        if data:
            target.content.copy_(_as_storage(bytearray(data)))
    return value


def _names(num_bytes: int) -> dict[str, Any]:
    storages = {f'torch.{name}': _StorageKind(_DTYPES[dtype])
                for name, dtype in _STORAGES.items()}
    return plain_names() | numpy_names(num_bytes) | storages | {
        **{f'torch.{name}': dtype for name, dtype in _DTYPES.items()},
        'torch.storage.UntypedStorage': _StorageKind(torch.uint8),
        'torch.storage._UntypedStorage': _StorageKind(torch.uint8),
        'torch._utils._rebuild_tensor': Maker(_tensor),
        'torch._utils._rebuild_tensor_v2': Maker(_tensor),
        'torch._utils._rebuild_tensor_v3': Maker(_tensor_of_dtype),
        'torch._utils._rebuild_parameter': Maker(_parameter),
        'torch.nn.parameter.Parameter': Maker(_parameter),
        'torch.Size': Maker(_size), 'torch.device': Maker(_device),
        'mmengine.logging.history_buffer.HistoryBuffer': Maker(_LogBuffer),
        # MMEngine's log buffers name methods of theirs. Nothing is looked up: an attribute is how
        # a hostile file would reach other functions.
        'builtins.getattr': Maker(_no_attribute), '__builtin__.getattr': Maker(_no_attribute)}


def _no_attribute(*_: Any) -> None:
    return None


def _identity(identity: Any, length: int) -> tuple:
    """('storage', kind, key, location, number of elements), and in the old form a view."""
    if type(identity) is not tuple or len(identity) != length \
            or identity[0] not in ('storage', b'storage'):
        raise NotPlain('data that is no storage')
    _, kind, key, location, number, *rest = (
        part.decode('ascii') if isinstance(part, bytes) else part for part in identity)
    if not (isinstance(kind, _StorageKind) and type(key) is str and type(location) is str
            and type(number) is int and number >= 0):
        raise BrokenPickle('a storage that is not named as torch does')
    return kind, key, location, number, *rest


def _as_storage(content: bytearray) -> torch.UntypedStorage:
    if not content:
        return torch.UntypedStorage(0)
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()


def _moved(content: torch.UntypedStorage, location: str,
           map_location: MapLocation) -> torch.UntypedStorage:
    if map_location is None or isinstance(map_location, str | torch.device):
        device = torch.device(map_location or 'cpu')
        return content if device.type == 'cpu' else content.to(device=device)
    return map_location(content, location) or content


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False,
            _hooks: Any = None, marks: Any = None) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        raise BrokenPickle('a tensor without a storage')
    return _tensor_of_dtype(storage, offset, size, stride, requires_grad, None, storage.dtype,
                            marks)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any,
                     _hooks: Any, dtype: Any, marks: Any = None) -> torch.Tensor:
    """A view of a storage that stays inside of it."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype) or marks:
        raise BrokenPickle('a tensor without storage or dtype, or of a kind that is not read')
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise BrokenPickle('a tensor whose size and stride are no whole numbers')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * dtype.itemsize > storage.content.nbytes():
        raise BrokenPickle(f'a tensor {tuple(size)} that reaches beyond its storage')
    tensor = torch.empty(0, dtype=dtype, device=storage.content.device)
    tensor.set_(storage.content, offset, tuple(size), tuple(stride))
    return tensor.requires_grad_(bool(requires_grad))


def _parameter(data: Any, requires_grad: Any = True, _hooks: Any = None) -> nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise BrokenPickle('a parameter without a tensor')
    return nn.Parameter(data.detach(), bool(requires_grad))


def _size(sides: Any) -> tuple:
    return torch.Size(sides)


def _device(kind: Any, index: Any = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)
