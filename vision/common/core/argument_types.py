"""Does a value of a config fit the parameter that it is for, as far as the class says?

Configs are plain values: texts, numbers, truth values, lists, dicts and None. An annotation is
compared with the kind of the value, generously: a class that is no plain type (a tensor, a
module, a protocol) may be made of anything, and where nothing is annotated only a text where the
default is a number or a truth value is wrong. Other libraries often take more than they annotate
(in a quarter of MMDetection's own configs 25 values would be refused): of theirs only a text where
none belongs is wrong.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from vision.common.core.arguments import inits_of

_CALLED = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a text',
           None: 'None', type(None): 'None'}
_LISTS = (list, tuple, set, frozenset, Sequence, Iterable, Iterator)


def misfit(cls: type | Callable, name: str, value: Any) -> str:
    """What ``cls`` takes as ``name`` when that is not ``value``, such as 'a whole number'; '' when
    it fits, or when nothing is known for certain."""
    found = _parameters(cls).get(name)
    if found is None:
        return ''
    hint, default = found
    if value is default:
        return ''
    if hint is inspect.Parameter.empty:
        is_number = type(default) in (bool, int, float)
        return f'{_CALLED[type(default)]}, as its default {default!r}' \
            if is_number and isinstance(value, str) else ''
    is_ours = getattr(cls, '__module__', '').startswith('vision.')
    if value is None and default is None or _fits(value, hint) or \
            not is_ours and not isinstance(value, str):
        return ''
    return _shown(hint)


@cache
def _parameters(cls: type | Callable) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of the ``__init__``s of ``cls``, nearest first."""
    found: dict[str, tuple[Any, Any]] = {}
    for init in inits_of(cls):
        try:
            parameters = inspect.signature(init).parameters.values()
        except (ValueError, TypeError):  # written in C
            break
        hints = _hints(init)
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                hint = hints.get(parameter.name, parameter.annotation)
                found.setdefault(parameter.name, (hint, parameter.default))
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _hints(init: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(init)
    except Exception:  # a name of a module that is not imported; whatever stands there may be run
        return {name: Any for name in getattr(init, '__annotations__', {})}


def _fits(value: Any, hint: Any) -> bool:
    if hint in (bool, int, float, str, None, type(None)):
        return _fits_plain(value, type(None) if hint is None else hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is typing.Annotated:
        return _fits(value, parts[0])
    whole = origin or hint
    if not isinstance(whole, type):
        return True  # Any, a type variable, a text
    if issubclass(whole, os.PathLike):
        return isinstance(value, str | os.PathLike)
    if issubclass(whole, Mapping):
        return isinstance(value, Mapping)
    if whole in _LISTS:
        return _fits_sequence(value, parts)
    return True


def _fits_plain(value: Any, hint: type) -> bool:
    if hint is bool:
        return isinstance(value, bool) or value in (0, 1) and isinstance(value, int)
    if hint is int:  # 2.0 is what some calculation in a config gives
        return isinstance(value, int) and not isinstance(value, bool) or \
            isinstance(value, float) and value.is_integer() or _is_foreign(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) or \
            _is_foreign(value)
    return isinstance(value, hint) or _is_foreign(value)


def _is_foreign(value: Any) -> bool:
    """Is it no plain value, but an object that a Python config has made?"""
    return not isinstance(value, str | bool | int | float | list | tuple | Mapping | None)


def _fits_sequence(value: Any, parts: tuple) -> bool:
    if isinstance(value, str | bool | int | float | Mapping | None):
        return False
    if not isinstance(value, list | tuple) or not parts:
        return True
    inner = [part for part in parts if part is not Ellipsis]
    return all(any(_fits(one, part) for part in inner) for one in value)


def _shown(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(_shown, parts))
    if origin is typing.Literal:
        return 'one of ' + ', '.join(map(repr, parts))
    if hint in _CALLED:
        return _CALLED[hint]
    whole = origin or hint
    if isinstance(whole, type) and issubclass(whole, Mapping):
        return 'a dict'
    if whole in _LISTS:
        inner = [part for part in parts if part is not Ellipsis]
        return 'a list' + (f' (each {" or ".join(dict.fromkeys(map(_shown, inner)))})'
                           if inner else '')
    return 'a path' if isinstance(whole, type) and issubclass(whole, os.PathLike) else \
        getattr(whole, '__name__', str(whole))

