"""A detector of the YOLOX or YOLO family from an .onnx file, in onnxruntime.

What it returns equals ``vision.lattice.mm.mmdet_adapter.MMDetDetector`` for the same network: the
same resize, the best class of each anchor, suppression within a class, no clipping to the frame.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from vision.common.core.errors import VisionError
from vision.common.core.plain_values import whole_number
from vision.common.runtime.onnx_session import open_session
from vision.lattice.core.class_names import COCO_CLASSES
from vision.lattice.core.structures import FrameBoxes
from vision.zoo import resolve

STRIDES = (8, 16, 32)
FILL = 114  # both families pad with this grey
# The centres of trained boxes lie within a few strides of their anchors. Read the wrong way they
# seem to lie tens of strides away, on small inputs some: this much nearer the one than the other.
NEAR_STRIDES, TIMES_NEARER = 8, 3
MAX_SIDE = 8192  # of the network's input, px: an array of three such planes has 800 MB
MAX_NAMES_LETTERS = 1_000_000  # of the list of class names in a file
# exp() of wild outputs: a box of more than e^8 strides is larger than any frame.
MAX_LOG_SIDE = 8.0


@dataclass(frozen=True)
class Decoding:
    """How a file's output is read and what its input must look like.

    Args:
        has_objectness: an anchor is 4 + 1 + C numbers and a row of the output, (1, N, 5 + C);
            otherwise 4 + C and a column, (1, 4 + C, N). Its score is objectness times best class.
        is_raw: boxes are offsets from the anchor in strides and logarithms of sides; otherwise
            centre and sides in input pixels.
        colour: order of the input's channels.
        scale: factor from 0-255 to what the network was trained on.
        is_centred: the frame lies in the middle of the input; otherwise at the top left.
    """

    has_objectness: bool
    is_raw: bool
    colour: str
    scale: float
    is_centred: bool


DECODINGS = {
    'yolox': Decoding(True, True, 'bgr', 1.0, False),
    'yolox-decoded': Decoding(True, False, 'bgr', 1.0, False),
    'yolov5': Decoding(True, False, 'rgb', 1 / 255, True),  # v6 and v7 are read alike
    'yolov8': Decoding(False, False, 'rgb', 1 / 255, True),  # v9 and v11 are read alike
}


class OnnxDetector:
    """A detector of the YOLOX or YOLO family in onnxruntime on the CPU.

    One thread at a time may call ``detect``: the input array is reused.

    Args:
        path: an .onnx file. Tensors beside it are read; onnxruntime refuses a file that names
            any outside of its folder.
        classes: names in label order; otherwise those in the file (metadata ``names``, written by
            Ultralytics' export), otherwise COCO's for 80 classes.
        input_size: side in pixels, or (height, width), multiples of 32; where the graph leaves
            them open and the file names none (metadata ``input_size``) it is needed, where the
            graph has others it is refused.
        fit_frame: where the graph leaves its size open and ``input_size`` is one side, only as
            many rows (columns) are computed as a wide (tall) frame fills: 416 x 320 for a 4:3
            frame at 416, three quarters of the work of the padded square.
        decoding: a key of ``DECODINGS``, or 'auto': told from the output's shape and, for a row
            an anchor, from where the boxes of a noise picture lie.
        score_thr: boxes below are dropped.
        nms_iou: of two boxes of one class that overlap more, the worse goes.
        max_per_frame: at most this many boxes, the best ones.
        threads: threads of one inference.
        spinning: waiting threads spin: a shorter wait on idle cores, paid by whatever else runs.
        colour: 'bgr' or 'rgb' where the file departs from its family.

    Attributes:
        classes: class names in label order.
        input_size: (height, width) of the network's input, px.
        decoding: the key of ``DECODINGS`` in use.

    Raises:
        VisionError: VIS-INPUT-611 no such file, VIS-CKPT-807 a file that cannot be run,
            VIS-CONFIG-814 limits, VIS-CONFIG-816 class names, VIS-CONFIG-808 decoding,
            VIS-CONFIG-809 input size.
    """

    def __init__(self, path: str | os.PathLike, *, classes: Sequence[str] | None = None,
                 input_size: int | tuple[int, int] | None = None, decoding: str = 'auto',
                 score_thr: float = 0.01, nms_iou: float = 0.65, max_per_frame: int = 100,
                 threads: int = 2, spinning: bool = False, colour: str | None = None,
                 fit_frame: bool = True) -> None:
        if (not 0 <= score_thr < 1 or not 0 < nms_iou <= 1 or max_per_frame < 1 or threads < 1
                or colour not in (None, 'bgr', 'rgb')):
            raise VisionError(
                'VIS-CONFIG-814', f'score_thr={score_thr} must be in [0, 1), nms_iou={nms_iou} in '
                f'(0, 1], max_per_frame={max_per_frame} and threads={threads} at least 1, '
                f'colour={colour!r} bgr or rgb', where='OnnxDetector',
                do='change what is out of its range, or leave it out')
        if decoding not in ('auto', *DECODINGS):
            raise _decoding_error(f'decoding={decoding!r} is unknown', path)
        path = resolve(path)
        self.score_thr, self.nms_iou, self.max_per_frame = score_thr, nms_iou, max_per_frame
        self._session = _open(path, threads, spinning)
        self._input = self._session.get_inputs()[0].name
        shape = self._session.get_inputs()[0].shape
        if input_size is None and any(not isinstance(side, int) for side in shape[2:]):
            input_size = _named_size(_metadata(self._session, path))
        self.input_size = _input_size(shape, input_size, path)
        self._fits_frame = fit_frame and isinstance(input_size, int) and not any(
            isinstance(side, int) for side in shape[2:])
        self._anchors, self._strides = _anchor_grid(*self.input_size)
        noise = np.random.default_rng(0).integers(0, 256, (*self.input_size, 3), dtype=np.uint8)
        self._output = ''
        self._output, output = self._probe(noise, path)
        self.decoding = self._told_decoding(output, path) if decoding == 'auto' else decoding
        self._how = DECODINGS[self.decoding]
        num_classes = self._num_classes(output, path)
        self.classes = _class_names(classes, self._session, num_classes, path)
        self._colour = colour or self._how.colour
        self._letterbox = self._letterbox_of(self.input_size)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        """Boxes of one frame, best first, in pixels of ``image_bgr``; they may end outside of it.

        Shapes: image_bgr (H, W, 3) uint8.

        Raises:
            VisionError: VIS-INPUT-812 not such an array, VIS-RUN-813 outputs that are not finite.
        """
        require_picture(image_bgr)
        if self._fits_frame:
            self._fit(image_bgr.shape[:2])
        images, scale, shift = self._letterbox.apply(image_bgr)
        output = self._session.run([self._output], {self._input: images})[0][0]
        boxes, scores, labels = self._decoded(output)
        if not len(scores):
            return FrameBoxes.empty()
        # OpenCV takes x, y, width, height. boxes.batched_nms gives the same rows but is made for
        # clarity: it took 20 ms for 300 boxes. -1: scores of 0 stay when score_thr is 0.
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        kept = cv2.dnn.NMSBoxesBatched(sides, scores, labels, -1.0, self.nms_iou)
        kept = np.sort(np.asarray(kept, np.int64).reshape(-1))
        kept = kept[np.argsort(-scores[kept], kind='stable')][:self.max_per_frame]
        return FrameBoxes((boxes[kept] - shift) / scale, scores[kept], labels[kept])

    def _letterbox_of(self, size: tuple[int, int]) -> Letterbox:
        return Letterbox(size, is_centred=self._how.is_centred, colour=self._colour,
                         scale=self._how.scale)

    def _fit(self, frame_size: tuple[int, int]) -> None:
        """Take the smallest input that holds a frame of this size, scaled to ``input_size``."""
        step = max(STRIDES)
        size = tuple(-(-side // step) * step for side in scaled_size(frame_size, self.input_size))
        if size != self._letterbox.size:
            self._letterbox = self._letterbox_of(size)
            self._anchors, self._strides = _anchor_grid(*size)

    def _decoded(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes xyxy (K, 4) in input pixels, scores, labels of the anchors that reach the
        threshold: everything else is computed for those alone."""
        if self._how.has_objectness:
            best = output[:, 4]  # a class probability is at most 1, so this bounds the score
            rows = np.flatnonzero(best >= self.score_thr)
            found = output[rows]
            labels = found[:, 5:].argmax(axis=1)
            scores = found[:, 4] * found[np.arange(len(rows)), 5 + labels]
            above = scores >= self.score_thr
            rows, found, labels, scores = rows[above], found[above], labels[above], scores[above]
        else:
            best = output[4:].max(axis=0)
            rows = np.flatnonzero(best >= self.score_thr)
            found, scores = output[:, rows].T, best[rows]
            labels = found[:, 4:].argmax(axis=1)
        centres, sides = found[:, :2], found[:, 2:4]
        if self._how.is_raw:
            strides = self._strides[rows, None]
            centres = centres * strides + self._anchors[rows]
            sides = np.exp(np.minimum(sides, MAX_LOG_SIDE)) * strides
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        if not (np.isfinite(best).all() and np.isfinite(boxes).all()):
            raise VisionError('VIS-RUN-813', 'the detector gave scores or boxes that are not '
                              'finite', where='OnnxDetector', why='the file is damaged or its '
                              'training diverged', do='export the weights again')
        return boxes, scores, labels

    def _probe(self, image: np.ndarray, path: Path) -> tuple[str, np.ndarray]:
        """Name and value of the first output with three axes, for a noise picture."""
        names = [o.name for o in self._session.get_outputs() if len(o.shape or ()) in (0, 3)]
        images = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        try:
            outputs = self._session.run(names, {self._input: images})
        except Exception as error:  # onnxruntime raises kinds of its own
            raise _broken(path, f'it cannot be run at {self.input_size}: {error}') from error
        for name, output in zip(names, outputs, strict=True):
            if output.ndim == 3 and len(output) == 1 and output.dtype == np.float32:
                return name, output[0]
        raise _decoding_error('no output of the file is (1, N, 5 + C) or (1, 4 + C, N) float32',
                              path)

    def _told_decoding(self, output: np.ndarray, path: Path) -> str:
        rows, columns = output.shape
        num_anchors = len(self._anchors)
        if columns == num_anchors and rows > 4:
            return 'yolov8'
        if rows == 3 * num_anchors and columns > 5:
            return 'yolov5'
        if rows != num_anchors or columns <= 5:
            raise _decoding_error(
                f'an output of {rows} x {columns} for an input of {self.input_size} fits no '
                f'decoding: {num_anchors} or {3 * num_anchors} anchors are expected', path)
        centres, strides = output[:, :2], self._strides[:, None]
        raw = np.median(np.abs(centres))
        decoded = np.median(np.abs(centres - self._anchors) / strides)
        if raw < NEAR_STRIDES and raw * TIMES_NEARER < decoded:
            return 'yolox'
        raise _decoding_error(
            f'an output of {rows} x {columns} in pixels may be that of YOLOX with its decoding, '
            'or of YOLOv6: their inputs differ' if decoded < NEAR_STRIDES < raw else
            'the boxes of a noise picture lie neither at their anchors nor at zero', path)

    def _num_classes(self, output: np.ndarray, path: Path) -> int:
        size = output.shape[1] - 5 if self._how.has_objectness else output.shape[0] - 4
        if size < 1 or (self._how.is_raw and len(output) != len(self._anchors)):
            raise _decoding_error(f'an output of {output.shape[0]} x {output.shape[1]} is not '
                                  f'that of {self.decoding}', path)
        return size


class Letterbox:
    """Scale a frame to fit the network's input, grey around it; arrays are made once.

    Args:
        size: (height, width) of the input, px.
        is_centred: in the middle, else at the top left.
        colour: channel order of the input; frames are BGR.
        scale: factor of the values.
    """

    def __init__(self, size: tuple[int, int], *, is_centred: bool, colour: str,
                 scale: float) -> None:
        self.size, self.is_centred = size, is_centred
        self._planes = slice(None, None, -1 if colour == 'rgb' else 1)
        self._scale = np.float32(scale)
        self._canvas = np.full((*size, 3), FILL, np.uint8)
        self._inner = self._canvas[:0]
        self._images = np.empty((1, 3, *size), np.float32)
        self._frame_shape: tuple[int, ...] = ()
        self._back = (np.ones(4, np.float32), np.zeros(4, np.float32))

    def apply(self, image_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input (1, 3, H, W) float32, valid until the next call; scale and shift (4,) float32:
        input pixel = frame pixel * scale + shift, for x1 y1 x2 y2."""
        if image_bgr.shape != self._frame_shape:
            self._fit(image_bgr.shape)
        height, width = self._inner.shape[:2]
        cv2.resize(image_bgr, (width, height), dst=self._inner)
        # Plane by plane is three times as fast as one copy that turns the axes.
        for plane, target in zip(cv2.split(self._canvas)[self._planes], self._images[0],
                                 strict=True):
            np.multiply(plane, self._scale, out=target, casting='unsafe')
        return self._images, *self._back

    def _fit(self, shape: tuple[int, ...]) -> None:
        height, width = shape[:2]
        new_height, new_width = scaled_size((height, width), self.size)
        top = (self.size[0] - new_height) // 2 if self.is_centred else 0
        left = (self.size[1] - new_width) // 2 if self.is_centred else 0
        self._canvas[:] = FILL
        self._inner = self._canvas[top:top + new_height, left:left + new_width]
        self._back = (np.array([new_width / width, new_height / height] * 2, np.float32),
                      np.array([left, top] * 2, np.float32))
        self._frame_shape = shape


def scaled_size(frame: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a frame that fills the room with its shape kept, rounded as mmcv's
    rescale_size does it."""
    ratio = min(side / own for side, own in zip(room, frame, strict=True))
    return tuple(max(1, min(side, int(own * ratio + 0.5)))
                 for side, own in zip(room, frame, strict=True))


def require_picture(image_bgr: np.ndarray) -> None:
    """Refuse anything but (H, W, 3) uint8 (VIS-INPUT-812)."""
    shape, kind = getattr(image_bgr, 'shape', ()), getattr(image_bgr, 'dtype', None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != np.uint8:
        raise VisionError('VIS-INPUT-812', f'a frame is {shape} {kind}', where='detect()',
                          why='a frame is (height, width, 3) uint8 in BGR order',
                          do='convert it: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)')


def _open(path: Path, threads: int, spinning: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry('session.intra_op.allow_spinning', str(int(spinning)))
    try:
        session = open_session(path, options)
    except Exception as error:  # onnxruntime raises kinds of its own
        raise _broken(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != 'tensor(float)' or len(inputs[0].shape) != 4:
        raise _broken(path, 'its inputs are ' + ', '.join(f'{i.name} {i.shape} {i.type}'
                                                         for i in inputs)
                      + '; one (1, 3, H, W) float is expected')
    return session


def _metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, str]:
    try:
        return session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise _broken(path, f'its metadata is no text: {error}') from error


def _named_size(metadata: dict[str, str]) -> int | None:
    """The side in pixels that the file was trained for, where it says so."""
    return whole_number(metadata.get('input_size', ''), most=MAX_SIDE)


def _input_size(shape: Sequence, wanted: int | tuple[int, int] | None,
                path: Path) -> tuple[int, int]:
    fixed = tuple(shape[2:])
    size = wanted if wanted is None or isinstance(wanted, tuple) else (wanted, wanted)
    problem = ''
    if size is None and not all(isinstance(side, int) for side in fixed):
        problem = f'the graph leaves its input size open: {list(shape)}'
    elif size is not None and any(isinstance(side, int) and side != given
                                  for side, given in zip(fixed, size, strict=True)):
        problem = f'input_size={wanted}, but the graph takes {list(shape)}'
    elif any(not max(STRIDES) <= side <= MAX_SIDE or side % max(STRIDES)
             for side in size or fixed):
        problem = f'an input of {size or fixed} px'
    if problem:
        raise VisionError('VIS-CONFIG-809', problem, where=str(path), why='height and width are '
                          f'multiples of {max(STRIDES)} up to {MAX_SIDE}; a graph made for one '
                          'size runs at it alone', do='give input_size=416, 640, ... or (height, '
                          'width), or export the file for another size')
    return size or fixed


def _anchor_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, 2) px and strides (N,) px of the cells, level by level, row by row."""
    corners = [np.mgrid[:height // s, :width // s][::-1].reshape(2, -1).T * s for s in STRIDES]
    strides = [np.full(len(rows), s) for rows, s in zip(corners, STRIDES, strict=True)]
    return (np.concatenate(corners).astype(np.float32),
            np.concatenate(strides).astype(np.float32))


def _class_names(given: Sequence[str] | None, session: onnxruntime.InferenceSession, number: int,
                 path: Path) -> tuple[str, ...]:
    text = _metadata(session, path).get('names')
    names: tuple[str, ...] = COCO_CLASSES if number == len(COCO_CLASSES) else ()
    if given is not None:
        names = tuple(given)
    elif text:
        try:
            stored = ast.literal_eval(text[:MAX_NAMES_LETTERS])
            names = tuple(str(stored[i]) for i in range(len(stored)))
        except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
            names = ()
    if len(names) != number:
        raise VisionError('VIS-CONFIG-816', f'the detector knows {number} classes but '
                          f'{len(names)} names are given', where=str(path),
                          why='names come from classes=, else from the file, else are COCO\'s '
                          'for 80 classes', do='give classes=(...) in label order')
    return names


def _broken(path: Path, reason: str) -> VisionError:
    return VisionError('VIS-CKPT-807', f'{path.name} cannot be used as a detector: {reason}',
                       where=str(path), do='export it again, as one file')


def _decoding_error(what: str, path: str | os.PathLike) -> VisionError:
    return VisionError('VIS-CONFIG-808', what, where=str(path), why='yolox: (1, N, 5 + C) in '
                       'strides; yolox-decoded: the same in pixels; yolov5 (v6, v7): (1, N, '
                       '5 + C) in pixels, RGB; yolov8 (v9, v11): (1, 4 + C, N), RGB',
                       do=f'give decoding={" or ".join(map(repr, DECODINGS))}')
