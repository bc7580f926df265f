"""The lattice and what one would do without it, each method built by name and run.

Accuracy is replayed: ``Replay`` answers with boxes that a detector found before, so that all
methods start from the same ones. Time is measured by ``timed``, detector included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.filling import Filler
from vision.lattice.core.keyframe_draws import WatchedKeyframes
from vision.lattice.core.keyframes import AdaptiveKeyframes, KeyframePolicy, UniformKeyframes
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.lattice.runtime.methods import build_engine
from vision.lattice.runtime.rivals import RIVALS, build_rival, cut_on_small

# Name: what it is. adaptive and random come by a threshold, the others by name.
METHODS = {
    'detect': 'the detector on every frame',
    'shipped': 'the lattice with its default keyframes',
    'flow': 'the lattice, a keyframe every T frames',
    'flow-causal': 'the same without look-ahead, the grid alone',
    'adaptive': 'the lattice, more keyframes where it is hard',
    'random': 'as many, drawn by lot',
    'hold': 'boxes of the last keyframe stand',
    'linear': 'straight lines between linked keyframe boxes',
    'lk': 'sparse flow to one middle frame, or three above T = 8, then lines',
    'dis': 'dense flow (DIS) from both keyframes, blended',
    'bytetrack': 'ByteTrack on the keyframes, its prediction between them',
    'bytetrack-offline': 'the same, straight lines between them',
    'paper': 'the networks of the paper',
    'oracle': 'perfect positions, links of linear',
}
BY_THRESHOLD = ('adaptive', 'random')
CAUSAL = ('hold', 'flow-causal')  # every frame is finished at once
UNTIMED = ('oracle', 'random')  # bounds and controls: nobody would run them
WITHOUT_GAP = ('detect', 'shipped')


@dataclass(frozen=True)
class Setting:
    """One row: method, frames between keyframes (0: the method's own), threshold of adaptive
    keyframes, side of the detector's input in px (None: as given)."""

    method: str
    gap: int = 0
    threshold: float | None = None
    input_size: int | None = None

    @property
    def name(self) -> str:
        """Short name of the row, such as 't8', 't12-e0.6' or 'default-in320'."""
        if self.method in WITHOUT_GAP:
            size = '' if self.input_size is None else f'-in{self.input_size}'
            return ('t1' if self.method == 'detect' else 'default') + size
        return f't{self.gap}' + ('' if self.threshold is None else f'-e{self.threshold:g}')


def choose_settings(methods: Sequence[str], gaps: Sequence[int], *,
                    thresholds: Sequence[float] = (),
                    input_sizes: Sequence[int] = ()) -> list[Setting]:
    """Rows in the order of the methods; a gap of 1 is ``detect``. Thresholds add ``adaptive`` and
    ``random`` after ``flow``.

    Raises:
        VisionError: VIS-CONFIG-107 unknown method.
    """
    for method in methods:
        if method not in METHODS or method in BY_THRESHOLD:
            raise VisionError('VIS-CONFIG-107', f'method={method!r} is not known',
                              where='--methods', why='the methods are ' + ', '.join(
                                  name for name in METHODS if name not in BY_THRESHOLD),
                              do='use these; --adaptive THR adds rows of adaptive keyframes')
    settings = []
    for method in methods:
        if method in WITHOUT_GAP:
            settings.append(Setting(method))
            sizes = input_sizes if method in ('detect', 'shipped') else ()
            settings += [Setting(method, input_size=size) for size in sizes]
            continue
        settings += [Setting(method, gap) for gap in gaps]
        if method == 'flow':
            settings += [Setting(name, gap, threshold) for gap in gaps for threshold in thresholds
                         for name in BY_THRESHOLD]
    return list(dict.fromkeys(settings))


def build(setting: Setting, detector, *, paper: Callable[[], Filler] | None = None,
          policy: KeyframePolicy | None = None):
    """A new engine of a row.

    Args:
        paper: makes the filler of the paper's networks.
        policy: of ``adaptive`` and ``random``.
    """
    method = setting.method
    if method in RIVALS:
        return build_rival(method, detector, setting.gap)
    if method == 'paper':
        return LatticeEngine(detector, paper(), UniformKeyframes(setting.gap),
                             cut_detector=cut_on_small)
    if method.startswith('shipped'):
        return build_engine(detector, mode='causal' if method in CAUSAL else 'buffered')
    kind = {'detect': 'detect', 'hold': 'linear', 'linear': 'linear', 'oracle': 'linear'}
    return build_engine(detector, method=kind.get(method, 'flow'),
                        keyframes=policy or setting.gap or 1,
                        mode='causal' if method in CAUSAL else 'buffered')


def adaptive_policy(setting: Setting) -> WatchedKeyframes:
    """Adaptive keyframes of this setting, watched, so that as many can be drawn by lot."""
    return WatchedKeyframes(AdaptiveKeyframes(setting.gap, setting.threshold))


def run(engine, images: Sequence[np.ndarray]) -> list[FrameResult]:
    """The result of each frame of images (H, W, 3) uint8 BGR, in order."""
    results = []
    for frame_id, image in enumerate(images):
        results += engine.push(image, frame_id)
    results += engine.flush()
    assert [result.frame_id for result in results] == list(range(len(images)))
    return results


def timed(setting: Setting, detector, images: Sequence[np.ndarray], *,
          paper: Callable[[], Filler] | None = None) -> float:
    """Seconds that a method takes for (H, W, 3) BGR frames, building it left out. The links that
    give boxes of ``detect`` their ids are not charged to it."""
    if setting.method == 'detect':
        start = time.perf_counter()
        for image in images:
            detector.detect(image)
        return time.perf_counter() - start
    policy = adaptive_policy(setting) if setting.method == 'adaptive' else None
    engine = build(setting, detector, paper=paper, policy=policy)
    start = time.perf_counter()
    run(engine, images)
    return time.perf_counter() - start


@dataclass
class Replay:
    """A detector whose boxes come from a table.

    Args:
        table: boxes by the id() of their image, which must stay in memory meanwhile.
    """

    table: dict[int, FrameBoxes]

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """The boxes of the table for this very array (H, W, 3); KeyError for any other."""
        return self.table[id(image_bgr)]
