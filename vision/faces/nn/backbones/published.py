"""The public MobileFaceNet weights (foamliu/MobileFaceNet, Apache-2.0) as an embedder.

They were trained on refined MS-Celeb-1M, a set that its owner withdrew: for research.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_state
from vision.faces.nn.backbones.embedder import Embedder
from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk

# Of the channels in RGB order, as the published code prepares its pictures.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
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


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether this is the published file's state, by the names of tensors that only it has."""
    return {'gdconv.depthwise.weight', 'dw_conv.pointwise.weight'} <= set(state)


def published_embedder(state: Mapping[str, Tensor], where: str) -> Embedder:
    """What configs/faces/mobilefacenet_ms1m.py describes, without reading a config: mean, flip
    fusion and channel order inside. 112 px crops to 128 numbers.

    Raises:
        VisionError: VIS-CKPT-1005, VIS-CKPT-305: the state of another network.
    """
    trunk = MobileFaceNetTrunk(variant='relu6')
    load_state(trunk, renamed(state, where), where=where)
    return Embedder(trunk, mean=MEAN, std=STD, swaps_channels=True, with_flip=True).eval()


def renamed(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
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
