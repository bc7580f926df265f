"""Turn the per-rank files of an InsightFace (Partial FC) run into one checkpoint of this project.

Examples:
  vision convert partial-fc work_dirs/ms1mv3_r50 ms1mv3_r50.pth
  vision train CONFIG --cfg-options load_from=ms1mv3_r50.pth

SOURCE is the output folder of arcface_torch: checkpoint_gpu_R.pt, softmax_fc_gpu_R.pt or
rank_R_softmax_weight.pt, for all ranks R. The checkpoint holds the rows of all classes with their
momentum, so a run goes on with any number of processes, and the backbone (IResNet) when the
folder has it. Nothing in the files is executed.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', type=Path, help='folder with one file for each rank')
    parser.add_argument('target', type=Path, help='checkpoint to write (.pth)')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    from vision.common.nn.checkpoint import save_checkpoint
    from vision.faces.nn.store.partial_fc import read_partial_fc
    stores, backbone = read_partial_fc(args.source)
    first = stores[0]
    save_checkpoint(dict(
        state_dict={f'backbone.trunk.{name}': tensor for name, tensor in backbone.items()},
        active_class=dict(num_classes=first['num_classes'], dim=first['dim'], num_subcentres=1,
                          stores=stores, selectors=[])), args.target)
    print(f'{args.target}: {first["num_classes"]} classes of length {first["dim"]} from '
          f'{len(stores)} ranks, optimizer {first["optimizer"]["type"]}, '
          f'{len(backbone)} tensors of the backbone')
    return 0


if __name__ == '__main__':
    run_cli(main)
