"""Embedding backbones: sizes, gradients, published weights."""

import re

import numpy as np
import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.faces.nn.backbones.iresnet import IResNetTrunk
from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk

SMALL = [lambda: MobileFaceNetTrunk(16, image_size=32, in_channels=1),
         lambda: MobileFaceNetTrunk(16, image_size=32, in_channels=1, stem_stride=1),
         lambda: MobileFaceNetTrunk(16, image_size=32, in_channels=1, variant='relu6'),
         lambda: IResNetTrunk(18, 16, image_size=32, in_channels=1),
         lambda: IResNetTrunk(18, 16, image_size=32, in_channels=1, width=0.25, stem_stride=2)]


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('build', SMALL)
def test_every_parameter_that_may_learn_gets_a_gradient(build):
    torch.manual_seed(0)
    model = build()
    embedding = model(torch.randn(4, 1, 32, 32))
    assert embedding.shape == (4, 16)
    (embedding * torch.randn(4, 16)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_mobilefacenet_by_counting():
    # Stem, blocks (in, hidden, out) of table 1, last three layers; PReLU has one slope a channel.
    def conv(weights, channels, has_activation=True):
        return weights + 2 * channels + (channels if has_activation else 0)
    total = conv(3 * 64 * 9, 64) + conv(64 * 9, 64)
    for before, hidden, out in ([(64, 128, 64)] * 5 + [(64, 256, 128)] + [(128, 256, 128)] * 6
                                + [(128, 512, 128)] + [(128, 256, 128)] * 2):
        total += conv(before * hidden, hidden) + conv(hidden * 9, hidden)
        total += conv(hidden * out, out, False)
    total += conv(128 * 512, 512) + conv(512 * 49, 512, False) + 512 * 128 + 2 * 128
    assert num_parameters(MobileFaceNetTrunk()) == total


@pytest.mark.parametrize('depth, millions', [(18, 24.0), (34, 34.1), (50, 43.6), (100, 65.2)])
def test_iresnet_has_the_known_sizes(depth, millions):
    with torch.device('meta'):
        model = IResNetTrunk(depth)
    assert num_parameters(model) / 1e6 == pytest.approx(millions, abs=0.06)


def test_iresnet_tensors_have_insightface_names():
    names = set(IResNetTrunk(18, 16, image_size=16).state_dict())
    for name in ('conv1.weight', 'bn1.weight', 'prelu.weight', 'layer1.0.bn1.weight',
                 'layer1.0.conv1.weight', 'layer1.0.bn2.weight', 'layer1.0.prelu.weight',
                 'layer1.0.conv2.weight', 'layer1.0.bn3.running_mean',
                 'layer1.0.downsample.0.weight', 'layer1.0.downsample.1.bias',
                 'layer4.1.conv2.weight', 'bn2.weight', 'fc.weight', 'fc.bias',
                 'features.weight'):
        assert name in names
    assert not [name for name in names if name.startswith('layer1.1.downsample')]
    assert IResNetTrunk(18, 16, image_size=16).features.weight.requires_grad is False


def test_a_narrow_iresnet_is_a_quarter_of_the_convolutions():
    def convolutions(**options):
        with torch.device('meta'):
            model = IResNetTrunk(18, 16, image_size=32, **options)
        return sum(p.numel() for name, p in model.named_parameters()
                   if p.ndim == 4 and name != 'conv1.weight')
    assert convolutions(width=0.5) * 4 == convolutions()


def test_recomputing_changes_no_number():
    torch.manual_seed(0)
    plain = IResNetTrunk(18, 8, image_size=16, in_channels=1)
    lean = IResNetTrunk(18, 8, image_size=16, in_channels=1, with_cp=True)
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1, 16, 16)
    for model in (plain, lean):
        model(x).square().sum().backward()
    torch.testing.assert_close(lean.conv1.weight.grad, plain.conv1.weight.grad, rtol=0, atol=0)


@pytest.mark.parametrize('build', [
    lambda: MobileFaceNetTrunk(image_size=100), lambda: MobileFaceNetTrunk(variant='swish'),
    lambda: IResNetTrunk(51), lambda: IResNetTrunk(image_size=0),
    lambda: IResNetTrunk(width=0.001), lambda: IResNetTrunk(image_size=48, stem_stride=2)])
def test_impossible_shapes_are_refused(build):
    with pytest.raises(VisionError, match='VIS-CONFIG-1004'):
        build()


@pytest.mark.parametrize('build', SMALL)
def test_images_of_another_size_are_refused(build):
    with pytest.raises(VisionError, match=r'VIS-INPUT-1010.*\(40, 32\)'):
        build()(torch.zeros(2, 1, 40, 32))


@pytest.fixture(scope='module')
def converter():
    from vision.cli.convert_mobilefacenet import main
    return main


def test_converter_uses_every_published_tensor(converter, shared_data, tmp_path):
    source = shared_data / 'weights' / 'mobilefacenet.pt'
    assert converter([str(source), str(tmp_path / 'out.pth')]) == 0
    content = load_checkpoint(tmp_path / 'out.pth')['state_dict']
    published = torch.load(source, map_location='cpu', weights_only=True)
    assert len(content) == len(published)
    trunk = MobileFaceNetTrunk(variant='relu6')
    load_state(trunk, {name.removeprefix('backbone.trunk.'): tensor
                       for name, tensor in content.items()})
    torch.testing.assert_close(trunk.blocks[12].layers[1][1].running_var,
                               published['features.12.conv.1.1.running_var'], rtol=0, atol=0)


def test_converter_refuses_another_network():
    from vision.faces.nn.backbones.published import renamed
    with pytest.raises(VisionError, match=re.escape("VIS-CKPT-1005: 'layer1.0.bn1.weight'")):
        renamed({'layer1.0.bn1.weight': torch.zeros(1)}, 'x.pt')


@pytest.mark.slow
def test_published_weights_tell_people_apart(converter, shared_data, repository, tmp_path):
    """On every eighth pair of the LFW subset; all 3,000 give 0.989."""
    import cv2
    from mmengine.config import Config

    from vision.faces.core.data.pairs import read_pairs
    from vision.faces.core.evaluate.verification import pair_distances, ten_fold
    from vision.registry import MODELS
    folder = shared_data / 'lfw-aligned-subset'
    converter([str(shared_data / 'weights/mobilefacenet.pt'), str(tmp_path / 'out.pth')])
    model = MODELS.build(Config.fromfile(repository / 'configs/faces/mobilefacenet_ms1m.py').model)
    load_state(model, load_checkpoint(tmp_path / 'out.pth')['state_dict'])
    embedder = model.eval().embedder()
    pairs = read_pairs(folder / 'pairs.txt')
    chosen = slice(None, None, 8)
    used, places = np.unique(np.stack([pairs.first[chosen], pairs.second[chosen]]),
                             return_inverse=True)
    images = [torch.from_numpy(cv2.imread(str(folder / 'images' / pairs.paths[i])))
              for i in used]
    with torch.inference_mode():
        embeddings = torch.cat([embedder(torch.stack(images[i:i + 32]).permute(0, 3, 1, 2).float())
                                for i in range(0, len(images), 32)]).numpy()
    first, second = places.reshape(2, -1)
    result = ten_fold(pair_distances(embeddings, first, second), pairs.same[chosen],
                      pairs.folds[chosen])
    assert result.mean >= 0.975
