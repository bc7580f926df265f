"""How safely the boxes between two keyframes can be propagated: 1 is easy, 0 is hopeless."""

from __future__ import annotations

import numpy as np

from vision.common.core.boxes import box_areas, paired_iou
from vision.lattice.core.matching import CONFIDENT_SCORE, match_boxes
from vision.lattice.core.motion import activity
from vision.lattice.core.structures import FrameBoxes

# A box whose size is this share of the frame's is as easy as a box can be (our choice).
SIZE_CAP = 0.25
# Without boxes on both ends, motion on more than this share of the pixels is suspicious.
ACTIVE_SHARE = 0.05


def pair_easiness(left_xyxy: np.ndarray, right_xyxy: np.ndarray, frame_size: tuple[int, int], *,
                  size_cap: float = SIZE_CAP) -> np.ndarray:
    """(P,) size x motion of paired boxes, left and right (P, 4) xyxy in px, each factor in [0, 1].

    motion = IoU of the two boxes; size = min(1, sqrt(sqrt(A_l A_r)) / (size_cap sqrt(H W)));
    ``frame_size`` is (H, W) in px.
    """
    size = (box_areas(left_xyxy) * box_areas(right_xyxy)) ** 0.25
    size = np.minimum(1, size / (size_cap * np.sqrt(np.prod(frame_size))))
    return size * paired_iou(left_xyxy, right_xyxy)


def interval_easiness(left: FrameBoxes, right: FrameBoxes, greys: list[np.ndarray],
                      frame_size: tuple[int, int], *, size_cap: float = SIZE_CAP) -> float:
    """Mean easiness of the objects of an interval, in [0, 1].

    Scale-Time Lattice (arXiv:1804.05472) puts keyframes where objects are small and fast. Our
    choices: an object counts if a keyframe is sure of it (score >= ``CONFIDENT_SCORE``), because
    detectors return much clutter of low score; one without a partner counts as 0, so that births
    and deaths ask for a keyframe; with no such object the interval is easy unless more than
    ``ACTIVE_SHARE`` of the pixels move.

    Args:
        greys: the small grey frames (h, w) of the interval, keyframes included.
        frame_size: (H, W) of the original frames, px.
    """
    pairs = match_boxes(left, right)
    sure_l, sure_r = left.scores >= CONFIDENT_SCORE, right.scores >= CONFIDENT_SCORE
    counted = pairs[sure_l[pairs[:, 0]] | sure_r[pairs[:, 1]]]
    num_alone = (np.delete(sure_l, pairs[:, 0]).sum() + np.delete(sure_r, pairs[:, 1]).sum())
    num_objects = len(counted) + num_alone
    if not num_objects:
        return float(activity(np.stack(greys)) <= ACTIVE_SHARE)
    easiness = pair_easiness(left.boxes_xyxy[counted[:, 0]], right.boxes_xyxy[counted[:, 1]],
                             frame_size, size_cap=size_cap)
    return float(easiness.sum() / num_objects)
