"""An analysis as pages to read in a browser: a table of videos, then each video's worst frames."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from rich.progress import track

from vision.common.core.confusion import NOTHING, class_rows
from vision.common.core.files import atomic_write
from vision.common.nn.images import read_image
from vision.common.nn.plots import plot_matrix
from vision.common.runtime.drawing import (
    GREEN,
    GREY,
    ORANGE,
    RED,
    Colour,
    draw_boxes,
    side_by_side,
)
from vision.lattice.core.confusion import crowd_rows
from vision.lattice.mm.analysis import Analysis

JPEG_QUALITY = 85
STYLE = """body{font:15px sans-serif;margin:2em auto;max-width:75em;color:#222}
table{border-collapse:collapse}td,th{padding:.25em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}
img{max-width:100%}figure{margin:1.5em 0}figcaption{margin:.3em 0}
.right{color:#2a8a2a}.wrong{color:#c00}.confused{color:#b70}"""
LEGEND = ('<p>Left what was found, right what is there. <span class=right>green: right</span>, '
          '<span class=wrong>red: found where nothing is (left), missed (right)</span>, '
          '<span class=confused>orange: found, but as another class</span>; grey: not judged '
          '(crowds).</p>')


def write_pages(analysis: Analysis, folder: Path, *, topk: int = 20) -> dict[str, Any]:
    """Write ``index.html``, a page a video with its ``topk`` worst frames,
    ``confusion_matrix.png`` and ``analysis.json``.

    Returns:
        what ``analysis.json`` holds: totals, classes, matrix and videos, worst first.
    """
    folder = Path(folder)
    report = summary(analysis)
    names = [*analysis.classes, NOTHING]
    plot_matrix(np.array(report['matrix']), names, names, folder / 'confusion_matrix.png',
                title=f'IoU {analysis.iou_thr:g}, score {analysis.score_thr:g}')
    groups = analysis.groups()
    for number, entry in enumerate(track(report['videos'], 'pages')):
        entry['page'] = f'{number:03}_{_slug(entry["name"])}.html'
        rows = groups[entry['name']]
        entry['worst'] = [analysis.pictures[row].name for row in analysis.worst(rows)[:topk]]
        _write(folder / entry['page'], entry['name'] or 'pictures',
               _video_page(analysis, rows, entry, folder, topk))
    _write(folder / 'index.html', 'Detections, judged', _index(analysis, report))
    with atomic_write(folder / 'analysis.json', 'w') as file:
        json.dump(report, file, indent=1)
    return report


def summary(analysis: Analysis) -> dict[str, Any]:
    """Totals, classes, confusion matrix (row: true) and the videos, least F1 first."""
    matrix = analysis.matrix()
    videos = [dict(name=name, **analysis.totals(rows))
              for name, rows in analysis.groups().items()]
    return dict(score_thr=analysis.score_thr, iou_thr=analysis.iou_thr,
                totals=analysis.totals(range(len(analysis.pictures))),
                classes=class_rows(matrix, analysis.classes),
                matrix=matrix.tolist(), videos=sorted(videos, key=lambda row: row['f1']))


def drawn(analysis: Analysis, row: int) -> np.ndarray:
    """What was found beside what is there, on the picture of this place: (H, W, 3) uint8 BGR."""
    picture, boxes, frame = analysis.pictures[row], analysis.found[row], analysis.judged[row]
    image = read_image(picture.path)
    partner = {int(found): truth == label for (_, found), truth, label in zip(
        frame.pairs, frame.truth_labels, frame.found_labels, strict=True)}
    shown = [*map(int, frame.extra), *partner]
    left = draw_boxes(image, boxes.boxes_xyxy[shown],
                      [f'{analysis.classes[boxes.labels[i]]} {boxes.scores[i]:.2f}'
                       for i in shown],
                      [_colour(partner.get(i)) for i in shown])
    is_right = {int(true): truth == label for (true, _), truth, label in zip(
        frame.pairs, frame.truth_labels, frame.found_labels, strict=True)}
    truth, crowd = picture.truth, crowd_rows(picture.truth)
    right = draw_boxes(image, truth.boxes_xyxy,
                       [analysis.classes[label] for label in truth.labels],
                       [GREY if crowd[i] else _colour(is_right.get(i))
                        for i in range(len(truth.labels))])
    return side_by_side([left, right], ['found', 'true'])


def _colour(is_right: bool | None) -> Colour:
    return RED if is_right is None else GREEN if is_right else ORANGE


def _video_page(analysis: Analysis, rows: Sequence[int], entry: dict, folder: Path,
                topk: int) -> str:
    parts = ['<p><a href="index.html">all videos</a></p>',
             _table([entry], first=('name', 'video'), link=None),
             '<h2>F1 by frame</h2>', _timeline([analysis.judged[row].f1 for row in rows]),
             f'<h2>Worst frames ({min(topk, len(rows))} of {len(rows)})</h2>', LEGEND]
    for row in analysis.worst(rows)[:topk]:
        picture, frame = analysis.pictures[row], analysis.judged[row]
        target = Path('pictures') / Path(picture.name).with_suffix('.jpg')
        encoded = cv2.imencode('.jpg', drawn(analysis, row),
                               [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        with atomic_write(folder / target) as file:
            file.write(encoded.tobytes())
        said = (f'{picture.name}: F1 {frame.f1:.2f}; {frame.num_right} right, '
                f'{len(frame.missed)} missed, {len(frame.extra)} where nothing is, '
                f'{frame.num_confused} as another class')
        parts.append(f'<figure><figcaption>{html.escape(said)}</figcaption>'
                     f'<img loading=lazy alt="" src="{quote(target.as_posix())}"></figure>')
    return '\n'.join(parts)


def _index(analysis: Analysis, report: dict) -> str:
    totals = report['totals']
    classes = [dict(row, precision=_percent(row['precision']), recall=_percent(row['recall']),
                    mistake='-' if row['taken_for'] is None else
                    f'{row["taken_for"]} ({row["num_taken"]})') for row in report['classes']]
    columns = dict(name='class', num_true='true', num_found='found', num_right='right',
                   precision='precision', recall='recall', mistake='mostly taken for')
    return '\n'.join([
        f'<p>{totals["pictures"]} pictures; a box counts from score {analysis.score_thr:g} on, '
        f'and is right from IoU {analysis.iou_thr:g} on with its class.</p>',
        _table([dict(totals, name='all')], first=('name', ''), link=None),
        '<h2>Videos, worst first</h2>',
        _table(report['videos'], first=('name', 'video'), link='page'),
        '<h2>Classes</h2>', _rows(classes, columns),
        f'<h2>Confusion</h2><p>Row: true class, column: found; “{NOTHING}”: missed, or found '
        'where nothing is.</p><img alt="confusion matrix" src="confusion_matrix.png">'])


def _table(rows: Sequence[dict], *, first: tuple[str, str], link: str | None) -> str:
    shown = [dict(row, precision=_percent(row['precision']), recall=_percent(row['recall']),
                  f1=f'{row["f1"]:.2f}') for row in rows]
    columns = {first[0]: first[1]} | {name: name for name in (
        'pictures', 'true', 'right', 'missed', 'extra', 'confused', 'precision', 'recall')}
    return _rows(shown, columns | dict(f1='F1'), link)


def _rows(rows: Sequence[dict], columns: dict[str, str], link: str | None = None) -> str:
    lines = ['<table><tr>' + ''.join(f'<th>{html.escape(title)}</th>'
                                     for title in columns.values()) + '</tr>']
    for row in rows:
        cells = [html.escape(str(row[name])) for name in columns]
        if link:
            cells[0] = f'<a href="{quote(row[link])}">{cells[0] or "pictures"}</a>'
        lines.append('<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>')
    return '\n'.join([*lines, '</table>'])


def _timeline(values: Sequence[float]) -> str:
    """Bars of F1 from the first frame to the last: the gaps are the errors."""
    width, height = 900, 80
    step = width / max(1, len(values))
    bars = ''.join(f'<rect x="{i * step:.1f}" y="{height * (1 - value):.1f}" '
                   f'width="{max(step - 0.5, 0.5):.1f}" height="{height * value:.1f}">'
                   f'<title>frame {i}: {value:.2f}</title></rect>'
                   for i, value in enumerate(values))
    return (f'<svg viewBox="0 0 {width} {height}" width="100%" height="{height}" '
            'preserveAspectRatio="none" style="background:#fdd" fill="#4a8">'
            f'{bars}</svg>')


def _write(path: Path, title: str, body: str) -> None:
    with atomic_write(path, 'w') as file:
        file.write(f'<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}'
                   f'</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>\n{body}</html>\n')


def _percent(share: float | None) -> str:
    return '-' if share is None else f'{100 * share:.1f} %'


def _slug(name: str) -> str:
    return re.sub(r'[^\w.-]+', '_', name)[:80] or 'pictures'
