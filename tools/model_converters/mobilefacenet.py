"""Turn public MobileFaceNet weights into a checkpoint of this project.

Examples:
  python tools/model_converters/mobilefacenet.py mobilefacenet.pt mobilefacenet_ms1m.pth

Loading does the same by itself (vision.load): the file is for trainings that begin with these
weights. Reads the state dict that foamliu/MobileFaceNet publishes (Apache-2.0; trained on
MS-Celeb-1M which its owner withdrew: for research) without running anything in it, and gives its
tensors the names of FaceRecognizer with backbone MobileFaceNet(variant='relu6'). All tensors must
be used and all must fit.
"""

from __future__ import annotations

from pathlib import Path

from vision.common.core.errors import command_parser, run_cli


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='published state dict (.pt), or zoo:NAME')
    parser.add_argument('target', type=Path, help='checkpoint to write (.pth)')
    args = parser.parse_args(argv)
    from vision.common.nn.checkpoint import load_checkpoint, load_state, save_checkpoint
    from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk
    from vision.faces.nn.backbones.published import renamed
    from vision.zoo import resolve
    state = renamed(load_checkpoint(resolve(args.source))['state_dict'], str(args.source))
    trunk = MobileFaceNetTrunk(variant='relu6')
    load_state(trunk, state, where=str(args.source))
    content = {f'backbone.trunk.{name}': tensor for name, tensor in trunk.state_dict().items()}
    save_checkpoint(dict(state_dict=content, meta=dict(source=Path(args.source).name)),
                    args.target)
    print(f'{args.target}: {sum(p.numel() for p in trunk.parameters())} parameters')
    return 0


if __name__ == '__main__':
    run_cli(main)
