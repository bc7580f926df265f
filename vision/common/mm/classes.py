"""Classes of data sets against their annotation files, and of heads against their data sets.

MMDetection's COCO data sets leave out names that the file does not have, and number the rest: one
misspelt class gives all that follow the label before theirs, and training goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from torch import nn

from vision.common.core.config_values import missing_names
from vision.common.core.errors import VisionError

_EMPTY = 'need at least one array to concatenate'  # what MMEngine says of a set without samples


def build_dataset(config: Mapping[str, Any]):
    """As the registry's, complete; names of classes are looked for in annotation files.

    Raises:
        VisionError: VIS-DATA-1808, with the names that are missing; VIS-DATA-1809, no sample.
    """
    try:
        dataset = DATASETS.build(config)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    except ValueError as error:
        if str(error) != _EMPTY:
            raise
        for part in _parts(config):
            _require_names(part.get('ann_file'), part.get('data_root'), _names_of(part))
        raise VisionError('VIS-DATA-1809', 'the data set has no sample',
                          where=str(next(iter(_parts(config)), config).get('ann_file', '')),
                          why='no image is left after filter_cfg, or none has a box',
                          do='look at filter_cfg, data_prefix and the annotation file') from error
    for part in _built_parts(dataset):
        classes = (getattr(part, 'metainfo', None) or {}).get('classes') or ()
        if len(getattr(part, 'cat_ids', None) or classes) < len(classes):
            _require_names(part.ann_file, '', classes)
    return dataset


def require_head_classes(model: nn.Module, metainfo: Mapping[str, Any], where: str) -> None:
    """Refuse heads of a detector that have another number of classes than its data.

    Raises:
        VisionError: VIS-CONFIG-1807, with the key of the head.
    """
    classes = metainfo.get('classes')
    if not isinstance(classes, list | tuple) or hasattr(model, 'language_model'):
        return  # one that reads texts has as many outputs as words
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        # An RPN tells objects from background; semantic heads count other things.
        if 'head' not in name or 'rpn' in name or 'semantic' in name or \
                not isinstance(number, int) or number == len(classes):
            continue
        raise VisionError('VIS-CONFIG-1807', f'the data has {len(classes)} classes, the head '
                          f'{number}', where=f'model.{name}.num_classes, {where}',
                          why='classes of the data: ' + ', '.join(map(str, classes[:5]))
                          + (', ...' if len(classes) > 5 else ''),
                          do=f'set model.{name}.num_classes={len(classes)}, or mend '
                          f'{where}.metainfo.classes')


def _parts(node: Any) -> Iterator[Mapping]:
    """Configs of the data sets that read annotation files, inside of wrappers, too."""
    if isinstance(node, Mapping):
        if isinstance(node.get('ann_file'), str):
            yield node
        yield from _parts(node.get('dataset'))
        yield from _parts(node.get('datasets'))
    elif isinstance(node, list | tuple):
        for part in node:
            yield from _parts(part)


def _built_parts(dataset: Any) -> Iterator[Any]:
    yield dataset
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            yield from _built_parts(inner)


def _names_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    given = (config.get('metainfo') or {}).get('classes')
    cls = DATASETS.get(config['type']) if isinstance(config.get('type'), str) else None
    return tuple(given or getattr(cls, 'METAINFO', {}).get('classes', ()))


def _require_names(ann_file: str | None, root: str | None, classes: tuple[str, ...]) -> None:
    path = Path(os.path.join(root or '', ann_file or ''))
    if path.suffix != '.json' or not path.is_file():
        return
    content = json.loads(path.read_bytes())
    rows = content.get('categories', []) if isinstance(content, dict) else []
    known = [str(row['name']) for row in rows if isinstance(row, dict) and 'name' in row]
    there = set(known)
    if missing := [name for name in classes if name not in there]:
        raise VisionError('VIS-DATA-1808', f'{len(missing)} of {len(classes)} class names are not '
                          f'in the file: {", ".join(missing_names(missing[:10], known))}',
                          where=str(path),
                          why=f'the file has: {", ".join(known[:20])}',
                          do='write the names as in the file: metainfo=dict(classes=(...)) of '
                          'the data set (without metainfo they are those of its type)')
