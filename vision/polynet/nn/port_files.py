"""Files of the published PyTorch port and checkpoints of this repository, one from the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vision.common.core.errors import VisionError
from vision.common.core.files import sha256_of
from vision.polynet.nn.cadene import check_shapes, convert, is_port_state, missing_counters
from vision.polynet.nn.pretrained import adapt_first_conv

STEM = 'backbone.trunk.stem.entry.0.conv.weight'
HEAD = 'head.fc.'
NUM_CLASSES = 1000  # ImageNet


def ours_of_port(state: dict[str, Tensor], path: Path, *, num_classes: int = NUM_CLASSES,
                 in_channels: int = 3, is_backbone_only: bool = False) -> dict[str, Any]:
    """A checkpoint of ``ImageClassifier`` with the port's tensors, values and types untouched.

    Args:
        path: the file they come from, which the checkpoint names with its SHA-256.
        num_classes: of your network; a published classifier of 1000 classes is left out when it
            has others.
        in_channels: of your images; the first convolution is adapted to it.
        is_backbone_only: leave the classifier out in any case.

    Raises:
        VisionError: VIS-CKPT-059, the state is not the port's; tensors left over, missing or of
            another shape.
    """
    if not is_port_state(state):
        raise VisionError('VIS-CKPT-059', f'{path.name} is no state_dict of the published port',
                          where=str(path), why=f'it has names such as {sorted(state)[:2]}',
                          do='add --reverse for a checkpoint of this repository')
    ours = convert(state)
    classes = len(ours.get(HEAD + 'bias', ()))
    if not classes:
        print('the file has no classifier: the result is a trunk, for init_cfg')
    is_published_head = classes == NUM_CLASSES != num_classes
    check_shapes(ours, num_classes=NUM_CLASSES if is_published_head else num_classes)
    if classes and (is_backbone_only or is_published_head):
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith(HEAD)}
        print(f'the classifier ({classes} classes) is left out')
    ours[STEM] = adapt_first_conv(ours[STEM], in_channels).contiguous()
    counters = missing_counters(ours)
    # path_scales are constants of the published code; a backbone that loads this compares them.
    meta = dict(source=path.name, source_sha256=sha256_of(path), has_counters=not counters,
                path_scales='released')
    return dict(state_dict=ours | counters, meta=meta)


def port_of_ours(content: dict[str, Any], *, num_classes: int = NUM_CLASSES
                 ) -> dict[str, Tensor]:
    """The port's state_dict out of a checkpoint, bit by bit what it was made of.

    Raises:
        VisionError: VIS-CKPT-1754, not a checkpoint of a PolyNet classifier.
    """
    state = content['state_dict']
    if not any(name.startswith('backbone.trunk.') for name in state):
        raise VisionError('VIS-CKPT-1754', 'not a checkpoint of a PolyNet classifier',
                          why=f'it has names such as {sorted(state)[:2]}',
                          do='give one that vision convert polynet or vision train wrote')
    if not content.get('meta', {}).get('has_counters', True):
        # The file this came from had no batch counters: neither has its reverse.
        state = {name: tensor for name, tensor in state.items()
                 if not name.endswith('num_batches_tracked')}
    port = convert(state, reverse=True)
    check_shapes(state, num_classes=num_classes)
    return port
