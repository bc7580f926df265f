"""Detect and track on a video, a folder of frames, a camera or a network stream.

  python tools/video_demo.py clip.mp4
  python tools/video_demo.py frames/ --fps 30 --out-dir out --score-thr 0.5
  python tools/video_demo.py 0 --show                       (camera 0)
  python tools/video_demo.py rtsp://host/stream --max-reconnect 20
  python tools/video_demo.py clip.mp4 --mode offline        (scores averaged along tracks)

Before the first time, for the default config (the demo does it itself when the weights are in
the zoo's cache or in VISION_ZOO_MIRROR):

  python tools/download.py yolox-nano_coco
  python tools/model_converters/yolox_onnx.py zoo:yolox-nano_coco work_dirs/yolox_nano.pth

Writes OUT_DIR/NAME.mp4 (H.264), NAME.jsonl and NAME.csv. Ctrl-C ends early and finishes the files.
A damaged video gives what decodes and exit code 4; with --keep-going, a warning and 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vision.common.core.errors import VisionError, run_cli

CONFIG = 'configs/lattice/lattice_yolox-nano_t8-s2_coco.py'
CHECKPOINT = 'zoo:lattice-pru_moving-sprites'
DETECTOR, DETECTOR_SOURCE = Path('work_dirs/yolox_nano.pth'), 'yolox-nano_coco'  # of CONFIG
CONVERTER = 'tools/model_converters/yolox_onnx.py'


def build_parser() -> argparse.ArgumentParser:
    from vision.common.mm.launch import add_config_arguments
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('source', help='video file, folder of frames, camera number, rtsp:// or http:// address')
    add('--config', default=CONFIG, help='config of a LatticeDetector (default: %(default)s)')
    add('--checkpoint', default=CHECKPOINT, help='its weights: .pth, .safetensors or zoo:NAME '
        '(default: %(default)s)')
    add('--out-dir', type=Path, default=Path('video_out'),
        help='folder of the outputs (default: %(default)s)')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    add('--mode', choices=('buffered', 'offline'), default='buffered',
        help='buffered: results with a delay of at most one keyframe gap; offline (files only): '
        'the whole video first, scores averaged along tracks, then drawn')
    add('--score-thr', type=float, default=0.3, help='leave out weaker boxes (default: 0.3)')
    add('--fps', type=float, help='frames per second of a folder (default: 25)')
    add('--max-frames', type=int, help='stop after so many frames')
    add('--max-reconnect', type=int, default=10,
        help='live: give up after so many failed reconnections in a row (default: 10)')
    add('--no-video', action='store_true', help='write the tables only')
    add('--show', action='store_true', help='a window too; q closes it')
    add('--keep-going', action='store_true', help='accept gaps and damaged frames')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    from vision.stream.io.opening import open_source, output_stem
    from vision.stream.io.player import Player, PlayOptions
    from vision.stream.io.stopping import stop_signals
    check_numbers(args)
    source = open_source(args.source, fps=args.fps, keep_going=args.keep_going,
                         max_reconnect=args.max_reconnect)
    if args.mode == 'offline' and source.is_live:
        raise VisionError('VIS-CONFIG-512', f'--mode offline with the live source {source.path}',
                          why='offline reads the video twice', do='use --mode buffered')
    options = PlayOptions(args.out_dir / output_stem(args.source), args.score_thr,
                          not args.no_video, args.show, args.max_frames)
    refuse_to_overwrite(args.source, options.stem)
    console = Console(stderr=True)
    if args.config == CONFIG and 'model.detector.checkpoint' not in (args.cfg_options or {}):
        require_default_detector()
    with console.status('building the model'):
        engine, classes = build(args)
    with progress_bar(console, source, args.max_frames) as on_frame:
        player = Player(source, engine, classes, options, on_frame=on_frame, warn=console.print)
        with stop_signals(player.stop) as received:
            played = play(player, args.mode)
    print_summary(played)
    if received:
        return 128 + received[0]
    if source.problem is not None:
        if not args.keep_going or not played.stats.num_finished:
            raise source.problem
        print(f'WARNING {source.problem.code}: {source.problem.what}', file=sys.stderr)
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    for name, value, is_good in (
            ('--score-thr', args.score_thr, 0 <= args.score_thr <= 1),
            ('--fps', args.fps, args.fps is None or args.fps > 0),
            ('--max-frames', args.max_frames, args.max_frames is None or args.max_frames > 0),
            ('--max-reconnect', args.max_reconnect, args.max_reconnect >= 0)):
        if not is_good:
            raise VisionError('VIS-CONFIG-513', f'{name} {value}', where=name,
                              why='a score lies in [0, 1], counts and rates are positive',
                              do='see --help')


def refuse_to_overwrite(source: str, stem: Path) -> None:
    output = stem.with_name(f'{stem.name}.mp4')
    if Path(source).is_file() and output.exists() and output.samefile(source):
        raise VisionError('VIS-CONFIG-516', f'the output {output} would take the place of the '
                          'source', where='--out-dir', why='both have the same name and folder',
                          do='name another folder with --out-dir')


def require_default_detector() -> None:
    """Convert the published weights of the default detector when they are on this machine.

    Raises:
        VisionError: VIS-CKPT-517, with the commands that get and convert them.
    """
    if DETECTOR.is_file():
        return
    from vision.zoo.store import Settings, fetch
    try:
        fetch(DETECTOR_SOURCE, settings=replace(Settings.from_environment(), is_offline=True))
    except VisionError as error:
        if error.code != 'VIS-NET-607':
            raise
        raise VisionError(
            'VIS-CKPT-517', f'the detector {DETECTOR} is not there', where=CONFIG,
            why='it is made once from the published YOLOX-nano weights, 3.7 MB',
            do=f'python tools/download.py {DETECTOR_SOURCE}; then python {CONVERTER} '
            f'zoo:{DETECTOR_SOURCE} {DETECTOR}') from error
    print(f'converting the published weights into {DETECTOR}, once', file=sys.stderr)
    code = subprocess.call([sys.executable, CONVERTER, f'zoo:{DETECTOR_SOURCE}', str(DETECTOR)],
                           stdout=sys.stderr)
    if code:
        sys.exit(code)  # it has said why


def build(args: argparse.Namespace):
    """(engine, classes) from config and checkpoint."""
    from vision.lattice.mm.loading import load_lattice
    # mmdet's own call; the notice says nothing to the person who waits for a video.
    warnings.filterwarnings('ignore', message='torch.meshgrid')
    model = load_lattice(args.config, args.checkpoint, cfg_options=args.cfg_options,
                         device=args.device)
    return model.build_engine(), tuple(model.classes)


def play(player, mode: str):
    import torch
    with torch.inference_mode():
        if mode == 'buffered':
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


def print_summary(played) -> None:
    stats, table = played.stats, Table(show_header=False)
    rows = [('frames', f'{stats.num_finished}'), ('dropped', f'{played.num_dropped}'),
            ('reconnections', f'{played.num_reconnects}'), ('fps end to end', f'{stats.fps:.1f}'),
            ('latency p50 / p95 / max',
             f'{stats.p50_ms:.0f} / {stats.p95_ms:.0f} / {stats.max_ms:.0f} ms'),
            ('keyframes', f'{stats.num_keyframes} ({stats.keyframe_rate:.1%})')]
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for path in played.paths:
        console.print(f'written: {path}', soft_wrap=True)


if __name__ == '__main__':
    run_cli(main)
