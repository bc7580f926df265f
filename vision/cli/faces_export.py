"""Write a recogniser's embedder as ONNX and compare it with PyTorch.

Examples:
  vision faces export configs/faces/mobilefacenet_ms1m.py zoo:mobilefacenet_ms1m face.onnx
  vision faces export CONFIG CHECKPOINT face.onnx --flip-fusion

The graph takes float32 images (B, 3, S, S), BGR, values 0 to 255, any B, and gives embeddings
(B, d) of length 1: mean, standard deviation and channel order of the config are inside. After
writing, onnxruntime runs it on images of noise and of smooth gradients; the file stays only if the
largest difference of an embedding's entry is below the tolerance. vision.load('face.onnx') takes
it, without torch.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('config', type=Path, help='config of a FaceRecognizer')
    parser.add_argument('checkpoint', help='.pth, .safetensors or zoo:NAME')
    parser.add_argument('target', type=Path, help='.onnx file to write')
    parser.add_argument('--flip-fusion', action='store_true', help='add the embedding of the '
                        'mirrored image inside the graph (twice the time)')
    parser.add_argument('--image-size', type=int, default=112, help='pixels (default 112)')
    parser.add_argument('--tolerance', type=float, default=1e-4,
                        help='largest allowed difference (default %(default)s)')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    from vision.faces.mm.loading import load_embedder
    from vision.faces.nn.export import export_embedder
    embedder = load_embedder(args.config, args.checkpoint, with_flip=args.flip_fusion or None)
    difference = export_embedder(embedder, args.target, image_size=args.image_size,
                                 tolerance=args.tolerance)
    print(f'{args.target}: largest difference to PyTorch {difference:.2g}')
    return 0


if __name__ == '__main__':
    run_cli(main)
