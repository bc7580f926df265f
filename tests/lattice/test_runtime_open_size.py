"""A file of one input size runs at others, with the same answers; what is no such file is told."""

import numpy as np
import onnxruntime
import pytest

pytest.importorskip('onnx')
import onnx

from vision.cli.convert_yolox_open_size import main
from vision.common.core.errors import VisionError
from vision.zoo import resolve


@pytest.fixture(scope='module')
def closed(tmp_path_factory):
    """The packaged network with a declared input of 96 x 96 px."""
    model = onnx.load(resolve('zoo:yolox-nano_coco'))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 96
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 96 * 96 * 21 // 1024
    path = tmp_path_factory.mktemp('closed') / 'closed.onnx'
    onnx.save(model, path)
    return path


def outputs(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_an_opened_file_runs_at_other_sizes(closed, tmp_path):
    target = tmp_path / 'open.onnx'
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 128)).astype(np.float32)
    with pytest.raises(Exception, match='(?i)got invalid dimensions'):
        outputs(closed, images)
    assert main([str(closed), str(target), '--size', '96', '--note', 'from here']) == 0
    assert np.array_equal(outputs(target, images), outputs(resolve('zoo:yolox-nano_coco'), images))
    assert onnxruntime.InferenceSession(str(target)).get_modelmeta().custom_metadata_map == dict(
        input_size='96', note='from here')


@pytest.mark.parametrize(('content', 'size', 'why'), [
    (None, '96', 'No such file'), (b'no graph', '96', 'DecodeError'),
    ('closed', '128', 'its input is 96 x 96 px, --size says 128')])
def test_what_cannot_be_opened_is_told(closed, tmp_path, content, size, why):
    source = closed if content == 'closed' else tmp_path / 'x.onnx'
    if isinstance(content, bytes):
        source.write_bytes(content)
    with pytest.raises(VisionError, match=f'VIS-CKPT-1756[^$]*{why}'):
        main([str(source), str(tmp_path / 'out.onnx'), '--size', size])
    assert not (tmp_path / 'out.onnx').exists()


def test_a_size_that_no_network_has_is_a_usage_error(closed, tmp_path):
    with pytest.raises(SystemExit):
        main([str(closed), str(tmp_path / 'out.onnx'), '--size', '100'])
