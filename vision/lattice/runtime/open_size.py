"""A YOLOX .onnx file that runs at any multiple of 32 px."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError


def with_open_size(source: Path, size: int, note: str) -> bytes:
    """The file with open sizes: the weights stay as they are, bit by bit.

    Args:
        size: side in px that it was trained for, written as metadata ``input_size``.
        note: origin and licence, written beside it.

    Raises:
        VisionError: VIS-CKPT-1756, not the file of such a network, or one of another size.
    """
    import onnx
    try:
        model = onnx.load(source, load_external_data=False)
        (image,), output = model.graph.input, model.graph.output[0]
        sides = [image.type.tensor_type.shape.dim[axis] for axis in (2, 3)]
        anchors = output.type.tensor_type.shape.dim[1]
        declared = [side.dim_value for side in sides]
        fault = '' if declared in ([size, size], [0, 0]) else \
            f'its input is {declared[1]} x {declared[0]} px, --size says {size}'
    except Exception as error:  # protobuf, onnx and the system each raise their own kinds
        fault = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
    if fault:
        raise VisionError('VIS-CKPT-1756', f'{source.name} cannot be opened to other sizes',
                          where=str(source), why=fault, do='give the .onnx file of a YOLOX and '
                          'the side that it was exported for')
    for side, name in zip(sides, ('height', 'width'), strict=True):
        side.dim_param = name
    anchors.dim_param = 'anchors'
    del model.graph.value_info[:]  # sizes that were inferred for one input
    onnx.helper.set_model_props(model, dict(input_size=str(size), note=note))
    return model.SerializeToString()


def check(source: Path, content: bytes, size: int) -> None:
    """Equal at the old size, and alive at two others.

    Raises:
        VisionError: VIS-CKPT-818, the file holds constants of one size.
    """
    import onnxruntime
    old, new = onnxruntime.InferenceSession(str(source)), onnxruntime.InferenceSession(content)
    name = old.get_inputs()[0].name
    noise = np.random.default_rng(0).uniform(0, 255, (1, 3, size, size)).astype(np.float32)
    try:
        is_equal = np.array_equal(old.run(None, {name: noise})[0], new.run(None, {name: noise})[0])
        for height, width in ((256, 416), (640, 320)):
            new.run(None, {name: np.zeros((1, 3, height, width), np.float32)})
    except Exception as error:  # onnxruntime raises kinds of its own
        raise VisionError('VIS-CKPT-818', f'{source.name} runs at one size alone',
                          where=str(source), why=str(error).splitlines()[0],
                          do='export it without decoding (decode_in_inference off)') from error
    assert is_equal, 'the same weights gave another output'
