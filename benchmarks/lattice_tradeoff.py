"""Accuracy and milliseconds of the lattice and of what one would do without it.

Every method runs over the same detector on one CocoVID file. Accuracy is replayed: the detector
sees each frame once and all methods take its boxes from there. Time is measured: each method runs
in full, detector included and decoding apart, on the first frames of the first videos, all
methods in turn (A B C A B C ...), and the median of the turns is reported. Nothing is scaled or
composed. OpenCV and onnxruntime get the same number of threads in all of them. The time of
``detect`` is that of the detector alone, without the links that give its boxes ids.

  python benchmarks/lattice_tradeoff.py --ann demo_out/clip/annotations/val.json \\
      --images demo_out/clip/val --detector zoo:yolox-nano_coco \\
      --methods detect,linear,flow --gaps 4,8,16 --json out/rows.json --plot out/curve.png

Methods, each at every gap T of --gaps but for the first two:
{methods}
--adaptive THR adds two more at each gap: ``adaptive``, whose keyframes lie where it is hard, and
``random``, the mean of {num_draws} runs with as many keyframes on each video, drawn by lot.
``paper`` needs --config and --checkpoint, and with them the full environment; so does a detector
of a config (no --detector). Everything else runs in the light one.

Columns: map50, map5095 in % by --protocol (docs/metrics.md), map50_medium, map50_fast and
map50_medium_fast of the objects that move so; ms_per_frame and fps_end_to_end (1000 / ms);
keyframe_rate, frames on which the detector ran; mota and idf1 in %, over boxes with a score of
at least {min_score}. In the JSON, ``intervals`` has differences between methods at the same gap,
and between each rival and the slowest row of the lattice that takes no more milliseconds
(``at``: gap or time), with a 95 % interval over videos drawn with replacement; below {min_videos}
videos it is null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report
from vision.common.core.tables import cells_of, print_table, write_markdown
from vision.common.nn.images import read_image
from vision.lattice.core.class_names import ClassNames, join_classes
from vision.lattice.core.cocovid import CocoVideo, load_cocovid
from vision.lattice.core.judged_runs import (
    BOOTSTRAP_SEED,
    MEASURES,
    MIN_VIDEOS,
    NUM_RESAMPLES,
    Judged,
    Outcome,
    difference_interval,
    judged_truth,
)
from vision.lattice.core.keyframe_draws import DrawnKeyframes, WatchedKeyframes
from vision.lattice.core.oracle import true_positions
from vision.lattice.core.track_metrics import MIN_SCORE, score_tracks
from vision.lattice.core.vid_eval import TruthFrame
from vision.lattice.runtime.compared import (
    METHODS,
    UNTIMED,
    Replay,
    Setting,
    adaptive_policy,
    build,
    choose_settings,
    run,
    timed,
)
from vision.lattice.runtime.detectors import as_detector

COLUMNS = ('method', 'setting', 'protocol', 'map50', 'map5095', 'map50_medium', 'map50_fast',
           'map50_medium_fast', 'ms_per_frame', 'fps_end_to_end', 'keyframe_rate', 'mota', 'idf1')
# Which differences get an interval; rivals are those of the same gap, or without one.
COMPARED = dict(flow=('detect', 'hold', 'linear', 'lk', 'dis', 'bytetrack', 'bytetrack-offline',
                      'paper'), shipped=('detect',), adaptive=('random',))
# What one would run in the lattice's place for as many milliseconds: these rows against those.
OURS = ('flow', 'adaptive', 'shipped')
RIVALS_IN_TIME = ('detect', 'hold', 'linear', 'lk', 'dis', 'bytetrack', 'bytetrack-offline')
NUM_DRAWS = 5
MAX_TIMED_VIDEOS = 3
RUNTIMES = dict(OnnxDetector='onnxruntime', MMDetDetector='torch')


@dataclass
class Models:
    """Detectors by the side of their input (None: as given), and the paper's filler."""

    make_detector: Callable[[int | None], object]
    make_paper: Callable | None = None
    _detectors: dict[int | None, object] = field(default_factory=dict)

    def detector(self, input_size: int | None = None):
        if input_size not in self._detectors:
            self._detectors[input_size] = self.make_detector(input_size)
        return self._detectors[input_size]

    def runtime(self, setting: Setting) -> str:
        name = RUNTIMES.get(type(self.detector(setting.input_size)).__name__, 'python')
        return f'{name}+torch' if setting.method == 'paper' and name != 'torch' else name


def build_parser() -> argparse.ArgumentParser:
    methods = '\n'.join(f'  {name:18}{what}' for name, what in METHODS.items())
    about = __doc__.format(methods=methods, num_draws=NUM_DRAWS, min_score=MIN_SCORE,
                           min_videos=MIN_VIDEOS)
    parser = command_parser(about)
    add = parser.add_argument
    add('--ann', type=Path, required=True, help='CocoVID file with track ids')
    add('--images', type=Path, required=True, help='folder of its file names')
    add('--detector', help='.onnx file or zoo:NAME')
    add('--input-size', type=int, help='side of its input, where the file leaves it open')
    add('--config', help='config of a LatticeDetector: its networks for paper, and its detector '
        'where --detector is not given')
    add('--checkpoint', help='weights of these networks: path or zoo:NAME')
    add('--class-map', type=Path, help='JSON: judged name -> names of data set or detector')
    add('--methods', default='detect,linear,flow', help='(default: %(default)s)')
    add('--gaps', default='8', help='frames between keyframes (default: %(default)s)')
    add('--adaptive', default='', metavar='THR[,THR]', help='adaptive keyframes: easiness '
        'below which an interval is halved')
    add('--input-sizes', default='', metavar='PX[,PX]', help='detect at these sizes, too, and '
        'the lattice as shipped over it')
    add('--protocol', choices=('coco', 'ilsvrc', 'both'), default='coco',
        help='(default: %(default)s)')
    add_report_options(parser, what='rows, and a table beside them (.md),', is_required=True)
    add('--plot', type=Path, help='picture of accuracy over milliseconds (needs matplotlib)')
    add('--dataset', help='name in the rows (default: from --ann)')
    add('--limit-videos', type=int, help='use the first videos only')
    add('--time-frames', type=int, default=96, help='frames of each of the first '
        f'{MAX_TIMED_VIDEOS} videos on which time is measured; 0: no times (default: %(default)s)')
    add('--repeats', type=int, default=5, help='turns of the clock (default: %(default)s)')
    add('--threads', type=int, default=2, help='of OpenCV and of the runtime '
        '(default: %(default)s)')
    return parser


def main(argv: list[str] | None = None, models: Models | None = None) -> int:
    """``models``: instead of those of the command line, for a detector that is a function."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if models is None and not (args.detector or args.config):
        parser.error('give --detector, or --config and --checkpoint')
    refuse_no_evidence(args.json, is_recorded=args.record)
    cv2.setNumThreads(args.threads)
    settings = choose_settings(args.methods.split(','), numbers(args.gaps, int),
                               thresholds=numbers(args.adaptive, float),
                               input_sizes=numbers(args.input_sizes, int))
    console = Console(width=None if sys.stdout.isatty() else 170)  # a log holds wide tables
    if args.config is None and any(setting.method == 'paper' for setting in settings):
        console.print('left out: paper, which needs --config and --checkpoint')
        settings = [setting for setting in settings if setting.method != 'paper']
    models = models or open_models(args)
    data = load_cocovid(args.ann)
    joined = json.loads(args.class_map.read_text()) if args.class_map else None
    classes = join_classes(data.classes, models.detector().classes, joined)
    if classes.unknown:
        console.print(f'not judged, the detector does not know them: {", ".join(classes.unknown)}')
    videos = data.videos[:args.limit_videos]
    with Progress(console=console) as progress:
        times = measure_times(args, videos, settings, models, progress)
        truths, outcomes = replay(args, videos, settings, models, classes, progress)
    if not truths:
        raise VisionError('VIS-DATA-408', f'{args.ann} has no labelled frame', where=str(args.ann),
                          do='give a file with annotations')
    report(args, console, models, classes, truths, outcomes, times)
    return 0


def numbers(text: str, kind: type) -> list:
    return [kind(part) for part in text.split(',') if part]


def open_models(args: argparse.Namespace) -> Models:
    """Torch is loaded only where a config is named."""
    make_paper = model = None
    if args.config:
        import torch

        from vision.lattice.core.interval import NodeFiller
        from vision.lattice.mm.loading import load_lattice
        torch.set_num_threads(args.threads)
        # A detector given by name stands in the config's place: that one's weights may be absent.
        options = {'model.detector': dict(type='OnnxDetector', _delete_=True, **onnx_options(
            args, args.input_size))} if args.detector else None
        model = load_lattice(args.config, args.checkpoint, cfg_options=options)

        def make_paper():
            return NodeFiller(model.build_networks(), **model.node_options)

    def make_detector(input_size: int | None):
        if not args.detector:
            if input_size is not None:
                raise VisionError('VIS-CONFIG-820', '--input-sizes with a detector of a config',
                                  where='--input-sizes', why='its size stands in the config',
                                  do='give --detector FILE.onnx')
            return model.detector
        options = onnx_options(args, args.input_size if input_size is None else input_size)
        return as_detector(options.pop('path'), **options)

    return Models(make_detector, make_paper)


def onnx_options(args: argparse.Namespace, input_size: int | None) -> dict:
    size = {} if input_size is None else dict(input_size=input_size)
    return dict(path=args.detector, threads=args.threads, **size)


def read_images(args: argparse.Namespace, video: CocoVideo,
                limit: int | None = None) -> list[np.ndarray]:
    return [read_image(args.images / frame.file_name) for frame in video.frames[:limit]]


def measure_times(args: argparse.Namespace, videos: list[CocoVideo], settings: list[Setting],
                  models: Models, progress: Progress) -> dict[Setting, list[float]]:
    """Milliseconds per frame of each turn, by row."""
    times = {setting: [] for setting in settings if setting.method not in UNTIMED}
    if not args.time_frames:
        return {}
    # One frame more, so that the last one is a keyframe of every gap that divides the number.
    clips = [read_images(args, video, args.time_frames + 1) for video in videos[:MAX_TIMED_VIDEOS]]
    num_frames = sum(len(clip) for clip in clips)
    task = progress.add_task('time', total=(args.repeats + 1) * len(times))
    for turn in range(args.repeats + 1):
        for setting, values in times.items():
            # The first calls are slower than all others: a short turn that does not count.
            part = [clip if turn else clip[:9] for clip in clips]
            seconds = sum(timed(setting, models.detector(setting.input_size), clip,
                                paper=models.make_paper) for clip in part)
            values += [1000 * seconds / num_frames] if turn else []
            progress.advance(task)
    return times


def replay(args: argparse.Namespace, videos: list[CocoVideo], settings: list[Setting],
           models: Models, classes: ClassNames, progress: Progress
           ) -> tuple[list[TruthFrame], dict[Setting, Outcome]]:
    """Detect every frame once, then run every row over these boxes."""
    truths: list[TruthFrame] = []
    outcomes = {setting: Outcome([[] for _ in range(
        NUM_DRAWS if setting.method == 'random' else 1)]) for setting in settings}
    sizes = sorted({setting.input_size for setting in settings}, key=lambda size: size or 0)
    task = progress.add_task('boxes', total=sum(len(video) for video in videos))
    for video in videos:
        images, frames = read_images(args, video), video.frames
        detectors = {size: Replay({id(image): models.detector(size).detect(image)
                                   for image in images}) for size in sizes}
        truths += [judged_truth(video, frame, classes) for frame in frames if frame.is_labelled]
        watched: WatchedKeyframes | None = None
        for setting, outcome in outcomes.items():
            if setting.method == 'adaptive':
                watched = adaptive_policy(setting)
            for draw in range(len(outcome.runs)):
                policy = dict(adaptive=watched, random=watched and DrawnKeyframes(watched, draw))
                engine = build(setting, detectors[setting.input_size], paper=models.make_paper,
                               policy=policy.get(setting.method))
                results = run(engine, images)
                if setting.method == 'oracle':
                    results = true_positions(results, frames)
                outcome.add(draw, [classes.of_detections(result.boxes) for result, frame
                                   in zip(results, frames, strict=True) if frame.is_labelled],
                            len(images), engine.stats.num_keyframes)
        progress.advance(task, len(images))
    return truths, outcomes


def pairs_at_gap(settings: Iterable[Setting]) -> list[tuple[Setting, Setting]]:
    return [(mine, other) for method, rivals in COMPARED.items() for mine in settings
            if mine.method == method for other in settings
            if other.method in rivals and other.gap in (0, mine.gap)
            and other.threshold in (None, mine.threshold)]


def pairs_in_time(times: dict[Setting, list[float]]) -> list[tuple[Setting, Setting]]:
    """Each rival and the slowest of ours that takes no longer. Which one is decided by the clock
    alone, so that accuracy plays no part in the choice."""
    ms = {setting: np.median(values) for setting, values in times.items()}
    pairs = []
    for other in (setting for setting in ms if setting.method in RIVALS_IN_TIME):
        in_time = [mine for mine in ms if mine.method in OURS and ms[mine] <= ms[other]
                   and mine.input_size in (None, other.input_size)]
        if in_time:
            pairs.append((max(in_time, key=ms.get), other))
    return pairs


def difference(mine: Setting, other: Setting, judged: dict[Setting, Judged],
               measure: str) -> dict:
    ours, theirs = judged[mine], judged[other]
    found = difference_interval(ours, theirs, measure)
    interval = found and [percent(value) for value in found]
    return dict(method=mine.method, setting=mine.name, minus=other.method,
                minus_setting=other.name, measure=measure, interval_95=interval,
                difference=percent(ours.scores[measure] - theirs.scores[measure]),
                videos=ours.num_videos)


def percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 2)


def report(args: argparse.Namespace, console: Console, models: Models, classes: ClassNames,
           truths: list[TruthFrame], outcomes: dict[Setting, Outcome],
           times: dict[Setting, list[float]]) -> None:
    dataset = args.dataset or f'{args.ann.parent.parent.name}-{args.ann.stem}'
    tracks = {setting: [score_tracks(truths, boxes) for boxes in outcome.runs]
              for setting, outcome in outcomes.items()}
    rows, intervals = [], []
    for protocol in ('ilsvrc', 'coco') if args.protocol == 'both' else (args.protocol,):
        judged = {setting: Judged(truths, outcome, len(classes.names), protocol)
                  for setting, outcome in outcomes.items()}
        for setting, one in judged.items():
            rows.append(dict(
                dataset=dataset, method=setting.method, setting=setting.name,
                runtime=models.runtime(setting), protocol=protocol,
                **{name: percent(value) for name, value in one.scores.items()},
                **timing(times.get(setting)), **rate(outcomes[setting]),
                mota=percent(np.mean([scores.mota for scores in tracks[setting]])),
                idf1=percent(np.mean([scores.idf1 for scores in tracks[setting]])),
                frames=len(truths)))
        intervals += [dict(protocol=protocol, at=at, **difference(*pair, judged, measure))
                      for at, pairs in (('gap', pairs_at_gap(judged)),
                                        ('time', pairs_in_time(times)))
                      for pair in pairs for measure in MEASURES]
    write_report(args.json, rows, is_recorded=args.record, seed=BOOTSTRAP_SEED,
                 judged_classes=list(classes.names), not_judged=list(classes.unknown),
                 threads=args.threads, videos=len({truth.video_id for truth in truths}),
                 time_frames=args.time_frames,
                 repeats=args.repeats, track_min_score=MIN_SCORE, resamples=NUM_RESAMPLES,
                 intervals=intervals)
    table = [cells_of(row, COLUMNS) for row in rows]
    print_table([column.removeprefix('map50_') for column in COLUMNS], table, num_left=3,
                title=f'{dataset}, {len(truths)} frames', min_width=150)
    write_markdown(args.json.with_suffix('.md'), COLUMNS, table)
    written = dict(rows=args.json, table=args.json.with_suffix('.md'))
    if args.plot:
        from lattice_plot import draw
        draw(rows, args.plot)
    console.print('\n'.join(f'{name}: {path}' for name, path in written.items()), soft_wrap=True)


def timing(values: list[float] | None) -> dict:
    if values is None:
        return dict(ms_per_frame=None, fps_end_to_end=None, ms_of_turns=None)
    ms = float(np.median(values))
    return dict(ms_per_frame=round(ms, 2), fps_end_to_end=round(1000 / ms, 1),
                ms_of_turns=[round(value, 2) for value in values])


def rate(outcome: Outcome) -> dict[str, float]:
    return dict(keyframe_rate=round(outcome.num_keyframes / outcome.num_frames, 4))


if __name__ == '__main__':
    run_cli(main)
