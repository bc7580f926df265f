"""``vision.load`` and ``vision.models``: from a name to an object with one obvious verb.

Importing this costs no numpy, OpenCV or onnxruntime: what a task needs is imported by ``load``.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision.common.core.config_files import TASKS, config_names, find_config, model_type
from vision.common.core.errors import VisionError, names_like
from vision.zoo import ModelEntry, find_model, load_index, load_models
from vision.zoo.store import whereabouts

# Task -> what opens it: open(entry_or_path, weights, device=device, **options).
OPENERS = dict(video=('vision.stream.api', 'open_video'),
               classify=('vision.classify.api', 'open_classifier'),
               faces=('vision.faces.api', 'open_faces'),
               detect=('vision.lattice.api', 'load_detector'))
INSTALLED = 'mmdet::'  # a config that MMDetection has
TASK_OF_METADATA = dict(video='video', detect='video', classify='classify', faces='faces')


@dataclass(frozen=True)
class ModelCard:
    """A model of the zoo as a user sees it.

    Args:
        name: what ``vision.load`` takes.
        task: video, classify or faces.
        summary: one line.
        size_mb: of all its files, in 10^6 bytes; None where it is not known.
        licence: SPDX names of its weights, each once.
        place: ``package``, ``cache`` or ``mirror``: it is here; ``download``: ``load`` fetches
            it; ``by hand``: the user does.
        metrics: as the index has them, with ``metrics_from``.
    """

    name: str
    task: str
    summary: str
    size_mb: float | None
    licence: str
    place: str
    metrics: dict[str, float]
    metrics_from: str

    @property
    def is_here(self) -> bool:
        """Whether ``vision.load`` needs no network for it."""
        return self.place in ('package', 'cache', 'mirror')


class ModelTable(list):
    """Cards in a list that prints as a table."""

    def __repr__(self) -> str:
        if not self:
            return 'no models'
        rows = [('name', 'task', 'MB', 'licence', 'here?', 'what it is')]
        rows += [(card.name, card.task, '?' if card.size_mb is None else f'{card.size_mb:.1f}',
                  card.licence, 'yes' if card.is_here else card.place, card.summary)
                 for card in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join('  '.join(f'{text:{width}}' for text, width in
                                   zip(row, widths, strict=True)).rstrip() for row in rows)


def models(pattern: str = '*') -> ModelTable:
    """The models of the zoo whose names fit a shell pattern, e.g. ``lattice*``."""
    return ModelTable(card_of(entry) for name, entry in load_models().items()
                      if fnmatch.fnmatchcase(name, pattern))


def card_of(entry: ModelEntry) -> ModelCard:
    """What the index says of a model and of the files that it needs."""
    index = load_index()
    files = [index[name] for name in (entry.weights, *entry.parts.values()) if name]
    places = [whereabouts(file) for file in files] or ['package']
    worst = max(places, key=('package', 'cache', 'mirror', 'download', 'by hand').index)
    sizes = [file.size_bytes for file in files]
    main = index[entry.weights] if entry.weights else None
    return ModelCard(entry.name, entry.task, entry.summary,
                     None if 0 in sizes else sum(sizes) / 1e6,
                     ', '.join(dict.fromkeys(file.licence for file in files)), worst,
                     main.metrics if main else {}, main.metrics_from if main else '')


def load(name_or_config: str | os.PathLike, weights: str | os.PathLike | None = None, *,
         device: str = 'cpu', task: str | None = None, **options: Any):
    """A model that is ready to run.

    Args:
        name_or_config: a name of ``vision.models()``; a config file, the name of one of this
            package without folder and suffix, or ``mmdet::PATH``; or an .onnx file.
        weights: .pth, .safetensors, .onnx or ``zoo:NAME``, in place of the model's own.
        device: ``cpu`` or ``cuda:N``, for what runs in torch.
        task: of an .onnx file that does not tell: video, classify or faces.
        options: of the task's own object; see its ``open_...`` function.

    Returns:
        video: ``vision.stream.api.VideoModel``; classify: ``vision.classify.api.Classifier``;
        faces: ``vision.faces.api.FaceModel``; a config of MMDetection: ``DetectionModel``.

    Raises:
        VisionError: VIS-INPUT-1711 no such model or config, VIS-INPUT-1715 a task that is
            none or cannot be told, VIS-ENV-1713 a missing package, and what opening it raises.
    """
    text = os.fspath(name_or_config)
    entry = find_model(text)
    source = entry or file_of(text)
    told = entry.task if entry else _task_of(source, task)
    if task not in (None, *OPENERS) or not (task or told) or (told and task not in (None, told)):
        raise VisionError(
            'VIS-INPUT-1715', f'the task of {text} cannot be {task!r}' if task else
            f'{text} does not tell its task', where='task',
            why=f'it is for {told}' if told else f'the tasks are {", ".join(OPENERS)}',
            do='leave task out' if told else "give one, e.g. vision.load(path, task='video')")
    module, function = OPENERS[task or told]
    return getattr(importlib.import_module(module), function)(source, weights, device=device,
                                                              **options)


def file_of(text: str) -> Path:
    """A config or an .onnx file as ``load`` finds it.

    Raises:
        VisionError: VIS-INPUT-1711, there is none, with the nearest names.
    """
    if text.startswith(INSTALLED) or \
            Path(text).suffix.lower() == '.onnx' and Path(text).is_file():
        return Path(text)
    if (path := find_config(text)) is not None:
        return path
    known = [*load_models(), *config_names()]
    near = names_like(text, known, cutoff=0.4)
    raise VisionError('VIS-INPUT-1711', f'there is no model or config {text!r}',
                      where=str(Path(text).absolute()) if '/' in text else '',
                      why=f'nearest: {", ".join(near)}' if near else
                      f'models: {", ".join(load_models())}',
                      do='vision.models() lists the models; a config or .onnx file may be given '
                      'by its path')


def _task_of(path: Path, wanted: str | None = None) -> str:
    """Of a config by the type of its model, of an .onnx file by what it says; '': unknown."""
    if str(path).startswith(INSTALLED):
        return 'detect'
    if path.suffix.lower() != '.onnx':
        kind = model_type(path).rpartition('.')[2]
        return TASKS.get(kind, 'detect' if kind else '')
    return _task_of_onnx(path, wanted)


def _task_of_onnx(path: Path, wanted: str | None) -> str:
    """As its metadata ``task`` says (Ultralytics' export writes detect or classify), else by its
    outputs: boxes have three axes, classes two and names."""
    import onnxruntime

    from vision.common.runtime.onnx_session import open_session
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = open_session(path, options)
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception:  # onnxruntime raises kinds of its own
        return wanted or 'video'  # whoever opens it says what is wrong with the file
    if metadata.get('task') in TASK_OF_METADATA:
        return TASK_OF_METADATA[metadata['task']]
    axes = {len(output.shape or ()) for output in session.get_outputs()}
    return 'video' if 3 in axes else 'classify' if 2 in axes and 'names' in metadata else ''
