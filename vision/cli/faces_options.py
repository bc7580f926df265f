"""Options that the commands of faces share: which embedder, which detector."""

from __future__ import annotations

import argparse

MODEL = 'mobilefacenet'


def add_model(parser: argparse.ArgumentParser, *, finds: bool = True) -> None:
    """Options of ``open_model``; without the detector's where nothing is looked for."""
    add = parser.add_argument
    add('--model', default=MODEL, help='name of "vision zoo list", config of a FaceRecognizer, or '
        '.onnx file (default: %(default)s)')
    add('--weights', help='.onnx, .pt, .pth, .safetensors or zoo:NAME, in place of the model\'s '
        'own')
    add('--device', default='cpu', help='cpu or cuda:N, for what runs in torch (default: cpu)')
    if finds:
        add('--detector', help='YuNet, .onnx or zoo:NAME (default: zoo:yunet_widerface)')
        add('--min-score', type=float, default=0.7, help='leave out weaker faces (default: 0.7)')


def open_model(args: argparse.Namespace, **options):
    """The ``FaceModel`` of these options."""
    from vision.loading import load
    return load(args.model, args.weights, device=args.device, task='faces',
                detector=args.detector, min_score=args.min_score, **options)
