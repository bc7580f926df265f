"""The lattice beside its rivals on any CocoVID file: accuracy and milliseconds.

Methods: detection on every frame; keyframes with linear interpolation of linked boxes; the
lattice. All of them are the same engine over the same detections, which are computed once per
frame (batch 1) and replayed, so that only the method differs. No rescoring, unless asked for.

Milliseconds per frame are composed: the engine without the detector, measured while replaying,
plus keyframes x the median time of a detection. The first video is also run in full, five times;
where the median differs from its composed time by more than a tenth, the row is scaled to the
full measurement (column timing: measured). Decoding apart. A second table has the parts:
detection, grey frames, propagation (motion history included), refinement, and the rest.
The 95 % interval of lattice minus linear draws videos with replacement; below 5 videos it is null.

  python tools/benchmarks/lattice_baseline.py --ann data/moving_sprites/annotations/val.json \\
      --images data/moving_sprites/val \\
      --config configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py \\
      --checkpoint zoo:lattice-pru_moving-sprites --json docs/results/lattice_moving-sprites.json
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError, run_cli
from vision.common.core.files import atomic_write
from vision.common.core.report import write_report
from vision.common.core.timing import Stopwatch
from vision.lattice.core.class_names import ClassNames, join_classes
from vision.lattice.core.cocovid import CocoFrame, CocoVideo, load_cocovid
from vision.lattice.core.rescoring import rescore_tubes
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.lattice.core.vid_eval import (
    IOU_THRESHOLDS,
    PROTOCOLS,
    SPEEDS,
    TruthFrame,
    VideoEvaluation,
)

COLUMNS = ('method', 'setting', 'map50', 'map5095', 'map50_slow', 'map50_medium', 'map50_fast',
           'map50_medium_fast', 'keyframe_rate', 'ms_per_frame', 'timing')
NUM_RESAMPLES = 2000
BOOTSTRAP_SEED = 0
MIN_VIDEOS = 5  # below, drawing videos with replacement says nothing about other videos
TIMING_TOLERANCE = 0.1
NUM_TIME_CHECKS = 5
PARTS = ('detect', 'grey', 'propagate', 'refine', 'rest')


@dataclass(frozen=True)
class Setting:
    """One row: method, frames between keyframes, stages, and for ``adaptive`` the threshold."""

    method: str
    gap: int
    stages: int
    threshold: float | None = None

    @property
    def name(self) -> str:
        tail = '' if self.threshold is None else f'-e{self.threshold:g}'
        return f't{self.gap}-s{self.stages}{tail}'

    @property
    def policy(self) -> dict:
        if self.threshold is None:
            return dict(type='UniformKeyframes', gap_frames=self.gap)
        return dict(type='AdaptiveKeyframes', gap_frames=self.gap, threshold=self.threshold)


@dataclass
class Replay:
    """Networks whose detections come from a table; the others run, against the watch."""

    networks: object
    table: dict[int, FrameBoxes] = field(default_factory=dict)  # by id of the image
    seconds: list[float] = field(default_factory=list)
    is_recording: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        if not self.is_recording:
            return self.table[id(image_bgr)]
        start = time.perf_counter()
        boxes = self.networks.detect(image_bgr)
        self.seconds.append(time.perf_counter() - start)
        return boxes

    def grey(self, image_bgr: np.ndarray) -> np.ndarray:
        with self.watch('grey'):
            return self.networks.grey(image_bgr)

    def propagate(self, boxes: FrameBoxes, greys: np.ndarray, **options):
        with self.watch('propagate'):
            return self.networks.propagate(boxes, greys, **options)

    def refine(self, boxes: FrameBoxes, image_bgr: np.ndarray, **options):
        with self.watch('refine'):
            return self.networks.refine(boxes, image_bgr, **options)


@dataclass
class Outcome:
    """What one setting gave on all videos: judged boxes in the order of the truths."""

    boxes: list[FrameBoxes] = field(default_factory=list)
    num_frames: int = 0
    num_keyframes: int = 0
    engine_seconds: float = 0.0
    watch: Stopwatch = field(default_factory=Stopwatch)
    full_over_composed: float = 1.0  # of the frames that were run in full


def build_parser() -> argparse.ArgumentParser:
    from vision.common.mm.launch import add_config_arguments
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--ann', type=Path, required=True, help='CocoVID file with track ids')
    add('--images', type=Path, required=True, help='folder of its file names')
    add('--config', required=True, help='config of a LatticeDetector')
    add('--checkpoint', required=True, help='its propagation and refinement: path or zoo:NAME')
    add('--json', type=Path, required=True, help='results; a table goes beside it (.md)')
    add('--dataset', help='name in the rows (default: from --ann)')
    add('--class-map', type=Path, help='JSON: judged name -> names of data set or detector')
    add('--gaps', default='1,4,8,16', help='frames between keyframes (default: %(default)s)')
    add('--stages', type=int, default=2, help='stages of the lattice (default: %(default)s)')
    add('--adaptive', type=float, metavar='THRESHOLD', help='also adaptive keyframes over the '
        'first grid of each gap above 1, with this easiness threshold')
    add('--oracle', action='store_true', help='also perfect positions: linearly '
        'interpolated boxes put on their objects, with the same links and scores')
    add('--protocol', choices=PROTOCOLS, default='ilsvrc', help='(default: %(default)s)')
    add('--rescoring', choices=('none', 'average'), default='none',
        help='of tubes, on every method alike (default: none)')
    add('--limit-videos', type=int, help='use the first videos only')
    add('--full-frames', type=int, default=96, help='frames run in full to check the composed '
        'time (default: %(default)s; 0: do not)')
    add('--device', default='cpu')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    data = load_cocovid(args.ann)
    from vision.lattice.mm.loading import load_lattice
    model = load_lattice(args.config, args.checkpoint, cfg_options=args.cfg_options,
                         device=args.device)
    joined = json.loads(args.class_map.read_text()) if args.class_map else None
    classes = join_classes(data.classes, model.classes, joined)
    videos = data.videos[:args.limit_videos]
    settings = list(choose_settings(args))
    console = Console(width=None if sys.stdout.isatty() else 150)  # a log holds wide tables
    if classes.unknown:
        console.print(f'not judged, the detector does not know them: {", ".join(classes.unknown)}')
    truths: list[TruthFrame] = []
    replay = Replay(model.build_networks())
    outcomes = {setting: Outcome() for setting in settings}
    with Progress(console=console) as progress:
        task = progress.add_task('videos', total=sum(len(v) for v in videos) * (len(settings) + 1))
        for number, video in enumerate(videos):
            run_video(video, number, args, model, classes, replay, truths, outcomes,
                      lambda count: progress.advance(task, count))
    report(args, console, classes, truths, outcomes, float(np.median(replay.seconds)))
    return 0


def choose_settings(args: argparse.Namespace) -> Iterator[Setting]:
    gaps = [int(gap) for gap in args.gaps.split(',')]
    for gap in gaps:
        if gap == 1:
            yield Setting('detect', 1, 0)
            continue
        yield Setting('linear', gap, 0)
        yield Setting('lattice', gap, args.stages)
        if args.oracle:
            yield Setting('oracle', gap, 0)
        if args.adaptive is not None:
            yield Setting('adaptive', gap, args.stages, args.adaptive)


def run_video(video: CocoVideo, number: int, args: argparse.Namespace, model, classes: ClassNames,
              replay: Replay, truths: list[TruthFrame], outcomes: dict[Setting, Outcome],
              advance) -> None:
    """Detect every frame once, then replay every setting."""
    from vision.common.nn.images import read_image
    frames = video.frames
    images = [read_image(str(args.images / frame.file_name)) for frame in frames]
    replay.is_recording = True
    if not replay.seconds:  # the first calls of a network are slower than all others
        for image in images[:3]:
            replay.detect(image)
        replay.seconds.clear()
    replay.table = {id(image): replay.detect(image) for image in images}
    advance(len(images))
    truths += [judged_truth(video, frame, classes) for frame in frames if frame.is_labelled]
    for setting, outcome in outcomes.items():
        replay.watch = outcome.watch
        results, seconds, num_keyframes = run_engine(model, setting, replay, images)
        replay.watch = Stopwatch()  # what follows is not counted
        outcome.num_frames += len(images)
        outcome.engine_seconds += seconds
        outcome.num_keyframes += num_keyframes
        if setting.method == 'oracle':
            results = true_positions(results, frames)
        if args.rescoring == 'average':
            results = rescore_tubes(results)
        outcome.boxes += [classes.of_detections(result.boxes)
                          for result, frame in zip(results, frames, strict=True)
                          if frame.is_labelled]
        if number == 0 and args.full_frames:
            check_time(model, setting, replay, images[:args.full_frames], outcome)
        advance(len(images))


def true_positions(results: list[FrameResult], frames: list[CocoFrame]) -> list[FrameResult]:
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
    place = {int(i): box for i, box in zip(frame.instance_ids, frame.boxes_xyxy, strict=True)}
    moved, is_there = boxes.boxes_xyxy.copy(), np.ones(len(boxes), bool)
    for row, track in enumerate(boxes.track_ids.tolist()):
        if track in known:
            is_there[row] = known[track] in place
            moved[row] = place.get(known[track], moved[row])
    return boxes.replace(boxes_xyxy=moved).select(is_there)


def run_engine(model, setting: Setting, replay: Replay,
               images: list[np.ndarray], *, is_full: bool = False):
    """(results, seconds, keyframes) of one video; detections from the table unless is_full."""
    replay.is_recording = is_full
    engine = model.build_engine(networks=replay, policy=setting.policy, num_stages=setting.stages)
    start, results = time.perf_counter(), []
    for frame_id, image in enumerate(images):
        results += engine.push(image, frame_id)
    results += engine.flush()
    return results, time.perf_counter() - start, engine.stats.num_keyframes


def check_time(model, setting: Setting, replay: Replay, images: list[np.ndarray],
               outcome: Outcome) -> None:
    """How much longer a real run takes than the composed time says: median of some pairs.

    One pair is not enough: on a shared machine equal runs differ by more than the tolerance.
    """
    detect, kept = float(np.median(replay.seconds)), len(replay.seconds)
    ratios = []
    for _ in range(NUM_TIME_CHECKS):
        _, engine_seconds, num_keyframes = run_engine(model, setting, replay, images)
        _, full_seconds, _ = run_engine(model, setting, replay, images, is_full=True)
        ratios.append(full_seconds / (engine_seconds + num_keyframes * detect))
    outcome.full_over_composed = float(np.median(ratios))
    del replay.seconds[kept:]


def judged_truth(video: CocoVideo, frame, classes: ClassNames) -> TruthFrame:
    labels = classes.truth_to_judged[frame.labels]
    kept = labels >= 0
    return TruthFrame(video.id, frame.frame_id, frame.boxes_xyxy[kept], labels[kept],
                      frame.instance_ids[kept], frame.is_crowd[kept])


def report(args: argparse.Namespace, console: Console, classes: ClassNames,
           truths: list[TruthFrame], outcomes: dict[Setting, Outcome],
           detect_seconds: float) -> None:
    if not truths:
        raise VisionError('VIS-DATA-408', f'{args.ann} has no labelled frame', where=str(args.ann),
                          do='give a file with annotations')
    evaluations = {setting: VideoEvaluation(truths, outcome.boxes, num_classes=len(classes.names),
                                            protocol=args.protocol)
                   for setting, outcome in outcomes.items()}
    name = args.dataset or f'{args.ann.parent.parent.name}-{args.ann.stem}'
    rows = [dict(dataset=name, method=setting.method, setting=setting.name,
                 protocol=args.protocol, rescoring=args.rescoring, **scores(evaluation),
                 **timing(outcomes[setting], detect_seconds), frames=len(truths))
            for setting, evaluation in evaluations.items()]
    write_report(args.json, rows, seed=BOOTSTRAP_SEED, judged_classes=list(classes.names),
                 not_judged=list(classes.unknown), detect_ms=1000 * detect_seconds,
                 lattice_minus_linear=list(differences(evaluations)),
                 config=str(args.config), checkpoint=Path(args.checkpoint).name)
    show(console, f'{name}, protocol {args.protocol}, rescoring {args.rescoring}', COLUMNS,
         [cells(row) for row in rows])
    show(console, 'composed ms per frame by part', ('method', 'setting', *PARTS),
         [[row['method'], row['setting'], *(f'{row["parts_ms"][part]:.2f}' for part in PARTS)]
          for row in rows])
    with atomic_write(args.json.with_suffix('.md'), 'w') as file:
        file.write('| ' + ' | '.join(COLUMNS) + ' |\n|' + '---|' * len(COLUMNS) + '\n')
        file.writelines('| ' + ' | '.join(cells(row)) + ' |\n' for row in rows)
    console.print(f'rows: {args.json}\ntable: {args.json.with_suffix(".md")}', soft_wrap=True)


def show(console: Console, title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.removeprefix('map50_'), justify='right')
    for row in rows:
        table.add_row(*row)
    console.print(table)


def scores(evaluation: VideoEvaluation) -> dict[str, float | None]:
    values = dict(map50=evaluation.mean_ap(), map5095=evaluation.mean_ap(IOU_THRESHOLDS))
    values |= {f'map50_{speed}': evaluation.mean_ap(speed=speed) for speed in SPEEDS}
    return {key: None if np.isnan(value) else round(100 * value, 2)
            for key, value in values.items()}


def timing(outcome: Outcome, detect_seconds: float) -> dict[str, float | str | dict]:
    num_frames = outcome.num_frames
    seconds = outcome.engine_seconds + outcome.num_keyframes * detect_seconds
    ratio = outcome.full_over_composed
    is_composed = abs(ratio - 1) <= TIMING_TOLERANCE
    ms = 1000 * seconds / num_frames * (1.0 if is_composed else ratio)
    parts = {name: outcome.watch.seconds.get(name, 0.0) for name in PARTS[1:-1]}
    parts = dict(detect=outcome.num_keyframes * detect_seconds, **parts,
                 rest=outcome.engine_seconds - sum(parts.values()))
    return dict(ms_per_frame=round(ms, 2), fps_end_to_end=round(1000 / ms, 1),
                timing='composed' if is_composed else 'measured',
                full_over_composed=round(ratio, 3),
                keyframe_rate=round(outcome.num_keyframes / num_frames, 4),
                parts_ms={name: round(1000 * value / num_frames, 3)
                          for name, value in parts.items()})


def differences(evaluations: dict[Setting, VideoEvaluation]) -> Iterator[dict]:
    """Lattice minus linear interpolation at equal gap, with a 95 % interval over the videos."""
    linear = {setting.gap: e for setting, e in evaluations.items() if setting.method == 'linear'}
    for setting, lattice in evaluations.items():
        if setting.method != 'lattice' or setting.gap not in linear:
            continue
        rival, generator = linear[setting.gap], np.random.default_rng(BOOTSTRAP_SEED)
        num_videos = len(lattice.video_ids)
        for speed in (None, 'medium_fast'):
            draws = []
            for _ in range(NUM_RESAMPLES if num_videos >= MIN_VIDEOS else 0):
                weights = np.bincount(generator.integers(num_videos, size=num_videos),
                                      minlength=num_videos)
                draws.append(lattice.mean_ap(speed=speed, video_weights=weights)
                             - rival.mean_ap(speed=speed, video_weights=weights))
            interval = np.nanpercentile(draws, [2.5, 97.5]) if draws else [np.nan, np.nan]
            yield dict(setting=setting.name, speed=speed or 'all', difference=round(
                100 * (lattice.mean_ap(speed=speed) - rival.mean_ap(speed=speed)), 2),
                interval_95=[None if np.isnan(x) else round(100 * float(x), 2)
                             for x in interval], resamples=len(draws), videos=num_videos)


def cells(row: dict) -> list[str]:
    return ['-' if row[column] is None else f'{row[column]:.2f}'
            if isinstance(row[column], float) else str(row[column]) for column in COLUMNS]


if __name__ == '__main__':
    run_cli(main)
