"""Start a larger PolyNet from a trained smaller one: insertion, arXiv:1611.05725.

Examples:
  vision convert polynet-insertion ir-3-6-3 epoch_30.pth \\
      ir-3-6-3_b-mpoly-3 start.pth
  vision convert polynet-insertion SOURCE.py epoch_30.pth TARGET.py \\
      start.pth --identity-start --map start.json

SOURCE and TARGET are two presets (vision flops lists them for a wrong name), or two
config files with a PolyNet as backbone. Configs know more than the architecture: name them when
path_scales, residual_scale, path drop, share or in_channels are not the defaults in one of them (a
preset has path scales of 1).

A module may get more terms (I + F becomes I + F + GF and keeps F) and a stage more modules: each
new one goes between two trained ones. Stem, reductions and whatever the checkpoint holds beside
the backbone (the classifier) are copied. New tensors are initialised as the target's config says,
from --seed. Train on with: vision train TARGET.py --cfg-options load_from=start.pth

With --identity-start the projection norms of all new terms are zero: at evaluation the new network
computes exactly what the old one did, and training departs from there. Where the factor of a
trained module's terms changes (path_scales, path drop), its projection norm makes up for it, with
and without --identity-start.
"""

from __future__ import annotations

import json
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_same_file, refuse_unwritable
from vision.polynet.core.insertion import PLACEMENTS


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='preset or config of the trained network')
    parser.add_argument('checkpoint', help='its checkpoint, or zoo:NAME')
    parser.add_argument('target', help='preset or config of the larger network')
    parser.add_argument('out', type=Path, help='checkpoint to write (.pth)')
    parser.add_argument('--identity-start', action='store_true',
                        help='silence what is new, so that the function is unchanged')
    parser.add_argument('--placement', choices=PLACEMENTS, default=PLACEMENTS[0],
                        help='where new modules go (default %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the new tensors')
    parser.add_argument('--map', type=Path, help='write the map of all tensors as JSON')
    args = parser.parse_args(argv)
    refuse_same_file(args.checkpoint, args.out)
    refuse_unwritable(args.out, args.map)
    from vision.polynet.mm.insertion import insert
    made, modules, said = insert(args.source, args.checkpoint, args.target,
                                 placement=args.placement, seed=args.seed,
                                 is_identity=args.identity_start)
    from vision.common.nn.checkpoint import save_checkpoint
    save_checkpoint(made, args.out)
    if args.map:
        with atomic_write(args.map, 'w') as file:
            json.dump(modules, file, indent=1)
    print(said)
    return 0


if __name__ == '__main__':
    run_cli(main)
