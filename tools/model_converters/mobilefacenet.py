"""Turn public MobileFaceNet weights into a checkpoint of this project.

Examples:
  python tools/model_converters/mobilefacenet.py mobilefacenet.pt mobilefacenet_ms1m.pth
  python tools/verify_faces.py configs/faces/mobilefacenet_ms1m.py mobilefacenet_ms1m.pth \\
      --pairs pairs.txt --images images

Reads the state dict that foamliu/MobileFaceNet publishes (Apache-2.0; trained on MS-Celeb-1M which
its owner withdrew: for research) without running anything in it, and gives its tensors the names
of FaceRecognizer with backbone MobileFaceNet(variant='relu6'). All tensors must be used and all
must fit.
"""

from __future__ import annotations

import re
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli

# Part of the published network -> module of ours; in blocks, '.conv' layers in order.
PARTS = (
    (r'conv1\.(\d)\.', r'stem.0.\1.'),
    (r'dw_conv\.depthwise\.', 'stem.1.0.'),
    (r'dw_conv\.bn1\.', 'stem.1.1.'),
    (r'dw_conv\.pointwise\.', 'stem.2.0.'),
    (r'dw_conv\.bn2\.', 'stem.2.1.'),
    (r'features\.(\d+)\.conv\.([01])\.(\d)\.', r'blocks.\1.layers.\2.\3.'),
    (r'features\.(\d+)\.conv\.2\.', r'blocks.\1.layers.2.0.'),
    (r'features\.(\d+)\.conv\.3\.', r'blocks.\1.layers.2.1.'),
    (r'conv2\.(\d)\.', r'expand.\1.'),
    (r'gdconv\.depthwise\.', 'global_depthwise.0.'),
    (r'gdconv\.bn\.', 'global_depthwise.1.'),
    (r'conv3\.', 'linear.'),
    (r'bn\.', 'norm.'))


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', help='published state dict (.pt), or zoo:NAME')
    parser.add_argument('target', type=Path, help='checkpoint to write (.pth)')
    args = parser.parse_args(argv)
    from vision.common.nn.checkpoint import (
        load_checkpoint,
        load_state,
        save_checkpoint,
        unwrapped,
    )
    from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk
    from vision.zoo import resolve
    state = unwrapped(load_checkpoint(resolve(args.source))['state_dict'])
    state = renamed(state, str(args.source))
    trunk = MobileFaceNetTrunk(variant='relu6')
    load_state(trunk, state, where=str(args.source))
    content = {f'backbone.trunk.{name}': tensor for name, tensor in trunk.state_dict().items()}
    save_checkpoint(dict(state_dict=content, meta=dict(source=Path(args.source).name)),
                    args.target)
    print(f'{args.target}: {sum(p.numel() for p in trunk.parameters())} parameters')
    return 0


def renamed(state: dict, where: str) -> dict:
    """The same tensors under the names of ``MobileFaceNetTrunk``.

    Raises:
        VisionError: VIS-CKPT-1005, with the first name that the published network does not have.
    """
    names = {}
    for name in state:
        found = [re.sub(pattern, ours, name) for pattern, ours in PARTS
                 if re.match(pattern, name)]
        if len(found) != 1:
            raise VisionError('VIS-CKPT-1005', f'{name!r} is no tensor of the published '
                              'MobileFaceNet', where=where, do='give the file mobilefacenet.pt '
                              'of foamliu/MobileFaceNet; other networks need another converter')
        names[name] = found[0]
    return {names[name]: tensor for name, tensor in state.items()}


if __name__ == '__main__':
    run_cli(main)
