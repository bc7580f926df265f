"""Frames a second from a video to an annotated H.264 file, beside what one would write instead.

  python benchmarks/video_pipeline.py clip.mp4 --json docs/results/video_pipeline.json --record
  python benchmarks/video_pipeline.py frames/ --max-frames 400 --repeats 7
  python benchmarks/video_pipeline.py clip.mp4 --size 1920x1080

Rows, all with the same detector, overlay, tables and encoder:
  serial     read, detect, draw, encode, one after the other on every frame; OpenCV and the encoder
             decide about their threads, as a plain script leaves them
  parallel   the detector on every frame, a thread each for reading, detecting, and writing
  lattice    tools/video_demo.py as shipped (buffered)
  causal     the same without look-ahead

--size makes such a clip of the source first (its middle, scaled) and runs on that.
Each row runs in a process of its own, all rows in turn (A B C D A B C D ...); medians over
--repeats. fps and latency are those of the whole run after the model is loaded, encoding included.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.lattice.core.structures import FrameResult
from vision.lattice.runtime.detectors import as_detector
from vision.stream.io.opening import open_source
from vision.stream.io.overlay import Overlay
from vision.stream.io.sinks import CsvSink, JsonLinesSink, VideoSink

DEMO = Path(__file__).resolve().parents[1] / 'tools' / 'video_demo.py'
# Of tools/video_demo.py; the serial pipeline is measured by this file.
ROWS = dict(serial=None, parallel=['--method', 'detect'], lattice=[], causal=['--mode', 'causal'])
SCORE_THRESHOLD = 0.3
FIGURES = ('fps_end_to_end', 'p50_ms', 'p95_ms', 'max_ms', 'keyframe_rate')


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='a video file or a folder of frames')
    parser.add_argument('--detector', default='zoo:yolox-nano_coco', help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=2, help='of the detector (default: 2)')
    parser.add_argument('--max-frames', type=int, help='of each run')
    parser.add_argument('--size', metavar='WxH', help='of the frames (default: as they are)')
    parser.add_argument('--repeats', type=int, default=5, help='turns (default: 5)')
    parser.add_argument('--rows', default=','.join(ROWS), help='default: %(default)s')
    parser.add_argument('--demo-options', default='', metavar='TEXT', help='more options of the '
                        'demo, for all rows but serial, e.g. "--encoder-threads 2"')
    add_report_options(parser)
    parser.add_argument('--serial-into', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    if args.serial_into:
        print(json.dumps(run_serial(args, args.serial_into)))
        return 0
    names = args.rows.split(',')
    if args.repeats < 1 or not set(names) <= set(ROWS):
        raise VisionError('VIS-CONFIG-521', f'--repeats {args.repeats} --rows {args.rows}',
                          why=f'rows are {", ".join(ROWS)}; a median needs a run',
                          do='see --help')
    runs: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if args.size:
            args.source = scaled_clip(args, Path(folder, 'scaled'))  # apart from the outputs
        for turn in range(args.repeats):
            for name in names:
                runs[name].append(measure(name, args, Path(folder)))
                print(f'{turn + 1}/{args.repeats} {name}: '
                      f'{runs[name][-1]["fps_end_to_end"]:.1f} fps', file=sys.stderr)
        rows = [row_of(name, found, args) for name, found in runs.items()]
    show(rows)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, repeats=args.repeats)
    return 0


def scaled_clip(args: argparse.Namespace, folder: Path) -> str:
    """The source as a clip of --size: the middle of each frame that has its shape, scaled."""
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', args.size):
        raise VisionError('VIS-CONFIG-522', f'--size {args.size}', why='it is WIDTHxHEIGHT, px',
                          do='for example --size 1920x1080')
    width, height = map(int, args.size.split('x'))
    source = open_source(args.source)
    sink = VideoSink(folder / f'{Path(args.source).stem}-{args.size}.mp4', fps=source.fps)
    for frame in itertools.islice(source, args.max_frames):
        own_height, own_width = frame.image_bgr.shape[:2]
        scale = max(width / own_width, height / own_height)
        rows, columns = round(height / scale), round(width / scale)
        top, left = (own_height - rows) // 2, (own_width - columns) // 2
        sink.write(cv2.resize(frame.image_bgr[top:top + rows, left:left + columns],
                              (width, height), interpolation=cv2.INTER_CUBIC), frame.timestamp_s)
    return str(sink.close())


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict:
    """Figures of one run in a process of its own."""
    limit = ['--max-frames', f'{args.max_frames}'] if args.max_frames else []
    common = [args.source, '--detector', args.detector, '--threads', f'{args.threads}', *limit]
    if ROWS[name] is None:
        command = [__file__, *common, '--serial-into', f'{folder / name}']
    else:
        command = [f'{DEMO}', *common, *ROWS[name], *args.demo_options.split(), '--score-thr',
                   f'{SCORE_THRESHOLD}', '--out-dir', f'{folder}', '--stats',
                   f'{folder / name}.json']
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if result.returncode:
        sys.stderr.write(result.stderr)
        sys.exit(result.returncode)
    if ROWS[name] is None:
        return json.loads(result.stdout.splitlines()[-1])
    return json.loads((folder / f'{name}.json').read_text())


def run_serial(args: argparse.Namespace, stem: Path) -> dict:
    """What one writes in an afternoon; only the order of work differs from the demo's."""
    detector = as_detector(args.detector, threads=args.threads)
    source, overlay = open_source(args.source), Overlay(detector.classes)
    video = VideoSink(stem.with_suffix('.mp4'), fps=source.fps)
    tables = [JsonLinesSink(stem.with_suffix('.jsonl'), detector.classes),
              CsvSink(stem.with_suffix('.csv'), detector.classes)]
    latencies, start = [], time.monotonic()
    for number, frame in enumerate(source):
        if number == args.max_frames:
            break
        boxes = detector.detect(frame.image_bgr)
        boxes = boxes.select(boxes.scores >= SCORE_THRESHOLD)
        latencies.append((time.monotonic() - frame.arrival_s) * 1e3)
        result = FrameResult(number, boxes, 'detected', True, latencies[-1])
        overlay.draw(frame.image_bgr, result, number / max(time.monotonic() - start, 1e-9))
        for table in tables:
            table.write(result, frame.timestamp_s)
        video.write(frame.image_bgr, frame.timestamp_s)
    for sink in (video, *tables):
        sink.close()
    seconds, latencies = time.monotonic() - start, sorted(latencies)
    count = len(latencies)
    return dict(num_finished=count, fps_end_to_end=count / seconds, p50_ms=latencies[count // 2],
                p95_ms=latencies[int(count * 0.95)], max_ms=latencies[-1], keyframe_rate=1.0)


def row_of(name: str, runs: list[dict], args: argparse.Namespace) -> dict:
    fps = [run['fps_end_to_end'] for run in runs]
    image = next(iter(open_source(args.source))).image_bgr
    return dict(dataset=Path(args.source).name, method=name, setting=' '.join(
        [*(ROWS[name] or []), *([] if ROWS[name] is None else args.demo_options.split())]),
        runtime='onnxruntime', detector=args.detector, threads=args.threads,
        width=image.shape[1], height=image.shape[0], num_frames=runs[0]['num_finished'],
        **{key: round(statistics.median(run[key] for run in runs), 4) for key in FIGURES},
        fps_lowest=round(min(fps), 2), fps_highest=round(max(fps), 2))


def show(rows: list[dict]) -> None:
    table = Table('', 'fps end to end', '(lowest, highest)', 'x serial', 'keyframes',
                  'latency p50 / p95 / max, ms')
    serial = next((row['fps_end_to_end'] for row in rows if row['method'] == 'serial'), None)
    for row in rows:
        table.add_row(
            row['method'], f'{row["fps_end_to_end"]:.1f}',
            f'({row["fps_lowest"]:.1f}, {row["fps_highest"]:.1f})',
            f'{row["fps_end_to_end"] / serial:.2f}' if serial else '-',
            f'{row["keyframe_rate"]:.1%}',
            f'{row["p50_ms"]:.0f} / {row["p95_ms"]:.0f} / {row["max_ms"]:.0f}')
    Console().print(table)


if __name__ == '__main__':
    run_cli(main)
