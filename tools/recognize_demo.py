"""Who is in the picture? Faces found, aligned, embedded and looked up in a gallery.

  python tools/recognize_demo.py group.jpg --gallery people.npz --detector yunet.onnx CONFIG CKPT
  python tools/recognize_demo.py clip.mp4  --gallery people.npz --detector yunet.onnx CONFIG CKPT
  python tools/recognize_demo.py frames/ 0 rtsp://host/stream   (as the video demo reads them)

Writes OUT_DIR/NAME.jpg (or NAME.mp4 for a video) with boxes and names, and NAME.jsonl: one line a
frame with boxes (x1 y1 x2 y2 px), scores, landmarks, names and cosines. A face below --threshold
is "unknown"; choose the threshold with tools/verify_faces.py (cosine = 1 - squared L2 / 2).
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from pathlib import Path

from vision.common.core.errors import VisionError, run_cli

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
KNOWN_COLOUR, UNKNOWN_COLOUR = (80, 200, 60), (60, 60, 220)  # BGR


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('source', help='picture, video, folder of frames, camera number, rtsp:// or http://')
    add('config', help='config of a FaceRecognizer')
    add('checkpoint', help='its weights: .pth, .safetensors or zoo:NAME')
    add('--gallery', type=Path, required=True, help='made by tools/gallery.py')
    add('--detector', type=Path, required=True, help='YuNet .onnx')
    add('--out-dir', type=Path, default=Path('faces_out'), help='(default: %(default)s)')
    add('--threshold', type=float, default=0.4, help='least cosine of a known face (default: 0.4)')
    add('--min-score', type=float, default=0.7, help='weakest face (default: 0.7)')
    add('--index', choices=('exact', 'ivf', 'hnsw'), default='exact',
        help='search: exact, or FAISS for galleries of many thousands (default: exact)')
    add('--max-frames', type=int, help='stop after so many frames')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    add('-v', '--verbose', action='store_true', help='show the traceback of an error too')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    recognise = build(args)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if Path(args.source).suffix.lower() in PICTURES:
        return run_picture(args, recognise)
    return run_stream(args, recognise)


def build(args: argparse.Namespace):
    """image -> list of dicts, one a face."""
    from vision.faces.core.gallery import load_gallery
    from vision.faces.core.identification import exact_search
    from vision.faces.mm.loading import embed_images, load_embedder
    from vision.faces.nn.face_finder import FaceFinder, align_faces, embedder_hash
    gallery = load_gallery(args.gallery)
    finder = FaceFinder(args.detector, min_score=args.min_score)
    embedder = load_embedder(args.config, args.checkpoint, device=args.device)
    gallery.require(embedder_hash(embedder), str(args.gallery))
    if args.index == 'exact':
        def search(rows, depth):
            return exact_search(gallery.embeddings, rows, depth)
    else:
        import torch

        from vision.faces.nn.gallery_search import index_search
        search = index_search(torch.from_numpy(gallery.embeddings), kind=args.index)

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


def run_picture(args: argparse.Namespace, recognise) -> int:
    import cv2

    from vision.common.core.files import atomic_write
    from vision.faces.mm.datasets import read_image
    image = read_image(Path(args.source))
    faces = recognise(image)
    stem = args.out_dir / Path(args.source).stem
    picture, lines = stem.with_name(f'{stem.name}.jpg'), stem.with_name(f'{stem.name}.jsonl')
    if picture.exists() and picture.samefile(args.source):
        raise VisionError('VIS-CONFIG-1104', f'{picture} would take the place of the source',
                          do='name another folder with --out-dir')
    with atomic_write(picture) as file:
        file.write(cv2.imencode('.jpg', draw(image, faces))[1].tobytes())
    with atomic_write(lines, 'w') as file:
        file.write(json.dumps(dict(frame=0, faces=faces), ensure_ascii=False) + '\n')
    summary(faces, 1, [picture, lines])
    return 0


def run_stream(args: argparse.Namespace, recognise) -> int:
    from rich.progress import track

    from vision.common.core.files import atomic_write
    from vision.stream.io.opening import open_source, output_stem
    from vision.stream.io.sinks import VideoSink
    source = open_source(args.source)
    stem = args.out_dir / output_stem(args.source)
    lines = stem.with_name(f'{stem.name}.jsonl')
    sink = VideoSink(stem.with_name(f'{stem.name}.mp4'), fps=source.fps)
    found, count = [], 0
    with atomic_write(lines, 'w') as file:
        frames = track(source, total=args.max_frames or source.num_frames or None,
                       description='frames')
        for count, frame in enumerate(frames, 1):
            faces = recognise(frame.image_bgr)
            found += faces
            sink.write(draw(frame.image_bgr, faces), frame.timestamp_s)
            file.write(json.dumps(dict(frame=count - 1, timestamp=round(frame.timestamp_s, 4),
                                       faces=faces), ensure_ascii=False) + '\n')
            if count == args.max_frames:
                break
    if source.is_live:
        source.stop()
    summary(found, count, [sink.close(), lines])
    if source.problem is not None:
        raise source.problem
    return 0


def draw(image, faces: list[dict]):
    """A copy with boxes, names and cosines; the text grows with the picture."""
    import cv2

    from vision.faces.core.gallery import UNKNOWN
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


def summary(faces: list[dict], num_frames: int, paths: list) -> None:
    from collections import Counter
    names = Counter(face['name'] for face in faces)
    print(f'{num_frames} frames, {len(faces)} faces: '
          + ', '.join(f'{name} {count}' for name, count in names.most_common(10)))
    for path in paths:
        print(f'written: {path}')


if __name__ == '__main__':
    run_cli(main)
