"""Check a CocoVID file: names the file, the record's id and the rule of every problem.

Errors end with exit code 4; notes (what the reader repairs and counts, e.g. boxes over the edge
of the image) do not, unless --strict. datasets/README.md explains the rules.

Examples:
  vision data check data/moving_sprites/annotations/val.json \\
      --images data/moving_sprites/val --stats
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.lattice.core.cocovid import Problem, check_cocovid, load_cocovid, read_json
from vision.lattice.core.cocovid_stats import print_statistics
from vision.lattice.nn.image_check import check_images


def report(path: Path, problems: list[Problem], *, limit: int, strict: bool) -> int:
    """Print the problems; the number that counts as errors."""
    shown = Counter()
    for problem in sorted(problems, key=lambda one: one.is_note):
        shown[problem.rule] += 1
        if shown[problem.rule] <= limit:
            print(f'{"note" if problem.is_note else "ERROR"} {path}: {problem}')
    for rule, count in shown.items():
        more = f' ({count - limit} not shown, --limit)' if count > limit else ''
        print(f'{rule}: {count}{more}')
    return len(problems) if strict else sum(not problem.is_note for problem in problems)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('file', type=Path, help='annotation file (json)')
    parser.add_argument('--images', type=Path, metavar='DIR', help='look for every image in DIR')
    parser.add_argument('--decode', action='store_true',
                        help='with --images: also decode each and compare its size')
    parser.add_argument('--limit', type=int, default=20, help='lines per rule (default: 20)')
    parser.add_argument('--strict', action='store_true', help='notes count as errors')
    parser.add_argument('--stats', action='store_true', help='count boxes, tracks, classes')
    args = parser.parse_args(argv)
    if args.decode and args.images is None:
        parser.error('--decode needs --images DIR')
    data = read_json(args.file)
    problems = check_cocovid(data)
    if args.images is not None and not any(p.table in ('file', 'images') for p in problems):
        problems += check_images(data, args.images, decode=args.decode)
    num_errors = report(args.file, problems, limit=args.limit, strict=args.strict)
    print(f'{args.file}: {num_errors} errors' if num_errors else f'{args.file}: in order')
    if args.stats and not num_errors:
        print_statistics(load_cocovid(args.file))
    return 4 if num_errors else 0


if __name__ == '__main__':
    run_cli(main)
