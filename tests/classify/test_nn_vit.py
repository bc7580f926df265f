"""The Vision Transformer against one written by hand, sum by sum, in float64."""

import math

import pytest
import torch
from torch import nn

from vision.classify.nn.vit import ARCHS, VitArch, VitTrunk
from vision.common.core.errors import VisionError

TINY = VitArch(embed_dims=12, num_layers=2, num_heads=3, feedforward_channels=20)


def small(**options) -> VitTrunk:
    return VitTrunk(TINY, img_size=8, patch_size=4, **options).double()


def normalised(x, module):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean)**2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * module.weight + module.bias


def attended(x, attention, num_heads):
    """Head by head and token by token."""
    channels = x.shape[-1]
    weights, dims = attention.qkv.weight, channels // num_heads
    bias = torch.zeros(3 * channels).double() if attention.qkv.bias is None else \
        attention.qkv.bias
    query, key, value = ((x @ weights[i * channels:(i + 1) * channels].T
                          + bias[i * channels:(i + 1) * channels]) for i in range(3))
    result = torch.zeros_like(x)
    for image in range(len(x)):
        for head in range(num_heads):
            part = slice(head * dims, (head + 1) * dims)
            for token in range(x.shape[1]):
                scores = torch.stack([query[image, token, part] @ other / math.sqrt(dims)
                                      for other in key[image, :, part]]).exp()
                mixed = (scores[:, None] * value[image, :, part]).sum(0) / scores.sum()
                result[image, token, part] = mixed
    return result @ attention.proj.weight.T + attention.proj.bias


def by_hand(trunk: VitTrunk, images: torch.Tensor) -> torch.Tensor:
    embed, size = trunk.embed, trunk.embed.projection.kernel_size[0]
    patches = [(images[:, :, top:top + size, left:left + size].flatten(1)
                @ embed.projection.weight.flatten(1).T + embed.projection.bias)
               for top in range(0, images.shape[2], size)
               for left in range(0, images.shape[3], size)]
    first = embed.cls_token[0, 0].expand(len(images), -1)
    x = torch.stack([first, *patches], 1) + embed.pos_embed
    for layer in trunk.layers:
        x = x + attended(normalised(x, layer.ln1), layer.attn, TINY.num_heads)
        inner = normalised(x, layer.ln2) @ layer.ffn.fc1.weight.T + layer.ffn.fc1.bias
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + inner @ layer.ffn.fc2.weight.T + layer.ffn.fc2.bias
    vector = x[:, 0] if trunk.out_type == 'cls_token' else x[:, 1:].mean(1)
    return vector if isinstance(trunk.norm, nn.Identity) else normalised(vector, trunk.norm)


@pytest.mark.parametrize('options', [
    dict(), dict(out_type='avg_featmap'), dict(qkv_bias=False), dict(final_norm=False)])
def test_output_is_that_of_the_equations(options):
    trunk = small(**options).eval()
    with torch.no_grad():
        for parameter in trunk.parameters():  # zeros and ones would hide what is added
            parameter.add_(0.1 * torch.randn_like(parameter))
        images = torch.randn(2, 3, 8, 8).double()
        actual = trunk(images)
        assert actual.shape == (2, 12)
        torch.testing.assert_close(actual, by_hand(trunk, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('name', 'num_parameters'), [
    ('tiny', 5_717_416), ('small', 22_050_664), ('base', 86_567_656)])
def test_published_sizes(name, num_parameters):
    """With a classifier of 1000 classes, 224 px: table 1 of arXiv:2012.12877 has 5, 22, 86 M."""
    with torch.device('meta'):
        model = nn.Sequential(VitTrunk(ARCHS[name]), nn.Linear(ARCHS[name].embed_dims, 1000))
    assert sum(each.numel() for each in model.parameters()) == num_parameters


@torch.no_grad()
def test_initial_weights_are_the_published_ones():
    trunk = VitTrunk(VitArch(256, 1, 4, 512), img_size=64)
    attention, feed_forward = trunk.layers[0].attn, trunk.layers[0].ffn
    for part in (*attention.qkv.weight.chunk(3), attention.proj.weight):
        limit = math.sqrt(6 / (256 + 256))
        assert 0.99 * limit < part.abs().max() <= limit
    assert feed_forward.fc1.weight.abs().max() <= math.sqrt(6 / (256 + 512))
    assert 0 < feed_forward.fc1.bias.std() < 2e-6 and not attention.qkv.bias.any()
    assert not trunk.embed.cls_token.any() and not trunk.embed.projection.bias.any()
    assert trunk.embed.pos_embed.std() == pytest.approx(0.02, rel=0.1)
    assert trunk.embed.projection.weight.std() == pytest.approx(1 / math.sqrt(3 * 256), rel=0.02)


def test_dropped_paths_skip_a_sample_or_are_scaled_up():
    trunk = small(drop_path_rate=0.5)
    assert [layer.drop_path for layer in trunk.layers] == [0, 0.5]
    term = torch.ones(400, 5, 12).double()
    dropped = trunk.layers[1].dropped(term)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(term))  # a sample as a whole
    assert 140 < int((dropped[:, 0, 0] == 0).sum()) < 260
    assert trunk.eval().layers[1].dropped(term) is term


def test_dropout_is_where_the_paper_has_it():
    trunk = small(drop_rate=0.3)
    rates = [module.p for module in trunk.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.3] * 5
    images = torch.randn(2, 3, 8, 8).double()
    assert not torch.equal(trunk(images), trunk(images))


def test_other_image_sizes_are_refused():
    with pytest.raises(VisionError, match='(?s)VIS-INPUT-1247: images of 8x12 .* 8x8'):
        small()(torch.zeros(1, 3, 8, 12).double())
