"""Laws of insertion, judged by running both networks."""

import pytest
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import Arch, released_path_scales
from vision.polynet.core.insertion import plan_insertion
from vision.polynet.nn.blocks import Layers
from vision.polynet.nn.insertion import grow
from vision.polynet.nn.trunk import PolyNetTrunk

SMALL = Arch((('1-way', '2-way'), ('1-way', '1-way'), ('1-way',)))
LARGE = Arch((('2-way', '1-way', '3-way'), ('poly-3', '2-way', 'mpoly-3', '1-way'),
              ('mpoly-2', 'poly-2')))
CHAINED = Arch((('1-way',), ('mpoly-2', 'poly-2'), ('poly-2',)))
CHAINED_LARGE = Arch((('1-way',) * 2, ('mpoly-3', '2-way', 'poly-3'), ('mpoly-3', '1-way')))


def trunk(arch: Arch, seed: int = 0, **options) -> PolyNetTrunk:
    torch.manual_seed(seed)
    made = PolyNetTrunk(arch, **options).double().eval()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    return made


@pytest.fixture
def x():
    torch.manual_seed(2)
    return torch.randn(1, 3, 80, 80, dtype=torch.float64)


@pytest.mark.parametrize('placement', ['interleaved', 'end'])
def test_identity_start_computes_the_source_bit_by_bit(x, placement):
    source, target = trunk(SMALL), trunk(LARGE, seed=1)
    growth = grow(source, target, plan_insertion(SMALL, LARGE, placement=placement),
                  is_identity=True)
    assert growth.silenced and not growth.rescaled
    with torch.inference_mode():
        assert torch.equal(target(x)[0], source(x)[0])


@pytest.mark.parametrize('share', ['conv', 'all'])
def test_chains_grow_too(x, share):
    source, target = trunk(CHAINED, share=share), trunk(CHAINED_LARGE, seed=1, share=share)
    plan = plan_insertion(CHAINED, CHAINED_LARGE, share=share)
    grow(source, target, plan, is_identity=True)
    with torch.inference_mode():
        assert torch.equal(target(x)[0], source(x)[0])


@pytest.mark.parametrize(('small', 'large', 'share'), [
    (SMALL, LARGE, 'conv'), (CHAINED, CHAINED_LARGE, 'conv'), (CHAINED, CHAINED_LARGE, 'all')])
def test_other_path_scales_and_drops_are_made_up_for(x, small, large, share):
    source = trunk(small, share=share, path_scales=released_path_scales(small.num_modules))
    target = trunk(large, seed=1, share=share, path_drops=[0.2] * large.num_modules,
                   path_scales=released_path_scales(large.num_modules, max_drop=0.5))
    growth = grow(source, target, plan_insertion(small, large, share=share), is_identity=True)
    assert len(growth.rescaled) == small.num_modules
    with torch.inference_mode():
        torch.testing.assert_close(target(x)[0], source(x)[0], rtol=1e-10, atol=1e-10)


def test_without_identity_the_new_terms_speak(x):
    source, target = trunk(SMALL), trunk(LARGE, seed=1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    growth = grow(source, target, plan_insertion(SMALL, LARGE))
    after = target.state_dict()
    assert growth.silenced == ()
    assert all(torch.equal(after[name], before[name]) for name in growth.new)
    with torch.inference_mode():
        assert not torch.allclose(target(x)[0], source(x)[0])


@pytest.mark.parametrize(('small', 'large', 'share'), [
    (SMALL, LARGE, 'conv'), (CHAINED, CHAINED_LARGE, 'conv'), (CHAINED, CHAINED_LARGE, 'all')])
def test_each_target_tensor_is_copied_or_new_and_each_source_tensor_is_used(small, large, share):
    source, target = trunk(small, share=share), trunk(large, seed=1, share=share)
    growth = grow(source, target, plan_insertion(small, large, share=share))
    assert set(growth.copied).isdisjoint(growth.new)
    assert set(growth.copied) | set(growth.new) == set(target.state_dict())
    assert set(growth.copied.values()) == set(source.state_dict())
    old, new = source.state_dict(), target.state_dict()
    assert all(torch.equal(new[name], old[origin]) for name, origin in growth.copied.items())


def test_a_silent_start_still_learns(x):
    source, target = trunk(SMALL), trunk(LARGE, seed=1)
    growth = grow(source, target, plan_insertion(SMALL, LARGE), is_identity=True)
    target(x)[0].square().mean().backward()
    gradients = dict(target.named_parameters())
    weights = [name for name in growth.silenced if name.endswith('weight')]
    assert all(gradients[name].grad.abs().sum() > 0 for name in weights)


def test_networks_that_do_not_fit_are_refused_by_name():
    plan = plan_insertion(SMALL, LARGE)
    with pytest.raises(VisionError, match=r'stem.entry.0.conv.weight \(32, 4, 3, 3\)'):
        grow(trunk(SMALL, in_channels=4), trunk(LARGE), plan)
    with pytest.raises(VisionError, match='of the source have no target'):
        grow(trunk(SMALL), trunk(LARGE, out_levels=(3,)), plan)


def test_identity_needs_an_idempotent_activation_and_factors_above_zero():
    plan = plan_insertion(SMALL, LARGE)
    silu = Layers(act=nn.SiLU)
    with pytest.raises(VisionError, match='SiLU'):
        grow(trunk(SMALL, layers=silu), trunk(LARGE, layers=silu), plan, is_identity=True)
    with pytest.raises(VisionError, match='factor 0.0'):
        grow(trunk(SMALL), trunk(LARGE, path_scales=[0.0] * 9), plan)
