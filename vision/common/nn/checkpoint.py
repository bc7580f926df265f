"""Checkpoints: written whole, verified before use, read without running anything in them."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.core.files import (
    SEAL,
    atomic_write,
    broken_seal,
    is_disk_full,
    sealed,
    sha256_of,
)
from vision.common.core.plain_pickle import BrokenPickle, NotPlain
from vision.common.nn import checkpoint_folder as folders
from vision.common.nn.checkpoint_faults import damaged, disk_full
from vision.common.nn.torch_files import MapLocation, read_torch_file

# Beside the tensors: the archive's own entries, the manifest, and logs written meanwhile.
SPARE_BYTES = 1 << 20
# Files from this size on are memory-mapped: class rows may be more than the memory holds twice.
MAPPED_BYTES = 1 << 30
NUM_NAMES = 5  # names printed of what does not fit


def manifest_path(path: Path) -> Path:
    """Where the sizes and hashes of a checkpoint stand: beside a file, inside a folder."""
    return path / folders.MANIFEST if path.is_dir() else path.with_name(f'{path.name}.json')


def save_checkpoint(content: Mapping[str, Any], path: Path, **manifest: Any) -> None:
    """Write a checkpoint and beside it ``NAME.json`` with size, sha256 and ``manifest``.

    The manifest takes its name first and describes both files, the new one and the one that it
    replaces: killed at any moment, what lies under ``path`` agrees with it.

    Raises:
        VisionError: VIS-CKPT-301, the disk is full, or has less room than the content needs:
            then nothing is written. What was there under this name stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < _num_bytes(content) + SPARE_BYTES:
        raise disk_full(path, 'looked at before writing', _num_bytes(content) + SPARE_BYTES)

    replaced = None

    def announce(written: Path) -> None:
        nonlocal replaced
        if path.is_dir():  # of a run whose ranks each wrote their part
            replaced = folders.set_aside(path)
        entry = dict(manifest, size_bytes=written.stat().st_size, sha256=sha256_of(written))
        if before := manifest_entry(path):
            entry['before'] = before
        with atomic_write(manifest_path(path)) as file:
            file.write(sealed(json.dumps(dict(seal=SEAL.decode(), **entry)).encode()))

    try:
        with atomic_write(path, before_rename=announce) as file:
            torch.save(dict(content), file)
        folders.remove_set_aside(replaced)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as RuntimeError, caused by or beside an OSError.
        if not (is_disk_full(error) or shutil.disk_usage(path.parent).free < SPARE_BYTES):
            raise
        raise disk_full(path, str(error), _num_bytes(content) + SPARE_BYTES) from error


def load_checkpoint(path: Path, map_location: MapLocation = 'cpu') -> dict[str, Any]:
    """Read a checkpoint (``.pth``) or weights (``.safetensors``: gives {'state_dict': ...}, and
    the class names that ``save_weights`` wrote under ``meta``, where a checkpoint has them).

    The manifest beside it is compared when there is one; a large file whose hash agreed is
    memory-mapped, so that only what is used is read. Nothing in the file is executed.

    Raises:
        VisionError: VIS-CKPT-302 no such file, VIS-CKPT-303 damaged, VIS-CKPT-304 it holds
            objects other than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise VisionError('VIS-CKPT-302', f'there is no checkpoint {path}',
                          where=str(path.absolute()), do='give an existing file, or zoo:NAME')
    if fault := damage(path):
        raise damaged(path, fault)
    if path.is_dir():
        return folders.load_folder(path, map_location=map_location)
    if path.suffix == '.safetensors':
        return _load_safetensors(path)
    is_mapped = path.stat().st_size >= MAPPED_BYTES and manifest_path(path).is_file()
    content = read_plain(path, map_location, is_mapped=is_mapped)
    content = content if 'state_dict' in content else dict(state_dict=content)
    _require_state(content['state_dict'], path)
    return content


def read_plain(path: Path, map_location: MapLocation = 'cpu', *,
               is_mapped: bool = False) -> dict[str, Any]:
    """A dict of tensors and plain values that torch.save wrote; nothing in it is executed.

    Args:
        is_mapped: read from the file only what is used, while the file is there.

    Raises:
        VisionError: VIS-CKPT-303, VIS-CKPT-304 and 337.
    """
    try:
        content = read_torch_file(path, map_location, is_mapped=is_mapped)
    except NotPlain as error:
        raise VisionError(
            'VIS-CKPT-304', f'checkpoint {path.name} asks for more than tensors and plain values',
            where=str(path), why=f'it asks for {error}',
            do='do not use it if you do not know its author; if you do, write its state_dict '
            'alone into a new file on a machine that holds nothing of value') from error
    except (BrokenPickle, OSError) as error:
        raise damaged(path, f'it is no file that torch.save wrote, or no whole one ({error})'
                       ) from error
    if not isinstance(content, dict):
        raise _no_state(path, f'it holds a {type(content).__name__}, not a dict of tensors')
    return content


def _require_state(state: Any, path: Path) -> None:
    """Names and tensors; what a module adds of its own (``get_extra_state``) may be anything."""
    if not isinstance(state, dict):
        raise _no_state(path, f'its state_dict is a {type(state).__name__}')
    for name, value in state.items():
        if not isinstance(name, str) or not (isinstance(value, torch.Tensor)
                                             or name.endswith('_extra_state')):
            raise _no_state(path, f'its state_dict holds a {type(value).__name__} under '
                            f'{name!r:.60}')


def _no_state(path: Path, why: str) -> VisionError:
    return VisionError('VIS-CKPT-337', f'{path.name} is no checkpoint', where=str(path), why=why,
                       do='save model.state_dict()')


def save_weights(state: Mapping[str, torch.Tensor], path: Path, *,
                 classes: Iterable[str] | None = None, config: str | None = None) -> None:
    """Write tensors, and the names of the classes they were trained on, as ``.safetensors``.

    The names are the JSON list ``classes`` of the file's metadata, ``config`` is the text of
    their config there; ``seal`` is the sha256 of all other bytes. The same content gives the
    same bytes.
    """
    from safetensors.torch import save
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    start = 8 + int.from_bytes(content[:8], 'little')
    metadata = {} if classes is None else dict(classes=json.dumps(list(classes)))
    metadata |= {} if config is None else dict(config=config)
    # The library writes metadata in any order.
    header = json.dumps(dict(__metadata__=dict(metadata, seal=SEAL.decode()),
                             **json.loads(content[8:start]))).encode()
    header += b' ' * (-len(header) % 8)
    with atomic_write(Path(path)) as file:
        file.write(sealed(len(header).to_bytes(8, 'little') + header + content[start:]))


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, 'pt') as file:
            content = dict(state_dict={name: file.get_tensor(name) for name in file.keys()})
            names = json.loads((file.metadata() or {}).get('classes', 'null'))
            if not isinstance(names, list | None) or not all(isinstance(name, str)
                                                             for name in names or ()):
                raise ValueError('its class names are no list of names')
    except (SafetensorError, ValueError, RuntimeError, OSError, RecursionError) as error:
        raise damaged(path, _first_line(error)) from error
    if names is not None:
        content['meta'] = dict(dataset_meta=dict(classes=tuple(names)))
    return content


# What wrappers put before every name: DistributedDataParallel, models around a network.
_WRAPPINGS = ('module.', 'model.', 'backbone.')


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors without what all names begin with, as wrappers leave it: ``module.``,
    ``model.``, ``backbone.``, also one inside the other."""
    prefix = next((one for one in _WRAPPINGS
                   if state and all(name.startswith(one) for name in state)), None)
    return dict(state) if prefix is None else \
        unwrapped({name.removeprefix(prefix): tensor for name, tensor in state.items()})


def class_names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes that a loaded checkpoint was trained on, None where it does not tell.

    MMEngine's form, which ``ExactRunner`` writes too, and its older one with capital letters.
    """
    meta = content.get('meta')
    meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if not isinstance(meta, dict):
        return None
    names = meta.get('classes') or meta.get('CLASSES')
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_list else None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and its manifest; the manifest last, it says nothing alone."""
    if path.is_dir():
        folders.remove_folder(path)
        return
    path.unlink(missing_ok=True)
    manifest_path(path).unlink(missing_ok=True)


def damage(path: Path) -> str:
    """How a file or folder differs from its manifest, or from the seal inside weights; '' when it
    does not, and when it has neither."""
    if path.is_dir():
        return folders.folder_damage(path)
    if path.suffix == '.safetensors' and (fault := _broken_weights(path)):
        return fault
    try:
        entries = _entries(path)
    except FileNotFoundError:
        return ''
    except (ValueError, KeyError, TypeError, RecursionError):
        return f'its manifest {manifest_path(path).name} cannot be read'
    size = path.stat().st_size
    if size not in [entry['size_bytes'] for entry in entries]:
        return f'it has {size} bytes, its manifest says {entries[0]["size_bytes"]}'
    return '' if manifest_entry(path) else 'its sha256 is not that of its manifest'


def manifest_entry(path: Path) -> dict[str, Any] | None:
    """What the manifest says of exactly this file or folder; None when there is none or it says
    nothing."""
    if path.is_dir():
        return None if folders.folder_damage(path) else folders.folder_manifest(path)
    try:
        entries = _entries(path)
        size = path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digest = sha256_of(path) if any(entry['size_bytes'] == size for entry in entries) else ''
    return next((entry for entry in entries if entry['sha256'] == digest), None)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entry of the file last written under this name, then that of the one it replaced."""
    raw = manifest_path(path).read_bytes()
    if fault := broken_seal(raw):
        raise ValueError(fault)
    content = dict(json.loads(raw))
    content.pop('seal', None)
    before = content.pop('before', None)
    entries = [content] if before is None else [content, before]
    for entry in entries:
        entry['size_bytes'], entry['sha256']  # what is missing is a KeyError
    return entries


def _broken_weights(path: Path) -> str:
    with path.open('rb') as file:
        start = 8 + int.from_bytes(file.read(8), 'little')
        if not 8 < start <= path.stat().st_size:
            return ''  # no such file at all, which reading it tells
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, \
                memoryview(content) as view:
            return broken_seal(view, start)


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], *,
               optional_prefixes: Iterable[str] = (), unused_prefixes: Iterable[str] = (),
               where: str = '') -> None:
    """Load exactly this model's tensors; nothing may be missing, left over or of another shape.

    Args:
        optional_prefixes: names that the state may lack (all of one prefix).
        unused_prefixes: names that the state may hold beside the model's; they are left aside.

    Raises:
        VisionError: VIS-CKPT-305, with the names; the model is then unchanged.
    """
    state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items()
             if not name.startswith(tuple(unused_prefixes))}
    own = model.state_dict()
    optional = tuple(optional_prefixes)
    missing = [name for name in own if name not in state and not name.startswith(optional)] \
        if optional else [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
              for name in own if name in state and state[name].shape != own[name].shape]
    faults = [f'{len(names)} {title} ({_names(names)})' for title, names in (
        ('missing', missing), ('unknown', unknown), ('of another shape', shapes)) if names]
    if faults:
        raise VisionError(
            'VIS-CKPT-305', 'the checkpoint belongs to another architecture', where=where,
            why='; '.join(faults), do='use the config that this checkpoint was trained with, or '
            'a converter (vision convert)')
    model.load_state_dict(state, strict=False)


def load_model(model: nn.Module, content: Mapping[str, Any], *, where: str = '') -> None:
    """Load a checkpoint's tensors as the model wants them.

    A model may have ``checkpoint_optional_prefixes`` and ``checkpoint_unused_prefixes``
    (``load_state``), and ``take_checkpoint(content, where)``, which then sees the rest.

    Raises:
        VisionError: VIS-CKPT-305.
    """
    load_state(model, content['state_dict'], where=where,
               optional_prefixes=getattr(model, 'checkpoint_optional_prefixes', ()),
               unused_prefixes=getattr(model, 'checkpoint_unused_prefixes', ()))
    if hasattr(model, 'take_checkpoint'):
        model.take_checkpoint(content, where)


def require_no_weights(model: nn.Module) -> None:
    """Refuse a model that has parameters, for which no checkpoint was given.

    Raises:
        VisionError: VIS-CONFIG-324.
    """
    if next(model.parameters(), None) is not None:
        raise VisionError('VIS-CONFIG-324', 'no checkpoint was given',
                          where=type(model).__name__, why='the model has parameters, and random '
                          'ones would be used', do='name a .pth or .safetensors file or zoo:NAME')


def _names(names: list[str]) -> str:
    """The first names, and where most of the rest lie."""
    # Of a classifier's names all begin with 'backbone.trunk': what follows tells them apart.
    depth = len(os.path.commonprefix([name.split('.')[:-1] for name in names])) + 1
    tops = Counter('.'.join(name.split('.')[:depth]) for name in names).most_common(3)
    more = '; most under ' + ', '.join(f'{top} ({count})' for top, count in tops) \
        if len(names) > NUM_NAMES else ''
    return ', '.join(names[:NUM_NAMES]) + more


def _num_bytes(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_num_bytes, content.values()))
    return sum(map(_num_bytes, content)) if isinstance(content, list | tuple) else 8


def _first_line(error: BaseException) -> str:
    return str(error).strip().split('\n')[0]
