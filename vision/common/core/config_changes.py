"""What differs between two configs, as far as it concerns a run that is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Where a run writes, how it was started, what it shows: none of it reaches the weights.
OF_NO_CONCERN = ('work_dir', 'resume', 'load_from', 'launcher', 'local_rank', 'filename',
                 'experiment_name', 'log_level', 'log_processor', 'visualizer', 'vis_backends',
                 'env_cfg', 'default_hooks', 'val_dataloader', 'val_cfg', 'val_evaluator',
                 'test_dataloader', 'test_cfg', 'test_evaluator', 'train_cfg.val_interval',
                 'train_cfg.val_begin', 'train_cfg.dynamic_intervals',
                 'train_dataloader.num_workers', 'train_dataloader.persistent_workers',
                 'train_dataloader.prefetch_factor', 'train_dataloader.pin_memory',
                 'activation_memory', 'prepare')
# The resumed optimizer and schedule bring their own values.
KEPT = ('optim_wrapper.optimizer', 'param_scheduler')


def as_json(config: Mapping[str, Any]) -> str:
    """A config as text that can be read back without running anything; objects become text."""
    return json.dumps(config, default=str, sort_keys=True)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` of each value that differs and may change the run, sorted by key."""
    old, new = _flat(before), _flat(json.loads(as_json(now)))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key, _Absent) == new.get(key, _Absent) or _is_under(key, OF_NO_CONCERN):
            continue
        line = f'{key}: {_shown(old, key)} -> {_shown(new, key)}'
        if _is_under(key, KEPT):
            line += ' (no effect: the checkpoint brings its own)'
        lines.append(line)
    return lines


class _Absent:
    pass


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = value.items()
    elif isinstance(value, list | tuple) and value:
        parts = enumerate(value)
    else:
        return {prefix: value}
    return {name: leaf for key, part in parts
            for name, leaf in _flat(part, f'{prefix}.{key}' if prefix else str(key)).items()}


def _is_under(key: str, names: tuple[str, ...]) -> bool:
    return any(f'{key}.'.startswith(f'{name}.') for name in names)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else '(not there)'
