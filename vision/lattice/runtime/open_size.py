"""Leave the input size of a YOLOX .onnx file open, so that it runs at any multiple of 32.

  python tools/model_converters/yolox_open_size.py yolox_nano.onnx yolox_nano_any.onnx --size 416

The weights stay as they are, bit by bit; only the declared sizes of input and output change, and
the side that the network was trained for is written into the file (metadata ``input_size``), with
``--note`` beside it. Files exported with their decoding hold constants of one size and are
refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_same_file


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('source', type=Path, help='.onnx file of YOLOX without decoding')
    parser.add_argument('target', type=Path, help='.onnx file to write')
    parser.add_argument('--size', type=int, default=416,
                        help='side in px that it was trained for (default: %(default)s)')
    parser.add_argument('--note', default='', help='origin and licence, kept in the file')
    args = parser.parse_args(argv)
    refuse_same_file(args.source, args.target)
    content = with_open_size(args.source, args.size, args.note)
    check(args.source, content, args.size)
    with atomic_write(args.target) as file:
        file.write(content)
    print(f'{args.target}: runs at any multiple of 32, equal to {args.source.name} at its own')
    return 0


def with_open_size(source: Path, size: int, note: str) -> bytes:
    import onnx
    model = onnx.load(source, load_external_data=False)
    (image,), output = model.graph.input, model.graph.output[0]
    for axis, name in ((2, 'height'), (3, 'width')):
        image.type.tensor_type.shape.dim[axis].dim_param = name
    output.type.tensor_type.shape.dim[1].dim_param = 'anchors'
    del model.graph.value_info[:]  # sizes that were inferred for one input
    onnx.helper.set_model_props(model, dict(input_size=str(size), note=note))
    return model.SerializeToString()


def check(source: Path, content: bytes, size: int) -> None:
    """Equal at the old size, and alive at two others."""
    import onnxruntime
    old, new = onnxruntime.InferenceSession(str(source)), onnxruntime.InferenceSession(content)
    name = old.get_inputs()[0].name
    noise = np.random.default_rng(0).uniform(0, 255, (1, 3, size, size)).astype(np.float32)
    try:
        is_equal = np.array_equal(old.run(None, {name: noise})[0], new.run(None, {name: noise})[0])
        for height, width in ((256, 416), (640, 320)):
            new.run(None, {name: np.zeros((1, 3, height, width), np.float32)})
    except Exception as error:  # onnxruntime raises kinds of its own
        raise VisionError('VIS-CKPT-807', f'{source.name} runs at one size alone',
                          where=str(source), why=str(error).splitlines()[0],
                          do='export it without decoding (decode_in_inference off)') from error
    assert is_equal, 'the same weights gave another output'


if __name__ == '__main__':
    run_cli(main)
