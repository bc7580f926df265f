"""Perfect positions between keyframes: the most that any propagation could reach."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from vision.common.core.boxes import iou_matrix
from vision.lattice.core.cocovid import CocoFrame
from vision.lattice.core.structures import FrameBoxes, FrameResult


def true_positions(results: list[FrameResult], frames: Sequence[CocoFrame]) -> list[FrameResult]:
    """What perfect positions would give from the same keyframes, links and scores.

    Between two keyframes, every box of a track that lay on an object (IoU above 0.5) at either
    of them is put on that object, or dropped where the object is not there; class and score stay
    those of the keyframes. A box whose track lay on nothing stays.
    """
    keyframes = [result.frame_id for result in results if result.is_keyframe]
    objects = {result.frame_id: tracked_objects(result.boxes, frames[result.frame_id])
               for result in results if result.is_keyframe}
    moved = []
    for result in results:
        if not result.is_keyframe:
            right = bisect.bisect(keyframes, result.frame_id)
            known = objects[keyframes[right]] | objects[keyframes[right - 1]]
            result = dataclasses.replace(result, boxes=put_on_objects(
                result.boxes, known, frames[result.frame_id]))
        moved.append(result)
    return moved


def tracked_objects(boxes: FrameBoxes, frame: CocoFrame) -> dict[int, int]:
    """Track id -> instance id of the object on which its box lies."""
    if not len(boxes) or not len(frame.instance_ids):
        return {}
    iou = iou_matrix(boxes.boxes_xyxy, frame.boxes_xyxy)
    return {int(track): int(frame.instance_ids[row.argmax()])
            for track, row in zip(boxes.track_ids, iou, strict=True) if row.max() > 0.5}


def put_on_objects(boxes: FrameBoxes, known: dict[int, int], frame: CocoFrame) -> FrameBoxes:
    """Boxes of known tracks (track id -> instance id) on their objects; without an object there,
    they are left out."""
    place = {int(i): box for i, box in zip(frame.instance_ids, frame.boxes_xyxy, strict=True)}
    moved, is_there = boxes.boxes_xyxy.copy(), np.ones(len(boxes), bool)
    for row, track in enumerate(boxes.track_ids.tolist()):
        if track in known:
            is_there[row] = known[track] in place
            moved[row] = place.get(known[track], moved[row])
    return boxes.replace(boxes_xyxy=moved).select(is_there)
