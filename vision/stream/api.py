"""Videos through a lattice: what ``vision.load`` gives for the task ``video``.

    model = vision.load('lattice_yolox-nano')
    for frame in model.video('clip.mp4', save='out'):
        print(frame.frame_id, frame.names, frame.boxes_xyxy)
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vision.common.core.config_files import model_of_config
from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.common.core.picture_files import is_video
from vision.common.core.verbs import Verbs
from vision.common.nn.images import read_image
from vision.common.runtime.onnx_session import require_cpu
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.keyframes import BudgetKeyframes, KeyframePolicy
from vision.lattice.core.rescoring import rescore_tubes
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.runtime.detectors import Detector, as_detector
from vision.lattice.runtime.methods import build_engine, build_policy
from vision.lattice.runtime.onnx_detector import require_picture
from vision.stream.core.options import BUDGETS, OPTION_NAMES, VideoOptions, contradiction
from vision.stream.core.session import StreamStats
from vision.stream.io.opening import Named, Source, open_source, output_stem
from vision.stream.io.player import Played, Player, PlayOptions
from vision.stream.io.progress import progress_bar
from vision.stream.io.sources import FrameFolder, FrameSequence
from vision.stream.io.video_frame import VideoFrame, frame_of
from vision.zoo import ModelEntry

DETECTOR = 'zoo:yolox-nano_coco'
# What a trained lattice of the paper's form takes where its user names no weights.
LATTICE_WEIGHTS = 'zoo:lattice-pru_moving-sprites'
GAP_FRAMES = 12  # the widest of a budget


def open_video(source: ModelEntry | Path, weights: str | os.PathLike | None = None,
               device: str = 'cpu', **options: Any) -> VideoModel:
    """A model for videos; ``vision.load`` calls it.

    Args:
        source: a model of the zoo, a config of a ``LatticeDetector``, or an .onnx file of the
            YOLOX or YOLO family.
        weights: in place of the model's own: an .onnx file where a detector runs in onnxruntime,
            else .pth, .safetensors or ``zoo:NAME`` of the lattice's networks.
        device: ``cpu`` or ``cuda:N``, of a lattice that runs in torch.
        options: of ``vision.lattice.runtime.onnx_detector.OnnxDetector`` (classes, input_size,
            threads, ...) or, in torch, ``cfg_options``: dotted key -> value.
    """
    if isinstance(source, Path) and source.suffix.lower() == '.onnx':
        require_cpu(device)
        return VideoModel(FlowLattice(open_detector(weights or source, **options)))
    path = source if isinstance(source, Path) else Path(__file__).parents[1] / source.config
    model = model_of_config(path)
    flow = FlowLattice.of_config(model)
    if flow is None or 'cfg_options' in options:
        return VideoModel(TorchLattice(path, weights, device, **options))
    require_cpu(device)
    detector = dict(model['detector'])
    named = f'zoo:{source.weights}' if isinstance(source, ModelEntry) else detector['path']
    options = {key: value for key, value in detector.items() if key not in ('type', 'path')
               } | options
    return VideoModel(flow(open_detector(weights or named, **options)))


def open_detector(source: Any, *, threads: int | None = None, **options: Any) -> Detector:
    """``as_detector`` with as many threads as help here, where it opens a file; also of a
    ``vision.lattice.api.DetectionModel``, which has one."""
    if hasattr(source, 'detector') and not hasattr(source, 'detect'):
        source = source.detector
    if isinstance(source, (str, os.PathLike)):
        options['threads'] = threads or default_threads()
    elif threads is not None:
        options['threads'] = threads
    return as_detector(source, **options)


def default_threads() -> int:
    """Of the detector. More than four do not help the small ones, and encoding goes on beside."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, min(4, cores or 1))


class FlowLattice:
    """A detector in onnxruntime, or any other, with flow or straight lines between keyframes.

    Args:
        detector: see ``vision.lattice.runtime.detectors.Detector``.
        method, keyframes: where the user of a run says nothing else; as of ``build_engine``.
    """

    def __init__(self, detector: Detector, method: str = 'flow',
                 keyframes: dict | None = None) -> None:
        self.detector, self._method, self._keyframes = detector, method, keyframes
        self.classes = tuple(detector.classes)

    @classmethod
    def of_config(cls, model: dict):
        """What makes one of a detector, as a config says it; None: it takes torch."""
        known = {'type', 'method', 'detector', 'keyframes'}
        detector = model.get('detector')
        if model.get('method') not in ('flow', 'linear') or set(model) - known \
                or not isinstance(detector, dict) or detector.get('type') != 'OnnxDetector' \
                or ... in (*detector.values(), *(model.get('keyframes') or {}).values()):
            return None
        return lambda opened: cls(opened, model['method'], model.get('keyframes'))

    def with_detector(self, detector: Detector) -> FlowLattice:
        """The same with another detector."""
        return FlowLattice(detector, self._method, self._keyframes)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """The detector's boxes on a frame (H, W, 3) uint8 BGR."""
        return self.detector.detect(image_bgr)

    def build_engine(self, options: VideoOptions, executor: Executor) -> LatticeEngine:
        """An engine for one run; what the options leave open is as this lattice has it."""
        method = options.method or self._method
        policy = keyframes_of(options)
        if policy is None:
            policy = 1 if method == 'detect' else self._keyframes
        detector = policy.timed(self.detector) if isinstance(policy, BudgetKeyframes) \
            else self.detector
        is_buffered = options.mode in ('buffered', 'offline')
        return build_engine(detector, method=method, keyframes=policy,
                            mode='buffered' if is_buffered else options.mode,
                            executor=executor if is_buffered else None)


class TorchLattice:
    """A lattice of a config, in torch.

    Args:
        config, weights, device, cfg_options: as of ``vision.lattice.mm.loading.load_lattice``;
            weights: None for those of the package, if the config's method has any.

    Raises:
        VisionError: torch or another package of the extra ``train`` is not installed.
    """

    def __init__(self, config: Path, weights: str | os.PathLike | None, device: str,
                 cfg_options: dict | None = None) -> None:
        try:
            self._torch = import_extra('torch', extra='train', needed_for=f'the config {config}')
            from vision.lattice.mm.loading import load_lattice
        except (VisionError, ModuleNotFoundError) as error:
            raise VisionError('VIS-ENV-520', f'{config} needs packages that are not here',
                              why=getattr(error, 'what', str(error)), where=sys.executable,
                              do='make env in a checkout, or pip install "frugal-vision[train]"; '
                              'a detector in an .onnx file needs neither') from error
        options = dict(model_of_config(config)) | {
            key.removeprefix('model.'): value for key, value in (cfg_options or {}).items()}
        if weights is None and options.get('method', 'paper') == 'paper':
            weights = LATTICE_WEIGHTS
        self._model = load_lattice(str(config), weights, cfg_options=cfg_options, device=device)
        with self._torch.inference_mode():
            self.classes = tuple(self._model.classes)

    def with_detector(self, detector: Detector) -> FlowLattice:
        """Refused: the config names its detector.

        Raises:
            VisionError: always.
        """
        raise contradiction('a detector with a lattice in torch, whose config names its own')

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """The detector's boxes on a frame (H, W, 3) uint8 BGR."""
        with self._torch.inference_mode():
            return self._model.detector.detect(image_bgr)

    def build_engine(self, options: VideoOptions, executor: Executor) -> LatticeEngine:
        """An engine for one run, which computes without gradients.

        Raises:
            VisionError: options that only lattices without torch have.
        """
        if foreign := options.given(('method', *BUDGETS)):
            raise contradiction(f'{", ".join(foreign)} with a lattice in torch')
        overrides: dict[str, Any] = {}
        if (policy := keyframes_of(options)) is not None:
            overrides['policy'] = build_policy(policy)
        if 'causal' in options.mode:
            overrides['mode'] = options.mode
        with self._torch.inference_mode():
            return _WithoutGradients(self._model.build_engine(**overrides), self._torch)


class _WithoutGradients:
    """An engine each of whose steps runs in torch's inference mode; its user's code does not."""

    def __init__(self, engine: LatticeEngine, torch: Any) -> None:
        self._engine, self._torch = engine, torch
        self.mode, self.policy = engine.mode, engine.policy

    def push(self, *frame: Any) -> list:
        with self._torch.inference_mode():
            return self._engine.push(*frame)

    def flush(self) -> list:
        with self._torch.inference_mode():
            return self._engine.flush()


def keyframes_of(options: VideoOptions) -> KeyframePolicy | dict | int | None:
    """What ``build_engine`` takes as keyframes."""
    if options.target_fps or options.target_ms:
        return BudgetKeyframes(options.gap or GAP_FRAMES, target_fps=options.target_fps,
                               target_ms=options.target_ms)
    if options.keyframe_rate:  # half of the intervals of this grid are halved
        gap = options.gap or max(1, round(1.5 / options.keyframe_rate))
        return BudgetKeyframes(gap, options.keyframe_rate)
    return options.keyframes or options.gap


class VideoModel(Verbs):
    """Boxes and track ids on every frame of a video, while the detector runs on few of them.

    One run at a time: runs of one model share its detector.

    Attributes:
        classes: class names in label order.
    """

    example = "model.video('clip.mp4', save='out') or model.image('picture.jpg')"

    def __init__(self, lattice: FlowLattice | TorchLattice) -> None:
        self._lattice = lattice

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self._lattice.classes

    def image(self, image: str | os.PathLike | np.ndarray, *,
              score_thr: float = 0.3) -> VideoFrame:
        """The detector alone on one picture: a path, or (H, W, 3) uint8 BGR.

        Raises:
            VisionError: VIS-DATA-210 a file that is no picture, VIS-INPUT-812 an array that is
                none.
        """
        picture = read_image(image) if isinstance(image, (str, os.PathLike)) else image
        require_picture(picture)
        boxes = self._lattice.detect(picture)
        return frame_of(boxes.select(boxes.scores >= score_thr), picture, self.classes)

    def video(self, source: Named | Source, *, save: str | os.PathLike | None = None,
              detector: Any = None, classes: Sequence[str] | None = None, mode: str = 'buffered',
              method: str | None = None, gap: int | None = None,
              keyframes: dict | KeyframePolicy | None = None, target_fps: float | None = None,
              target_ms: float | None = None, keyframe_rate: float | None = None,
              score_thr: float = 0.3, fps: float | None = None, max_frames: int | None = None,
              max_reconnect: int = 10, keep_going: bool = False, show: bool = False,
              deadline_ms: float | None = None, with_video: bool = True,
              encoder_threads: int = 0, opencv_threads: int = 1,
              progress: bool = True) -> VideoRun:
        """A run over a video; iterate over it, or call ``run()`` for the summary alone.

        Args:
            source: path of a video, folder of frames, camera number, rtsp:// or http(s)://
                address, or an iterable (a list, a generator) of (H, W, 3) uint8 BGR arrays or of
                paths of images.
            save: folder of the outputs, or name of the .mp4: H.264 video with boxes, JSON lines
                and CSV; None: nothing is written.
            detector: in place of the model's: an .onnx file of the YOLOX or YOLO family,
                ``zoo:NAME``, an object with ``detect(image_bgr)`` and ``classes``, what
                ``vision.load`` gives for a config of MMDetection, or a function, with
                ``classes`` (see ``vision.lattice.runtime.detectors.as_detector``).
            classes: names in label order, of ``detector``.
            progress: a bar on a terminal.
            mode, method, gap, keyframes, target_fps, target_ms, keyframe_rate, score_thr, fps,
                max_frames, max_reconnect, keep_going, show, deadline_ms, with_video,
                encoder_threads, opencv_threads: see ``vision.stream.core.options.VideoOptions``.

        Raises:
            VisionError: options that contradict each other, a source that cannot be opened.
        """
        given = locals()
        options = VideoOptions(**{name: given[name] for name in OPTION_NAMES})
        model = self
        if detector is not None or classes is not None:
            if detector is None:
                raise contradiction('classes without detector')
            opened = open_detector(detector, classes=classes)
            model = VideoModel(self._lattice.with_detector(opened))
        return model.open(source, options, stem=stem_of(save, source), progress=progress)

    def open(self, source: Named | Source, options: VideoOptions, *,
             stem: Path | None = None, progress: bool = True) -> VideoRun:
        """``video`` with its options in one value. Args: stem, of the files, without suffix."""
        opened = open_source(source, fps=options.fps, keep_going=options.keep_going,
                             max_reconnect=options.max_reconnect)
        check_source(opened, options)
        if stem is not None:
            refuse_to_overwrite(opened, stem)
        return VideoRun(self._lattice, opened, options, stem, progress)


def stem_of(save: str | os.PathLike | None, source: Named) -> Path | None:
    """Path of the output files without suffix; None where nothing is saved.

    Raises:
        VisionError: a video of another format than .mp4 is asked for.
    """
    if save is None:
        return None
    path = Path(save)
    if is_video(path) and not path.is_dir():
        if path.suffix != '.mp4':
            raise VisionError('VIS-CONFIG-1717', f'save={str(save)!r}', where='save',
                              why='videos are written as .mp4 (H.264)',
                              do='name an .mp4 file or a folder')
        return path.with_suffix('')
    return path / output_stem(source)


def check_source(source: Source, options: VideoOptions) -> None:
    """Refuse options that this source cannot meet.

    Raises:
        VisionError: ``offline`` with what comes once, or ``fps`` with what tells its own.
    """
    problem = why = ''
    if options.mode == 'offline' and (source.is_live or getattr(source, 'is_read_once', False)):
        problem, why = f'mode offline with {source.path}', \
            'offline reads the video twice, and a live source or a generator comes once'
    if problem:
        raise VisionError('VIS-CONFIG-512', problem, why=why,
                          do='use mode buffered, or give a list in place of a generator')
    if options.fps is not None and not isinstance(source, (FrameFolder, FrameSequence)):
        raise VisionError('VIS-CONFIG-1719', f'fps={options.fps:g} with {source.path}',
                          where='fps', why='a video tells its own; this is for folders and '
                          'pictures', do='leave fps out; target_fps sets a budget')


def refuse_to_overwrite(source: Source, stem: Path) -> None:
    """Refuse to write a video over the source.

    Raises:
        VisionError: the output is the source.
    """
    output = stem.with_name(f'{stem.name}.mp4')
    if Path(source.path).is_file() and output.exists() and output.samefile(source.path):
        raise VisionError('VIS-CONFIG-516', f'the output {output} would take the place of the '
                          'source', where='save, on the command line --out-dir',
                          why='both have the same name and folder', do='name another folder')


class VideoRun:
    """One run over one source: an iterator over its frames, in constant memory.

    Whoever leaves the loop early, by ``break`` or by an error, has finished files, of the frames
    so far. A damaged source raises its error after its last frame, unless ``keep_going``.

    Attributes:
        policy: the keyframe policy; a ``BudgetKeyframes`` says by ``account()`` what it kept.
        problem: what was wrong with the source, or None.
    """

    def __init__(self, lattice: FlowLattice | TorchLattice, source: Source,
                 options: VideoOptions, stem: Path | None, progress: bool) -> None:
        self._source, self._options, self._progress = source, options, progress
        self._classes = lattice.classes
        self._executor = ThreadPoolExecutor(1)  # no thread before its first task
        engine = lattice.build_engine(options, self._executor)
        self.policy = engine.policy
        self._player = Player(
            source, engine, lattice.classes,
            PlayOptions(stem, options.score_thr, options.with_video, options.show,
                        options.max_frames, options.deadline_ms, options.encoder_threads),
            on_frame=lambda count: self._on_frame(count), warn=_warn)
        self._on_frame = lambda count: None
        self._has_begun = self._is_stopped = False
        self._frames: weakref.ref | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        frames = self._iterated()
        self._frames = weakref.ref(frames)  # a loop that is left drops its generator: files close
        return frames

    def run(self) -> Played:
        """To the end, without looking at the frames; counts, latencies and files written."""
        with self._playing():
            if self._options.mode == 'offline':
                self._player.play_offline(rescore_tubes)
            else:
                self._player.play()
        self._tell_problem()
        return self._player.played()

    def stop(self) -> None:
        """End after this frame and finish the files; safe from a signal handler."""
        self._is_stopped = True
        self._player.stop()

    def __enter__(self) -> VideoRun:
        return self

    def __exit__(self, *_) -> None:
        if self._frames is not None and (frames := self._frames()) is not None:
            frames.close()

    @property
    def problem(self) -> VisionError | None:
        """What was wrong with the source; None if nothing was."""
        return self._source.problem

    @property
    def summary(self) -> Played:
        """Counts, latencies and files so far; all of it after the end."""
        return self._player.played()

    @property
    def stats(self) -> StreamStats:
        """Counts and latencies of the run."""
        return self.summary.stats

    @property
    def paths(self) -> list[Path]:
        """The files that are finished."""
        return self.summary.paths

    def to_pandas(self):
        """To the end: one ``pandas.DataFrame`` of all frames, columns as in the CSV file."""
        pandas = import_extra('pandas', extra='results', needed_for='to_pandas()')
        from vision.stream.io.sinks import COLUMNS
        rows = [row for frame in self if frame.status == 'final' for row in frame.rows()]
        return pandas.DataFrame(rows, columns=COLUMNS)

    def _iterated(self) -> Iterator[VideoFrame]:
        with self._playing():
            is_offline = self._options.mode == 'offline'
            results = self._player.results(rescore_tubes, is_offline=is_offline)
            try:
                for result, frame in results:
                    yield VideoFrame(result, frame.image_bgr, self._classes, frame.timestamp_s)
            finally:
                results.close()
        self._tell_problem()

    @contextmanager
    def _playing(self) -> Iterator[None]:
        if self._has_begun:
            raise VisionError('VIS-RUN-1720', f'this run over {self._source.path} was begun '
                              'already', why='a run reads its source once',
                              do='call video(...) again')
        self._has_begun = True
        num_threads = cv2.getNumThreads()
        with ExitStack() as stack:
            stack.callback(cv2.setNumThreads, num_threads)
            stack.enter_context(self._executor)
            cv2.setNumThreads(self._options.opencv_threads)
            if self._progress:
                self._on_frame = stack.enter_context(
                    progress_bar(self._source, self._options.max_frames))
            yield

    def _tell_problem(self) -> None:
        problem = self._source.problem
        if problem is None or self._is_stopped:
            return
        if not self._options.keep_going or not self.stats.num_finished:
            raise problem
        _warn(f'WARNING {problem.code}: {problem.what}')


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
