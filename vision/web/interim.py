"""Until vision.stream.api is there: the same few names over the runtime."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vision.lattice.core.keyframes import BudgetKeyframes
from vision.lattice.runtime.detectors import as_detector
from vision.lattice.runtime.methods import build_engine
from vision.stream.core.session import StreamSession
from vision.stream.io.opening import open_source


@dataclass
class VideoFrame:
    frame_id: int
    timestamp_s: float
    image_bgr: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray
    source: str
    is_keyframe: bool
    latency_ms: float | None


class VideoRun:
    def __init__(self, detector, source, mode, target_fps, score_thr):
        self._pool = ThreadPoolExecutor(1)
        self._policy = policy = BudgetKeyframes(12, target_fps=target_fps) if target_fps else None
        if policy:
            detector = policy.timed(detector)
        engine = build_engine(detector, keyframes=policy, mode=mode,
                              executor=self._pool if mode == 'buffered' else None)
        self._source = open_source(source) if isinstance(source, str) else source
        self.session, self.score_thr = StreamSession(engine), score_thr
        self.budget = ''

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown()
        self.budget = self._policy.account() if self._policy else ''

    @property
    def problem(self):
        return self._source.problem

    def __iter__(self):
        pending = {}
        for t, frame in enumerate(self._source):
            pending[t] = frame
            yield from self._out(self.session.push(frame.image_bgr, frame.timestamp_s), pending)
        yield from self._out(self.session.flush(), pending)

    def _out(self, results, pending):
        for result in results:
            frame = pending.pop(result.frame_id)
            boxes = result.boxes.select(result.boxes.scores >= self.score_thr)
            yield VideoFrame(result.frame_id, frame.timestamp_s, frame.image_bgr,
                             boxes.boxes_xyxy, boxes.scores, boxes.labels, boxes.track_ids,
                             result.source, result.is_keyframe, result.latency_ms)


class VideoModel:
    def __init__(self):
        self.detector = as_detector('zoo:yolox-nano_coco', threads=1)
        self.classes = self.detector.classes

    def video(self, source, *, mode='buffered', target_fps=None, score_thr=0.3, keep_going=False,
              progress=True):
        return VideoRun(self.detector, source, mode, target_fps, score_thr)
