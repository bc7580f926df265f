"""Config keys that nobody would read, found before work is spent on the wrong run.

MMEngine takes any key: ``--cfg-options modle.depth=1`` adds ``modle`` and trains with defaults,
and ``--cfg-options data_root=X`` changes a variable that the config file has used already.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vision.common.core.arguments import accepted_arguments
from vision.common.core.config_files import Unread
from vision.common.core.errors import VisionError

# What MMEngine's runners and the tools read at the top of a config.
TOP_LEVEL = (
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg',
    'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume',
    'launcher', 'env_cfg', 'log_processor', 'log_level', 'visualizer', 'vis_backends',
    'default_scope', 'randomness', 'experiment_name', 'runner_type', 'tta_model', 'tta_pipeline',
    'compile', 'activation_checkpointing', 'efficient_conv_bn_eval', 'custom_imports', 'strategy',
    'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'detect_anomalous_params',
    'activation_memory', 'prepare')
# Top-level dicts without a ``type``: the class that takes their keys.
IMPLIED = dict(activation_memory='ActivationMemoryHook')
# Keys that the registries take out of a dict before its class sees them, and 'type' itself:
# scopes, the priority of a hook, what optimizer and scheduler builders use up, and the weight
# that mmdet's DETR heads take out of their loss.
TAKEN_OUT = frozenset({'type', '_scope_', 'priority', 'constructor', 'paramwise_cfg',
                       'convert_to_iter_based', 'by_epoch', 'requires_grad', '_delete_',
                       'bg_cls_weight'})
# Dicts whose type is no registered class of that name, or whose builder uses up keys of its own.
NOT_BUILT_BY_NAME = frozenset({'init_cfg', 'norm_cfg', 'conv_cfg', 'act_cfg', 'upsample_cfg',
                               'dcn', 'plugins', 'nms', 'metainfo'})
# (type, scope) -> the classes that the name may mean; empty when it cannot be seen.
FindClasses = Callable[[Any, str | None], Sequence[type | Callable]]


def check_options(config: Mapping, options: Mapping[str, Any],
                  find_classes: FindClasses = lambda name, scope: ()) -> None:
    """Refuse an option (dotted path -> value) that would change nothing.

    A new key is allowed where somebody reads it: at the top if it is one of ``TOP_LEVEL``, and in
    a dict with a ``type`` whose class takes an argument of that name. A variable of the config
    file is refused too: it was used when the file was read.

    Raises:
        VisionError: VIS-CONFIG-311, with the nearest key that exists; VIS-CONFIG-320.
    """
    config = _with_types(config)
    for path in options:
        node: Any = config
        parts = path.split('.')
        if parts[0] in config and parts[0] not in TOP_LEVEL:
            raise VisionError('VIS-CONFIG-320', f'the option {path} changes a variable that is '
                              'used already', where='--cfg-options',
                              why=f'{parts[0]!r} is no key that a run reads: the config file has '
                              'copied its value to other places',
                              do=_places(config, config[parts[0]], parts[0]))
        for depth, part in enumerate(parts):
            if isinstance(node, Sequence) and not isinstance(node, str):
                if not (part.isdigit() and int(part) < len(node)):
                    _refuse(path, part, [str(i) for i in range(len(node))])
                node = node[int(part)]
                continue
            if not isinstance(node, Mapping):
                break  # an option below a plain value replaces it as a whole
            if part not in node:
                _check_new(path, part, node, is_top=depth == 0, find_classes=find_classes)
                break
            node = node[part]


def check_top_level(unread: Sequence[Unread]) -> None:
    """Refuse a config file with a top-level name that nobody reads.

    Raises:
        VisionError: VIS-CONFIG-312, with the nearest key, or what to do with a variable.
    """
    for entry in unread:
        near = difflib.get_close_matches(entry.key, TOP_LEVEL, n=1)
        if entry.base:
            why = f'{entry.base} was read with its own {entry.key}, which this one does not change'
            do = 'set the keys it was copied to, or give the whole key again in this file'
        else:
            why = 'no run reads it, and neither this file nor one that inherits from it uses it'
            do = f'did you mean {near[0]}?' if near else \
                f'remove it, or call it _{entry.key} if it is a note'
        raise VisionError('VIS-CONFIG-312', f'nobody reads the config key {entry.key!r}',
                          where=entry.where, why=why, do=do)


def check_arguments(config: Mapping, find_classes: FindClasses, where: str = '') -> None:
    """Refuse a dict with a ``type`` that holds a key its class does not take.

    Said before anything is built or read. A class that takes any keyword, or that cannot be
    seen, is passed: building it will tell.

    Raises:
        VisionError: VIS-CONFIG-319, with the path of the key and the nearest arguments.
    """
    for path, node, scope in typed_parts(config):
        known = [accepted_arguments(cls) for cls in find_classes(node['type'], scope)]
        if not known or None in known:
            continue
        arguments = frozenset().union(*known)
        for key in node:
            if key not in arguments and key not in TAKEN_OUT:
                near = difflib.get_close_matches(str(key), arguments, n=3)
                raise VisionError(
                    'VIS-CONFIG-319', f'nobody reads the config key {path}.{key}', where=where,
                    why=f'{node["type"]} has no argument {key!r}',
                    do=f'did you mean {" or ".join(near)}?' if near else
                    f'it takes: {", ".join(sorted(arguments)) or "nothing"}')


def typed_parts(config: Mapping) -> Iterator[tuple[str, Mapping, str | None]]:
    """(path, dict with a ``type``, scope that its names are looked up in), outermost first."""
    return _typed(_with_types(config), '', None)


def _with_types(config: Mapping) -> dict:
    return {key: dict(value, type=IMPLIED[key])
            if key in IMPLIED and isinstance(value, Mapping) else value
            for key, value in config.items()}


def _typed(node: Any, path: str, scope: str | None) -> Iterator[tuple[str, Mapping, str | None]]:
    if isinstance(node, Mapping):
        scope = node.get('_scope_', scope)
        if path and 'type' in node:
            yield path, node, scope
        for key, value in node.items():
            if key not in NOT_BUILT_BY_NAME and (path or key in TOP_LEVEL):
                yield from _typed(value, f'{path}.{key}' if path else str(key), scope)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, value in enumerate(node):
            yield from _typed(value, f'{path}.{number}', scope)


def _check_new(path: str, part: str, node: Mapping, *, is_top: bool,
               find_classes: FindClasses) -> None:
    if is_top and part in TOP_LEVEL:
        return
    arguments: frozenset[str] = frozenset()
    if not is_top and 'type' in node:
        known = [accepted_arguments(cls) for cls in find_classes(node['type'], None)]
        if not known or None in known:
            return  # a class that we cannot see, or that takes anything; building it will tell
        arguments = frozenset().union(*known)
        if part in arguments or part in TAKEN_OUT:
            return
    _refuse(path, part, [*node, *sorted(arguments), *(TOP_LEVEL if is_top else ())])


def _places(config: Mapping, value: Any, name: str) -> str:
    """Where the run reads a variable's value: by name, else by value."""
    found = [(path, here) for path, here in _leaves(config) if path.split('.')[0] in TOP_LEVEL]
    named = [path for path, here in found if path.split('.')[-1] == name]
    places = named or [path for path, here in found
                       if here == value and not isinstance(value, bool | None)]
    return f'set {" and ".join(places[:3])} instead' if places else \
        'set the keys that it was copied to; tools/print_config.py CONFIG shows them'


def _leaves(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, Mapping) else \
        enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        here = f'{path}.{key}' if path else str(key)
        yield here, value
        yield from _leaves(value, here)


def _refuse(path: str, part: str, known: Sequence[str]) -> None:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(part, known, n=3)
    raise VisionError('VIS-CONFIG-311', f'nobody reads the option {path}', where='--cfg-options',
                      why=f'{part!r} is not in the config, and nothing takes it',
                      do=f'did you mean {" or ".join(near)}?' if near else
                      f'known here: {", ".join(map(str, known[:12]))}')
