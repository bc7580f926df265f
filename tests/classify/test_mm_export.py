"""A trained classifier in one file says what the config's model says, and needs no torch."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import save_checkpoint
from vision.registry import MODELS

CONFIG = '''default_scope = 'vision'
model = dict(type='ImageClassifier',
             backbone=dict(type='VisionTransformer', img_size=32, patch_size=16, arch=dict(
                 embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)),
             head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
             data_preprocessor=dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0],
                                    to_rgb=True))
test_dataloader = dict(batch_size=2, dataset=dict(
    type='ImageFolder', data_root={root!r}, data_prefix='val', pipeline=[
        dict(type='ReadImage'), dict(type='Resize', scale=(40, 36), keep_ratio=False),
        dict(type='CenterCrop', crop_size=(32, 32)), {more}dict(type='PackInputs')]))
'''


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """Folder with config, checkpoint and the pictures of three classes."""
    folder = tmp_path_factory.mktemp('case')
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog', 'owl'):
        (folder / 'val' / name).mkdir(parents=True)
        for row in range(4):
            cv2.imwrite(str(folder / 'val' / name / f'{row}.png'),
                        rng.integers(0, 256, (50 + row, 70, 3), dtype=np.uint8))
    (folder / 'c.py').write_text(CONFIG.format(root=str(folder), more=''))
    scope = {}
    exec(CONFIG.format(root='', more=''), scope)
    torch.manual_seed(0)
    model = MODELS.build(scope['model'])
    model.init_weights()
    torch.nn.init.normal_(model.head.fc.weight, std=2.0)
    save_checkpoint(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(
        classes=('cat', 'dog', 'owl')))), folder / 'm.pth')
    return folder


@pytest.fixture(scope='module')
def exported(case):
    pytest.importorskip('onnx')
    from vision.cli.classify_export import main
    assert main([str(case / 'c.py'), str(case / 'm.pth'), str(case / 'm.onnx')]) == 0
    return case / 'm.onnx'


def test_the_file_says_what_config_and_checkpoint_say(case, exported):
    import vision
    paths = sorted(case.glob('val/*/*.png'))
    ours = vision.load(str(exported))(paths)
    judge = vision.load(str(case / 'c.py'), str(case / 'm.pth'))(paths)
    assert ours[0].classes == judge[0].classes == ('cat', 'dog', 'owl')
    assert len({prediction.name for prediction in judge}) > 1  # or it would prove little
    for a, b in zip(ours, judge, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=2e-3)
        assert a.probabilities.sum() == pytest.approx(1)


def test_it_runs_without_torch(case, exported):
    code = ('import sys; sys.modules.update(dict.fromkeys(("torch", "mmengine", "mmcv")))\n'
            'import vision\n'
            f'print(vision.load({str(exported)!r})({str(case / "val/cat/0.png")!r}).top(2))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("[('"), done.stderr


def test_a_preparation_that_a_file_cannot_hold_is_refused(case, tmp_path):
    from vision.cli.classify_export import main
    config = tmp_path / 'c.py'
    config.write_text(CONFIG.format(root=str(case), more="dict(type='RandomFlip', prob=0.5), "))
    with pytest.raises(VisionError, match='VIS-CONFIG-1738.*RandomFlip'):
        main([str(config), str(case / 'm.pth'), str(tmp_path / 'm.onnx')])
    assert not list(tmp_path.glob('*.onnx*'))


def test_names_that_do_not_fit_are_refused(case):
    import vision
    with pytest.raises(VisionError, match='VIS-CONFIG-1747: 2 names for 3 classes'):
        vision.load(str(case / 'c.py'), str(case / 'm.pth'), classes=['a', 'b'])
    with pytest.raises(VisionError, match='VIS-INPUT-1743'):
        vision.load(str(case / 'c.py'), task='classify')


def test_pictures_of_all_forms(case, exported):
    import vision
    model = vision.load(str(exported))
    path = case / 'val/cat/0.png'
    image = cv2.imread(str(path))
    expected = model(str(path)).probabilities
    assert model(image).probabilities == pytest.approx(expected)
    assert model(np.dstack([image, image[:, :, 0]])).probabilities == pytest.approx(expected)
    assert [len(p.top(9)) for p in model([image, path])] == [3, 3] and model([]) == []
    model(image[:, :, 0]), model(image[:1, :1])
    for wrong in (image.astype(np.float32), np.zeros((0, 4, 3), np.uint8), 7):
        with pytest.raises((VisionError, TypeError)):
            model(wrong)
    with pytest.raises(VisionError, match='VIS-INPUT-1732: .*picture 1|picture 1'):
        model([image, None])
    with pytest.raises(VisionError, match='VIS-INPUT-1741'):
        model(image).top(0)


def test_the_command_prints_and_writes(case, exported, tmp_path, capsys):
    from vision.cli.classify import main
    assert main([str(case / 'val'), '--model', str(exported), '--top', '2', '--out',
                 str(tmp_path / 't.csv')]) == 0
    assert capsys.readouterr().out.count(' %') == 24
    lines = (tmp_path / 't.csv').read_text().splitlines()
    assert lines[0] == 'image,rank,name,probability' and len(lines) == 25
    with pytest.raises(VisionError, match='VIS-INPUT-1749'):
        main([str(case / 'none.png'), '--model', str(exported)])


def test_a_file_that_is_no_classifier(tmp_path):
    from vision.classify.runtime.onnx_classifier import OnnxClassifier
    (tmp_path / 'x.onnx').write_bytes(b'nonsense')
    with pytest.raises(VisionError, match='VIS-CKPT-1739'):
        OnnxClassifier(tmp_path / 'x.onnx')


def test_a_recogniser_classifies_by_the_means_of_its_classes(tmp_path):
    """Pictures of one grey each: the mean embedding of a class is its own picture's."""
    from vision.classify.mm.export import _take_means
    from vision.faces.mm.recognizer import RowClassifier

    class Pictures:
        steps = []

        def __len__(self):
            return 6

        def raw(self, index):
            image = np.zeros((2, 1, 3), np.uint8)
            image[0, 0, index % 3] = 100 + index
            return image, int(index % 3)

    module = RowClassifier(torch.nn.Flatten(), torch.randn(4, 6), 2.0)
    _take_means(module, Pictures(), 'abc')
    expected = torch.zeros(6, 3)
    expected[[0, 2, 4], [0, 1, 2]] = 1
    torch.testing.assert_close(module.rows, expected)
    module(torch.ones(1, 6).requires_grad_())
    with pytest.raises(VisionError, match='VIS-DATA-1831[^$]*d'):
        _take_means(module, Pictures(), 'abcd')  # nobody showed a picture of d
