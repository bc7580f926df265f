"""Fused networks give the numbers of the plain ones; the judge is the plain network."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import MODULE_FORMS, Arch
from vision.polynet.nn import torch_private
from vision.polynet.nn.blocks import Layers, PolyInception
from vision.polynet.nn.fuse import fuse, fuse_module
from vision.polynet.nn.trunk import PolyNetTrunk

TINY = Arch((('2-way',), ('poly-3',), ('mpoly-2',)))


def randomise(model: nn.Module) -> nn.Module:
    """Norms as after training: no two alike."""
    torch.manual_seed(0)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    return model.eval()


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('share', ['conv', 'all'])
@pytest.mark.parametrize('name', MODULE_FORMS)
@torch.inference_mode()
def test_every_module_kind(name, share, dtype):
    made = randomise(PolyInception(name, 'a', Layers(), share=share, scale=0.7, drop=0.2)
                     ).to(dtype)
    x = torch.randn(2, 384, 9, 8).to(dtype).to(memory_format=torch.channels_last)
    expected, fused = made(x), fuse_module(made)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert relative(fused(x.clone()), expected) < bound


@pytest.mark.parametrize('is_channels_last', [False, True])
@pytest.mark.parametrize(('stride', 'is_same'), [(32, False), (8, True)])
@torch.inference_mode()
def test_every_level_of_a_whole_trunk(stride, is_same, is_channels_last):
    trunk = randomise(PolyNetTrunk(TINY, out_levels=range(5), layers=Layers(is_same=is_same),
                                   output_stride=stride, path_scales=(1, 0.9, 0.7)))
    x = torch.randn(2, 3, 80, 83)
    fused = fuse(trunk, is_channels_last=is_channels_last)
    for _ in range(2):  # the second call runs on packed weights and must not see the first's
        for actual, expected in zip(fused(x), trunk(x), strict=True):
            assert relative(actual, expected) < 1e-5


@torch.inference_mode()
def test_other_sizes_and_types_after_the_first_call():
    trunk = randomise(PolyNetTrunk(TINY))
    fused = fuse(trunk)
    fused(torch.randn(1, 3, 80, 80))
    x = torch.randn(3, 3, 91, 113)
    assert relative(fused(x)[0], trunk(x)[0]) < 1e-5
    # Weights were folded in float32, so float64 afterwards is as exact as they are.
    assert relative(fused.double()(x.double())[0], trunk.double()(x.double())[0]) < 1e-6


@torch.inference_mode()
def test_without_onednn_the_public_functions_give_the_same(monkeypatch):
    trunk, x = randomise(PolyNetTrunk(TINY)), torch.randn(1, 3, 80, 80)
    monkeypatch.setattr(torch_private, 'has_onednn', lambda: False)
    fused = fuse(trunk)
    assert relative(fused(x)[0], trunk(x)[0]) < 1e-5
    assert fused.stem.entry[1].packed is None


def test_the_model_itself_stays():
    trunk = randomise(PolyNetTrunk(TINY))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    fuse(trunk)
    after = trunk.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(not torch_private.has_onednn(), reason='this torch is built without oneDNN')
def test_contract_of_the_private_operators():
    arguments = [a.name for a in torch.ops.mkldnn._convolution_pointwise_.binary._schema.arguments]
    assert arguments == ['other', 'X', 'W', 'B', 'padding', 'stride', 'dilation', 'groups',
                         'binary_attr', 'alpha', 'unary_attr', 'unary_scalars', 'unary_algorithm']
    arguments = [a.name for a in torch.ops.mkldnn._convolution_pointwise.default._schema.arguments]
    assert arguments == ['X', 'W', 'B', 'padding', 'stride', 'dilation', 'groups', 'attr',
                         'scalars', 'algorithm']
    assert 'input_size' in inspect.signature(torch_private.pack_weight).parameters


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: PolyNetTrunk(TINY), 'VIS-RUN-045'),
    (lambda: nn.Linear(2, 2).eval(), 'VIS-CONFIG-046'),
    (lambda: PolyNetTrunk(TINY, layers=Layers(norm=partial(nn.GroupNorm, 1))).eval(),
     'VIS-CONFIG-043'),
    (lambda: PolyNetTrunk(TINY, layers=Layers(act=nn.SiLU)).eval(), 'VIS-CONFIG-044')])
def test_what_cannot_be_fused_is_refused(make, message):
    with pytest.raises(VisionError, match=message):
        fuse(make())
