"""One clip of a visitor: through the model, under overlays, into three files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.stream.io.overlay import Overlay
from vision.stream.io.sinks import CsvSink, JsonLinesSink, VideoSink
from vision.web.limits import Limits, bad_field, check_clip, no_video
from vision.web.overlays import FindFaces, OverlayOptions, Overlays

MODES = ('buffered', 'causal')
REPORT_EVERY_S = 0.3
STEM = 'result'  # never the visitor's own file name: it may be hostile, and it may be private


@dataclass(frozen=True)
class ClipOptions:
    """What a visitor chose.

    Args:
        target_fps: frames per second that the lattice is to reach on its own work; None: a
            keyframe on every eighth frame, whatever that costs.
        mode: ``buffered`` or ``causal``.
        score_thr: weaker boxes are left out.
    """

    target_fps: float | None = None
    mode: str = 'buffered'
    score_thr: float = 0.3
    overlays: OverlayOptions = OverlayOptions()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise bad_field('mode', self.mode, f'one of {", ".join(MODES)}')


@dataclass(frozen=True)
class VideoProgress:
    """How far a job is. Args: num_done, of num_frames."""

    num_done: int
    num_frames: int


@dataclass(frozen=True)
class VideoOutcome:
    """What came of a clip.

    Args:
        video, paths: the mp4; it, the tables .jsonl and .csv.
        num_frames, num_keyframes: done; of them with the detector.
        num_tracks: different track ids above the threshold.
        seconds: of work, drawing and encoding included.
        budget: one line, what was asked for and what came; '' without a budget.
        counts: of ``Overlays.counts``.
        cut_short: why not the whole clip was done; '' when it was.
    """

    video: Path
    paths: tuple[Path, ...]
    num_frames: int
    num_keyframes: int
    num_tracks: int
    seconds: float
    budget: str
    counts: dict[str, int]
    cut_short: str = ''

    @property
    def fps(self) -> float:
        """Frames a second of work, drawing and encoding included."""
        return self.num_frames / self.seconds if self.seconds else 0.0

    @property
    def keyframe_rate(self) -> float:
        """Keyframes per frame."""
        return self.num_keyframes / max(self.num_frames, 1)


def run_clip(model, path: str | Path, folder: Path, options: ClipOptions, limits: Limits, *,
             find_faces: FindFaces | None = None) -> Iterator[VideoProgress | VideoOutcome]:
    """Work on an uploaded clip; progress now and then, the outcome last.

    Closing the iterator early finishes the files of what was done.

    Args:
        model: a ``vision.stream.api.VideoModel``.
        folder: where ``result.mp4``, ``.jsonl`` and ``.csv`` go.
        find_faces: as of ``Overlays``.

    Raises:
        VisionError: what ``check_clip``, ``Overlays`` and the model raise.
    """
    clip = check_clip(path, limits)
    overlays = Overlays(options.overlays, model.classes, find_faces=find_faces)
    overlay = Overlay(model.classes)
    start_s = reported_s = time.monotonic()
    num_done, num_keyframes, tracks, cut_short = 0, 0, set(), ''
    run = model.video(Path(path), mode=options.mode, target_fps=options.target_fps,
                      score_thr=options.score_thr, keep_going=True, progress=False)
    with ExitStack() as stack:
        video = VideoSink(folder / f'{STEM}.mp4', fps=clip.fps)
        stack.callback(video.close)
        tables = [kind(folder / f'{STEM}.{suffix}', model.classes) for kind, suffix in
                  ((JsonLinesSink, 'jsonl'), (CsvSink, 'csv'))]
        for table in tables:
            stack.callback(table.close)
        stack.enter_context(run)  # ends before the files do
        for frame in run:
            result = as_result(frame)
            for table in tables:
                table.write(result, frame.timestamp_s)
            canvas = frame.image_bgr
            overlays.draw(canvas, result.boxes)
            now_s = time.monotonic()
            num_done, num_keyframes = num_done + 1, num_keyframes + frame.is_keyframe
            tracks.update(result.boxes.track_ids.tolist())
            if options.overlays.with_boxes:
                overlay.draw(canvas, result, num_done / max(now_s - start_s, 1e-6))
            video.write(canvas, frame.timestamp_s)
            if now_s - start_s > limits.job_seconds:
                cut_short = f'stopped after {limits.job_seconds:g} s of work, the limit of a job'
                break
            if num_done >= limits.max_frames:
                cut_short = f'stopped after {limits.max_frames} frames, the limit of a clip'
                break
            if now_s - reported_s > REPORT_EVERY_S:
                reported_s = now_s
                yield VideoProgress(num_done, clip.num_frames)
    if not num_done:
        raise no_video(path, 'no frame could be decoded')
    if not cut_short and run.problem is not None:
        cut_short = run.problem.what
    paths = tuple(sink.path for sink in (video, *tables))
    budget = run.policy.account() if options.target_fps else ''
    yield VideoOutcome(video.path, paths, num_done, num_keyframes, len(tracks),
                       time.monotonic() - start_s, budget, overlays.counts(), cut_short)


def as_result(frame) -> FrameResult:
    """A ``VideoFrame`` as sinks and overlay take it."""
    boxes = FrameBoxes(frame.boxes_xyxy, frame.scores, frame.labels, frame.track_ids)
    return FrameResult(frame.frame_id, boxes, frame.source, frame.is_keyframe, frame.latency_ms)
