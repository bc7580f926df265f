"""Small pieces of HTML: sentences, tables and pictures that need no file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import cv2
import numpy as np

from vision.common.core.errors import VisionError
from vision.faces.runtime.recognition import KnownFace
from vision.web.video import ClipOptions, VideoOutcome

KNOWN, UNKNOWN = (80, 200, 60), (60, 60, 220)  # BGR
JPEG_QUALITY = 85


def error_html(error: VisionError) -> str:
    """One sentence, why and what to do, and the code for those who ask."""
    rest = '; '.join(part for part in (error.why, error.do) if part)
    return (f'<div class="vision-error" role="alert"><b>{escape(error.what)}.</b> '
            f'{escape(rest[:1].upper() + rest[1:])}. <small>{escape(error.code)}</small></div>')


def note_html(text: str) -> str:
    """A sentence, escaped."""
    return f'<div class="vision-note">{escape(text)}</div>'


def table_html(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns; everything is escaped."""
    body = ''.join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
                   for name, value in rows)
    return f'<table class="vision-table">{body}</table>'


def picture_html(image_bgr: np.ndarray, alt: str) -> str:
    """The picture (H, W, 3) uint8 BGR itself inside of the page: it never becomes a file."""
    _, data = cv2.imencode('.jpg', image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    text = base64.b64encode(data.tobytes()).decode()
    return f'<img class="vision-picture" alt="{escape(alt)}" src="data:image/jpeg;base64,{text}">'


def outcome_html(outcome: VideoOutcome, options: ClipOptions) -> str:
    """What came of a clip: frames, keyframes, budget, counters."""
    rows = [('frames', f'{outcome.num_frames}'),
            ('keyframes', f'{outcome.num_keyframes} ({outcome.keyframe_rate:.1%}): the detector '
             'ran on these'),
            ('objects', f'{outcome.num_tracks} different ids'),
            ('end to end', f'{outcome.fps:.1f} frames per second, drawing and writing included')]
    if options.target_fps:
        rows.append(('budget', outcome.budget))
    rows += counts_rows(outcome.counts)
    warning = note_html(outcome.cut_short[:1].upper() + outcome.cut_short[1:] +
                        '; what is below is of the part before.') if outcome.cut_short else ''
    return warning + table_html(rows)


def counts_rows(counts: dict[str, int]) -> list[tuple[str, str]]:
    """Rows of a table: what crossed the line and stood in the zone."""
    rows = []
    if 'line_in' in counts:
        rows.append(('line', f'{counts["line_in"]} in, {counts["line_out"]} out'))
    if 'zone_most' in counts:
        rows.append(('zone', f'{counts["zone_now"]} now, at most {counts["zone_most"]} at once, '
                     f'{counts["zone_tracks"]} different ids'))
    return rows


def matches_html(image_bgr: np.ndarray, matches: list[KnownFace], threshold: float) -> str:
    """The picture (H, W, 3) uint8 BGR with its faces numbered, and a row for each."""
    canvas = image_bgr.copy()
    width = max(2, max(canvas.shape[:2]) // 400)
    for number, match in enumerate(matches, 1):
        corners = [round(float(value)) for value in match.box_xyxy]
        colour = KNOWN if match.cosine >= threshold else UNKNOWN
        cv2.rectangle(canvas, tuple(corners[:2]), tuple(corners[2:]), colour, width)
        cv2.putText(canvas, f'{number}', (corners[0] + 3, corners[1] - 5),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.35 * width, colour, width, cv2.LINE_AA)
    rows = [(f'face {number}', f'{match.name}: cosine {match.cosine:.2f} to {match.best[0][0]}, '
             f'threshold {threshold:.2f}') for number, match in enumerate(matches, 1)]
    return picture_html(canvas, f'{len(matches)} faces') + table_html(rows)


def predictions_html(pairs: list[tuple[str, float]]) -> str:
    """Names with probabilities as bars."""
    rows = ''.join(f'<tr><th scope="row">{escape(name)}</th><td><div class="vision-bar" style='
                   f'"width:{max(1, round(100 * share))}%"></div></td><td>{share:.1%}</td></tr>'
                   for name, share in pairs)
    return f'<table class="vision-table vision-bars">{rows}</table>'
