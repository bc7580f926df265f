"""Boxes on pictures, pictures side by side and on sheets, drawn by OpenCV alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

FONT, SCALE, PADDING = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 2
WHITE, BLACK, GREY, GROUND = (255, 255, 255), (0, 0, 0), (150, 150, 150), (32, 32, 32)  # BGR
GREEN, RED, ORANGE = (80, 200, 80), (60, 60, 255), (0, 165, 255)
BAR, GAP = 20, 4  # px: of a title, between pictures
Colour = tuple[int, int, int]


@cache
def class_colour(label: int) -> Colour:
    """BGR of a class or track; hues of neighbours are far apart (steps of the golden ratio)."""
    hsv = (label * 0.618034 % 1, (0.85, 0.6)[label % 2], (1.0, 0.85)[label // 2 % 2])
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hsv))[::-1]


def draw_boxes(image_bgr: np.ndarray, boxes_xyxy: np.ndarray, texts: Sequence[str],
               colours: Sequence[Colour], *, width: int = 2) -> np.ndarray:
    """A copy of (H, W, 3) uint8 with boxes (N, 4) in its pixels; later ones lie above."""
    image = np.ascontiguousarray(image_bgr).copy()
    draw_boxes_into(image, boxes_xyxy, texts, colours, width=width)
    return image


def draw_boxes_into(image_bgr: np.ndarray, boxes_xyxy: np.ndarray, texts: Sequence[str],
                    colours: Sequence[Colour], *, width: int = 2) -> None:
    """As ``draw_boxes``, boxes (N, 4) into the picture (H, W, 3) itself; labels lie above all."""
    corners = np.rint(np.asarray(boxes_xyxy)).astype(int).reshape(-1, 4).tolist()
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(image_bgr, (x1, y1), (x2, y2), colour, width)
    for (x1, y1, _, _), text, colour in zip(corners, texts, colours, strict=True):
        if text:
            _plate(image_bgr, text, (x1, y1), colour)


def captions(classes: Sequence[str], labels: np.ndarray, track_ids: np.ndarray,
             scores: np.ndarray) -> tuple[list[str], list[Colour]]:
    """``person #3 0.91`` for each of N boxes, and its colour: that of its track, of its class
    where it has none (id below 1). All arrays are (N,)."""
    found = list(zip(labels.tolist(), track_ids.tolist(), scores.tolist(), strict=True))
    return ([f'{classes[label]}{f" #{track}" if track > 0 else ""} {score:.2f}'
             for label, track, score in found],
            [class_colour(track if track > 0 else label) for label, track, _ in found])


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 under its title."""
    canvas = np.full((len(picture) + BAR, picture.shape[1], 3), GROUND, np.uint8)
    canvas[BAR:] = picture
    cv2.putText(canvas, title, (4, BAR - 6), FONT, SCALE, WHITE, 1, cv2.LINE_AA)
    return canvas


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Pictures (H, w, 3) uint8 BGR of one height in a row, each under its title."""
    return in_a_row([titled(*pair) for pair in zip(pictures, titles, strict=True)])


def in_a_row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, w, 3) uint8 BGR of one height with gaps between them."""
    gap = np.full((len(pictures[0]), GAP, 3), GROUND, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def sheet(cells: Sequence[np.ndarray], *, width: int = 1280) -> np.ndarray:
    """Pictures (H, w, 3) uint8 BGR of one height, row by row on a sheet of about ``width`` px."""
    rows: list[list[np.ndarray]] = []
    room = 0
    for cell in cells:
        if not rows or cell.shape[1] > room:
            rows.append([])
            room = width
        rows[-1].append(cell)
        room -= cell.shape[1] + GAP
    strips = [in_a_row(row) for row in rows]
    most = max(strip.shape[1] for strip in strips)
    padded = [cv2.copyMakeBorder(strip, 0, GAP, 0, most - strip.shape[1], cv2.BORDER_CONSTANT,
                                 value=GROUND) for strip in strips]
    return np.concatenate(padded)[:-GAP]


def _plate(image: np.ndarray, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """A label above the corner of a box; inside the picture at its edges."""
    (width, height), _ = cv2.getTextSize(text, FONT, SCALE, 1)
    width, height = width + 2 * PADDING, height + 2 * PADDING + 1
    left = max(0, min(corner[0], image.shape[1] - width))
    bottom = corner[1] if corner[1] >= height else corner[1] + height
    cv2.rectangle(image, (left, bottom - height), (left + width, bottom), colour, -1)
    is_bright = colour[0] * 0.11 + colour[1] * 0.59 + colour[2] * 0.3 > 140
    cv2.putText(image, text, (left + PADDING, bottom - PADDING - 1), FONT, SCALE,
                BLACK if is_bright else WHITE, 1, cv2.LINE_AA)
