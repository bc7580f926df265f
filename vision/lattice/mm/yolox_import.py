"""The published YOLOX-nano ONNX weights in MMDetection's model.

Nothing of the file is run, its tensors are read: the 113 convolutions in graph order go to the
modules that stand in the same place of mmdet's model, and every shape, stride, group, padding and
branch is compared on the way.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.zoo.store import sha256_of

# Raw outputs are box offsets in strides (a few units) and probabilities; float32 convolutions of
# two libraries differ by up to 4e-4 there on photographs (each is 2e-4 from a float64 run), a
# swapped or missing layer by more than 1.
TOLERANCE = 1e-3
NUM_BLOCKS = (1, 3, 3, 1)  # depth 0.33 of (3, 9, 9, 3), arXiv:2107.08430 and its code
HEAD_LEVELS = 3


def module_order() -> list[str]:
    """Names of mmdet's modules with a convolution, in the order of the published graph."""
    names = ['backbone.stem.conv']
    for stage, num_blocks in enumerate(NUM_BLOCKS, start=1):
        path = f'backbone.stage{stage}'
        names += _separable(f'{path}.0')
        if stage == len(NUM_BLOCKS):  # spatial pyramid pooling stands before the last CSP layer
            names += [f'{path}.1.conv1', f'{path}.1.conv2', *_csp(f'{path}.2', num_blocks)]
        else:
            names += _csp(f'{path}.1', num_blocks)
    for level in range(2):
        names += [f'neck.reduce_layers.{level}', *_csp(f'neck.top_down_blocks.{level}', 1)]
    for level in range(2):
        names += [*_separable(f'neck.downsamples.{level}'),
                  *_csp(f'neck.bottom_up_blocks.{level}', 1)]
    for level in range(HEAD_LEVELS):
        def tower(kind, level=level):
            return [name for i in range(2)
                    for name in _separable(f'bbox_head.multi_level_{kind}_convs.{level}.{i}')]
        names += [f'neck.out_convs.{level}',
                  *tower('cls'), f'bbox_head.multi_level_conv_cls.{level}',
                  *tower('reg'), f'bbox_head.multi_level_conv_reg.{level}',
                  f'bbox_head.multi_level_conv_obj.{level}']
    return names


def _separable(path: str) -> list[str]:
    return [f'{path}.depthwise_conv', f'{path}.pointwise_conv']


def _csp(path: str, num_blocks: int) -> list[str]:
    blocks = [name for i in range(num_blocks)
              for name in (f'{path}.blocks.{i}.conv1', *_separable(f'{path}.blocks.{i}.conv2'))]
    return [f'{path}.main_conv', f'{path}.short_conv', *blocks, f'{path}.final_conv']


class Convolution:
    """One Conv node: weight (O, I / groups, k, k), bias (O,), and which Conv feeds it."""

    def __init__(self, node, tensors: dict, producers: dict) -> None:
        import onnx
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.name = node.output[0]
        self.weight, self.bias = (tensors.get(name) for name in (*node.input[1:], '', '')[:2])
        self.stride, self.groups = tuple(values.get('strides', (1, 1))), values.get('group', 1)
        self.padding = tuple(values.get('pads', (0, 0, 0, 0)))
        self.fed_by = _feeding_conv(node.input[0], producers)


def _feeding_conv(tensor: str, producers: dict) -> str | None:
    """Output name of the Conv behind ``tensor`` with only its Swish between, else None."""
    node = producers.get(tensor)
    for _ in producers:  # a broken file may lead in a circle
        if node is None or node.op_type not in ('Mul', 'Sigmoid'):
            break
        node = producers.get(node.input[0])
    return node.output[0] if node is not None and node.op_type == 'Conv' else None


def read_convolutions(path: Path) -> list[Convolution]:
    """The convolutions of an ONNX file, in graph order.

    Raises:
        VisionError: not ONNX, a broken convolution, or weights that no convolution reads.
    """
    onnx = _package('onnx')
    try:
        # External data would let the file name other files of this machine: it is not read.
        graph = onnx.load(str(path), load_external_data=False).graph
        # Copied, because torch refuses the read-only arrays of a protobuf.
        tensors = {t.name: onnx.numpy_helper.to_array(t).copy() for t in graph.initializer}
    except Exception as error:  # protobuf, onnx and numpy each raise their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise VisionError(
            'VIS-CKPT-615', f'{path.name} cannot be read as ONNX: {reason}.', where=str(path),
            do='download it again: vision zoo get yolox-nano_coco') from error
    producers = {name: node for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type == 'Conv']
    try:
        convolutions = [Convolution(node, tensors, producers) for node in nodes]
    except (LookupError, TypeError, ValueError) as error:
        raise _other(f'a convolution is broken ({error})', 'each has inputs, an output and lists '
                     'of strides and pads') from error
    used = {name for node in nodes for name in node.input}
    left = [name for name, value in tensors.items()
            if name not in used and value.dtype.kind == 'f' and value.size > 4]  # 4: Resize scales
    if left:
        raise _other(f'{len(left)} weights are not those of a convolution (first: {left[0]})',
                     'batch norm must be folded, as in the published file')
    return convolutions


def build_model(config: Path) -> tuple[object, tuple[str, ...]]:
    """The detector of the config, in evaluation mode, and its classes."""
    from mmdet.utils import register_all_modules
    from mmengine import Config
    from mmengine.registry import MODELS
    register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(config)
    return MODELS.build(cfg.model).eval(), tuple(cfg.test_dataloader.dataset.metainfo.classes)


def fill(model, convolutions: list[Convolution]) -> None:
    """Write the convolutions into the model; all or an error.

    Raises:
        VisionError: the graph is not that of YOLOX-nano, with the first difference.
    """
    import torch
    names = module_order()
    if len(names) != len(convolutions):
        raise _other(f'it has {len(convolutions)} convolutions',
                     f'YOLOX-nano has {len(names)}')
    modules = dict(model.named_modules())
    for name, convolution in zip(names, convolutions, strict=True):
        _check(name, convolution, _conv_of(modules[name]))
    _check_branches(dict(zip(names, convolutions, strict=True)))
    untouched = {id(m) for m in modules.values() if isinstance(m, torch.nn.Conv2d)}
    with torch.no_grad():
        for name, convolution in zip(names, convolutions, strict=True):
            _write(modules[name], convolution)
            untouched.discard(id(_conv_of(modules[name])))
    assert not untouched, f'{len(untouched)} convolutions of the model got no weights'


def _conv_of(module):
    """The Conv2d of an mmcv ConvModule (or of a plain prediction layer)."""
    return getattr(module, 'conv', module)


def _check(name: str, found: Convolution, conv) -> None:
    if found.weight is None or found.bias is None:
        raise _other(f'convolution {found.name} has no constant weight and bias',
                     'batch norm must be folded, as in the published file')
    expected = dict(weight=tuple(conv.weight.shape), bias=(conv.out_channels,), dtype='float32',
                    stride=conv.stride, groups=conv.groups, padding=conv.padding * 2)
    actual = dict(weight=found.weight.shape, bias=found.bias.shape, dtype=str(found.weight.dtype),
                  stride=found.stride, groups=found.groups, padding=found.padding)
    for key, value in expected.items():
        if actual[key] != value:
            raise _other(f'convolution {found.name} has {key} {actual[key]}',
                         f'{name} of YOLOX-nano has {value}')
    if not (np.isfinite(found.weight).all() and np.isfinite(found.bias).all()):
        raise _other(f'convolution {found.name} holds NaN or infinity', 'weights are finite')


def _check_branches(by_name: dict[str, Convolution]) -> None:
    """Branches of equal shape can be told apart only by what they feed."""
    for name, convolution in by_name.items():
        if name.endswith('.blocks.0.conv1'):
            main = name.replace('.blocks.0.conv1', '.main_conv')
        elif '_conv_reg.' in name or '_conv_obj.' in name:
            level = name.rsplit('.', 1)[1]
            main = f'bbox_head.multi_level_reg_convs.{level}.1.pointwise_conv'
        else:
            continue
        if convolution.fed_by != by_name[main].name:
            raise _other(f'{convolution.name} is not fed by {by_name[main].name}',
                         f'in YOLOX-nano {name} follows {main}')


def _write(module, convolution: Convolution) -> None:
    import torch
    conv, norm = _conv_of(module), getattr(module, 'bn', None)
    conv.weight.copy_(torch.from_numpy(convolution.weight))
    if norm is None:
        conv.bias.copy_(torch.from_numpy(convolution.bias))
        return
    # y = (x - mean) / sqrt(var + eps) * weight + bias, made x + bias
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
    norm.weight.fill_(1.0)
    norm.bias.copy_(torch.from_numpy(convolution.bias))


def raw_output(model, images) -> np.ndarray:
    """(B, 3, H, W) BGR 0-255 float32 -> (B, positions, 85): box offsets, objectness, classes.

    The layout of the published graph: 4 undecoded box values, then sigmoids.
    """
    import torch
    with torch.no_grad():
        classes, boxes, objects = model(torch.from_numpy(images), mode='tensor')
    levels = [torch.cat([box, obj.sigmoid(), cls.sigmoid()], 1).flatten(2)
              for cls, box, obj in zip(classes, boxes, objects, strict=True)]
    return torch.cat(levels, 2).transpose(1, 2).numpy()


def onnx_output(path: Path, images: np.ndarray) -> np.ndarray:
    """What the published file gives in onnxruntime for images (B, 3, H, W) float32: its first
    output."""
    session = _package('onnxruntime').InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def compared(model, path: Path) -> str:
    """One line about the largest difference; an error when there is more than rounding."""
    try:
        importlib.import_module('onnxruntime')
    except ImportError:
        return 'not compared with the ONNX file: onnxruntime is not installed'
    # Smooth noise: activations like those of a photograph, and no file needed.
    blocks = np.random.default_rng(0).uniform(0, 255, (1, 3, 13, 13)).astype(np.float32)
    images = np.ascontiguousarray(blocks.repeat(32, 2).repeat(32, 3))
    difference = float(np.abs(raw_output(model, images) - onnx_output(path, images)).max())
    if not difference <= TOLERANCE:
        raise _other(f'the outputs differ by {difference:.2e}', f'at most {TOLERANCE} is rounding')
    return f'raw outputs equal onnxruntime\'s to {difference:.1e}'


def save(model, classes: tuple[str, ...], source: Path, target: Path) -> None:
    """Write a checkpoint of plain values, whole or not at all, with class names, source and
    licence."""
    import torch
    checkpoint = dict(
        state_dict=model.state_dict(),
        # Plain values only: the file loads with weights_only=True.
        meta=dict(dataset_meta=dict(classes=list(classes)), source=source.name,
                  source_sha256=sha256_of(source), licence='Apache-2.0'))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')
    try:
        torch.save(checkpoint, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _package(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VisionError('VIS-ENV-616', f'the package {name} cannot be imported: {error}.',
                          why='it is an optional part', do='pip install -e .[onnx]') from error


def _other(found: str, expected: str) -> VisionError:
    return VisionError('VIS-CKPT-617', f'this is not the YOLOX-nano graph: {found}.', why=expected,
                       do='use the published file: vision zoo get yolox-nano_coco')
