"""Ways to spoil a file, of any bytes and of forms that they know, for ``fuzz_readers.py``; and
what it must know of a reader."""

from __future__ import annotations

import functools
import importlib
import io
import json
import pickletools
import random
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BOUNDS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
          2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**12, 10**30)
TEXT_NUMBERS = (*(str(number) for number in BOUNDS), '9' * 5000, '1e400', '-1e400', 'NaN', 'nan',
                'inf', '-0', '1.5', '0x10', '1_0', '', '²', '٣')
VALUES = (None, True, False, 0, 1, -1, 0.5, float('nan'), float('inf'), 2**31, 2**53, 2**63, 2**64,
          10**30, '', 'x', '..', '../../etc/passwd', '/etc/passwd', 'C:\\x', 'a\0b', 'ü' * 50, [],
          {}, [[]], [None], {'id': 1}, [1, 2, 3, 4], [0.0, 0.0, float('nan'), 1.0])
YAML_WORDS = (b'!!python/object/apply:os.system [x]', b'&a [*a]', b'_base_: x.yaml', b'<<: ',
              b'!!set', b'custom_imports: {}', b'? ', b': ', b'2001-01-01', b'2001-13-45',
              b'!!int ', b'!!float x', b'!!binary x', b'.nan', b'.inf', b'0o9', b'1:99')
MAX_CHANGES = 4
_NEXT_FILE = b'\x1c next file \x1c'


@dataclass(frozen=True)
class Reader:
    """``seeds(folder)``: whole files; ``read(path)``: raises VisionError or nothing else;
    ``structured``: mutators that know the form, bytes -> bytes (None: not this file); ``needs``:
    a module that takes seconds to import, which readers share."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    suffix: str
    is_annotation: bool = False
    structured: tuple[Callable[[bytes, random.Random], bytes | None], ...] = ()
    words: tuple[bytes, ...] = ()
    needs: str = ''

    def mutated(self, seeds: Sequence[bytes], generator: random.Random) -> bytes:
        return mutated(seeds, generator, structured=self.structured, words=self.words)


def calls(place: str) -> Callable[[Any], object]:
    """``package.module.function`` of one argument, imported at its first input."""
    module, _, name = place.rpartition('.')
    return lambda given: getattr(importlib.import_module(module), name)(given)


def packed(*contents: str | bytes) -> bytes:
    """Files that are read together, as one input."""
    return _NEXT_FILE.join(one.encode() if isinstance(one, str) else one for one in contents)


def unpacked(path: Path, folder: Path, names: Sequence[str]) -> Path:
    """The files of ``packed`` in ``folder``, which is given back; what the input has not is not
    there."""
    contents = path.read_bytes().split(_NEXT_FILE, len(names) - 1)
    for name, content in zip(names, [*contents, *[None] * len(names)], strict=False):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            target.unlink(missing_ok=True)
        else:
            target.write_bytes(content)
    return folder


def in_one_file(*mutators: Callable) -> Callable:
    """One of the ``packed`` files is changed by one of ``mutators``."""
    def changed(data: bytes, generator: random.Random) -> bytes | None:
        contents = data.split(_NEXT_FILE)
        at = generator.randrange(len(contents))
        contents[at] = generator.choice(mutators)(contents[at], generator) or contents[at]
        return packed(*contents)
    return changed


def mutated(seeds: Sequence[bytes], generator: random.Random, *,
            structured: Sequence[Callable] = (), words: Sequence[bytes] = ()) -> bytes:
    """One of the seeds with one to four changes, by ``structured`` mutators or those of any
    bytes, which may put in ``words``."""
    data = generator.choice(seeds)
    for _ in range(generator.randint(1, MAX_CHANGES)):
        if structured and generator.random() < 0.6:
            data = generator.choice(structured)(data, generator) or data
        else:
            data = generator.choice(PLAIN)(data, generator, seeds, words)
    return data


# Mutators of any bytes --------------------------------------------------------------------------
def flip(data: bytes, generator: random.Random, seeds, words) -> bytes:
    changed = bytearray(data or b'\0')
    for _ in range(generator.choice((1, 1, 2, 8))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def cut(data: bytes, generator: random.Random, seeds, words) -> bytes:
    return data[:generator.randrange(len(data) + 1)]


def take_out(data: bytes, generator: random.Random, seeds, words) -> bytes:
    start = generator.randrange(len(data) + 1)
    return data[:start] + data[start + generator.choice((1, 2, 4, 8, 64, 1024)):]


def repeat(data: bytes, generator: random.Random, seeds, words) -> bytes:
    start = generator.randrange(len(data) + 1)
    part = data[start:start + generator.choice((1, 4, 16, 256))]
    return data[:start] + part * generator.choice((2, 3, 50)) + data[start:]


def splice(data: bytes, generator: random.Random, seeds, words) -> bytes:
    other = generator.choice(seeds)
    return data[:generator.randrange(len(data) + 1)] + other[generator.randrange(len(other) + 1):]


def number(data: bytes, generator: random.Random, seeds, words) -> bytes:
    """A whole number in 1, 2, 4 or 8 bytes becomes one at a boundary."""
    width = generator.choice((1, 2, 4, 8))
    value = generator.choice(BOUNDS) & (1 << 8 * width) - 1
    start = generator.randrange(max(1, len(data) - width + 1))
    return data[:start] + value.to_bytes(width, generator.choice(('little', 'big'))) \
        + data[start + width:]


def text_number(data: bytes, generator: random.Random, seeds, words) -> bytes:
    """A number that stands there in digits becomes another."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?', data[:100_000]))
    if not found:
        return number(data, generator, seeds, words)
    match = generator.choice(found)
    return data[:match.start()] + generator.choice(TEXT_NUMBERS).encode() + data[match.end():]


def word(data: bytes, generator: random.Random, seeds, words) -> bytes:
    """A word of the format, or a hostile name, is put in."""
    place = generator.randrange(len(data) + 1)
    more = generator.choice((*words, b'../' * 8 + b'etc/passwd', b'/dev/zero', b'\0', b'\n', b' ',
                             b'\xff\xfe', b'[' * 2000, b'(' * 2000, b'"'))
    return data[:place] + more + data[place:]


PLAIN = (flip, flip, cut, take_out, repeat, splice, number, text_number, word)


# Mutators that know a form ----------------------------------------------------------------------
def json_node(data: bytes, generator: random.Random) -> bytes | None:
    """Some value of a JSON file becomes another, goes, or comes twice."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    places = []

    def walk(node) -> None:
        items = node.items() if isinstance(node, dict) else \
            enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            walk(value)

    walk(content)
    if not places:
        return None
    node, key = generator.choice(places)
    what = generator.randrange(4)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif what == 2:
        other, place = generator.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(
            other, list) and place < len(other) else None
    else:
        node[key] = generator.choice(VALUES)
    return json.dumps(content).encode()


def line(data: bytes, generator: random.Random) -> bytes:
    """A line of a text goes, comes twice, changes its place or loses a field."""
    lines = data.split(b'\n')
    at = generator.randrange(len(lines))
    what = generator.randrange(4)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[at])
    elif what == 2:
        generator.shuffle(lines)
    else:
        fields = re.split(rb'([\s,])', lines[at])
        del fields[generator.randrange(len(fields))]
        lines[at] = b''.join(fields)
    return b'\n'.join(lines)


def element(data: bytes, generator: random.Random) -> bytes | None:
    """An element of an XML file changes its value, goes, or comes many times."""
    found = list(re.finditer(rb'>([^<>]+)<|="([^"]*)"|<(\w+)[^<>]*>[^<>]*</\3>', data))
    if not found:
        return None
    match = generator.choice(found)
    group = next(i for i in (1, 2, 3) if match[i] is not None)
    if group < 3:
        value = str(generator.choice((*TEXT_NUMBERS, *VALUES))).encode('utf-8', 'replace')
        return data[:match.start(group)] + value + data[match.end(group):]
    return data[:match.start()] + match[0] * generator.choice((0, 2, 500)) + data[match.end():]


def opcode(data: bytes, generator: random.Random) -> bytes | None:
    """An opcode of a pickle goes, comes twice, changes its place or its argument."""
    parts = _opcodes(data)
    if parts is None or len(parts) < 2:
        return None
    at = generator.randrange(len(parts))
    what = generator.randrange(5)
    if what == 0:
        del parts[at]
    elif what == 1:
        parts.insert(at, parts[at] * generator.choice((1, 3, 200)))
    elif what == 2:
        other = generator.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif what == 3:
        parts.insert(at, generator.choice(OPCODES))
    else:
        code = parts[at][:1]
        parts[at] = code + bytes(generator.choice((0, 1, 127, 255))
                                 for _ in range(len(parts[at]) - 1))
    return b''.join(parts)


# Opcodes with what they take, some of them hostile.
OPCODES = (b'cos\nsystem\n', b'cbuiltins\ngetattr\n', b'cnumpy\nndarray\n', b'cnumpy\ndtype\n',
            b'cnumpy._core.multiarray\n_reconstruct\n', b'ccollections\nOrderedDict\n',
            b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch\nFloatStorage\n', b'R', b'b', b'\x81',
            b'(', b't', b'2', b'q\x00h\x00\x86' * 40, b')', b']', b'}', b'K\x00',
            b'r\xff\xff\xff\x7f',
            b'j\x00\x00\x00\x00', b'a', b's', b'u', b'e', b'Q', b'0', b'N',
            b'\x8a\x08' + b'\x7f' * 8, b'G\x7f\xf0\x00\x00\x00\x00\x00\x00',
            b'U\x02f8', b'X\x02\x00\x00\x00O8', b'.')


@functools.lru_cache(maxsize=64)
def _cut_to_opcodes(data: bytes) -> tuple[bytes, ...] | None:
    try:
        starts = [place for _, _, place in pickletools.genops(data)]
    except Exception:  # an input of its own making, spoiled before
        return None
    return tuple(data[start:end] for start, end in
                 zip(starts, [*starts[1:], len(data)], strict=True))


def _opcodes(data: bytes) -> list[bytes] | None:
    parts = _cut_to_opcodes(data)
    return None if parts is None else list(parts)


def inside_zip(mutate: Callable, name_end: str) -> Callable:
    """``mutate`` one entry of a zip file; the archive around it is whole again."""
    def changed(data: bytes, generator: random.Random) -> bytes | None:
        target = io.BytesIO()
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, 'w') as new:
                names = [name for name in old.namelist() if name.endswith(name_end)]
                chosen = generator.choice(names) if names else None
                for name in old.namelist():
                    content = old.read(name)
                    if name == chosen:
                        content = mutate(content, generator) or content
                    new.writestr(name, content)
        except Exception:  # the archive was spoiled before
            return None
        return target.getvalue()
    return changed


def plain_inside(data: bytes, generator: random.Random) -> bytes:
    return generator.choice((flip, cut, repeat, number, text_number))(data, generator, [data], ())


def json_array(data: bytes, generator: random.Random) -> bytes | None:
    """JSON as the bytes of a NumPy array."""
    try:
        text = json_node(np.load(io.BytesIO(data), allow_pickle=False).tobytes(), generator)
    except Exception:  # it was spoiled before
        return None
    np.save(target := io.BytesIO(), np.frombuffer(text or b'{}', np.uint8))
    return target.getvalue()


def header(data: bytes, generator: random.Random) -> bytes | None:
    """The JSON header of a safetensors file, with its length."""
    length = int.from_bytes(data[:8], 'little')
    text = json_node(data[8:8 + length], generator) if length < 1 << 20 else None
    return None if text is None else len(text).to_bytes(8, 'little') + text + data[8 + length:]


def archive_name(data: bytes, generator: random.Random) -> bytes | None:
    """A name of a zip file leads elsewhere, or an entry becomes a link."""
    target = io.BytesIO()
    names = ('../x', '/tmp/x', 'a/../../x', 'C:\\x', 'a\\..\\x', '.', '', 'a' * 300,
             'x/' * 50 + 'y')
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, 'w') as new:
            for info in old.infolist():
                other = zipfile.ZipInfo(generator.choice((info.filename, *names)))
                other.external_attr = generator.choice((0, 0o120777, 0o60666, 0o40755)) << 16
                new.writestr(other, old.read(info))
    except Exception:  # the archive was spoiled before
        return None
    return target.getvalue()
