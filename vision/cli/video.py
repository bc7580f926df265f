"""Detect and track on a video, a folder of frames, a camera or a network stream.

  vision video clip.mp4
  vision video frames/ --fps 30 --out-dir out --score-thr 0.5
  vision video 0 --show                       (camera 0)
  vision video rtsp://host/stream --max-reconnect 20 --mode causal
  vision video clip.mp4 --mode offline        (scores averaged along tracks)
  vision video clip.mp4 --method detect       (the detector on every frame)
  vision video clip.mp4 --target-fps 60       (as many keyframes as 60 fps allow)
  vision video clip.mp4 --detector mine.onnx  (YOLOX or YOLO family)
  vision video clip.mp4 --config CONFIG --checkpoint weights.pth

The last one is a trained lattice and needs the full environment (make env); all others run without
torch. The default detector comes with the package.

Writes OUT_DIR/NAME.mp4 (H.264), NAME.jsonl and NAME.csv. Ctrl-C ends early and finishes the files.
A damaged video gives what decodes and exit code 4; with --keep-going, a warning and 0.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.lattice.core.keyframes import BudgetKeyframes
from vision.lattice.runtime.methods import METHODS
from vision.loading import file_of
from vision.stream.api import (
    DETECTOR,
    LATTICE_WEIGHTS,
    FlowLattice,
    TorchLattice,
    VideoModel,
    default_threads,
    open_detector,
    open_video,
    stem_of,
)
from vision.stream.core.options import MODES, OPTION_NAMES, VideoOptions, contradiction, require
from vision.stream.io.opening import open_source
from vision.stream.io.stopping import stop_signals

TORCH_ONLY = ('checkpoint', 'device', 'cfg_options')  # with --config
ONNX_ONLY = ('detector', 'method', 'threads')  # without it


def build_parser() -> argparse.ArgumentParser:
    """All options, in the groups that ``--help`` shows."""
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
    """Options of the detector and of the way between keyframes."""
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
    """Options of which one chooses the keyframes."""
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
    """Options that only a trained lattice of a config looks at."""
    add = group.add_argument
    add('--runtime', choices=('onnxruntime', 'torch'),
        help='default: torch with --config, else onnxruntime')
    add('--config', help='config of a LatticeDetector: a path, or the name of one of this '
        'package')
    add('--checkpoint', help='its weights: .pth, .safetensors or zoo:NAME (default: '
        f'{LATTICE_WEIGHTS})')
    add('--device', help='cpu or cuda:N (default: cpu)')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override config values, e.g. '
        'model.num_stages=1; a key that nobody reads is an error')


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    require('threads', args.threads, 'above 0', lambda value: value > 0)
    options = video_options(args)
    check_runtime(args)
    refuse_unwritable(args.stats)
    # Before the model is loaded: a name that is mistyped is told at once.
    source = open_source(args.source, fps=args.fps, keep_going=args.keep_going,
                         max_reconnect=args.max_reconnect)
    with Console(stderr=True).status('building the model'):
        run = build_model(args).open(source, options, stem=stem_of(args.out_dir, args.source))
    problem = None
    with stop_signals(run.stop) as received:
        try:
            run.run()
        except VisionError as error:
            if error is not run.problem:
                raise
            problem = error  # the files hold what came before it
    print_summary(run.summary, run.policy, args.deadline_ms)
    if args.stats:
        write_stats(args.stats, run.summary)
    if problem is not None:
        raise problem
    return 128 + received[0] if received else 0


def video_options(args: argparse.Namespace) -> VideoOptions:
    """The options of ``VideoModel.video`` that the command line gave."""
    given = vars(args) | dict(
        keyframes=parsed_policy(args.keyframes) if args.keyframes else None,
        with_video=not args.no_video)
    return VideoOptions(**{name: given[name] for name in OPTION_NAMES})


def check_runtime(args: argparse.Namespace) -> None:
    """Refuse options that nobody would look at."""
    foreign = [f'--{name.replace("_", "-")}' for name in (ONNX_ONLY if args.config else TORCH_ONLY)
               if getattr(args, name) is not None]
    if foreign:
        raise contradiction(f'{", ".join(foreign)} with{"" if args.config else "out"} --config')
    if args.runtime and (args.runtime == 'torch') != bool(args.config):
        raise contradiction(f'--runtime {args.runtime} with{"" if args.config else "out"} '
                            '--config')


def build_model(args: argparse.Namespace) -> VideoModel:
    """The lattice of ``--config``, or flow between the detections of an .onnx file."""
    if not args.config:
        return VideoModel(FlowLattice(open_detector(args.detector or DETECTOR,
                                                    threads=args.threads)))
    config = file_of(args.config)
    if args.runtime == 'torch' or args.cfg_options:
        return VideoModel(TorchLattice(config, args.checkpoint, args.device or 'cpu',
                                       config_options(args.cfg_options)))
    return open_video(config, args.checkpoint, args.device or 'cpu')


def config_options(texts: list[str] | None) -> dict | None:
    """KEY=VALUE ... as MMEngine reads them."""
    if not texts:
        return None
    from vision.common.mm.launch import add_config_arguments
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    return parser.parse_args(['--cfg-options', *texts]).cfg_options


def parsed_policy(text: str) -> dict:
    """'Name:a=1,b=0.5' -> dict(type='Name', a=1, b=0.5).

    Raises:
        VisionError: the text is not of this form.
    """
    name, _, rest = text.partition(':')
    try:
        options = {key.strip(): ast.literal_eval(value.strip()) for key, value in
                   (part.split('=') for part in rest.split(',') if part)}
    except (ValueError, SyntaxError) as error:
        raise VisionError('VIS-CONFIG-712', f'--keyframes {text}', where='--keyframes',
                          why='it is NAME:ARGUMENT=NUMBER,ARGUMENT=NUMBER',
                          do='for example UniformKeyframes:gap_frames=8') from error
    return dict(options, type=name.strip())


def print_summary(played, policy, deadline_ms: float | None) -> None:
    """Print frames, speed, latencies, keyframes and the files that were written."""
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
    """Write the summary as JSON, whole or not at all."""
    row = {key: value for key, value in vars(played.stats).items() if key != 'duration_s'}
    row |= dict(fps_end_to_end=played.fps, duration_s=played.duration_s,
                keyframe_rate=played.stats.keyframe_rate, num_dropped=played.num_dropped,
                num_reconnects=played.num_reconnects)
    with atomic_write(path, 'w') as file:
        json.dump(row, file, indent=1)


if __name__ == '__main__':
    run_cli(main)
