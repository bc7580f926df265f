"""Values of a config that cannot work, refused before anything is built.

``model.num_stages=two`` is a text where a number belongs, ``batch_size=0`` a number that gives no
batch. Both would be met late, as an error from the depths of a library, or never.
"""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vision.common.core.argument_types import misfit
from vision.common.core.config_keys import TAKEN_OUT, FindClasses, typed_parts
from vision.common.core.errors import VisionError

# Last two parts of a path -> (least, is it a whole number?). '*' stands for any name.
_LEAST = {
    ('*_dataloader', 'batch_size'): (1, True), ('*_dataloader', 'num_workers'): (0, True),
    ('train_cfg', 'max_epochs'): (1, True), ('train_cfg', 'max_iters'): (1, True),
    ('train_cfg', 'val_interval'): (1, True),
    ('optim_wrapper', 'accumulative_counts'): (1, True),
    ('optimizer', 'lr'): (0, False), ('optimizer', 'weight_decay'): (0, False),
}


def check_types(config: Mapping, find_classes: FindClasses, where: str = '') -> None:
    """Refuse a value that is of another kind than its class says.

    Raises:
        VisionError: VIS-CONFIG-1802, see ``require_types``.
    """
    for path, node, scope in typed_parts(config):
        if classes := find_classes(node['type'], scope):
            require_types(classes, node, path, where)


def require_types(classes: Callable | Sequence[Callable], options: Mapping[str, Any], path: str,
                  where: str = '') -> None:
    """Refuse options that are of another kind than the class, or each of the classes, says.

    Raises:
        VisionError: VIS-CONFIG-1802, with path, value, and the kind that belongs there.
    """
    classes = classes if isinstance(classes, list | tuple) else [classes]
    for key, value in options.items():
        wanted = [misfit(cls, key, value) for cls in classes] if key not in TAKEN_OUT else ['']
        if all(wanted):
            raise VisionError(
                'VIS-CONFIG-1802', f'{path}.{key} is {value!r:.60}, a {_kind(value)}',
                where=where, why=f'{getattr(classes[0], "__name__", classes[0])} takes '
                f'{wanted[0]} there', do=f'write {path}.{key} as {wanted[0]}')


def check_amounts(config: Mapping, where: str = '') -> None:
    """Refuse numbers that no run can have: no batch, no iteration, a rate below 0.

    Raises:
        VisionError: VIS-CONFIG-1803, with path, value and what is possible.
    """
    for path, value in _leaves(config):
        for names, (least, is_whole) in _LEAST.items():
            if value is not None and _matches(path, names) and \
                    not _is_at_least(value, least, is_whole):
                kind = 'a whole number' if is_whole else 'a number'
                raise VisionError(
                    'VIS-CONFIG-1803', f'{".".join(path)} is {value!r:.60}', where=where,
                    why=f'it must be {kind} from {least} on',
                    do=f'set {".".join(path)}={max(least, 1) if is_whole else "0.001"}')


def check_class_names(config: Mapping, where: str = '') -> None:
    """Refuse ``metainfo`` of data sets that is no dict, or whose classes are no list of names.

    Raises:
        VisionError: VIS-CONFIG-1804.
    """
    for path, value in _leaves(config, is_deep=False):
        if path[-1] == 'metainfo' and 'dataset' in ' '.join(path):
            _require_names(value, '.'.join(path), where)


def _require_names(metainfo: Any, path: str, where: str) -> None:
    classes = metainfo.get('classes', ()) if isinstance(metainfo, Mapping) else None
    if isinstance(classes, str) and os.path.isfile(classes):
        return  # MMEngine reads a name from each line
    is_list = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    # Counted once: there may be a million.
    doubled = is_list and next((one for one, count in Counter(classes).items() if count > 1), None)
    if metainfo is None or is_list and not doubled:
        return
    what = f'{path} is {metainfo!r:.60}' if classes is None else \
        f'{path}.classes holds {doubled!r} twice' if doubled else \
        f'{path}.classes is {classes!r:.60}'
    raise VisionError('VIS-CONFIG-1804', what, where=where, why='the classes of a data set are a '
                      'list of names, each once; its order gives the labels',
                      do=f"write {path}=dict(classes=('cat', 'dog')), with one name too: "
                      "('cat', ); on the command line "
                      f"--cfg-options \"{path}.classes=['cat','dog']\"")


def missing_names(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """``'wanted' -> nearest`` for the names of ``wanted`` that ``known`` does not have."""
    return [f'{name!r} -> {(difflib.get_close_matches(name, known, 1) or ["nothing near"])[0]}'
            for name in wanted if name not in known]


def _leaves(node: Any, path: tuple[str, ...] = (), *, is_deep: bool = True
            ) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of what is no dict or list; with ``is_deep=False`` of dicts, too."""
    items = node.items() if isinstance(node, Mapping) else \
        enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        here = (*path, str(key))
        if not is_deep or not isinstance(value, Mapping | list | tuple):
            yield here, value
        yield from _leaves(value, here, is_deep=is_deep)


def _matches(path: tuple[str, ...], names: tuple[str, str]) -> bool:
    if len(path) < 2 or path[-1] != names[1]:
        return False
    return path[-2].endswith(names[0][1:]) if names[0][0] == '*' else path[-2] == names[0]


def _is_at_least(value: Any, least: int, is_whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return not isinstance(value, bool | str)  # an object that a Python config has made
    return math.isfinite(value) and value >= least and (not is_whole or value == int(value))


def _kind(value: Any) -> str:
    return 'dict' if isinstance(value, Mapping) else dict(
        str='text', list='list', tuple='list', bool='truth value', int='whole number',
        float='number', NoneType='None').get(type(value).__name__, type(value).__name__)
