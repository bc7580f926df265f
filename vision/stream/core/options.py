"""What may be asked of a run over a video, and what contradicts itself."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vision.common.core.errors import VisionError
from vision.lattice.core.keyframes import KeyframePolicy

MODES = ('buffered', 'causal', 'causal+revise', 'offline')
BUDGETS = ('target_fps', 'target_ms', 'keyframe_rate')
_WHOLE = ('a whole number above 0', lambda value: value > 0 and value == int(value))
_FROM_ZERO = ('a whole number, at least 0', lambda value: value >= 0 and value == int(value))
_POSITIVE = ('a number above 0', lambda value: value > 0)
RULES = dict(
    mode=(f'one of {", ".join(MODES)}', MODES.__contains__),
    gap=_WHOLE, target_fps=_POSITIVE, target_ms=_POSITIVE,
    keyframe_rate=('a number above 0 and at most 1', lambda value: 0 < value <= 1),
    score_thr=('a number from 0 to 1', lambda value: 0 <= value <= 1),
    fps=_POSITIVE, max_frames=_WHOLE, max_reconnect=_FROM_ZERO, deadline_ms=_POSITIVE,
    encoder_threads=_FROM_ZERO, opencv_threads=_WHOLE)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of ``vision video`` and of ``VideoModel.video``, by the same names.

    Args:
        mode: ``buffered``: a result comes with the next keyframe; ``causal``: at once, without
            look-ahead; ``causal+revise``: at once and again, final, with the next keyframe;
            ``offline`` (no live sources): the whole video first, scores averaged along tracks.
        method: between keyframes, ``flow``, ``linear``, or ``detect``: no frames between them;
            None: the model's own.
        gap: a keyframe each so many frames; with a budget at least one each so many.
        keyframes: a policy of ``vision.lattice.core.keyframes``, or dict(type=NAME, ...).
        target_fps, target_ms, keyframe_rate: a budget: as many keyframes as so many frames a
            second, or milliseconds a frame, allow; or so many per frame, above 0, at most 1.
        score_thr: weaker boxes are left out, everywhere.
        fps: of a folder or of pictures, which do not tell (None: 25).
        max_frames: stop after so many.
        max_reconnect: live: give up after so many failed reconnections in a row.
        keep_going: accept gaps and damaged frames.
        show: a window too.
        deadline_ms: frames whose first result comes later after them are counted.
        with_video: an mp4 beside the tables.
        encoder_threads: of H.264; 0 lets the encoder decide.
        opencv_threads: of drawing, scaling and optical flow; they run beside the detector.

    Raises:
        VisionError: VIS-CONFIG-513 a number out of its range, VIS-CONFIG-519 options of which
            one would have no effect.
    """

    mode: str = 'buffered'
    method: str | None = None
    gap: int | None = None
    keyframes: dict | KeyframePolicy | None = None
    target_fps: float | None = None
    target_ms: float | None = None
    keyframe_rate: float | None = None
    score_thr: float = 0.3
    fps: float | None = None
    max_frames: int | None = None
    max_reconnect: int = 10
    keep_going: bool = False
    show: bool = False
    deadline_ms: float | None = None
    with_video: bool = True
    encoder_threads: int = 0
    opencv_threads: int = 1

    def __post_init__(self) -> None:
        for name, (rule, is_met) in RULES.items():
            require(name, getattr(self, name), rule, is_met)
        given = self.given(('gap', 'keyframes', *BUDGETS))
        budgets = [name for name in given if name in BUDGETS]
        problem = ''
        if self.method == 'detect' and given:
            problem = f'{", ".join(given)} with method detect'
        elif len(given) > 1 and not (len(given) == 2 and budgets and 'gap' in given):
            problem = f'{", ".join(given)} together'
        elif self.keyframe_rate and 'causal' in self.mode:
            problem = f'keyframe_rate with mode {self.mode}'
        if problem:
            raise contradiction(problem)

    def given(self, names: tuple[str, ...]) -> list[str]:
        """Those of these options that were given, which is to say are not None."""
        return [name for name in names if getattr(self, name) is not None]


OPTION_NAMES = tuple(field.name for field in fields(VideoOptions))


def require(name: str, value, rule: str, is_met) -> None:
    """Refuse a value that does not meet its rule; None is not given.

    Raises:
        VisionError: it does not, with the rule.
    """
    try:
        is_good = value is None or is_met(value)
    except TypeError:
        is_good = False
    if not is_good:
        raise VisionError('VIS-CONFIG-513', f'{name}={value!r}',
                          where=f'{name}, on the command line --{name.replace("_", "-")}',
                          why=f'it must be {rule}', do=f'give another {name}')


def contradiction(problem: str) -> VisionError:
    """The error, not raised, of options that do not go together.

    Returns:
        VisionError: with ``problem`` as what came.
    """
    return VisionError('VIS-CONFIG-519', problem, why='a trained lattice runs what its config '
                       'names and onnxruntime what the detector names; keyframes are chosen in '
                       'one way; without look-ahead none can be added where they are needed',
                       do='leave one of them out')

