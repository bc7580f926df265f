"""Ask a face embedder the questions of the public protocols.

  vision faces verify mobilefacenet --protocol lfw --pairs pairs.txt --images lfw_112
  vision faces verify mobilefacenet --pairs pairs.txt --images lfw_112 --folds 2
  vision faces verify CONFIG CKPT --protocol agedb --bin agedb_30.bin --json agedb.json
  vision faces verify CONFIG CKPT --protocol cfp --lists CFP/Protocol --images cfp_112
  vision faces verify CONFIG CKPT --protocol ijbc --lists IJBC/meta --images loose_crop
  vision faces verify CONFIG CKPT --protocol megaface --images facescrub_112
      --distractors megaface.npy
  vision faces verify --protocol ijbc --lists IJBC/meta --embeddings ijbc.npy

protocol              what is asked                              from
lfw calfw cplfw       ten folds, TAR at FAR over all pairs       --pairs, or --bin
agedb pairs           the same                                   --pairs, or --bin
cfp                   the same; --kind FP or FF                  --lists (Protocol), or --bin
ijbb ijbc             1:1: TAR at FAR over templates; 1:N: rank  --lists (meta)
                      and TPIR at FPIR in two galleries
megaface              rank-1 among up to a million distractors   --list or --images, --distractors
allpairs              TAR at FAR over all pairs of a set         --list or --images

Pictures are aligned faces (those of IJB are aligned by their landmarks), or --embeddings has their
embeddings; --save-embeddings keeps them for another question. Whatever the lists cannot tell, and
pictures of another size, are refused before a picture is embedded. --distractors is a .npy or .npz
of embeddings, or a folder of pictures. --folds 2 chooses the threshold on one half of the pairs
and measures on the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report

# Also vision.faces.core.evaluate.asking.OPTIONS, which this must not import to print its help.
PROTOCOLS = ('lfw', 'agedb', 'calfw', 'cplfw', 'pairs', 'cfp', 'ijbb', 'ijbc', 'megaface',
             'allpairs')


def build_parser() -> argparse.ArgumentParser:
    """Options of the protocol, of its lists and pictures, and of the embedder."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', nargs='?', help='config of a FaceRecognizer, or a model of the zoo')
    add('checkpoint', nargs='?', help='its weights: .pth, .safetensors or zoo:NAME')
    add('--protocol', choices=PROTOCOLS, default='pairs', help='(default: %(default)s)')
    add('--pairs', type=Path, help='LFW\'s pairs.txt, two lines a pair (CALFW, CPLFW), or lines '
        '"path path 1" (one person), "path path 0"')
    add('--bin', type=Path, help='InsightFace verification set, instead of list and pictures')
    add('--lists', type=Path, help='folder of the protocol\'s own lists')
    add('--list', type=Path, help='lines "path label" (default: a folder for each identity)')
    add('--images', type=Path, help='folder that the paths of the lists begin in')
    add('--kind', choices=('FP', 'FF'), help='CFP: frontal against profile, or frontal (FP)')
    add('--distractors', type=Path, help='embeddings or pictures of others')
    add('--sizes', type=int, nargs='+', help='of the sets of distractors (10, 100, ... all)')
    add('--far', type=float, nargs='+', help='false accept rates; at least one in the impostor '
        'pairs (default: the usual ones, as far as the pairs can tell)')
    add('--folds', type=int, help='of a list of pairs (default: 10)')
    add('--threshold', type=float, help='cosine chosen elsewhere, measured on the pairs too')
    add('--fpir', type=float, nargs='+', help='false positive identification rates (0.01 0.1)')
    add('--ranks', type=int, nargs='+', help='of identification (1 5 10)')
    add('--detection-scores', action='store_true', default=None,
        help='IJB: a picture counts by the score of its detection')
    add('--embeddings', type=Path, help='.npy or .npz, instead of config, checkpoint, pictures')
    add('--save-embeddings', type=Path, help='write them to this .npz')
    add_report_options(parser, what='result')
    add('--flip-fusion', action=argparse.BooleanOptionalAction,
        help='add the embedding of the mirrored picture (default: as the config says)')
    add('--image-size', type=int, default=112, help='px of the aligned faces (default: 112)')
    add('--batch-size', type=int, default=64, help='pictures at once (default: 64)')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    return parser


def main(argv: list[str] | None = None) -> int:
    options = vars(build_parser().parse_args(argv))
    options.pop('verbose', None)
    target, is_recorded = options.pop('json'), options.pop('record')
    refuse_no_evidence(target, is_recorded=is_recorded)
    from vision.faces.core.evaluate.asking import Protocol
    protocol = Protocol(**options)
    refuse_unwritable(protocol.save_embeddings)
    row = protocol.answer(embed)
    show(row)
    if target:
        write_report(target, [row], is_recorded=is_recorded)
        print(f'written: {target}')
    return 0


def embed(*question):
    """With pictures: what needs torch."""
    from vision.faces.mm.protocol_pictures import embed
    return embed(*question)


def show(row: dict) -> None:
    """Print the figures of a report's row as a table."""
    from rich.console import Console
    from rich.table import Table
    table = Table(show_header=False)
    if 'accuracy' in row:
        table.add_row(f'accuracy, {len(row["fold_accuracies"])} folds',
                      f'{row["accuracy"]:.4f} +- {row["std"]:.4f}')
        table.add_row('thresholds (squared L2)',
                      f'{min(row["fold_thresholds"]):.2f} to {max(row["fold_thresholds"]):.2f}')
        table.add_row('the same as cosines', f'{1 - max(row["fold_thresholds"]) / 2:.2f} to '
                      f'{1 - min(row["fold_thresholds"]) / 2:.2f}')
    if fixed := row.get('at_cosine'):
        table.add_row(f'at cosine {fixed["cosine"]:g}', f'accuracy {fixed["accuracy"]:.4f}, one '
                      f'person accepted {fixed["true_accept_rate"]:.4f}, two people '
                      f'{fixed["false_accept_rate"]:.4f}')
    for rate in row.get('tar_at_far', ()):
        table.add_row(f'TAR at FAR {rate["far"]:g}', f'{rate["tar"]:.4f}')
    for part in row.get('identification', ()):
        table.add_row(f'1:N, gallery {part["gallery"]}', ', '.join(
            f'{key} {value:.4f}' for key, value in part.items() if key != 'gallery'))
    for rate in row.get('rank1', ()):
        table.add_row(f'rank-1 among {rate["distractors"]:,} distractors', f'{rate["rate"]:.4f}')
    for key in ('num_pairs', 'num_templates', 'num_questions', 'num_images'):
        if key in row:
            table.add_row(key.removeprefix('num_'), f'{row[key]:,}')
    Console().print(table)


if __name__ == '__main__':
    run_cli(main)
