"""Export of an embedder: the graph equals the model, and a graph that does not is not kept."""

import cv2
import numpy as np
import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import save_checkpoint
from vision.faces.nn.export import images
from vision.registry import MODELS

CONFIG = """
model = dict(type='FaceRecognizer',
             backbone=dict(type='MobileFaceNet', dim=16, image_size=32, variant='relu6'),
             data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True,
                                    mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0]))
"""


@pytest.fixture(scope='module')
def export():
    for name in ('onnx', 'onnxruntime'):
        pytest.importorskip(name)
    from vision.cli.faces_export import main
    return main


@pytest.fixture
def case(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    torch.manual_seed(0)
    scope = {}
    exec(CONFIG, scope)
    model = MODELS.build(scope['model'])
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # statistics of this batch: an untrained net then still reacts
    model.backbone(torch.randn(32, 3, 32, 32))
    save_checkpoint(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    return model.eval(), [str(config), str(tmp_path / 'weights.pth'), str(tmp_path / 'out.onnx')]


@pytest.mark.parametrize('options', [[], ['--flip-fusion']])
def test_graph_gives_what_the_model_gives_for_real_image_bytes(export, case, options):
    import onnxruntime
    model, arguments = case
    assert export([*arguments, '--image-size', '32', *options]) == 0
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = cv2.imdecode(cv2.imencode('.png', image)[1], cv2.IMREAD_COLOR)
    session = onnxruntime.InferenceSession(arguments[2], providers=['CPUExecutionProvider'])
    actual, = session.run(None, dict(images=image.transpose(2, 0, 1)[None].astype(np.float32)))
    model.flip_fusion = bool(options)
    inputs = model.data_preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]))
    with torch.inference_mode():
        expected = model(inputs['inputs'])
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    assert np.linalg.norm(actual) == pytest.approx(1, abs=1e-5)


def test_flip_fusion_does_not_see_mirroring(case):
    model, _ = case
    model.flip_fusion = True
    embedder = model.embedder()
    batch = images(3, 32)
    with torch.inference_mode():
        torch.testing.assert_close(embedder(batch), embedder(batch.flip(3)))
        model.flip_fusion = False
        assert (model.embedder()(batch) - model.embedder()(batch.flip(3))).abs().max() > 1e-3


def test_a_graph_that_differs_is_not_kept(export, case, tmp_path):
    _, arguments = case
    with pytest.raises(VisionError, match='VIS-RUN-1007'):
        export([*arguments, '--image-size', '32', '--tolerance', '-1'])
    assert not list(tmp_path.glob('*.onnx*'))


def test_missing_config_is_named(export, case, tmp_path):
    with pytest.raises(VisionError, match='VIS-CONFIG-1083.*nowhere.py'):
        export([str(tmp_path / 'nowhere.py'), *case[1][1:]])
