"""Detect and track on a video, a folder of frames, a camera or a network stream.

  python tools/video_demo.py clip.mp4
  python tools/video_demo.py frames/ --fps 30 --out-dir out --score-thr 0.5
  python tools/video_demo.py 0 --show                       (camera 0)
  python tools/video_demo.py rtsp://host/stream --max-reconnect 20 --mode causal
  python tools/video_demo.py clip.mp4 --mode offline        (scores averaged along tracks)
  python tools/video_demo.py clip.mp4 --method detect       (the detector on every frame)
  python tools/video_demo.py clip.mp4 --target-fps 60       (as many keyframes as 60 fps allow)
  python tools/video_demo.py clip.mp4 --detector mine.onnx  (YOLOX or YOLO family)
  python tools/video_demo.py clip.mp4 --config CONFIG --checkpoint weights.pth

The last one is a trained lattice and needs the full environment (make env); all others run without
torch. The default detector comes with the package.

Writes OUT_DIR/NAME.mp4 (H.264), NAME.jsonl and NAME.csv. Ctrl-C ends early and finishes the files.
A damaged video gives what decodes and exit code 4; with --keep-going, a warning and 0.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.lattice.core.keyframes import BudgetKeyframes
from vision.lattice.runtime.methods import METHODS, build_engine, build_policy

ROOT = Path(__file__).resolve().parents[1]
DETECTOR = 'zoo:yolox-nano_coco'
CHECKPOINT = 'zoo:lattice-pru_moving-sprites'
MODES = ('buffered', 'causal', 'causal+revise', 'offline')
GAP_FRAMES = 12
# Options that one of the two runtimes alone looks at.
TORCH_ONLY = ('checkpoint', 'device', 'cfg_options')
ONNX_ONLY = ('detector', 'method', 'threads')
BUDGETS = ('target_fps', 'target_ms', 'keyframe_rate')


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('source', help='video file, folder of frames, camera number, rtsp:// or http:// address')
    add('--out-dir', type=Path, default=Path('video_out'),
        help='folder of the outputs (default: %(default)s)')
    add('--mode', choices=MODES, default='buffered',
        help='buffered: a result comes with the next keyframe; causal: at once, without '
        'look-ahead; causal+revise: at once and again, final, with the next keyframe; offline '
        '(files only): the whole video first, scores averaged along tracks, then drawn '
        '(default: %(default)s)')
    add('--score-thr', type=float, default=0.3, help='leave out weaker boxes (default: 0.3)')
    add('--fps', type=float, help='frames per second of a folder (default: 25)')
    add('--max-frames', type=int, help='stop after so many frames')
    add('--max-reconnect', type=int, default=10,
        help='live: give up after so many failed reconnections in a row (default: 10)')
    add('--deadline-ms', type=float, help='count the frames whose first result comes later '
        'than this after the frame')
    add('--no-video', action='store_true', help='write the tables only')
    add('--stats', type=Path, metavar='FILE', help='write the summary as JSON too')
    add('--show', action='store_true', help='a window too; q closes it')
    add('--keep-going', action='store_true', help='accept gaps and damaged frames')
    add_detection(parser.add_argument_group('detection'))
    add_keyframes(parser.add_argument_group('keyframes', 'On which frames the detector runs; '
                                            'give one of these, and --gap perhaps with a budget.'))
    add_torch(parser.add_argument_group('trained lattice', 'Needs the full environment.'))
    return parser


def add_detection(group) -> None:
    add = group.add_argument
    add('--detector', metavar='FILE', help='an .onnx file of the YOLOX or YOLO family, or '
        f'zoo:NAME (default: {DETECTOR})')
    add('--method', choices=METHODS, help='between keyframes: flow: boxes go with sparse optical '
        'flow; linear: straight lines; detect: no frames between them (default: flow)')
    add('--threads', type=int, help=f'of the detector (default: {default_threads()} here)')
    add('--opencv-threads', type=int, default=1, help='of drawing, scaling and optical flow '
        '(default: %(default)s: these run beside the detector)')
    add('--encoder-threads', type=int, default=0, help='of H.264; 0 lets the encoder decide '
        '(default: %(default)s)')


def add_keyframes(group) -> None:
    add = group.add_argument
    add('--gap', type=int, metavar='FRAMES', help='one each so many frames; with a budget: at '
        'least one each so many')
    add('--keyframes', metavar='POLICY', help='of vision.lattice.core.keyframes with its '
        'arguments, e.g. AdaptiveKeyframes:gap_frames=12,threshold=0.6,max_depth=2')
    add('--target-fps', type=float, metavar='FPS', help='as many as so many frames a second allow')
    add('--target-ms', type=float, metavar='MS', help='as many as so many milliseconds a frame '
        'allow')
    add('--keyframe-rate', type=float, metavar='RATE', help='so many per frame, above 0, at most '
        '1, where they are needed most')


def add_torch(group) -> None:
    add = group.add_argument
    add('--runtime', choices=('onnxruntime', 'torch'),
        help='default: torch with --config, else onnxruntime')
    add('--config', help='config of a LatticeDetector, relative to here or to the repository')
    add('--checkpoint', help='its weights: .pth, .safetensors or zoo:NAME (default: '
        f'{CHECKPOINT})')
    add('--device', help='cpu or cuda:N (default: cpu)')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override config values, e.g. '
        'model.num_stages=1; a key that nobody reads is an error')


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from vision.stream.io.opening import open_source, output_stem
    from vision.stream.io.player import Player, PlayOptions
    from vision.stream.io.stopping import stop_signals
    check_numbers(args)
    check_combination(args)
    cv2.setNumThreads(args.opencv_threads)
    source = open_source(args.source, fps=args.fps, keep_going=args.keep_going,
                         max_reconnect=args.max_reconnect)
    if args.mode == 'offline' and source.is_live:
        raise VisionError('VIS-CONFIG-512', f'--mode offline with the live source {source.path}',
                          why='offline reads the video twice', do='use --mode buffered')
    options = PlayOptions(args.out_dir / output_stem(args.source), args.score_thr,
                          not args.no_video, args.show, args.max_frames, args.deadline_ms,
                          args.encoder_threads)
    refuse_to_overwrite(args.source, options.stem)
    refuse_unwritable(args.stats)
    console = Console(stderr=True)
    with ExitStack() as stack:
        with console.status('building the model'):
            engine, classes = (build_torch(args, stack) if args.runtime == 'torch' else
                               build(args, stack.enter_context(ThreadPoolExecutor(1))))
        with progress_bar(console, source, args.max_frames) as on_frame:
            player = Player(source, engine, classes, options, on_frame=on_frame,
                            warn=console.print)
            with stop_signals(player.stop) as received:
                played = play(player, args.mode)
    print_summary(played, engine.policy, args.deadline_ms)
    if args.stats:
        write_stats(args.stats, played)
    if received:
        return 128 + received[0]
    if source.problem is not None:
        if not args.keep_going or not played.stats.num_finished:
            raise source.problem
        print(f'WARNING {source.problem.code}: {source.problem.what}', file=sys.stderr)
    return 0


def default_threads() -> int:
    """Of the detector. More than four do not help the small ones, and encoding goes on beside."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, min(4, cores or 1))


def check_numbers(args: argparse.Namespace) -> None:
    at_least_zero = dict.fromkeys(('max_reconnect', 'encoder_threads'),
                                  ('at least 0', lambda value: value >= 0))
    above_zero = dict.fromkeys(('fps', 'max_frames', 'deadline_ms', 'threads', 'opencv_threads',
                                'gap', 'target_fps', 'target_ms'),
                               ('above 0', lambda value: value > 0))
    rules = above_zero | at_least_zero | dict(
        score_thr=('from 0 to 1', lambda value: 0 <= value <= 1),
        keyframe_rate=('above 0 and at most 1', lambda value: 0 < value <= 1))
    for name, (rule, is_met) in rules.items():
        value = getattr(args, name)
        if value is not None and not is_met(value):
            option = _options([name])
            raise VisionError('VIS-CONFIG-513', f'{option} {value}', where=option,
                              why=f'it must be {rule}', do=f'give another {option}; see --help')


def check_combination(args: argparse.Namespace) -> None:
    """Refuse options of which one would have no effect; decide the runtime."""
    args.runtime = args.runtime or ('torch' if args.config else 'onnxruntime')
    is_torch = args.runtime == 'torch'
    given = [name for name in ('gap', 'keyframes', *BUDGETS) if getattr(args, name) is not None]
    foreign = [name for name in (ONNX_ONLY if is_torch else (*TORCH_ONLY, 'config'))
               if getattr(args, name) is not None]
    budgets = [name for name in given if name in BUDGETS]
    problem = ''
    if is_torch and not args.config:
        problem = '--runtime torch without --config'
    elif foreign:
        problem = f'{_options(foreign)} with --runtime {args.runtime}'
    elif args.method == 'detect' and given:
        problem = f'{_options(given)} with --method detect'
    elif len(given) > 1 and not (len(given) == 2 and budgets and 'gap' in given):
        problem = f'{_options(given)} together'
    elif is_torch and budgets:
        problem = f'{_options(budgets)} with --config'
    elif args.keyframe_rate and 'causal' in args.mode:
        problem = f'--keyframe-rate with --mode {args.mode}'
    if problem:
        raise VisionError('VIS-CONFIG-519', problem, why='torch runs what --config names and '
                          'onnxruntime what --detector names; keyframes are chosen in one way; '
                          'without look-ahead none can be added where they are needed',
                          do='leave one of them out; see --help')


def _options(names: list[str]) -> str:
    return ', '.join(f'--{name.replace("_", "-")}' for name in names)


def refuse_to_overwrite(source: str, stem: Path) -> None:
    output = stem.with_name(f'{stem.name}.mp4')
    if Path(source).is_file() and output.exists() and output.samefile(source):
        raise VisionError('VIS-CONFIG-516', f'the output {output} would take the place of the '
                          'source', where='--out-dir', why='both have the same name and folder',
                          do='name another folder with --out-dir')


def build(args: argparse.Namespace, executor: Executor):
    """(engine, classes) of a detector in onnxruntime; no torch."""
    from vision.lattice.runtime.detectors import as_detector
    policy = keyframes_of(args)
    detector = as_detector(args.detector or DETECTOR, threads=args.threads or default_threads())
    classes = detector.classes
    if isinstance(policy, BudgetKeyframes):
        detector = policy.timed(detector)
    is_buffered = args.mode in ('buffered', 'offline')
    engine = build_engine(detector, method=args.method or 'flow', keyframes=policy,
                          mode='buffered' if is_buffered else args.mode,
                          executor=executor if is_buffered else None)
    return engine, classes


def keyframes_of(args: argparse.Namespace):
    """What ``build_engine`` takes as keyframes."""
    if args.target_fps or args.target_ms:
        return BudgetKeyframes(args.gap or GAP_FRAMES, target_fps=args.target_fps,
                               target_ms=args.target_ms)
    if args.keyframe_rate:  # half of the intervals of this grid are halved
        gap = args.gap or max(1, round(1.5 / args.keyframe_rate))
        return BudgetKeyframes(gap, args.keyframe_rate)
    if args.keyframes:
        return build_policy(parsed_policy(args.keyframes))
    return args.gap


def parsed_policy(text: str) -> dict:
    """'Name:a=1,b=0.5' -> dict(type='Name', a=1, b=0.5)."""
    name, _, rest = text.partition(':')
    try:
        options = {key.strip(): ast.literal_eval(value.strip()) for key, value in
                   (part.split('=') for part in rest.split(',') if part)}
    except (ValueError, SyntaxError) as error:
        raise VisionError('VIS-CONFIG-704', f'--keyframes {text}', where='--keyframes',
                          why='it is NAME:ARGUMENT=NUMBER,ARGUMENT=NUMBER',
                          do='for example UniformKeyframes:gap_frames=8') from error
    return dict(options, type=name.strip())


def build_torch(args: argparse.Namespace, stack: ExitStack):
    """(engine, classes) from config and checkpoint; torch computes without gradients until the
    stack is left."""
    try:
        import torch

        from vision.common.mm.launch import add_config_arguments
        from vision.lattice.mm.loading import load_lattice
    except ModuleNotFoundError as error:
        raise VisionError('VIS-ENV-520', f'--config needs the package {error.name}',
                          why='a trained lattice runs in the full environment',
                          do='make env; or leave --config out') from error
    stack.enter_context(torch.inference_mode())
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    config = Path(args.config)
    if not config.is_file() and (ROOT / config).is_file():
        config = ROOT / config
    model = load_lattice(str(config), args.checkpoint or CHECKPOINT,
                         cfg_options=parser.parse_args(options).cfg_options,
                         device=args.device or 'cpu')
    overrides = {}
    if args.gap or args.keyframes:
        overrides['policy'] = build_policy(keyframes_of(args))
    if 'causal' in args.mode:
        overrides['mode'] = args.mode
    return model.build_engine(**overrides), tuple(model.classes)


def play(player, mode: str):
    if mode != 'offline':
        return player.play()
    from vision.lattice.core.rescoring import rescore_tubes
    return player.play_offline(rescore_tubes)


@contextmanager
def progress_bar(console: Console, source, max_frames: int | None) -> Iterator:
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        limits = [count for count in (source.num_frames, max_frames) if count]
        task = progress.add_task('frames', total=min(limits, default=None))

        def on_frame(count: int) -> None:
            status = getattr(source, 'status', 'frames')
            progress.update(task, completed=count, description=status)

        yield on_frame


def print_summary(played, policy, deadline_ms: float | None) -> None:
    stats, table = played.stats, Table(show_header=False)
    rows = [('frames', f'{stats.num_finished}'), ('dropped', f'{played.num_dropped}'),
            ('reconnections', f'{played.num_reconnects}'), ('fps end to end', f'{played.fps:.1f}'),
            ('latency p50 / p95 / max',
             f'{stats.p50_ms:.0f} / {stats.p95_ms:.0f} / {stats.max_ms:.0f} ms'),
            ('keyframes', f'{stats.num_keyframes} ({stats.keyframe_rate:.1%})')]
    if deadline_ms:
        rows.append((f'later than {deadline_ms:g} ms', f'{stats.deadline_misses}'))
    if isinstance(policy, BudgetKeyframes):
        rows.append(('budget', policy.account()))
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for path in played.paths:
        console.print(f'written: {path}', soft_wrap=True)


def write_stats(path: Path, played) -> None:
    row = {key: value for key, value in vars(played.stats).items() if key != 'duration_s'}
    row |= dict(fps_end_to_end=played.fps, duration_s=played.duration_s,
                keyframe_rate=played.stats.keyframe_rate, num_dropped=played.num_dropped,
                num_reconnects=played.num_reconnects)
    with atomic_write(path, 'w') as file:
        json.dump(row, file, indent=1)


if __name__ == '__main__':
    run_cli(main)
