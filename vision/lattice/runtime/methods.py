"""An engine from a detector and the name of a method, without training software."""

from __future__ import annotations

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core import keyframes as keyframe_policies
from vision.lattice.core.engine import Detector, LatticeEngine
from vision.lattice.core.filling import Filler
from vision.lattice.core.interval import NodeFiller
from vision.lattice.core.keyframes import KeyframePolicy
from vision.lattice.runtime.flow import FlowFiller, FlowOptions, shrunk_grey

METHODS = ('flow', 'linear', 'detect')
# The lattice as shipped; measured in docs/results/lattice_tradeoff*.json. A grid, because halving
# hard intervals earned its milliseconds on DAVIS at wide gaps only (vision/lattice/README.md).
DEFAULT_KEYFRAMES = dict(type='UniformKeyframes', gap_frames=8)



class GreyFrames:
    """What straight lines need of a frame: a small grey one, for scene cuts."""

    def grey(self, image_bgr: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (h, w) uint8, the longer side near ``CUT_LONG_SIDE`` px."""
        return shrunk_grey(image_bgr)[0]


def build_engine(detector: Detector, *, method: str = 'flow',
                 keyframes: dict | KeyframePolicy | int | None = None,
                 flow: FlowOptions | None = None, **options) -> LatticeEngine:
    """A new engine.

    Args:
        detector: has ``detect(image_bgr) -> FrameBoxes``.
        method: ``flow``; ``linear``: straight lines between keyframes; ``detect``: every frame is
            a keyframe.
        keyframes: dict(type=class of ``vision.lattice.core.keyframes``, its arguments), a
            policy, or a number of frames for a uniform grid; default ``DEFAULT_KEYFRAMES``.
        options: of ``LatticeEngine``: mode, cut_detector, executor.
    """
    if method == 'detect':
        keyframes = 1
    policy = build_policy(DEFAULT_KEYFRAMES if keyframes is None else keyframes)
    return LatticeEngine(detector, build_filler(method, flow), policy, **options)


def build_filler(method: str, flow: FlowOptions | None = None) -> Filler:
    """What carries boxes between keyframes, by the name of a method; ``flow`` is of the method
    'flow'.

    Raises:
        VisionError: VIS-CONFIG-107, another name.
    """
    require_method(method, METHODS, where='method')
    if method == 'flow':
        return FlowFiller(flow)
    return NodeFiller(GreyFrames(), num_stages=0, merge='median', min_score=0.0)


def require_method(method: str, methods: tuple[str, ...], *, where: str) -> str:
    """``method``; VIS-CONFIG-111 when it is none of ``methods``."""
    if method not in methods:
        raise VisionError('VIS-CONFIG-111', f'method={method!r} is not known', where=where,
                          why=f'the methods are {", ".join(methods)}', do='use one of these')
    return method


def build_policy(keyframes: dict | KeyframePolicy | int) -> KeyframePolicy:
    """A keyframe policy from dict(type=NAME, ...), a number of frames, or itself.

    Raises:
        VisionError: VIS-CONFIG-704 or VIS-CONFIG-709, no such policy, or other arguments than it
            takes; VIS-CONFIG-105, a setting out of its range.
    """
    if isinstance(keyframes, int):
        return keyframe_policies.UniformKeyframes(keyframes)
    if not isinstance(keyframes, dict):
        return keyframes
    options = dict(keyframes)
    name = options.pop('type', None)
    known = sorted(key for key in vars(keyframe_policies) if key.endswith('Keyframes'))
    if name not in known:
        raise VisionError('VIS-CONFIG-704', f'keyframes type={name!r} is not known',
                          where='keyframes', why=f'the policies are {", ".join(known)}',
                          do="for example keyframes=dict(type='UniformKeyframes', gap_frames=8)")
    try:
        return getattr(keyframe_policies, name)(**options)
    except TypeError as error:
        raise VisionError('VIS-CONFIG-709', f'keyframes of type {name}: {error}',
                          where='keyframes', why='its arguments are others',
                          do=f'see vision.lattice.core.keyframes.{name}') from error
