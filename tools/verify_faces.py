"""Ask a face embedder the questions of the public protocols.

  python tools/verify_faces.py CONFIG CKPT --protocol lfw --pairs pairs.txt --images lfw_112
  python tools/verify_faces.py CONFIG CKPT --protocol agedb --bin agedb_30.bin --json agedb.json
  python tools/verify_faces.py CONFIG CKPT --protocol cfp --lists CFP/Protocol --images cfp_112
  python tools/verify_faces.py CONFIG CKPT --protocol ijbc --lists IJBC/meta --images loose_crop
  python tools/verify_faces.py CONFIG CKPT --protocol megaface --images facescrub_112
      --distractors megaface.npy
  python tools/verify_faces.py --protocol ijbc --lists IJBC/meta --embeddings ijbc.npy

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
of embeddings, or a folder of pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import refuse_unwritable

PAIRS = {'pairs', 'bin', 'images', 'far'}
# Options that say something in a protocol; any other is refused rather than ignored.
OPTIONS = {**dict.fromkeys(('lfw', 'agedb', 'calfw', 'cplfw', 'pairs'), PAIRS),
           'cfp': PAIRS - {'pairs'} | {'lists', 'kind'},
           **dict.fromkeys(('ijbb', 'ijbc'), {'lists', 'images', 'far', 'fpir', 'ranks',
                                              'detection_scores'}),
           'megaface': {'list', 'images', 'distractors', 'sizes'},
           'allpairs': {'list', 'images', 'far'}}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', nargs='?', help='config of a FaceRecognizer')
    add('checkpoint', nargs='?', help='its weights: .pth, .safetensors or zoo:NAME')
    add('--protocol', choices=OPTIONS, default='pairs', help='(default: %(default)s)')
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
    add('--fpir', type=float, nargs='+', help='false positive identification rates (0.01 0.1)')
    add('--ranks', type=int, nargs='+', help='of identification (1 5 10)')
    add('--detection-scores', action='store_true', default=None,
        help='IJB: a picture counts by the score of its detection')
    add('--embeddings', type=Path, help='.npy or .npz, instead of config, checkpoint, pictures')
    add('--save-embeddings', type=Path, help='write them to this .npz')
    add('--json', type=Path, help='write the result with device, versions and commit')
    add('--flip-fusion', action=argparse.BooleanOptionalAction,
        help='add the embedding of the mirrored picture (default: as the config says)')
    add('--image-size', type=int, default=112, help='px of the aligned faces (default: 112)')
    add('--batch-size', type=int, default=64, help='pictures at once (default: 64)')
    add('--device', default='cpu', help='cpu or cuda:N (default: cpu)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_options(args)
    refuse_unwritable(args.json, args.save_embeddings)
    others = [distractors(args)] if args.protocol == 'megaface' else []
    question = ask(args, others)
    if args.embeddings:
        from vision.faces.core.data.embeddings import read_embeddings, refuse_other_length
        embeddings, with_flip = read_embeddings(args.embeddings, question.paths), None
        for rows in others:
            refuse_other_length(args.distractors, rows.shape[1], embeddings.shape[1])
    else:
        embeddings, others, with_flip = embed(args, question, others)
    if args.save_embeddings:
        from vision.faces.core.data.embeddings import write_embeddings
        write_embeddings(args.save_embeddings, question.paths, embeddings)
    row = question.answer(embeddings, *others)
    row |= dict(protocol=args.protocol, flip_fusion=with_flip, num_images=len(question.paths),
                **{name: str(getattr(args, name)) for name in (
                    'pairs', 'bin', 'lists', 'list', 'distractors') if getattr(args, name)})
    show(row)
    if args.json:
        from vision.common.core.report import write_report
        write_report(args.json, [row])
        print(f'written: {args.json}')
    return 0


def check_options(args: argparse.Namespace) -> None:
    allowed = OPTIONS[args.protocol]
    for name in sorted(set().union(*OPTIONS.values()) - allowed):
        if getattr(args, name) is not None:
            raise VisionError('VIS-CONFIG-1085', f'--{name.replace("_", "-")} says nothing in '
                              f'--protocol {args.protocol}', why='it takes '
                              f'{", ".join("--" + name for name in sorted(allowed))}',
                              do='leave it out, or name another --protocol')
    for option, value in (('--batch-size', args.batch_size), ('--image-size', args.image_size),
                          *(('--sizes', size) for size in args.sizes or ()),
                          *(('--ranks', rank) for rank in args.ranks or ())):
        if value < 1:
            raise VisionError('VIS-CONFIG-1085', f'{option} {value}', where=option,
                              why='it must be above 0', do=f'give another {option}; see --help')
    if 'bin' in allowed:
        source = '--lists DIR' if args.protocol == 'cfp' else '--pairs FILE'
        has_list = (args.lists or args.pairs) is not None
        if has_list == (args.bin is not None) or args.bin and (args.images or args.kind):
            raise _which(f'either {source} with --images DIR, or --bin FILE alone')
    elif args.protocol in ('ijbb', 'ijbc') and not args.lists:
        raise _which('--lists DIR has the lists of IJB')
    elif 'list' in allowed and not (args.list or args.images):
        raise _which('--list FILE, or --images DIR with a folder for each identity')
    if args.protocol == 'megaface' and not args.distractors:
        raise _which('--distractors has embeddings or pictures of others')
    has_model = args.checkpoint is not None
    if has_model == (args.embeddings is not None) or args.config and not has_model:
        raise _which('either CONFIG and CHECKPOINT, or --embeddings FILE')
    if has_model and not (args.bin or args.images):
        raise _which('--images DIR has the pictures')
    if args.embeddings and (args.images and 'list' not in allowed or args.flip_fusion is not None):
        raise _which('--embeddings takes the place of pictures: without --images, --flip-fusion')


def ask(args: argparse.Namespace, others: list):
    """The question of the protocol, with everything refused that its lists cannot tell."""
    from vision.faces.core.data import image_lists
    from vision.faces.core.evaluate import questions
    if args.protocol in ('ijbb', 'ijbc'):
        question = questions.TemplateQuestion(
            args.lists, args.protocol, fars=args.far, fpirs=args.fpir,
            ranks=args.ranks, with_scores=bool(args.detection_scores))
        if question.missing_1n:
            note(f'no identification: {", ".join(question.missing_1n)} are not there')
        note_left_out(args, questions.LARGE_FARS, question)
        return question
    if 'list' in OPTIONS[args.protocol]:
        found = (image_lists.read_label_list(args.list, args.images or Path()) if args.list else
                 image_lists.read_identity_folders(args.images))
        if args.protocol == 'megaface':
            num = len(getattr(others[0], 'paths', others[0]))
            return questions.DistractorQuestion(found, num, args.sizes)
        question = questions.AllPairsQuestion(found, args.far)
        note_left_out(args, questions.LARGE_FARS, question)
        return question
    question = questions.PairQuestion(read_pairs(args), args.far)
    note_left_out(args, questions.PAIR_FARS, question)
    return question


def read_pairs(args: argparse.Namespace):
    if args.bin:
        from vision.faces.core.data.insightface_bin import read_bin
        return read_bin(args.bin).pairs()
    if args.protocol == 'cfp':
        from vision.faces.core.evaluate.protocols import read_cfp
        return read_cfp(args.lists, args.kind or 'FP')
    from vision.faces.core.data import pairs
    return pairs.read_pairs(args.pairs)


def distractors(args: argparse.Namespace):
    """Their rows, or the list of their pictures."""
    if args.distractors.is_dir():
        from vision.faces.core.data.image_lists import read_pictures
        if args.embeddings:
            raise _which('with --embeddings, --distractors is a file of embeddings too')
        return read_pictures(args.distractors)
    from vision.faces.core.data.embeddings import read_embeddings
    from vision.faces.core.evaluate.verification import unit_rows
    rows = read_embeddings(args.distractors)
    for top in range(0, len(rows), 1 << 14):  # one without direction is found before the work
        unit_rows(rows[top:top + (1 << 14)], first_row=top)
    return rows


def embed(args: argparse.Namespace, question, others: list):
    """(embeddings, the distractors' rows, flip fusion); pictures are looked at before."""
    import numpy as np

    from vision.faces.core.data.embeddings import refuse_other_length
    from vision.faces.core.data.image_lists import LabelledPaths
    from vision.faces.mm.datasets import FaceFiles
    from vision.faces.mm.loading import embed_images, load_embedder, refuse_other_size
    sets = [pictures(args, question), *(FaceFiles(part) for part in others
                                        if isinstance(part, LabelledPaths))]
    for dataset in sets:
        for position in range(len(dataset)):
            refuse_other_size(position, *dataset.size_of(position), args.image_size)
    embedder = load_embedder(args.config, args.checkpoint, with_flip=args.flip_fusion,
                             device=args.device)
    if others and len(sets) == 1:
        side = args.image_size
        length = embed_images(embedder, [np.zeros((side, side, 3), np.uint8)], size=side).shape[1]
        refuse_other_length(args.distractors, others[0].shape[1], length)
    rows = [embed_images(embedder, with_progress(dataset), size=args.image_size,
                         batch_size=args.batch_size) for dataset in sets]
    return rows[0], rows[1:] or others, embedder.with_flip


def pictures(args: argparse.Namespace, question):
    from vision.faces.core.data.image_lists import without_labels
    from vision.faces.mm.datasets import FaceBin, FaceFiles, TemplateFaces
    if args.bin:
        return FaceBin(str(args.bin))
    found = without_labels(args.images, question.paths)
    if args.protocol in ('ijbb', 'ijbc'):
        return TemplateFaces(found, question.templates.landmarks, args.image_size)
    return FaceFiles(found, must_exist=True)


def with_progress(dataset):
    from rich.console import Console
    from rich.progress import track
    return (dataset.read(position) for position in track(
        range(len(dataset)), description='embedding', console=Console(stderr=True)))


def note(text: str) -> None:
    print(text, file=sys.stderr)


def note_left_out(args: argparse.Namespace, usual: tuple[float, ...], question) -> None:
    """Usual rates that so many impostor pairs cannot tell; given ones were refused instead."""
    left = [f'{far:g}' for far in usual if far not in question.fars]
    if left and args.far is None:
        note(f'no TAR at FAR {", ".join(left)}: there are {question.num_impostors} impostor pairs')


def show(row: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table(show_header=False)
    if 'accuracy' in row:
        table.add_row('accuracy, ten folds', f'{row["accuracy"]:.4f} +- {row["std"]:.4f}')
        table.add_row('thresholds (squared L2)',
                      f'{min(row["fold_thresholds"]):.2f} to {max(row["fold_thresholds"]):.2f}')
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


def _which(why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1085', 'which pairs or pictures?', why=why, do='see --help')


if __name__ == '__main__':
    run_cli(main)
