"""Draw the characters of the glyph data set into one memory-mapped file.

Training draws glyphs on the fly as well; a prepared file spares the processor. Both give the same
pictures. The fonts stay where they are; see README.md here for their packages and licences.

  python datasets/glyphs/prepare.py --out data/glyphs
  python datasets/glyphs/prepare.py --out data/glyphs_5k --num-classes 5000 --num-unseen 500

Use the same numbers in the config: GlyphDataset(prepared='data/glyphs', num_classes=..., ...).
"""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.new_folder import new_folder
from vision.faces.core.data.glyphs import HELD_OUT


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder to make')
    add('--num-classes', type=int, default=20_000, help='characters to train on (default: 20000)')
    add('--num-unseen', type=int, default=2_000, help='characters kept out (default: 2000)')
    add('--min-families', type=int, default=5,
        help='training families that must have a character (default: 5)')
    add('--families', nargs='+', help='training families (default: all but the held-out ones)')
    add('--held-out', nargs='+', default=list(HELD_OUT), help='(default: %(default)s)')
    add('--size', type=int, default=32, help='px (default: 32)')
    add('--seed', type=int, default=0, help='of the choice of characters (default: 0)')
    args = parser.parse_args(argv)
    from vision.faces.mm.glyph_data import glyph_plan
    from vision.faces.nn.data.glyph_images import write_prepared
    plan = glyph_plan(args.families, args.held_out, num_classes=args.num_classes,
                      num_unseen=args.num_unseen, min_families=args.min_families, seed=args.seed)
    with new_folder(args.out) as folder:
        count = write_prepared(plan, args.size, folder,
                               lambda rows: track(rows, description='glyphs'))
    print(f'{args.out}: {count} pictures of {len(plan.characters)} characters in '
          f'{len(plan.styles)} styles')
    return 0


if __name__ == '__main__':
    run_cli(main)
