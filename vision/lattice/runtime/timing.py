"""Where an engine's milliseconds go, part by part.

The parts are timed by objects that stand between the engine and what it calls: detector, filler,
cut test, linker, and the flow functions of OpenCV. The engine knows nothing of it. Time inside a
part that another part takes is counted there alone, so the parts add up to the whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from vision.lattice.core.engine import DEFAULT_CUT_DETECTOR, LatticeEngine
from vision.lattice.runtime import flow as flow_module
from vision.lattice.runtime.methods import DEFAULT_KEYFRAMES, build_filler, build_policy

PARTS = ('prepare', 'cut', 'flow forward', 'flow backward', 'bridge', 'link', 'detect', 'engine')
# Functions of OpenCV in whose time points are followed.
FLOW_FUNCTIONS = ('calcOpticalFlow', 'buildOpticalFlow')


class Clock:
    """Seconds by part; a part inside another one is taken out of the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, time goes to this part, apart from that of parts entered meanwhile."""
        self._stop()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._stop()
            self._open.pop()

    def is_inside(self, name: str) -> bool:
        """Whether this part is being timed now, at any depth."""
        return name in self._open

    def _stop(self) -> None:
        """Give the time since the last change to the innermost part."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class Timed:
    """An object whose named methods are timed; everything else is the object's own.

    Args:
        parts: method -> part.
        wraps: method -> function that wraps what it returns.
    """

    def __init__(self, target, clock: Clock, parts: dict[str, str], wraps=None) -> None:
        self._target, self._clock, self._parts, self._wraps = target, clock, parts, wraps or {}

    def __getattr__(self, name: str):
        value = getattr(self._target, name)
        if name not in self._parts:
            return value

        def call(*args, **kwargs):
            with self._clock.part(self._parts[name]):
                result = value(*(_bare(each) for each in args), **kwargs)
            return self._wraps[name](result) if name in self._wraps else result
        return call


class TimedBridge(Timed):
    """A bridge; the linker that the engine hands to it is timed, too."""

    def fill(self, linker):
        """The bridge's own answer; the linker is timed as a part of its own."""
        with self._clock.part('bridge'):
            return self._target.fill(Timed(linker, self._clock, dict(link='link')))


class TimedOpenCV:
    """OpenCV as the flow module sees it: following points is forward unless a bridge asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __getattr__(self, name: str):
        value = getattr(cv2, name)
        if not name.startswith(FLOW_FUNCTIONS):
            return value

        def call(*args, **kwargs):
            side = 'backward' if self._clock.is_inside('bridge') else 'forward'
            with self._clock.part(f'flow {side}'):
                return value(*args, **kwargs)
        return call


def _bare(value):
    """What a timed object stands for: the filler gets its own carrier back."""
    return value._target if isinstance(value, Timed) else value


def timed_engine(clock: Clock, detector, method: str, keyframes) -> LatticeEngine:
    """An engine all of whose parts are timed by ``clock``."""
    def timed_carrier(carrier):
        return Timed(carrier, clock, dict(step='flow forward', latest='bridge'))

    def timed_bridge(bridge):
        return TimedBridge(bridge, clock, dict(easiness='bridge'))

    def cut(before: np.ndarray, after: np.ndarray) -> bool:
        with clock.part('cut'):
            return DEFAULT_CUT_DETECTOR(before, after)

    filler = Timed(build_filler(method), clock,
                   dict(prepare='prepare', carry='flow forward', bridge='bridge'),
                   dict(carry=timed_carrier, bridge=timed_bridge))
    return LatticeEngine(Timed(detector, clock, dict(detect='detect')), filler,
                         build_policy(1 if method == 'detect' else keyframes or DEFAULT_KEYFRAMES),
                         cut_detector=cut)


def profile(images: list[np.ndarray], detector, method: str, keyframes
            ) -> tuple[Clock, LatticeEngine]:
    """Run an engine over (H, W, 3) BGR frames; its clock, and the engine with its counts.

    Args:
        method: of ``METHODS`` of vision.lattice.runtime.methods.
        keyframes: a policy or frames between two; None: as shipped.
    """
    clock = Clock()
    engine = timed_engine(clock, detector, method, keyframes)
    real, flow_module.cv2 = flow_module.cv2, TimedOpenCV(clock)
    try:
        for frame_id, image in enumerate(images):
            with clock.part('engine'):
                engine.push(image, frame_id)
        with clock.part('engine'):
            engine.flush()
    finally:
        flow_module.cv2 = real
    return clock, engine


def rows_of(clock: Clock, num_frames: int) -> list[dict]:
    """A row a part, and their sum."""
    total = sum(clock.seconds.values())
    rows = [dict(part=part, ms_per_frame=round(1000 * clock.seconds[part] / num_frames, 4),
                 share=round(clock.seconds[part] / total, 4), calls=clock.calls[part])
            for part in PARTS]
    return [*rows, dict(part='all', ms_per_frame=round(1000 * total / num_frames, 4), share=1.0,
                        calls=num_frames)]
