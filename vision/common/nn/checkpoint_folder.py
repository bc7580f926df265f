"""Checkpoints that several ranks write together: a folder, there whole or not at all.

    iter_8.pth/run.pth                       what rank 0 knows: position, logs, whole tensors
               shard-....safetensors         sharded tensors, by torch.distributed.checkpoint
               NAME-0-of-4.pt                parts that each rank has for itself (class rows)
               manifest.json                 size and sha256 of every file, number of ranks

Ranks write into a folder of a temporary name; once all files are on the disk, rank 0 writes the
manifest and renames. Shards are safetensors, and the rest is read as data by ``torch_files``: as
with files, nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.core.files import (
    SEAL,
    TEMPORARY,
    atomic_write,
    broken_seal,
    is_disk_full,
    sealed,
    sha256_of,
)
from vision.common.nn.checkpoint_faults import damaged, disk_full

MANIFEST = 'manifest.json'
REPLACED = '.replaced-'  # prefix of a folder whose name is being written again
RUN = 'run.pth'
_PART = re.compile(r'(.+)-([0-9]{1,9})-of-[0-9]{1,9}\.pt')
SHARD_OF = '__sharded__'  # in run.pth, in place of a sharded tensor
ELSEWHERE = object()  # what ``place`` gives for a tensor that this rank has no use for


def save_folder(content: Mapping[str, Any], path: Path, *,
                parts: Mapping[str, Mapping[str, Any]] | None = None,
                spread: Collection[str] = (), is_copy: bool = False, **manifest: Any) -> None:
    """Write a checkpoint of all ranks; every rank must come here, with contents of one shape
    but for what is ``spread``.

    Args:
        content: nested dicts and lists. Sharded tensors (DTensor) are written by the ranks that
            hold them, everything else by rank 0 as it is there.
        spread: top-level entries of which each rank has a part, such as the layers of a stage.
            All their tensors are written by the ranks that hold them.
        is_copy: another rank writes the same whole tensors of ``spread`` entries.
        parts: what this rank writes for itself, by name. Lists in them are joined over the ranks
            by ``load_folder``, in rank order; of other entries it gives those of rank 0.
        manifest: more entries of the manifest, such as the position of the run.

    Raises:
        VisionError: VIS-CKPT-301, the disk of a rank is full; VIS-DIST-342, a rank could not
            write, or does not see the same folder. On all ranks; what was there stays.
    """
    rank, world = _rank_and_world()
    with _whole(Path(path), manifest) as folder:
        plain, sharded = _split(content, spread=spread)
        if spread:
            plain |= _united(_of_all({name: plain[name] for name in spread if name in plain}))
        if is_copy:
            sharded = {key: tensor for key, tensor in sharded.items() if _is_shard(tensor)}
        if rank == 0:
            with atomic_write(folder / RUN) as file:
                torch.save(plain, file)
        for name, part in (parts or {}).items():
            with atomic_write(folder / f'{name}-{rank}-of-{world}.pt') as file:
                torch.save(dict(part), file)
        if any(_of_all(bool(sharded))) if spread else sharded:
            import torch.distributed.checkpoint as dcp
            writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            dcp.save(sharded, storage_writer=writer)


def gathered(content: Mapping[str, Any], *, spread: Collection[str],
             is_copy: bool = False) -> dict[str, Any] | None:
    """The content of all ranks on rank 0, whole and in host memory, None on the others; for one
    file where ``save_folder`` writes many. Arguments as there; every rank must come here."""
    rank, world = _rank_and_world()
    plain, tensors = _split(content, spread=spread)
    plain |= _united(_of_all({name: plain[name] for name in spread if name in plain}))
    # Shards are brought together by the ranks that share them, one tensor at a time.
    held = {key: (tensor.full_tensor() if _is_shard(tensor) else tensor).cpu()
            for key, tensor in tensors.items()}
    if is_copy:
        held = {}
    filled = dict(held) if rank == 0 else {}
    on = torch.device('cuda') if 'nccl' in dist.get_backend() else torch.device('cpu')
    described = _of_all([(key, tensor.shape, tensor.dtype) for key, tensor in held.items()])
    for sender, entries in enumerate(described[1:], 1):
        for key, shape, dtype in entries:
            if rank == sender:
                dist.send(held[key].contiguous().to(on), 0)
            elif rank == 0:
                tensor = torch.empty(shape, dtype=dtype, device=on)
                dist.recv(tensor, sender)
                filled[key] = tensor.cpu()
    return _joined(plain, filled) if rank == 0 else None


def load_folder(path: Path, *, place: Callable[[tuple, Tensor], Tensor | None] | None = None,
                map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint that ``save_folder`` wrote, with any number of ranks. What it holds is
    compared with nothing here: ask ``folder_damage`` before.

    Args:
        place: called with the key path and a tensor of the whole shape without memory (device
            meta) for each that was sharded; gives the tensor to be filled, a DTensor of this run,
            say, or None for a whole one, or ELSEWHERE to leave it out. With it, every rank must
            come here. Without it all tensors are whole, and other ranks are not needed.

    Returns:
        The content, and the joined parts by name; their tensors are memory-mapped: only what is
        used is read, while the file is there.

    Raises:
        VisionError: VIS-CKPT-303, damaged.
    """
    from vision.common.nn.checkpoint import read_plain
    path = Path(path)
    manifest = folder_manifest(path)
    content = read_plain(path / RUN, map_location)
    filled = {}
    if any(name.endswith('.safetensors') for name in manifest['files']):
        filled = _read_shards(path, place)
    content = _joined(content, filled)
    for name, files in _parts(manifest).items():
        first, *others = (read_plain(path / file, is_mapped=True) for file in files)
        for key, value in first.items():
            if isinstance(value, list):
                first[key] = sum((other[key] for other in others), value)
        content[name] = first
    return content


def folder_damage(path: Path, part: tuple[int, int] = (0, 1)) -> str:
    """How a folder differs from its manifest, or ''.

    Args:
        part: (i, n): of the files, every n-th from the i-th on is read; the names of all are
            compared.
    """
    try:
        manifest = folder_manifest(path)
    except VisionError as error:
        return error.why
    there = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if missing := sorted(set(manifest['files']) - there):
        return f'{missing[0]} is missing'
    if strange := sorted(there - set(manifest['files'])):
        return f'{strange[0]} is not in its manifest'
    for name in sorted(manifest['files'])[part[0]::part[1]]:
        expected, file = manifest['files'][name], path / name
        if file.is_symlink() or not file.is_file():
            return f'{name} is no file'
        if file.stat().st_size != expected['size_bytes']:
            return f'{name} has {file.stat().st_size} bytes, the manifest says ' \
                   f'{expected["size_bytes"]}'
        if sha256_of(file) != expected['sha256']:
            return f'the sha256 of {name} is not that of the manifest'
    return ''


def remove_folder(path: Path) -> None:
    """Delete a checkpoint; from the first moment on it is no checkpoint any more."""
    doomed = path.with_name(f'{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}')
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def recover_folders(folder: Path) -> None:
    """Clear up what writers that were killed left; a name that was being written again and has
    not been is what it was before."""
    for replaced in folder.glob(f'{REPLACED}*'):
        path = folder / replaced.name.removeprefix(REPLACED)
        if path.exists():
            _remove(replaced)
        else:
            os.rename(replaced, path)
    for unfinished in folder.glob(f'{TEMPORARY}*'):
        if unfinished.is_dir():
            shutil.rmtree(unfinished)


@contextmanager
def _whole(path: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Folder for all ranks to write into; at the end it takes the place of ``path``."""
    rank, world = _rank_and_world()
    name = _from_first(f'{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}')
    folder = path.with_name(name)
    fault = ''
    try:
        if rank == 0:
            folder.mkdir(parents=True)
    except OSError as error:
        fault = _fault(error)
    _raise_together(fault, path, folder)
    if not folder.is_dir():
        fault = f'rank {rank} does not see the folder that rank 0 has made'
    _raise_together(fault, path, folder)
    try:
        yield folder
    except Exception as error:
        fault = _fault(error)
    _raise_together(fault, path, folder)
    # The hashes of all files are found by all ranks; each file was synced by who wrote it.
    names = sorted(entry.name for entry in folder.iterdir())
    mine = {name: dict(size_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
            for name in names[rank::world]}
    files: dict[str, dict] = {}
    for found in _of_all(mine):
        files |= found
    if rank == 0:
        try:
            text = json.dumps(dict(seal=SEAL.decode(), **manifest, ranks=world, files=files))
            with atomic_write(folder / MANIFEST) as file:
                file.write(sealed(text.encode()))
            _put_in_place(folder, path)
        except OSError as error:
            fault = _fault(error)
    _raise_together(fault, path, folder)


def set_aside(path: Path) -> Path | None:
    """Move what has this name away, to be deleted (``remove_set_aside``) when it has been taken
    again. Killed meanwhile, the next run gives it back (``recover_folders``)."""
    if not path.exists():
        return None
    replaced = path.with_name(f'{REPLACED}{path.name}')
    os.rename(path, replaced)
    return replaced


def remove_set_aside(replaced: Path | None) -> None:
    """Delete what ``set_aside`` gave, now that its name has been taken again; None: there was
    nothing."""
    if replaced is not None:
        _remove(replaced)


def _put_in_place(folder: Path, path: Path) -> None:
    replaced = set_aside(path)
    os.rename(folder, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    remove_set_aside(replaced)
    path.with_name(f'{path.name}.json').unlink(missing_ok=True)  # of a file of this name


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _raise_together(fault: str, path: Path, folder: Path) -> None:
    """Go on if no rank has a fault; else all raise, and nothing is left of the folder."""
    faults = {rank: text for rank, text in enumerate(_of_all(fault)) if text}
    if not faults:
        return
    rank, world = _rank_and_world()
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    first, text = next(iter(faults.items()))
    if any(text.startswith('full:') for text in faults.values()):
        raise disk_full(path, f'rank {first} of {world}: {text}')
    raise VisionError('VIS-DIST-342', f'rank {first} of {world} could not write its part of '
                      f'{path.name}', where=str(path.parent), why=text,
                      do='give a work_dir on a disk that all machines share and may write to')


def _fault(error: Exception) -> str:
    prefix = 'full: ' if is_disk_full(error) else ''
    return f'{prefix}{type(error).__name__}: {str(error)[:500]}'


def _is_shard(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, 'placements')  # a DTensor


def _split(content: Any, key: str = '', *, is_spread: bool = False,
           spread: Collection[str] = ()) -> tuple[Any, dict[str, Tensor]]:
    """(the content with marks in place of sharded and spread tensors, those tensors by key)."""
    if _is_shard(content) or is_spread and isinstance(content, Tensor):
        return {SHARD_OF: key}, {key: content.detach()}
    if isinstance(content, Mapping):
        pairs = {name: _split(value, f'{key}/{name}', is_spread=is_spread or name in spread)
                 for name, value in content.items()}
        return ({name: plain for name, (plain, _) in pairs.items()},
                {k: t for _, found in pairs.values() for k, t in found.items()})
    if isinstance(content, list | tuple):
        both = [_split(value, f'{key}/{number}', is_spread=is_spread)
                for number, value in enumerate(content)]
        return (type(content)(plain for plain, _ in both),
                {k: t for _, found in both for k, t in found.items()})
    return content, {}


def _united(contents: list[Any]) -> Any:
    """Nested dicts of several ranks as one; of anything else the first rank's."""
    first = contents[0]
    if not all(isinstance(content, Mapping) for content in contents):
        return first
    names = {name: None for content in contents for name in content}
    return {name: _united([content[name] for content in contents if name in content])
            for name in names}


def _joined(content: Any, filled: Mapping[str, Tensor]) -> Any:
    if isinstance(content, Mapping):
        if SHARD_OF in content:
            if content[SHARD_OF] not in filled:
                raise damaged(None, f'tensor {content[SHARD_OF]!r} is in none of its files')
            return filled[content[SHARD_OF]]
        joined = {name: _joined(value, filled) for name, value in content.items()}
        return {name: value for name, value in joined.items() if value is not ELSEWHERE
                and not (value == {} and content[name] != {})}  # all of it is elsewhere
    if isinstance(content, list | tuple):
        return type(content)(_joined(value, filled) for value in content)
    return content


def _read_shards(path: Path, place: Callable[[tuple, Tensor], Tensor] | None
                 ) -> dict[str, Tensor]:
    """Every sharded tensor by key, filled."""
    import torch.distributed.checkpoint as dcp
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise damaged(path, f'{type(error).__name__}: {error}') from error
    targets: dict[str, Any] = {}
    for key, entry in stored.items():
        like = torch.empty(entry.size, dtype=entry.properties.dtype, device='meta')
        target = None if place is None else place(tuple(key.split('/')[1:]), like)
        targets[key] = torch.empty(like.shape, dtype=like.dtype) if target is None else target
    wanted = {key: target for key, target in targets.items() if target is not ELSEWHERE}
    with warnings.catch_warnings():  # without a group it is said that there is none
        warnings.simplefilter('ignore', UserWarning)
        dcp.load(wanted, storage_reader=reader, no_dist=place is None)
    return targets


def folder_manifest(path: Path) -> dict[str, Any]:
    """Entries of the manifest; raises VIS-CKPT-303."""
    try:
        raw = (path / MANIFEST).read_bytes()
        if fault := broken_seal(raw):
            raise ValueError(fault)
        manifest = json.loads(raw)
        for name, entry in manifest['files'].items():
            if name in ('.', '..', MANIFEST) or '/' in name or '\0' in name:
                raise ValueError(f'it names {name!r}')
            entry['size_bytes'], entry['sha256']  # what is missing is a KeyError
        if RUN not in manifest['files'] or type(manifest['ranks']) is not int \
                or manifest['ranks'] < 1:
            raise ValueError('it is that of no checkpoint')
    except FileNotFoundError as error:
        raise damaged(path, f'there is no {MANIFEST}: it was not written to its end') from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f'its {MANIFEST} cannot be read ({error})') from error
    return manifest


def _parts(manifest: dict[str, Any]) -> dict[str, list[str]]:
    """File names of the ranks' own parts, in rank order, by name."""
    found: dict[str, dict[int, str]] = {}
    for file in manifest['files']:
        if file.endswith('.pt'):
            match = _PART.fullmatch(file)
            if match is None:
                raise damaged(None, f'{file!r:.60} is not the name of a part')
            found.setdefault(match[1], {})[int(match[2])] = file
    for name, files in found.items():
        if len(files) != manifest['ranks'] or max(files) != len(files) - 1:
            raise damaged(None, f'{name} is there of ranks {sorted(files)}, of '
                          f'{manifest["ranks"]}')
    return {name: [files[rank] for rank in sorted(files)] for name, files in found.items()}


def _rank_and_world() -> tuple[int, int]:
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _of_all(value: Any) -> list[Any]:
    """The values of all ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _from_first(value: Any) -> Any:
    return _of_all(value)[0]
