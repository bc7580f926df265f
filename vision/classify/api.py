"""What is in a picture.

    model = vision.load('hanzi')
    model('character.png').top(3)         # [(name, probability), ...]
    model(['a.png', 'b.png'])             # a list of predictions
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.common.core.verbs import Verbs
from vision.common.nn.images import as_image
from vision.zoo import ModelEntry, resolve

Image = str | os.PathLike | np.ndarray
AT_ONCE = 64  # pictures that are held decoded


@dataclass(frozen=True)
class Prediction:
    """What a picture shows.

    Attributes:
        classes: names in label order; the last is ``unknown`` where the model has a place for
            what is of no class.
        probabilities: (K,) float64, of ``classes``; they sum to 1.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def label(self) -> int:
        """Position of the likeliest class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The likeliest class."""
        return self.classes[self.label]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return float(self.probabilities[self.label])

    def __repr__(self) -> str:
        return f'Prediction({self.name!r}, {self.probability:.3f})'

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """(name, probability) of the ``k`` likeliest classes, best first; fewer where there are
        fewer.

        Raises:
            VisionError: ``k`` is no whole number from 1 on.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise VisionError('VIS-INPUT-1741', f'top({k!r})', why='it is how many classes to '
                              'name, from 1', do='.top(5)')
        order = np.argsort(-self.probabilities, kind='stable')[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]

    def to_pandas(self):
        """All classes with their probability, the likeliest first: columns ``name``, ``label``,
        ``probability``."""
        pandas = import_extra('pandas', extra='results', needed_for='to_pandas()')
        order = np.argsort(-self.probabilities, kind='stable')
        return pandas.DataFrame(dict(name=[self.classes[i] for i in order], label=order,
                                     probability=self.probabilities[order]))

    def to_supervision(self):
        """``supervision.Classifications``: class_id and confidence of all classes."""
        supervision = import_extra('supervision', extra='results', needed_for='to_supervision()')
        return supervision.Classifications(class_id=np.arange(len(self.classes)),
                                           confidence=self.probabilities)


class Classifier(Verbs):
    """A function from pictures to predictions; ``vision.load('hanzi')`` makes one.

    Args:
        network: pictures (H, W, 3) uint8 BGR, a list of them, to (N, K) probabilities; it has
            ``classes``.
    """

    example = "model('picture.jpg').top(5)"

    def __init__(self, network: Callable[[Sequence[np.ndarray]], np.ndarray]) -> None:
        self.network = network
        self.classes: tuple[str, ...] = network.classes

    def __call__(self, image: Image | Iterable[Image]) -> Prediction | list[Prediction]:
        """Of one picture (a path, or (H, W, 3) uint8 BGR) a prediction, of several a list.

        Raises:
            VisionError: VIS-DATA-210 a file that cannot be read, VIS-INPUT-1732 no picture.
        """
        if isinstance(image, str | os.PathLike | np.ndarray) and np.ndim(image) != 4:
            return self._predict([as_image(image)])[0]
        found: list[Prediction] = []
        images: list[np.ndarray] = []
        for position, one in enumerate(image):
            images.append(as_image(one, position))
            if len(images) == AT_ONCE:
                found += self._predict(images)
                images = []
        return found + (self._predict(images) if images else [])

    def _predict(self, images: list[np.ndarray]) -> list[Prediction]:
        return [Prediction(self.classes, row) for row in self.network(images)]


def open_classifier(source: ModelEntry | Path, weights: str | os.PathLike | None = None,
                    device: str = 'cpu', *, classes: Sequence[str] | None = None) -> Classifier:
    """What ``vision.load`` calls for the task ``classify``.

    Args:
        source: a model of the zoo, a config of an ``ImageClassifier``, or an .onnx file.
        weights: .onnx, .pth, .safetensors or zoo:NAME in place of the model's own. The published
            PolyNet file is converted by itself.
        classes: names in label order, for weights that do not name them.

    Raises:
        VisionError: VIS-INPUT-1743, a config without weights; VIS-NET-618, weights that only you
            can bring, with the address; VIS-CONFIG-1721, VIS-ENV-515, another device than it
            can run on; and what reading them raises.
    """
    entry = source if isinstance(source, ModelEntry) else None
    if weights is None and entry:
        weights = f'zoo:{entry.weights}'
    config = entry.config if entry else source
    if weights is None and Path(source).suffix.lower() == '.onnx':
        weights = source
    if weights is None:
        raise VisionError('VIS-INPUT-1743', f'{source} says how the network is built, not what it '
                          'learned', where='weights', do="give weights='file.pth'; "
                          'vision train makes one')
    path = resolve(weights)
    if path.suffix.lower() == '.onnx':
        from vision.classify.runtime.onnx_classifier import OnnxClassifier
        from vision.common.runtime.onnx_session import require_cpu
        require_cpu(device)
        return Classifier(OnnxClassifier(path))
    for package in ('torch', 'safetensors', 'mmengine', 'mmcv'):
        import_extra(package, extra='train', needed_for=f'the network in {path.name}')
    from vision.classify.mm.inference import ConfigClassifier
    from vision.common.core.config_files import find_config
    from vision.common.nn.checkpoint import load_checkpoint
    from vision.common.nn.devices import find_device
    from vision.polynet.nn.cadene import convert, is_port_state, missing_counters
    there = find_device(device)
    content = load_checkpoint(path)
    if is_port_state(content['state_dict']):
        ours = convert(content['state_dict'])
        content = dict(state_dict=ours | missing_counters(ours))
    found = find_config(os.fspath(config)) or Path(config)
    return Classifier(ConfigClassifier(found, content, str(path), device=there, classes=classes))
