"""Write a recogniser's embedder as ONNX and compare it with PyTorch.

Examples:
  python tools/export_onnx.py configs/faces/mobilefacenet_ms1m.py mobilefacenet_ms1m.pth face.onnx
  python tools/export_onnx.py CONFIG CHECKPOINT face.onnx --flip-fusion

The graph takes float32 images (B, 3, S, S), BGR, values 0 to 255, any B, and gives embeddings
(B, d) of length 1: mean, standard deviation and channel order of the config are inside. After
writing, onnxruntime runs it on a batch of images of noise and of smooth gradients; the file stays
only if the largest difference of an embedding's entry is below the tolerance.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable

# Embeddings are unit vectors. Float32 convolutions of the two libraries differ by about 1e-6
# there; a wrong channel order or a missing flip by more than 1e-2.
TOLERANCE = 1e-4
OPSET = 17


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('config', type=Path, help='config of a FaceRecognizer')
    parser.add_argument('checkpoint', help='.pth, .safetensors or zoo:NAME')
    parser.add_argument('target', type=Path, help='.onnx file to write')
    parser.add_argument('--flip-fusion', action='store_true', help='add the embedding of the '
                        'mirrored image inside the graph (twice the time)')
    parser.add_argument('--image-size', type=int, default=112, help='pixels (default 112)')
    parser.add_argument('--tolerance', type=float, default=TOLERANCE,
                        help=f'largest allowed difference (default {TOLERANCE})')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    from vision.faces.mm.loading import load_embedder
    embedder = load_embedder(args.config, args.checkpoint, with_flip=args.flip_fusion or None)
    unfinished = args.target.with_name(f'{args.target.name}.unfinished')
    try:
        export(embedder, unfinished, args.image_size)
        difference = compare(embedder, unfinished, args.image_size)
        if not difference <= args.tolerance:
            raise VisionError('VIS-RUN-1007', f'the exported graph differs from PyTorch by '
                              f'{difference:.2g}', where=str(args.target),
                              why=f'allowed is {args.tolerance:g}', do='update onnxruntime, or '
                              'raise --tolerance if your use allows it; nothing was written')
        unfinished.replace(args.target)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f'{args.target}: largest difference to PyTorch {difference:.2g}')
    return 0


def export(embedder, path: Path, image_size: int) -> None:
    import torch
    _package('onnx')
    with warnings.catch_warnings():
        # torch's newer exporter wants a further package (onnxscript); this one does all we need
        # and says at each use that it is the older one.
        warnings.simplefilter('ignore')
        torch.onnx.export(embedder.eval(), (images(2, image_size),), str(path), dynamo=False,
                          opset_version=OPSET, input_names=['images'],
                          output_names=['embeddings'],
                          dynamic_axes=dict(images={0: 'batch'}, embeddings={0: 'batch'}))


def compare(embedder, path: Path, image_size: int) -> float:
    """Largest difference of an entry between onnxruntime and PyTorch, over batches of 1 and 5."""
    import torch
    session = _package('onnxruntime').InferenceSession(str(path),
                                                       providers=['CPUExecutionProvider'])
    differences = []
    for num in (1, 5):
        batch = images(num, image_size)
        actual, = session.run(None, dict(images=batch.numpy()))
        with torch.inference_mode():
            expected = embedder(batch)
        differences.append(float((torch.from_numpy(actual) - expected).abs().max()))
    return max(differences)


def images(num: int, size: int):
    """(num, 3, size, size) float32 BGR 0..255: noise, then gradients that mirroring changes."""
    import torch
    generator = torch.Generator().manual_seed(num)
    noise = torch.rand(num, 3, size, size, generator=generator) * 255
    ramp = torch.linspace(0, 255, size).expand(num, 3, size, size)
    return torch.where(torch.arange(num).view(-1, 1, 1, 1) % 2 == 0, noise, ramp.contiguous())


def _package(name: str):
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VisionError('VIS-ENV-1009', f'the package {name} is not installed',
                          why='the export and its check need onnx and onnxruntime',
                          do="pip install 'frugal-vision[onnx]'") from error


if __name__ == '__main__':
    run_cli(main)
