"""Counters for a line and a zone, blurred classes and faces, a heat map: drawn by supervision.

Everything here works on one frame after the other and is tested without a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from vision.common.core.extras import import_extra
from vision.lattice.core.structures import FrameBoxes
from vision.web.limits import bad_field

BLUR_MARGIN = 0.1  # of a box's side, around it: a face's edge identifies too
_NUMBER = re.compile(r'-?\d+(?:\.\d+)?')

Points = list[tuple[float, float]]
FindFaces = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class OverlayOptions:
    """What is drawn and counted beside boxes and ids.

    Args:
        line: two points (x, y) px; objects that cross it are counted in both directions.
        zone: three points (x, y) px or more; objects whose feet stand inside are counted.
        blurred: names of classes whose boxes are blurred.
        with_faces: faces are blurred too.
        with_heat: a heat map of where objects stood.
        with_boxes: boxes, ids and figures are drawn.
    """

    line: Points = field(default_factory=list)
    zone: Points = field(default_factory=list)
    blurred: tuple[str, ...] = ()
    with_faces: bool = False
    with_heat: bool = False
    with_boxes: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for beside boxes."""
        return not (self.line or self.zone or self.blurred or self.with_faces or self.with_heat)


def parse_points(text: str, *, least: int, most: int, what: str) -> Points:
    """'10, 20  300, 20' -> [(10.0, 20.0), (300.0, 20.0)]; '' -> [].

    Raises:
        VisionError: VIS-INPUT-1775 no pairs of numbers, or too few or many of them.
    """
    numbers = [float(part) for part in _NUMBER.findall(text or '')]
    rest = _NUMBER.sub('', text or '').strip(' \t\n,;()[]')
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    if not numbers and not rest:
        return []
    if rest or len(numbers) % 2 or not least <= len(points) <= most \
            or not np.isfinite(numbers).all():
        count = f'{least} points' if least == most else f'{least} to {most} points'
        raise bad_field(what, text.strip(), f'{count}, x and y of each in pixels',
                        'for example 100,200 500,200' if least == 2 else
                        'for example 100,100 500,100 500,400')
    return points


class Overlays:
    """Draws into the frames of one video and counts over all of them.

    Args:
        classes: names in label order.
        find_faces: (H, W, 3) uint8 BGR -> boxes xyxy (N, 4); needed when ``options.with_faces``.

    Raises:
        VisionError: VIS-INPUT-1775 a class that the model does not know, VIS-ENV-1713
            supervision is not installed and something needs it.
    """

    def __init__(self, options: OverlayOptions, classes: tuple[str, ...], *,
                 find_faces: FindFaces | None = None) -> None:
        unknown = sorted(set(options.blurred) - set(classes))
        if unknown:
            raise bad_field('blur', ', '.join(unknown), f'among {", ".join(classes)}')
        assert find_faces is not None or not options.with_faces
        self._options, self._classes, self._find_faces = options, classes, find_faces
        self._is_blurred = np.array([name in options.blurred for name in classes], bool)
        self._sv = None if options.is_empty else _supervision()
        self._line = self._zone = self._heat = None
        self._num_in_zone, self._most_in_zone = 0, 0
        self._seen_in_zone: set[int] = set()

    def draw(self, image_bgr: np.ndarray, boxes: FrameBoxes) -> None:
        """Blur, heat, line and zone of one frame, in ``image_bgr`` (H, W, 3) uint8 itself; boxes
        and ids are drawn over it by ``vision.stream.io.overlay``."""
        options, sv = self._options, self._sv
        if sv is None:
            return
        faces = self._find_faces(image_bgr) if options.with_faces else None  # before any blur
        if options.blurred:
            blur(image_bgr, boxes.boxes_xyxy[self._is_blurred[boxes.labels]])
        if options.with_faces:
            blur(image_bgr, faces)
        found = sv.Detections(xyxy=boxes.boxes_xyxy.reshape(-1, 4), confidence=boxes.scores,
                              class_id=boxes.labels.astype(int),
                              tracker_id=boxes.track_ids.astype(int))
        if options.with_heat:
            self._draw_heat(image_bgr, found)
        if options.line:
            self._draw_line(image_bgr, found)
        if options.zone:
            self._draw_zone(image_bgr, found)

    def counts(self) -> dict[str, int]:
        """line_in, line_out: crossings from the right to the left side of the line, seen from
        its first point, and back; zone_now, zone_most, zone_tracks: objects inside in the last
        frame, at most at once, and different ones altogether. Only what was asked for."""
        counts = {}
        if self._options.line:
            line = self._line
            counts |= dict(line_in=line.in_count if line else 0,
                           line_out=line.out_count if line else 0)
        if self._options.zone:
            counts |= dict(zone_now=self._num_in_zone, zone_most=self._most_in_zone,
                           zone_tracks=len(self._seen_in_zone))
        return counts

    def _draw_heat(self, image_bgr: np.ndarray, found) -> None:
        sv = self._sv
        if self._heat is None:
            radius = max(8, min(image_bgr.shape[:2]) // 24)
            self._heat = sv.HeatMapAnnotator(opacity=0.45, radius=radius)
        self._heat.annotate(image_bgr, found)

    def _draw_line(self, image_bgr: np.ndarray, found) -> None:
        sv = self._sv
        if self._line is None:
            start, end = (sv.Point(x=x, y=y) for x, y in self._options.line)
            # The centre: a box's four corners may stand on both sides for the whole clip.
            self._line = sv.LineZone(start, end, triggering_anchors=(sv.Position.CENTER,))
        self._line.trigger(found)
        sv.LineZoneAnnotator(thickness=2, text_scale=0.5, text_thickness=1).annotate(
            image_bgr, self._line)

    def _draw_zone(self, image_bgr: np.ndarray, found) -> None:
        sv = self._sv
        if self._zone is None:
            height, width = image_bgr.shape[:2]
            corners = np.clip(np.array(self._options.zone), 0, [width - 1, height - 1])
            self._zone = sv.PolygonZone(corners.astype(int))
        is_inside = self._zone.trigger(found)
        self._num_in_zone = int(is_inside.sum())
        self._most_in_zone = max(self._most_in_zone, self._num_in_zone)
        self._seen_in_zone |= set(found.tracker_id[is_inside].tolist())
        cv2.polylines(image_bgr, [self._zone.polygon], True, (255, 255, 255), 2, cv2.LINE_AA)
        sv.draw_text(image_bgr, f'zone {self._num_in_zone}', sv.Point(
            *self._zone.polygon.mean(axis=0).astype(int).tolist()), text_thickness=1,
            background_color=sv.Color.WHITE, text_color=sv.Color.BLACK)


def blur(image_bgr: np.ndarray, boxes_xyxy: np.ndarray) -> None:
    """Make what is inside the boxes (N, 4) px unrecognisable, in the image itself.

    Four squares, then a blur: a blur alone, of a kernel that is known, can be undone in part.
    """
    sv = _supervision()
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    margin = BLUR_MARGIN * (boxes[:, 2:] - boxes[:, :2])
    padded = np.concatenate([np.floor(boxes[:, :2] - margin), np.ceil(boxes[:, 2:] + margin)], 1)
    found = sv.Detections(xyxy=padded, class_id=np.zeros(len(padded), int))
    sv.PixelateAnnotator().annotate(image_bgr, found)
    sv.BlurAnnotator().annotate(image_bgr, found)


def _supervision():
    return import_extra('supervision', extra='web', needed_for='counting and blurring')
