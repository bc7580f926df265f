"""Read a pickle as data: plain values, and what a table of ours names. No code of a file runs.

Python's unpickler calls what a file names, and its C form trusts sizes: NumPy's own
``__setstate__`` reads past a list when a file sets the flags of a dtype, a memo index of two
billion takes 32 GB, a tuple of tuples as a key is hashed for ever. Here the standard library cuts
the file into opcodes (``pickletools.genops``), and each of them is carried out below, or refused.
A name of the file (``module.name``) means what the caller's table says and nothing else.

Arrays are built from their bytes, by stand-ins for NumPy's functions that look at dtype, shape
and number of bytes first (``numpy_names``).
"""

from __future__ import annotations

import math
import pickletools
import re
import reprlib  # a value of a file can be endless when it is written out
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAX_INTEGER_BITS = 1024  # states of random generators have 128; Python prints up to 14,000
MAX_DEPTH = 100  # of containers in each other: whoever walks through them does so by recursion
# Containers may stand in several places. Written out, a file must not become much longer.
MAX_EXPANDED, MAX_TIMES_EXPANDED = 10**6, 20
# Arrays may share their bytes in the file, as one that is stored twice does.
SPARE_ARRAY_BYTES, MAX_TIMES_COPIED = 1 << 24, 4
MAX_KEY_PARTS = 16
MAX_DIMENSIONS = 32
_DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6})')
_LATIN_STRINGS = {'STRING', 'BINSTRING', 'SHORT_BINSTRING'}  # Python 2's str: bytes
_VALUES = {'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT',
           'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8', 'SHORT_BINBYTES',
           'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_CONSTANTS = {'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False,
              'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'EMPTY_DICT': dict, 'EMPTY_SET': set}
_NUM_OF_TUPLE = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_MARK = object()


class NotPlain(Exception):
    """The file asks for something that is no plain data: a name, a call, an object."""


class BrokenPickle(Exception):
    """What is there is no pickle, was damaged, or is out of all proportion."""


@dataclass(frozen=True)
class Maker:
    """In a table of names: a function that a file may call. What is no Maker is a constant."""

    make: Callable


class Unfinished:
    """An object whose state comes later in the file; ``finish`` gives what takes its place.

    Attributes:
        places: where the file stored it before its state came.
    """

    def __init__(self) -> None:
        self.places: list[int] = []

    def finish(self, state: Any) -> Any:
        """The object that takes the place of this one, made of the state that the file gives it.

        Raises:
            NotImplementedError: a class of ours does not say how.
        """
        raise NotImplementedError


def read_plain(source: bytes | BinaryIO, names: Mapping[str, Any], *,
               persistent: Callable[[Any], Any] | None = None,
               leaves: tuple[type, ...] = ()) -> Any:
    """The value of one pickle.

    Args:
        source: bytes, or a file at the beginning of a pickle, which is left behind its end; a
            ``read`` of more than there is must be cheap there (memory or a map of the file).
        names: meaning of ``module.name``; see ``plain_names`` and ``numpy_names``.
        persistent: meaning of a persistent id; None: refused.
        leaves: types that ``names`` and ``persistent`` give, beside plain values and arrays.

    Raises:
        NotPlain: it asks for a name, a call or an object that the table does not give.
        BrokenPickle: it was damaged, or is out of all proportion.
    """
    reader = _Reader(names, persistent)
    try:
        value = reader.run(source)
        _require_proportion(value, reader.num_steps, (*_LEAVES, *leaves))
        return value
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, AssertionError,
            MemoryError, RecursionError, EOFError) as error:
        raise BrokenPickle(f'{type(error).__name__}: {error}'[:200]) from error


def plain_names() -> dict[str, Any]:
    """Containers and bytes as Python's own pickles name them."""
    builtin = {f'{module}.{name}': Maker(make) for module in ('builtins', '__builtin__')
               for name, make in (('set', _set), ('frozenset', _set), ('complex', _complex),
                                  ('bytes', _no_bytes))}
    return builtin | {'collections.OrderedDict': Maker(_ordered), '_codecs.encode': Maker(_latin1),
                      'collections.Counter': Maker(_counter)}


def numpy_names(num_bytes: int) -> dict[str, Any]:
    """Stand-ins for what NumPy 1 and 2 write.

    Args:
        num_bytes: length of the file, which bounds what its arrays may take together.
    """
    arrays = _Arrays(MAX_TIMES_COPIED * num_bytes + SPARE_ARRAY_BYTES)
    found: dict[str, Any] = {'numpy.ndarray': np.ndarray, 'numpy.dtype': Maker(_Dtype)}
    for package in ('numpy.core', 'numpy._core'):  # the name before and since NumPy 2
        found[f'{package}.multiarray._reconstruct'] = Maker(arrays.begun)
        found[f'{package}.multiarray.scalar'] = Maker(arrays.scalar)
        found[f'{package}.numeric._frombuffer'] = Maker(arrays.of_buffer)
    return found


class _Reader:
    """The stack machine of a pickle; a mark on the stack is ``_MARK``."""

    def __init__(self, names: Mapping[str, Any], persistent: Callable | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.num_steps = 0

    def run(self, source: bytes | BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(source):
            self.num_steps += 1
            name = opcode.name
            if name in _VALUES:
                self.stack.append(_bounded(argument))
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _LATIN_STRINGS:
                self.stack.append(argument.encode('latin1'))
            elif name == 'STOP':
                return self.pop()
            elif (step := getattr(self, f'do_{name.lower()}', None)) is None:
                raise NotPlain(f'the opcode {name}')
            elif argument is None:
                step()
            else:
                step(argument)
        raise BrokenPickle('it has no end')

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise BrokenPickle('a value is missing')
        return value

    def pop_to_mark(self) -> list:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # below the bottom: IndexError
            place -= 1
            if place < 0:
                raise BrokenPickle('a mark is missing')
        values = self.stack[place + 1:]
        del self.stack[place:]
        return values

    def do_proto(self, version: int) -> None:
        pass

    def do_frame(self, size: int) -> None:
        pass

    def do_mark(self) -> None:
        self.stack.append(_MARK)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.pop_to_mark()

    def do_put(self, place: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise BrokenPickle('a mark is stored')
        if isinstance(value, Unfinished):
            value.places.append(place)
        self.memo[place] = value

    do_binput = do_long_binput = do_put

    def do_memoize(self) -> None:
        self.do_put(len(self.memo))

    def do_get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    do_binget = do_long_binget = do_get

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def _tuple_of(self, number: int) -> None:
        values = [self.pop() for _ in range(number)]
        self.stack.append(tuple(values[::-1]))

    def do_tuple1(self) -> None:
        self._tuple_of(1)

    def do_tuple2(self) -> None:
        self._tuple_of(2)

    def do_tuple3(self) -> None:
        self._tuple_of(3)

    def do_list(self) -> None:
        self.stack.append(self.pop_to_mark())

    def do_append(self) -> None:
        value = self.pop()
        _required(self.stack[-1], list).append(value)

    def do_appends(self) -> None:
        values = self.pop_to_mark()
        _required(self.stack[-1], list).extend(values)

    def do_dict(self) -> None:
        self.stack.append(_filled({}, self.pop_to_mark()))

    def do_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        _filled(_required(self.stack[-1], dict, OrderedDict, Counter), [key, value])

    def do_setitems(self) -> None:
        values = self.pop_to_mark()
        _filled(_required(self.stack[-1], dict, OrderedDict, Counter), values)

    def do_additems(self) -> None:
        values = self.pop_to_mark()
        _required(self.stack[-1], set).update(map(_key, values))

    def do_frozenset(self) -> None:
        self.stack.append(frozenset(map(_key, self.pop_to_mark())))

    def do_global(self, name: str) -> None:
        self._push_named(name.replace(' ', '.', 1))

    def do_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._push_named(f'{_required(module, str)}.{_required(name, str)}')

    def _push_named(self, name: str) -> None:
        if name not in self.names:
            raise NotPlain(f'{name[:100]!r}')
        self.stack.append(self.names[name])

    def do_reduce(self) -> None:
        arguments, maker = _required(self.pop(), tuple), self.pop()
        if not isinstance(maker, Maker):
            raise NotPlain(f'a call of a {type(maker).__name__}')
        self.stack.append(maker.make(*arguments))

    do_newobj = do_reduce

    def do_build(self) -> None:
        state, value = self.pop(), self.pop()
        if isinstance(value, OrderedDict):  # torch keeps versions of modules there
            notes = _required(state, dict).get('_metadata')
            if isinstance(notes, dict):
                value._metadata = notes
            self.stack.append(value)
            return
        if not isinstance(value, Unfinished):
            raise NotPlain(f'the state of a {type(value).__name__}')
        done = value.finish(state)
        self.memo.update(dict.fromkeys(value.places, done))
        self.stack.append(done)

    def do_binpersid(self) -> None:
        if self.persistent is None:
            raise NotPlain('data outside of the pickle')
        self.stack.append(self.persistent(self.pop()))


class _Dtype(Unfinished):
    """``numpy.dtype`` of plain numbers and texts of fixed length."""

    def __init__(self, text: str | bytes, *_flags: Any) -> None:
        text = text.decode('ascii') if isinstance(text, bytes) else _required(text, str)
        if not _DTYPE.fullmatch(text):
            raise NotPlain(f'an array of {text[:40]!r}')
        super().__init__()
        self.text = text.lstrip('<>|=')

    def finish(self, state: Any) -> np.dtype:
        """Versions 3 and 4: version, byte order, subarray, names, fields, size, alignment,
        flags. Flags say that elements are objects: only those of texts (8) may be there."""
        _required(state, tuple)
        order = state[1].decode('ascii') if isinstance(state[1], bytes) else state[1]
        if len(state) not in (8, 9) or order not in ('<', '>', '|', '=') \
                or any(part is not None for part in state[2:5]) or state[8:] not in ((), (None,)):
            raise NotPlain('an array with a dtype of parts')
        dtype = np.dtype(self.text).newbyteorder(order)
        if state[7] != (8 if self.text[0] == 'U' else 0) \
                or self.text[0] in 'SU' and state[5] != dtype.itemsize or not dtype.itemsize:
            raise NotPlain(f'an array of {self.text} with flags {reprlib.repr(state[7]):.60}')
        return dtype


class _Arrays:
    """Makes arrays and scalars out of bytes, as long as there is ``room`` (bytes)."""

    def __init__(self, room: int) -> None:
        self.room = room

    def begun(self, kind: Any, shape: Any, _text: Any) -> Unfinished:
        if kind is not np.ndarray or shape != (0,):
            raise NotPlain('an array of an unusual kind')
        return _Array(self)

    def of_buffer(self, content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        return self.array(content, dtype, shape, is_fortran=order == 'F')

    def array(self, content: Any, dtype: Any, shape: Any, *, is_fortran: bool) -> np.ndarray:
        _required(content, bytes, bytearray)
        _required(dtype, np.dtype)
        if len(_required(shape, tuple)) > MAX_DIMENSIONS or any(
                type(side) is not int or side < 0 for side in shape):
            raise BrokenPickle(f'an array of shape {reprlib.repr(shape):.60}')
        if math.prod(shape) * dtype.itemsize != len(content):
            raise BrokenPickle(f'an array {shape} of {dtype} in {len(content)} bytes')
        self._take(len(content))
        order = 'F' if is_fortran else 'C'
        if not content:
            return np.empty(shape, dtype, order)
        return np.frombuffer(content, dtype).reshape(shape, order=order).copy(order)

    def scalar(self, dtype: Any, content: Any) -> Any:
        _required(content, bytes)
        if _required(dtype, np.dtype).itemsize != len(content):
            raise BrokenPickle(f'a number of {dtype} in {len(content)} bytes')
        self._take(len(content))
        return np.frombuffer(content, dtype)[0]

    def _take(self, num_bytes: int) -> None:
        self.room -= num_bytes
        if self.room < 0:
            raise BrokenPickle('its arrays take many times the bytes of the file')


class _Array(Unfinished):
    def __init__(self, arrays: _Arrays) -> None:
        super().__init__()
        self.arrays = arrays

    def finish(self, state: Any) -> np.ndarray:
        """(version,) shape, dtype, is Fortran order, bytes."""
        shape, dtype, is_fortran, content = _required(state, tuple)[-4:]
        return self.arrays.array(content, dtype, shape, is_fortran=bool(is_fortran))


_LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, np.ndarray, np.generic,
           np.dtype)


def _required(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds and not (np.dtype in kinds and isinstance(value, np.dtype)):
        raise BrokenPickle(f'a {type(value).__name__} where a {kinds[0].__name__} belongs')
    return value


def _bounded(value: Any) -> Any:
    if type(value) is int and value.bit_length() > MAX_INTEGER_BITS:
        raise BrokenPickle(f'a whole number of {value.bit_length()} bits')
    return value


def _key(value: Any) -> Any:
    """A key that is hashed at once: tuples hash all that they hold, again each time."""
    parts = value if type(value) is tuple else (value,)
    if len(parts) > MAX_KEY_PARTS or not all(
            part is None or type(part) in (str, bytes, bool)
            or type(part) is int and part.bit_length() < 61 for part in parts):
        raise BrokenPickle(f'a {type(value).__name__} as a key')
    return value


def _filled(target: dict, values: list) -> dict:
    if len(values) % 2:
        raise BrokenPickle('a key without a value')
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value
    return target


def _ordered(pairs: Any = ()) -> OrderedDict:
    """Python 2 wrote the pairs of an OrderedDict as its argument."""
    found: OrderedDict = OrderedDict()
    for pair in _required(pairs, list, tuple):
        key, value = _required(pair, list, tuple)
        found[_key(key)] = value
    return found


def _counter(counts: Any = None) -> Counter:
    found: Counter = Counter()
    found.update(_required({} if counts is None else counts, dict))
    return found


def _set(values: Any = ()) -> set:
    return set(map(_key, _required(values, list, tuple)))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_required(real, float), _required(imaginary, float))


def _no_bytes() -> bytes:
    """How old protocols write b''; with an argument it would make room for anything."""
    return b''


def _latin1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in old pickle protocols."""
    if encoding not in ('latin1', b'latin1', 'latin-1'):
        raise NotPlain(f'bytes encoded as {reprlib.repr(encoding):.60}')
    return _required(text, str).encode('latin1')


def _require_proportion(value: Any, num_steps: int, leaves: tuple[type, ...]) -> None:
    """Nothing but containers and leaves, no container in itself, none too deep or too often."""
    # By id: number of values when written out, and height. None: still open.
    known: dict[int, tuple[int, int] | None] = {}
    largest = MAX_EXPANDED + MAX_TIMES_EXPANDED * num_steps

    def measure(one: Any, depth: int) -> tuple[int, int]:
        if isinstance(one, leaves):
            return 1, 0
        if id(one) in known:
            if known[id(one)] is None:
                raise BrokenPickle('a container holds itself')
            return known[id(one)]
        if isinstance(one, dict):
            parts = [*one.values(), *getattr(one, '__dict__', {}).values()]
        elif isinstance(one, list | tuple | set | frozenset):
            parts = one
        else:
            raise NotPlain(f'a {type(one).__name__} among the values')
        known[id(one)] = None
        size, height = 1, 0
        for part in parts if depth < MAX_DEPTH else ():
            part_size, part_height = measure(part, depth + 1)
            size, height = size + part_size, max(height, part_height + 1)
        if depth >= MAX_DEPTH or height >= MAX_DEPTH:
            raise BrokenPickle(f'containers are nested more than {MAX_DEPTH} deep')
        if size > largest:
            raise BrokenPickle('written out it is many times as long as it is')
        known[id(one)] = size, height
        return size, height

    measure(value, 0)
