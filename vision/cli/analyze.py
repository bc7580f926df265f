"""What goes wrong: vision analyze CONFIG RESULTS OUT_DIR

RESULTS is what ``vision test CONFIG CHECKPOINT --out RESULTS`` wrote. Of a detector or a lattice
OUT_DIR gets index.html: videos (of still images: folders) with the worst first, for each a page
with its worst frames, what was found beside what is there; confusion_matrix.png; analysis.json
with all counts. Of a classifier: confusion_matrix.png, worst.jpg and analysis.json.

  vision test CONFIG CHECKPOINT --out results.json
  vision analyze CONFIG results.json work_dirs/analysis
  vision analyze CONFIG results.json work_dirs/analysis --score-thr 0.5 --topk 50
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def build_parser() -> argparse.ArgumentParser:
    """Options of the predictions, of what counts as right, and of the pages."""
    from vision.common.mm.launch import add_config_arguments
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file that the predictions were made with')
    parser.add_argument('results', type=Path, help='.json or .npz of vision test --out')
    parser.add_argument('out_dir', type=Path, help='folder of the pages')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='SCORE',
                        help='boxes below do not count (default: %(default)s)')
    parser.add_argument('--tp-iou-thr', type=float, default=0.5, metavar='IOU',
                        help='overlap from which a box is right (default: %(default)s)')
    parser.add_argument('--topk', type=int, default=20, metavar='N',
                        help='worst pictures shown, of each video (default: %(default)s)')
    add_config_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1 or not 0 < args.tp_iou_thr <= 1 or args.topk < 1:
        parser.error('--score-thr is in [0, 1], --tp-iou-thr in (0, 1], --topk at least 1')
    refuse_unwritable(args.out_dir / 'index.html')
    from vision.common.core.predictions import read_predictions
    from vision.common.mm.launch import explained, read_config_alone
    from vision.common.mm.predictions import evaluation_dataset, require_same_data
    config = read_config_alone(args.config, args.cfg_options)
    samples, about = read_predictions(args.results)
    with explained(config):
        dataset = evaluation_dataset(config)
    require_same_data(samples, about, dataset, str(args.results))
    if samples and 'pred_score' in samples[0]:
        from vision.classify.mm.analysis import write_analysis
        report = write_analysis(samples, dataset.metainfo['classes'], args.out_dir,
                                topk=args.topk)
        show_classes(report, f'{report["totals"]["images"]} images, accuracy '
                     f'{100 * report["totals"]["accuracy"]:.2f} %')
        print(f'pictures: {args.out_dir}')
        return 0
    from vision.lattice.mm.analysis import analyse
    from vision.lattice.mm.pages import write_pages
    report = write_pages(analyse(dataset, samples, score_thr=args.score_thr,
                                 iou_thr=args.tp_iou_thr), args.out_dir, topk=args.topk)
    totals = report['totals']
    show_classes(report, f'{totals["pictures"]} pictures, {totals["true"]} true boxes: '
                 f'{totals["right"]} right, {totals["missed"]} missed, {totals["confused"]} as '
                 f'another class, {totals["extra"]} found where nothing is')
    for entry in report['videos'][:5]:
        print(f'worst: {entry["name"] or "pictures"}, F1 {entry["f1"]:.2f}')
    print(f'pages: {args.out_dir / "index.html"}')
    return 0


def show_classes(report: dict, title: str) -> None:
    """Print a line for each class: how many, precision and recall in percent, what it is taken
    for."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title)
    table.add_column('class')
    for column in ('true', 'found', 'right', 'precision', 'recall'):
        table.add_column(column, justify='right')
    table.add_column('mostly taken for')
    for row in report['classes']:
        shares = ('-' if row[name] is None else f'{100 * row[name]:.1f}'
                  for name in ('precision', 'recall'))
        table.add_row(row['name'], *(str(row[f'num_{name}']) for name in ('true', 'found',
                                                                          'right')), *shares,
                      '-' if row['taken_for'] is None else
                      f'{row["taken_for"]} ({row["num_taken"]})')
    Console().print(table)


if __name__ == '__main__':
    run_cli(main)
