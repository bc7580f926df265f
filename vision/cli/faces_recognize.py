"""Who is in the picture? Faces found, aligned, embedded and looked up in a gallery.

  vision faces recognize group.jpg --gallery people.npz
  vision faces recognize clip.mp4  --gallery people.npz --threshold 0.45
  vision faces recognize clip.mp4  --gallery people.npz --model CONFIG --weights CKPT

The first argument may also be a folder of frames, a camera number, or an rtsp:// or http://
address, as in "vision video"; Ctrl-C ends a stream and finishes its files.

Writes OUT_DIR/NAME.jpg (or NAME.mp4 for a video) with boxes and names, and NAME.jsonl: one line a
frame with boxes (x1 y1 x2 y2 px), scores, landmarks, names and cosines. A face below --threshold
is "unknown"; choose the threshold with "vision faces verify" (cosine = 1 - squared L2 / 2).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from vision.cli.faces_options import add_model, open_model
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.picture_files import is_picture


def build_parser() -> argparse.ArgumentParser:
    """Options of the source, of the gallery and of what is written."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('source', help='picture, video, folder of frames, camera number, rtsp:// or http://')
    add('--gallery', type=Path, required=True, help='made by "vision faces gallery"')
    add('--out-dir', type=Path, default=Path('faces_out'), help='(default: %(default)s)')
    add('--threshold', type=float, default=0.4, help='least cosine of a known face (default: 0.4)')
    add('--index', default='exact', help='search: exact; for galleries of many thousands ivf, or '
        'a string of FAISS\' index factory such as HNSW32 (default: exact)')
    add('--fps', type=float, help='frames per second of a folder (default: 25)')
    add('--max-frames', type=int, help='stop after so many frames')
    add('--keep-going', action='store_true', help='accept gaps and damaged frames')
    add_model(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_numbers(args)
    if is_picture(args.source):
        return run_picture(args)
    return run_stream(args)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers out of their range.

    Raises:
        VisionError: there is one.
    """
    for name, value, is_good in (
            ('--threshold', args.threshold, -1 <= args.threshold <= 1),
            ('--min-score', args.min_score, 0 < args.min_score <= 1),
            ('--fps', args.fps, args.fps is None or args.fps > 0),
            ('--max-frames', args.max_frames, args.max_frames is None or args.max_frames > 0)):
        if not is_good:
            raise _impossible(f'{name} {value}', 'a cosine lies in [-1, 1], a score in (0, 1], '
                              'counts and rates are positive', 'see --help')


def build(args: argparse.Namespace):
    """image -> list of ``KnownFace``."""
    from vision.faces.core.gallery.gallery import load_gallery
    from vision.faces.runtime.recognition import Recognition
    gallery = load_gallery(args.gallery)
    model, search = open_model(args), None
    if args.index != 'exact':
        import torch

        from vision.faces.nn.gallery.gallery_search import index_search
        kind = dict(kind='ivf') if args.index == 'ivf' else dict(kind='faiss', factory=args.index)
        search = index_search(torch.from_numpy(gallery.embeddings), **kind)
    return Recognition(model.finder, model.embedder, gallery, threshold=args.threshold,
                       search=search)


def run_picture(args: argparse.Namespace) -> int:
    """Recognise the faces of one picture; write it with boxes, and a line of JSON."""
    import cv2

    from vision.common.core.files import atomic_write
    from vision.common.nn.images import read_image
    from vision.stream.io.face_overlay import draw_faces
    image = read_image(Path(args.source))
    picture, lines = outputs(args, Path(args.source).stem, 'jpg')
    faces = [face.to_dict() for face in build(args)(image)]
    with atomic_write(picture) as file:
        file.write(cv2.imencode('.jpg', draw_faces(image, faces))[1].tobytes())
    with atomic_write(lines) as file:
        file.write((json.dumps(dict(frame=0, faces=faces), ensure_ascii=False) + '\n').encode())
    summary(Counter(face['name'] for face in faces), 1, [picture, lines])
    return 0


def run_stream(args: argparse.Namespace) -> int:
    """Frame by frame; whatever ends it, what was recognised by then is in finished files."""
    from vision.stream.io.face_overlay import draw_faces
    from vision.stream.io.opening import open_source, output_stem
    from vision.stream.io.progress import progress_bar
    from vision.stream.io.sinks import JsonObjectsSink, VideoSink
    from vision.stream.io.stopping import stop_signals
    source = open_source(args.source, fps=args.fps, keep_going=args.keep_going)
    video_path, lines_path = outputs(args, output_stem(args.source), 'mp4')
    recognise, names, count = build(args), Counter(), 0
    is_stopped, written = [], []

    def close(sink: JsonObjectsSink | VideoSink) -> None:
        if (path := sink.close()) is not None:
            written.append(path)

    def stop() -> None:
        is_stopped.append(True)
        if source.is_live:
            source.stop()

    with stop_signals(stop) as received, ExitStack() as stack:
        lines, video = JsonObjectsSink(lines_path), VideoSink(video_path, fps=source.fps)
        for sink in (lines, video):
            stack.callback(close, sink)
        if source.is_live:
            stack.callback(source.stop)
        on_frame = stack.enter_context(progress_bar(source, args.max_frames))
        for count, frame in enumerate(islice(source, args.max_frames), 1):
            on_frame(count)
            faces = [face.to_dict() for face in recognise(frame.image_bgr)]
            names.update(face['name'] for face in faces)
            video.write(draw_faces(frame.image_bgr, faces), frame.timestamp_s)
            lines.write(dict(frame=count - 1, timestamp=round(frame.timestamp_s, 4), faces=faces))
            if is_stopped:
                break
    summary(names, count, written)
    if received:
        return 128 + received[0]
    if source.problem is not None:
        if not args.keep_going or not count:
            raise source.problem
        print(f'WARNING {source.problem.code}: {source.problem.what}', file=sys.stderr)
    return 0


def outputs(args: argparse.Namespace, stem: str, suffix: str) -> tuple[Path, Path]:
    """Paths of the pictures and of the lines; none of them is the source."""
    paths = tuple(args.out_dir / f'{stem}.{end}' for end in (suffix, 'jsonl'))
    if Path(args.source).is_file() and paths[0].exists() and paths[0].samefile(args.source):
        raise _impossible(f'{paths[0]} would take the place of the source', '',
                          'name another folder with --out-dir')
    refuse_unwritable(*paths)
    return paths


def summary(names: Counter, num_frames: int, paths: list[Path]) -> None:
    """How many faces each name got, most frequent first."""
    frames = '1 frame' if num_frames == 1 else f'{num_frames} frames'
    faces = '1 face' if names.total() == 1 else f'{names.total()} faces'
    listed = ', '.join(f'{name} {count}' for name, count in names.most_common(10))
    rest = f', {len(names) - 10} more names' if len(names) > 10 else ''
    print(f'{frames}, {faces}' + (f': {listed}{rest}' if names else ''))
    for path in paths:
        print(f'written: {path}')


def _impossible(what: str, why: str, do: str) -> VisionError:
    return VisionError('VIS-CONFIG-1744', what, why=why, do=do)


if __name__ == '__main__':
    run_cli(main)
