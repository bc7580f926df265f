"""What the live path promises, measured on a clip: latency, memory, lost connections, budgets.

  python benchmarks/live_path.py clip.mp4 --json docs/results/live_path.json --record
  python benchmarks/live_path.py clip.mp4 --parts latency,budget

Parts, each through the whole player, drawing and H.264 included:
  latency      the clip as a camera shows it, --fps frames a second in real time: 95th percentile
               from a frame's arrival to its first result. Bounds: buffered, one keyframe gap and a
               detection; without look-ahead, one frame (before the next one comes)
  memory       --frames frames, the clip over and over: growth of the process from the second tenth
               of them to the last
  connections  a server on loopback that closes, stalls, or cuts a packet, --drops times: open
               files and threads before and after
  budget       --target-fps, --target-ms, --keyframe-rate of the demo: what came of what was asked
               for; the targets of time lie between the fastest and the slowest that this machine
               can do

A row is met or missed; the exit code tells (1: one is missed). Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import print_table
from vision.lattice.core.keyframes import BudgetKeyframes, TimedDetector
from vision.lattice.runtime.detectors import as_detector
from vision.lattice.runtime.methods import DEFAULT_KEYFRAMES, build_engine
from vision.stream.io.live_reader import CaptureError, LiveReader, NetworkCapture
from vision.stream.io.loopback import LoopbackServer, lossy_http
from vision.stream.io.player import Played, Player, PlayOptions
from vision.stream.io.sources import SourceFrame, VideoFile

GAP_FRAMES = DEFAULT_KEYFRAMES['gap_frames']
WIDEST_GAP = 12  # of budgets, as tools/video_demo.py
GROWTH_MIB, BUDGET_SHARE = 5.0, 0.05  # the bars
KEYFRAME_RATE = 0.15
# The lossy stream: so many frames a connection, so long it stalls, and so long is borne.
SERVED_FRAMES, STALL_S, TIMEOUT_S = 30, 0.6, 0.3


class Camera:
    """A clip as a camera shows it: ``read`` waits until its frame is due."""

    def __init__(self, path: str, fps: float, num_frames: int) -> None:
        self._frames = itertools.islice(iter(Loop(path)), num_frames)
        self._step_s, self._due_s = 1 / fps, time.monotonic()

    def read(self) -> np.ndarray:
        frame = next(self._frames, None)
        if frame is None:
            raise CaptureError('the clip is over')
        self._due_s += self._step_s
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return frame.image_bgr

    def close(self) -> None:
        self._frames = iter(())


class Loop(VideoFile):
    """A video file over and over, in growing time."""

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in itertools.count():
            for frame in super().__iter__():
                yield replace(frame, timestamp_s=number * self.num_frames / self.fps
                              + frame.timestamp_s)


class Bench:
    """The parts. Args: folder, of the files that are written."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self._stem = args, folder / 'played'
        self._detector = as_detector(args.detector, threads=args.threads)

    def play(self, source, *, detector=None, mode: str = 'buffered', max_frames: int | None = None,
             on_frame: Callable[[Player, int], None] = lambda *_: None, **options) -> Played:
        """Play a source as the demo does."""
        with ThreadPoolExecutor(1) as executor:
            engine = build_engine(detector or self._detector, mode=mode,
                                  executor=executor if mode == 'buffered' else None, **options)
            player = Player(source, engine, self._detector.classes,
                            PlayOptions(self._stem, max_frames=max_frames),
                            on_frame=lambda count: on_frame(player, count))
            return player.play()

    def latency(self) -> Iterator[dict]:
        fps = self.args.fps
        for mode in ('buffered', 'causal', 'causal+revise'):
            took_ms: list[float] = []
            camera = Camera(self.args.clip, fps, self.args.latency_frames)
            reader = LiveReader(lambda camera=camera: camera, 'camera', max_reconnect=0)
            stats = (played := self.play(reader, mode=mode, detector=TimedDetector(
                self._detector, took_ms.append, time.perf_counter))).stats
            detection_ms = float(np.percentile(took_ms, 95))
            bound_ms = GAP_FRAMES * 1e3 / fps + detection_ms if mode == 'buffered' else 1e3 / fps
            yield dict(part='latency', setting=mode, measured=round(stats.p95_ms, 1),
                       bar=round(bound_ms, 1), unit='ms', is_met=stats.p95_ms <= bound_ms,
                       p50_ms=round(stats.p50_ms, 1), max_ms=round(stats.max_ms, 1),
                       detection_p95_ms=round(detection_ms, 1), fps=fps,
                       num_frames=stats.num_finished, num_dropped=played.num_dropped)

    def memory(self) -> Iterator[dict]:
        num_frames, sizes = self.args.frames, []

        def watch(_, count: int) -> None:
            if count % max(1, num_frames // 100) == 0:
                sizes.append(resident_mib())

        played = self.play(Loop(self.args.clip), max_frames=num_frames, on_frame=watch)
        # Medians of a tenth each: a frame is larger than what is looked for, and how many of them
        # wait changes all the time.
        tenth = max(1, len(sizes) // 10)
        settled, last = np.median(sizes[tenth:2 * tenth]), np.median(sizes[-tenth:])
        growth = float(last - settled)
        yield dict(part='memory', setting=f'{num_frames} frames', measured=round(growth, 2),
                   bar=GROWTH_MIB, unit='MiB', is_met=growth < GROWTH_MIB,
                   settled_mib=round(float(settled), 1), last_mib=round(float(last), 1),
                   fps_end_to_end=round(played.fps, 1), num_frames=played.stats.num_finished)

    def connections(self) -> Iterator[dict]:
        content = served_stream(self.args.clip)
        # Once before counting: what is opened at the first use and kept is no leak.
        self._lose(content, 3)
        before = open_files(), threading.active_count()
        played = self._lose(content, self.args.drops)
        after = open_files(), threading.active_count()
        for what, old, new in zip(('open files', 'threads'), before, after, strict=True):
            yield dict(part='connections', setting=f'{what} after {self.args.drops} losses',
                       measured=new, bar=old, unit='', num_losses=played.num_reconnects,
                       num_frames=played.stats.num_finished,
                       is_met=new <= old and played.num_reconnects >= self.args.drops)

    def _lose(self, content: bytes, num_losses: int) -> Played:
        with LoopbackServer(lossy_http(content, STALL_S)) as server:
            reader = LiveReader(lambda: NetworkCapture(server.address, timeout_s=TIMEOUT_S),
                                server.address, back_off_s=0.01, max_back_off_s=0.02)
            played = self.play(reader, on_frame=lambda player, _: player.stop()
                               if reader.num_reconnects >= num_losses else None)
        if reader.problem is not None:  # it gave up: no connection had a frame
            raise reader.problem
        return played

    def budget(self) -> Iterator[dict]:
        num_frames = self.args.budget_frames

        def play(keyframes, detector=None) -> Played:
            return self.play(Loop(self.args.clip), max_frames=num_frames, keyframes=keyframes,
                             detector=detector)

        fast, slow = play(WIDEST_GAP).fps, play(1).fps
        between = [1 / (part / fast + (1 - part) / slow) for part in (0.7, 0.4)]
        targets = dict(target_fps=round(between[0], 1), target_ms=round(1e3 / between[1], 2),
                       target_keyframe_rate=KEYFRAME_RATE)
        for name, target in targets.items():
            gap = round(1.5 / KEYFRAME_RATE) if name == 'target_keyframe_rate' else WIDEST_GAP
            policy = BudgetKeyframes(gap, **{name: target})
            played = play(policy, policy.timed(self._detector))
            came = dict(target_fps=played.fps, target_ms=1e3 / played.fps,
                        target_keyframe_rate=played.stats.keyframe_rate)[name]
            yield dict(part='budget', setting=f'{name} {target:g}', measured=round(came, 4),
                       bar=target, unit='', is_met=abs(came / target - 1) <= BUDGET_SHARE,
                       keyframe_rate=round(played.stats.keyframe_rate, 4),
                       fps_fastest=round(fast, 1), fps_slowest=round(slow, 1),
                       num_frames=num_frames, account=policy.account())


PARTS = ('latency', 'memory', 'connections', 'budget')


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('clip', help='a video file')
    parser.add_argument('--detector', default='zoo:yolox-nano_coco', help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=2, help='of the detector (default: 2)')
    parser.add_argument('--parts', default=','.join(PARTS), help='default: %(default)s')
    parser.add_argument('--fps', type=float, default=25.0, help='of the camera (default: 25)')
    parser.add_argument('--latency-frames', type=int, default=400, help='default: %(default)s')
    parser.add_argument('--frames', type=int, default=20_000, help='of the part memory '
                        '(default: 20,000)')
    parser.add_argument('--drops', type=int, default=100, help='lost connections (default: 100)')
    parser.add_argument('--budget-frames', type=int, default=1500, help='default: %(default)s')
    add_report_options(parser)
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    parts = args.parts.split(',')
    counts = (args.fps, args.latency_frames, args.frames, args.drops, args.budget_frames)
    if not set(parts) <= set(PARTS) or min(counts) <= 0:
        raise VisionError('VIS-CONFIG-517', f'--parts {args.parts}, counts {counts}',
                          where='benchmarks/live_path.py',
                          why=f'parts are {", ".join(PARTS)}; counts are positive',
                          do='see --help')
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for part in parts:
            for row in getattr(bench, part)():
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    show(rows)
    if args.json:
        write_report(args.json, rows, is_recorded=args.record, detector=args.detector,
                     threads=args.threads)
    return 0 if all(row['is_met'] for row in rows) else 1


def resident_mib() -> float:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def open_files() -> int:
    return len(os.listdir('/proc/self/fd'))


def served_stream(path: str) -> bytes:
    """The first frames of a clip as an MPEG transport stream."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, 'stream.ts')
        with av.open(str(target), 'w', format='mpegts') as container:
            stream = None
            for frame in itertools.islice(VideoFile(path), SERVED_FRAMES):
                if stream is None:
                    height, width = (side // 2 * 2 for side in frame.image_bgr.shape[:2])
                    stream = container.add_stream('mpeg2video', rate=Fraction(25))
                    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
                picture = av.VideoFrame.from_ndarray(frame.image_bgr, format='bgr24')
                container.mux(stream.encode(picture.reformat(width, height, 'yuv420p')))
            container.mux(stream.encode(None))
        return target.read_bytes()


def show(rows: list[dict]) -> None:
    print_table(('part', 'setting', 'measured', 'bar', ''), [
        [row['part'], row['setting'], f'{row["measured"]:g} {row["unit"]}',
         f'{row["bar"]:g} {row["unit"]}', 'met' if row['is_met'] else 'MISSED'] for row in rows],
        num_left=2)


if __name__ == '__main__':
    run_cli(main)
