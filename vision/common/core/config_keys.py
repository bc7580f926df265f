"""Config keys that nobody would read, found before work is spent on the wrong run.

MMEngine takes any key: ``--cfg-options modle.depth=1`` adds ``modle`` and trains with defaults.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vision.common.core.errors import VisionError

# What MMEngine's Runner.from_cfg and the tools read at the top of a config.
TOP_LEVEL = (
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg',
    'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume',
    'launcher', 'env_cfg', 'log_processor', 'log_level', 'visualizer', 'vis_backends',
    'default_scope', 'randomness', 'experiment_name', 'runner_type', 'tta_model', 'tta_pipeline',
    'compile', 'activation_checkpointing', 'efficient_conv_bn_eval', 'custom_imports', 'strategy')
# A key this near to one that is read is a slip of the pen (our choice; helper variables such as
# num_classes or train_pipeline stand in configs by right and are not near to any).
SLIP = 0.8
# Names that configs give their helper variables; some are near to a key by chance.
HELPERS = ('train_pipeline', 'val_pipeline', 'test_pipeline', 'optimizer', 'model_cfg')


def check_options(config: Mapping, options: Mapping[str, Any],
                  find_class: Callable[[str], type | None] = lambda name: None) -> None:
    """Refuse an option (dotted path -> value) for a key that the config does not have.

    A new key is allowed where somebody reads it: at the top if it is one of ``TOP_LEVEL``, and in
    a dict with a ``type`` whose class takes an argument of that name.

    Args:
        find_class: the class of a ``type`` string, or None when it cannot be found.
    Raises:
        VisionError: VIS-CONFIG-311, with the nearest key that exists.
    """
    for path in options:
        node: Any = config
        parts = path.split('.')
        for depth, part in enumerate(parts):
            if isinstance(node, Sequence) and not isinstance(node, str):
                if not (part.isdigit() and int(part) < len(node)):
                    _refuse(path, part, [str(i) for i in range(len(node))])
                node = node[int(part)]
                continue
            if not isinstance(node, Mapping):
                break  # an option below a plain value replaces it as a whole
            if part not in node:
                _check_new(path, part, node, is_top=depth == 0, find_class=find_class)
                break
            node = node[part]


def check_top_level(config: Mapping, where: str = '') -> None:
    """Refuse a top-level key that is nearly, but not quite, one that is read.

    Raises:
        VisionError: VIS-CONFIG-312.
    """
    for key in config:
        if key in (*TOP_LEVEL, *HELPERS) or key.startswith('_'):
            continue
        near = difflib.get_close_matches(key, TOP_LEVEL, n=1, cutoff=SLIP)
        if near and near[0] not in config:
            raise VisionError('VIS-CONFIG-312', f'nobody reads the config key {key!r}',
                              where=where, why=f'{near[0]!r} is read, and is not there',
                              do=f'rename it to {near[0]!r}')


def _check_new(path: str, part: str, node: Mapping, *, is_top: bool,
               find_class: Callable[[str], type | None]) -> None:
    if is_top and part in TOP_LEVEL:
        return
    arguments: list[str] = []
    if isinstance(node.get('type'), str):
        found = find_class(node['type'])
        if found is None:
            return  # a class that we cannot see may take it; building it will tell
        names = inspect.signature(found.__init__).parameters.values()
        arguments = [p.name for p in names if p.name != 'self']
        # **kwargs go to a base class whose arguments we would have to guess.
        if part in arguments or any(p.kind is p.VAR_KEYWORD for p in names):
            return
    _refuse(path, part, [*node, *arguments, *(TOP_LEVEL if is_top else ())])


def _refuse(path: str, part: str, known: Sequence[str]) -> None:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(part, known, n=3)
    raise VisionError('VIS-CONFIG-311', f'nobody reads the option {path}', where='--cfg-options',
                      why=f'{part!r} is not in the config, and nothing takes it',
                      do=f'did you mean {" or ".join(near)}?' if near else
                      f'known here: {", ".join(map(str, known[:12]))}')
