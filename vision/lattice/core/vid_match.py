"""Which detection found which ground truth, for every IoU threshold at once.

Frames are flattened into arrays; the greedy matching runs over ranks (all best detections of all
frames and classes together, then all second ones, ...), so that its cost is a few numpy calls
per rank and not a Python loop per box. Boxes are xyxy in pixels of the original frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes

UNMATCHED = -1
CROWD = -2  # found an ignore region: neither right nor wrong
# Elements of one overlap table (detections x ground truths of a frame): bounds the memory.
_CHUNK_ELEMENTS = 2_000_000


@dataclass(frozen=True, eq=False)
class TruthFrame:
    """Ground truth of one frame; frames without objects are frames too.

    Shapes: boxes_xyxy (N, 4); labels (N,) index into the classes; instance_ids (N,) the track,
        >= 1 and the same in all frames of a video; is_crowd (N,) regions to ignore, default none.
    """

    video_id: int
    frame_id: int
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    instance_ids: np.ndarray
    is_crowd: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """Flat arrays over all frames; G ground truths, C crowd regions, D detections, F frames.

    Detections are ordered by frame, label, falling score; ``slots[f]`` lists the ground truths
    of frame f, padded by -1. ``video`` and ``frame_id`` are per frame, ``video`` counts from 0.

    Shapes: video, frame_id (F,); gt_box (G, 4) xyxy in px, its frame, label and instance (G,);
        slots (F, K) positions among the G; crowd_box (C, 4), crowd_label (C,), crowd_slots (F, L);
        det_box (D, 4) xyxy in px, its frame, label, score and rank (D,), where rank counts from 0
        within frame and class.
    """

    video: np.ndarray
    frame_id: np.ndarray
    gt_frame: np.ndarray
    gt_box: np.ndarray
    gt_label: np.ndarray
    gt_instance: np.ndarray
    slots: np.ndarray
    crowd_box: np.ndarray
    crowd_label: np.ndarray
    crowd_slots: np.ndarray
    det_frame: np.ndarray
    det_box: np.ndarray
    det_label: np.ndarray
    det_score: np.ndarray
    det_rank: np.ndarray
    num_classes: int

    @property
    def num_videos(self) -> int:
        """Videos that any frame belongs to."""
        return int(self.video.max()) + 1 if len(self.video) else 0


def tabulate(truths: Sequence[TruthFrame], detections: Sequence[FrameBoxes], *,
             num_classes: int, max_per_class: int | None = None) -> Table:
    """Flatten and check frames; ``max_per_class`` keeps the best of each frame and class.

    Raises:
        VisionError: counts differ, a frame comes twice, a label is outside the classes, a number
            is not finite.
    """
    if len(truths) != len(detections):
        raise VisionError('VIS-DATA-401', f'{len(truths)} frames of ground truth, '
                          f'{len(detections)} frames of detections',
                          why='each frame is judged once, with or without boxes',
                          do='pass an empty FrameBoxes for a frame where nothing was found')
    _refuse_twice(truths)
    _, video = np.unique([t.video_id for t in truths], return_inverse=True)
    gt = _flatten_truths(truths, num_classes)
    det = _flatten_detections(detections, num_classes, max_per_class, truths)
    crowd = gt.pop('crowd')
    regular = {name: values[~crowd] for name, values in gt.items()}
    return Table(
        video=video, frame_id=np.array([t.frame_id for t in truths], np.int64),
        gt_frame=regular['frame'], gt_box=regular['box'], gt_label=regular['label'],
        gt_instance=regular['instance'], slots=_slots(regular['frame'], len(truths)),
        crowd_box=gt['box'][crowd], crowd_label=gt['label'][crowd],
        crowd_slots=_slots(gt['frame'][crowd], len(truths)), num_classes=num_classes, **det)


def _refuse_twice(truths: Sequence[TruthFrame]) -> None:
    seen = set()
    for truth in truths:
        key = (truth.video_id, truth.frame_id)
        if key in seen:
            raise VisionError('VIS-DATA-402', f'frame {key[1]} of video {key[0]} came twice',
                              why='a frame that is counted twice changes the precision',
                              do='use a sampler that does not pad (VideoFrameSampler), and one '
                              'evaluation for each run over the data')
        seen.add(key)


def _flatten_truths(truths: Sequence[TruthFrame], num_classes: int) -> dict[str, np.ndarray]:
    counts = [len(t.labels) for t in truths]
    crowds = [np.zeros(n, bool) if t.is_crowd is None else np.asarray(t.is_crowd, bool)
              for t, n in zip(truths, counts, strict=True)]
    flat = dict(frame=np.repeat(np.arange(len(truths)), counts),
                box=_join([np.reshape(t.boxes_xyxy, (-1, 4)) for t in truths], (0, 4), float),
                label=_join([t.labels for t in truths], (0,), np.int64),
                instance=_join([t.instance_ids for t in truths], (0,), np.int64),
                crowd=_join(crowds, (0,), bool))
    _check('ground truth', flat['frame'], flat['box'], flat['label'], num_classes, truths)
    return flat


def _flatten_detections(detections: Sequence[FrameBoxes], num_classes: int,
                        max_per_class: int | None,
                        truths: Sequence[TruthFrame]) -> dict[str, np.ndarray]:
    frame = np.repeat(np.arange(len(detections)), [len(d) for d in detections])
    box = _join([d.boxes_xyxy for d in detections], (0, 4), float)
    label = _join([d.labels for d in detections], (0,), np.int64)
    score = _join([d.scores for d in detections], (0,), float)
    _check('detection', frame, np.column_stack([box, score]), label, num_classes, truths)
    order = np.lexsort((-score, label, frame))  # stable: equal scores keep their order
    frame, box, label, score = frame[order], box[order], label[order], score[order]
    is_first = np.ones(len(frame), bool)
    is_first[1:] = (frame[1:] != frame[:-1]) | (label[1:] != label[:-1])
    rows = np.arange(len(frame))
    rank = rows - np.maximum.accumulate(np.where(is_first, rows, 0))
    keep = rank < (len(rank) + 1 if max_per_class is None else max_per_class)
    return dict(det_frame=frame[keep], det_box=box[keep], det_label=label[keep],
                det_score=score[keep], det_rank=rank[keep])


def _check(what: str, frame: np.ndarray, numbers: np.ndarray, label: np.ndarray,
           num_classes: int, truths: Sequence[TruthFrame]) -> None:
    is_number = np.isfinite(numbers).all(1)
    is_class = (label >= 0) & (label < num_classes)

    def refused(code: str, bad: np.ndarray, why: str) -> VisionError:
        first = truths[frame[bad[0]]]
        return VisionError(code, f'{len(bad)} {what} rows cannot be judged; the first has label '
                           f'{label[bad[0]]}, numbers {numbers[bad[0]].tolist()}',
                           where=f'video {first.video_id}, frame {first.frame_id}', why=why,
                           do='mend the annotation, or the model that made the boxes')

    if not is_number.all():
        raise refused('VIS-DATA-403', np.flatnonzero(~is_number), 'a box or score is not finite')
    if not is_class.all():
        raise refused('VIS-DATA-404', np.flatnonzero(~is_class),
                      f'labels go from 0 to num_classes - 1 = {num_classes - 1}')


def _join(parts: list, empty: tuple[int, ...], dtype) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *(np.asarray(p, dtype) for p in parts)])


def _slots(frame: np.ndarray, num_frames: int) -> np.ndarray:
    """(F, K) indices of the rows that lie in each frame, -1 behind the last; K >= 1."""
    counts = np.bincount(frame, minlength=num_frames)
    slots = np.full((num_frames, max(1, counts.max(initial=0))), -1)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if num_frames else counts
    slots[frame, np.arange(len(frame)) - starts[frame]] = np.arange(len(frame))
    return slots


def overlaps(a: np.ndarray, b: np.ndarray, *, extra: float = 0.0) -> np.ndarray:
    """IoU of boxes that broadcast, (..., 4) each; ``extra`` 1 counts pixels inclusively.

    The inclusive form (w = x2 - x1 + 1) is how ImageNet VID's tools read their boxes.
    """
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    common = np.prod(np.maximum(size, 0), axis=-1)
    areas = [np.prod(np.maximum(x[..., 2:] - x[..., :2] + extra, 0), axis=-1) for x in (a, b)]
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def chunks(table: Table) -> Iterator[tuple[slice, slice]]:
    """(rows of detections, frames) in pieces of whole frames and bounded memory."""
    ends = np.searchsorted(table.det_frame, np.arange(len(table.slots)), side='right')
    num_rows = max(1, _CHUNK_ELEMENTS // table.slots.shape[1])
    row = frame = 0
    while frame < len(table.slots):
        end = max(frame + 1, int(np.searchsorted(ends, row + num_rows, side='right')))
        yield slice(row, int(ends[end - 1])), slice(frame, end)
        row, frame = int(ends[end - 1]), end


def frame_overlaps(table: Table, rows: slice, *, extra: float) -> tuple[np.ndarray, np.ndarray]:
    """IoU (n, K) of detections with all ground truths of their frame, and their slots (n, K)."""
    slots = table.slots[table.det_frame[rows]]
    if not len(table.gt_box):
        return np.zeros(slots.shape), slots
    return overlaps(table.det_box[rows, None], table.gt_box[slots], extra=extra), slots


def match(table: Table, thresholds: np.ndarray, tolerances: np.ndarray, *, extra: float,
          is_last_best: bool) -> np.ndarray:
    """Greedy matching, best score first, inside each frame and class.

    Args:
        thresholds: (T,) IoU from which a ground truth counts as found.
        tolerances: (G,) upper limit of that IoU for each ground truth (small objects).
        extra: 1 for inclusive pixels, else 0.
        is_last_best: which of several equal IoUs wins; pycocotools takes the last one.

    Returns:
        (D, T) int32, the ground truth's row, ``UNMATCHED`` or ``CROWD``.
    """
    found = np.full((len(table.det_frame), len(thresholds)), UNMATCHED, np.int32)
    limits = np.minimum(thresholds, tolerances[:, None])
    for rows, frames in chunks(table):
        if len(table.gt_box):
            _match_chunk(table, rows, frames, limits, found[rows], extra=extra,
                         is_last_best=is_last_best)
        if len(table.crowd_box):
            _match_crowd(table, rows, thresholds, found[rows])
    return found


def _match_chunk(table: Table, rows: slice, frames: slice, limits: np.ndarray,
                 found: np.ndarray, *, extra: float, is_last_best: bool) -> None:
    iou, slots = frame_overlaps(table, rows, extra=extra)
    is_same = (slots >= 0) & (table.gt_label[slots] == table.det_label[rows, None])
    iou = np.where(is_same, iou, -1)
    frame = table.det_frame[rows] - frames.start
    limit = limits[table.slots[frames]].transpose(0, 2, 1)  # (f, T, K)
    is_taken = np.zeros(limit.shape, bool)
    rank = table.det_rank[rows]
    by_rank = np.argsort(rank, kind='stable')
    by_rank = by_rank[is_same[by_rank].any(1)]
    for now in np.split(by_rank, np.flatnonzero(np.diff(rank[by_rank])) + 1):
        value = np.where(is_taken[frame[now]] | (iou[now, None] < limit[frame[now]]), -1,
                         iou[now, None])  # (n, T, K)
        best = value.shape[2] - 1 - value[..., ::-1].argmax(2) if is_last_best else value.argmax(2)
        i, t = np.nonzero(np.take_along_axis(value, best[..., None], 2)[..., 0] >= 0)
        k = best[i, t]
        is_taken[frame[now[i]], t, k] = True
        found[now[i], t] = slots[now[i], k]


def _match_crowd(table: Table, rows: slice, thresholds: np.ndarray, found: np.ndarray) -> None:
    """Unmatched detections in an ignore region of their class; the overlap is the share of the
    detection that lies inside, as in COCO."""
    slots = table.crowd_slots[table.det_frame[rows]]
    box, region = table.det_box[rows, None], table.crowd_box[slots]
    size = np.minimum(box[..., 2:], region[..., 2:]) - np.maximum(box[..., :2], region[..., :2])
    area = np.maximum(np.prod(box[..., 2:] - box[..., :2], axis=-1), 1e-9)
    is_same = (slots >= 0) & (table.crowd_label[slots] == table.det_label[rows, None])
    share = np.where(is_same, np.prod(np.maximum(size, 0), axis=-1) / area, -1).max(1)
    found[(share[:, None] >= thresholds) & (found == UNMATCHED)] = CROWD
