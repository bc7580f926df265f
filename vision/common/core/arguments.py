"""Which keyword arguments a class takes, as far as its source says for certain."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache


@cache
def accepted_arguments(cls: type | Callable) -> frozenset[str] | None:
    """Names that ``cls(...)`` takes; None when anything may be taken.

    ``**kwargs`` are followed into the base classes, one after the other, as long as each
    ``__init__`` does nothing with them but hand them to ``super().__init__``.
    """
    names: set[str] = set()
    for init in inits_of(cls):
        try:
            parameters = list(inspect.signature(init).parameters.values())
        except (ValueError, TypeError):  # written in C
            return None
        own = parameters[1:] if isinstance(cls, type) else parameters
        names |= {p.name for p in own
                  if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
        rest = [p.name for p in own if p.kind == p.VAR_KEYWORD]
        if not rest:
            return frozenset(names)
        if not _only_handed_up(init, rest[0]):
            return None
    return None


def inits_of(cls: type | Callable) -> list[Callable]:
    """What ``cls(...)`` calls with its arguments: its ``__init__`` and those of its bases."""
    if not isinstance(cls, type):
        return [cls]
    if '__new__' in vars(cls) and '__init__' not in vars(cls):
        return []
    return [vars(base)['__init__'] for base in cls.__mro__
            if '__init__' in vars(base) and base is not object]


def _only_handed_up(init: Callable, name: str) -> bool:
    """Is ``**name`` used once, in ``super().__init__(..., **name)``?"""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return False
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    handed = [call for call in ast.walk(tree) if isinstance(call, ast.Call)
              and ast.unparse(call.func) == 'super().__init__'
              and any(word.arg is None and word.value in uses for word in call.keywords)]
    return len(uses) == len(handed) == 1
