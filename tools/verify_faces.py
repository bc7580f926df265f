"""Ten-fold verification of a face embedder on a list of pairs.

  python tools/verify_faces.py CONFIG CKPT --pairs pairs.txt --images lfw_112 --json lfw.json
  python tools/verify_faces.py CONFIG CKPT --bin lfw.bin
  python tools/verify_faces.py CONFIG CKPT --pairs pairs.txt --images lfw_112 --no-flip-fusion

Pairs: LFW's own pairs.txt, or lines "path path 1" (one person) and "path path 0" (two people).
The pictures are aligned faces. A fold's threshold is chosen on the other nine folds; distances are
squared L2 of unit embeddings. TAR at FAR is over all pairs, with the threshold on the same pairs.
What the pairs cannot answer is refused before a picture is embedded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable

DEFAULT_FARS = (1e-3, 1e-2)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', help='config of a FaceRecognizer')
    add('checkpoint', help='its weights: .pth, .safetensors or zoo:NAME')
    add('--pairs', type=Path, help='list of pairs; needs --images')
    add('--images', type=Path, help='folder that the paths of the list begin in')
    add('--bin', type=Path, help='InsightFace verification set, instead of --pairs')
    add('--json', type=Path, help='write the result with device, versions and commit')
    add('--far', type=float, nargs='+',
        help='false accept rates; at least one in the impostor pairs (default: 0.001 and 0.01, '
        'as far as the pairs can tell)')
    add('--flip-fusion', action=argparse.BooleanOptionalAction,
        help='add the embedding of the mirrored picture (default: as the config says)')
    add('--image-size', type=int, default=112, help='px of the aligned faces (default: 112)')
    add('--batch-size', type=int, default=64, help='pictures at once (default: 64)')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if (args.bin is None) == (args.pairs is None) or (args.pairs is None) != (args.images is None):
        raise VisionError('VIS-CONFIG-1085', 'which pairs?', why='either --pairs FILE with '
                          '--images DIR, or --bin FILE', do='see --help')
    for option, value in (('--batch-size', args.batch_size), ('--image-size', args.image_size)):
        if value < 1:
            raise VisionError('VIS-CONFIG-1085', f'{option} {value}', where=option,
                              why='it must be above 0', do=f'give another {option}; see --help')
    refuse_unwritable(args.json)
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from vision.faces.core.evaluate.verification import pair_distances, unit_rows
    from vision.faces.mm.datasets import FaceBin, FacePairs
    from vision.faces.mm.loading import embed_images, load_embedder, refuse_other_size
    dataset = (FaceBin(str(args.bin)) if args.bin else
               FacePairs(str(args.pairs), str(args.images)))
    pairs = dataset.metainfo['pairs']
    fars = args.far or measurable(pairs)
    measure(np.zeros(len(pairs)), pairs, fars)  # refuses whatever it would refuse in the end
    for position in range(len(dataset)):
        refuse_other_size(position, *dataset.size_of(position), args.image_size)
    embedder = load_embedder(args.config, args.checkpoint, with_flip=args.flip_fusion,
                             device=args.device)
    console = Console(stderr=True)
    images = (dataset.read(position) for position in track(
        range(len(dataset)), description='embedding', console=console))
    embeddings = embed_images(embedder, images, size=args.image_size, batch_size=args.batch_size)
    row = measure(pair_distances(unit_rows(embeddings), pairs.first, pairs.second), pairs, fars)
    row |= dict(pairs=str(args.bin or args.pairs), flip_fusion=embedder.with_flip,
                num_images=len(dataset))
    show(row)
    if args.json:
        from vision.common.core.report import write_report
        write_report(args.json, [row])
        print(f'written: {args.json}')
    return 0


def measurable(pairs) -> list[float]:
    """The default rates that so many impostor pairs can tell; the others are named."""
    num_impostors = int((~pairs.same).sum())
    fars = [far for far in DEFAULT_FARS if far * num_impostors >= 1]
    if left := [f'{far:g}' for far in DEFAULT_FARS if far not in fars]:
        print(f'no TAR at FAR {", ".join(left)}: there are {num_impostors} impostor pairs',
              file=sys.stderr)
    return fars


def measure(distances, pairs, fars: list[float]) -> dict:
    """Accuracy and rates; ``distances`` (N,) are squared L2."""
    from vision.faces.core.evaluate.verification import tar_at_far, ten_fold
    folds = ten_fold(distances, pairs.same, pairs.folds)
    rates = [tar_at_far(-distances[pairs.same], -distances[~pairs.same], far) for far in fars]
    return dict(accuracy=folds.mean, std=folds.std, num_pairs=len(pairs),
                fold_accuracies=folds.accuracies.tolist(),
                fold_thresholds=[round(float(value), 4) for value in folds.thresholds],
                tar_at_far=[dict(far=far, tar=rate.tar, threshold=-rate.threshold)
                            for far, rate in zip(fars, rates, strict=True)])


def show(row: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table(show_header=False)
    table.add_row('accuracy, ten folds', f'{row["accuracy"]:.4f} +- {row["std"]:.4f}')
    table.add_row('thresholds (squared L2)',
                  f'{min(row["fold_thresholds"]):.2f} to {max(row["fold_thresholds"]):.2f}')
    for rate in row['tar_at_far']:
        table.add_row(f'TAR at FAR {rate["far"]:g}', f'{rate["tar"]:.4f}')
    table.add_row('pairs, pictures', f'{row["num_pairs"]}, {row["num_images"]}')
    Console().print(table)


if __name__ == '__main__':
    run_cli(main)
