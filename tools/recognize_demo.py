"""Who is in the picture? Faces found, aligned, embedded and looked up in a gallery.

  python tools/recognize_demo.py group.jpg --gallery people.npz --detector yunet.onnx CONFIG CKPT
  python tools/recognize_demo.py clip.mp4  --gallery people.npz --detector yunet.onnx CONFIG CKPT

The first argument may also be a folder of frames, a camera number, or an rtsp:// or http://
address, as in the video demo; Ctrl-C ends a stream and finishes its files.

Writes OUT_DIR/NAME.jpg (or NAME.mp4 for a video) with boxes and names, and NAME.jsonl: one line a
frame with boxes (x1 y1 x2 y2 px), scores, landmarks, names and cosines. A face below --threshold
is "unknown"; choose the threshold with tools/verify_faces.py (cosine = 1 - squared L2 / 2).
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
KNOWN_COLOUR, UNKNOWN_COLOUR = (80, 200, 60), (60, 60, 220)  # BGR


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('source', help='picture, video, folder of frames, camera number, rtsp:// or http://')
    add('config', help='config of a FaceRecognizer')
    add('checkpoint', help='its weights: .pth, .safetensors or zoo:NAME')
    add('--gallery', type=Path, required=True, help='made by tools/gallery.py')
    add('--detector', type=Path, required=True, help='YuNet .onnx')
    add('--out-dir', type=Path, default=Path('faces_out'), help='(default: %(default)s)')
    add('--threshold', type=float, default=0.4, help='least cosine of a known face (default: 0.4)')
    add('--min-score', type=float, default=0.7, help='leave out weaker faces (default: 0.7)')
    add('--index', default='exact', help='search: exact; for galleries of many thousands ivf, or '
        'a string of FAISS\' index factory such as HNSW32 (default: exact)')
    add('--fps', type=float, help='frames per second of a folder (default: 25)')
    add('--max-frames', type=int, help='stop after so many frames')
    add('--keep-going', action='store_true', help='accept gaps and damaged frames')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_numbers(args)
    if Path(args.source).suffix.lower() in PICTURES:
        return run_picture(args)
    return run_stream(args)


def check_numbers(args: argparse.Namespace) -> None:
    for name, value, is_good in (
            ('--threshold', args.threshold, -1 <= args.threshold <= 1),
            ('--min-score', args.min_score, 0 < args.min_score <= 1),
            ('--fps', args.fps, args.fps is None or args.fps > 0),
            ('--max-frames', args.max_frames, args.max_frames is None or args.max_frames > 0)):
        if not is_good:
            raise VisionError('VIS-CONFIG-1104', f'{name} {value}', where=name,
                              why='a cosine lies in [-1, 1], a score in (0, 1], counts and rates '
                              'are positive', do='see --help')


def build(args: argparse.Namespace):
    """image -> list of dicts, one a face."""
    from vision.faces.core.evaluate.identification import exact_search
    from vision.faces.core.gallery.gallery import load_gallery
    from vision.faces.mm.loading import embed_images, load_embedder
    from vision.faces.runtime.face_finder import FaceFinder, align_faces, embedder_hash
    gallery = load_gallery(args.gallery)
    finder = FaceFinder(args.detector, min_score=args.min_score)
    embedder = load_embedder(args.config, args.checkpoint, device=args.device)
    gallery.require(embedder_hash(embedder), str(args.gallery))
    if args.index == 'exact':
        def search(rows, depth):
            return exact_search(gallery.embeddings, rows, depth)
    else:
        import torch

        from vision.faces.nn.gallery.gallery_search import index_search
        kind = dict(kind='ivf') if args.index == 'ivf' else dict(kind='faiss', factory=args.index)
        search = index_search(torch.from_numpy(gallery.embeddings), **kind)

    def recognise(image) -> list[dict]:
        faces = finder(image)
        if not len(faces):
            return []
        rows = embed_images(embedder, align_faces(image, faces.landmarks))
        known = gallery.recognise(*search(rows, 1), args.threshold)
        return [dict(name=name, cosine=round(cosine, 4), score=round(float(score), 4),
                     box=box.round(1).tolist(), landmarks=points.round(1).tolist())
                for (name, cosine), score, box, points in
                zip(known, faces.scores, faces.boxes_xyxy.astype(float),
                    faces.landmarks.astype(float), strict=True)]

    return recognise


def run_picture(args: argparse.Namespace) -> int:
    import cv2

    from vision.common.core.files import atomic_write
    from vision.faces.mm.datasets import read_image
    image = read_image(Path(args.source))
    picture, lines = outputs(args, Path(args.source).stem, 'jpg')
    faces = build(args)(image)
    with atomic_write(picture) as file:
        file.write(cv2.imencode('.jpg', draw(image, faces))[1].tobytes())
    with atomic_write(lines) as file:
        file.write((json.dumps(dict(frame=0, faces=faces), ensure_ascii=False) + '\n').encode())
    summary(Counter(face['name'] for face in faces), 1, [picture, lines])
    return 0


def run_stream(args: argparse.Namespace) -> int:
    """Frame by frame; whatever ends it, what was recognised by then is in finished files."""
    from vision.stream.io.opening import open_source, output_stem
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
        for count, frame in enumerate(with_progress(source, args.max_frames), 1):
            faces = recognise(frame.image_bgr)
            names.update(face['name'] for face in faces)
            video.write(draw(frame.image_bgr, faces), frame.timestamp_s)
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
        raise VisionError('VIS-CONFIG-1104', f'{paths[0]} would take the place of the source',
                          do='name another folder with --out-dir')
    refuse_unwritable(*paths)
    return paths


def with_progress(source, max_frames: int | None):
    """The frames of a source, at most so many, with a bar beside the output."""
    from rich.console import Console
    from rich.progress import track
    totals = [number for number in (source.num_frames, max_frames) if number]
    return track(islice(source, max_frames), total=min(totals, default=None),
                 description='frames', console=Console(stderr=True))


def draw(image, faces: list[dict]):
    """A copy with boxes, names and cosines; the text grows with the picture."""
    import cv2

    from vision.faces.core.gallery.gallery import UNKNOWN
    canvas = image.copy()
    scale = max(0.4, max(image.shape[:2]) / 1600)
    width = max(1, round(2 * scale))
    for face in faces:
        left, top, right, bottom = (round(value) for value in face['box'])
        colour = UNKNOWN_COLOUR if face['name'] == UNKNOWN else KNOWN_COLOUR
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, width)
        text = f'{latin(face["name"])} {face["cosine"]:.2f}'
        (length, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
        x = max(0, min(left, image.shape[1] - length))
        y = top - below if top > height + 2 * below else min(bottom + height + below,
                                                             image.shape[0] - below)
        cv2.rectangle(canvas, (x, y - height - 2), (x + length, y + below), colour, -1)
        cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), width,
                    cv2.LINE_AA)
    return canvas


def latin(name: str) -> str:
    """What OpenCV's font can draw of a name; the JSON lines keep it whole."""
    plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()
    return plain.replace('_', ' ') or '?'


def summary(names: Counter, num_frames: int, paths: list[Path]) -> None:
    """How many faces each name got, most frequent first."""
    frames = '1 frame' if num_frames == 1 else f'{num_frames} frames'
    faces = '1 face' if names.total() == 1 else f'{names.total()} faces'
    listed = ', '.join(f'{name} {count}' for name, count in names.most_common(10))
    rest = f', {len(names) - 10} more names' if len(names) > 10 else ''
    print(f'{frames}, {faces}' + (f': {listed}{rest}' if names else ''))
    for path in paths:
        print(f'written: {path}')


if __name__ == '__main__':
    run_cli(main)
