"""Parameters and multiply-adds of every module kind, part and preset at 331 px.

The figures were derived by hand from the layer tables; those of Very Deep PolyNet agree with the
published network. Multiply-adds of a network are the sum over its parts, whose total is compared
with a whole forward pass in test_nn_trunk.py.
"""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision.polynet.core.arch import ABLATION_MODULES, PRESETS, STAGES, Arch
from vision.polynet.nn.blocks import BLOCKS, Layers, PolyInception
from vision.polynet.nn.trunk import PolyNetTrunk, Stem, reduction

MAPS = {'a': 39, 'b': 19, 'c': 9}
CLASSIFIER = 2048 * 1000  # weights, and multiply-adds
# Parameters, and millions of multiply-adds, of one module.
MODULES = {
    'a': {'1-way': (137_952, 207.93), '2-way': (275_904, 415.85), 'poly-2': (188_352, 415.85),
          '3-way': (413_856, 623.78), 'poly-3': (238_752, 623.78)},
    'b': {'1-way': (1_173_056, 422.16), '2-way': (2_346_112, 844.31),
          'poly-2': (1_619_072, 844.31), '3-way': (3_519_168, 1266.47),
          'poly-3': (2_065_088, 1266.47)},
    'c': {'1-way': (2_010_816, 162.40), '2-way': (4_021_632, 324.81),
          'poly-2': (2_934_144, 324.81), '3-way': (6_032_448, 487.21),
          'poly-3': (3_857_472, 487.21)}}
SAME_SIZE = {'mpoly-2': '2-way', 'mpoly-3': '3-way'}


def size(module: nn.Module, *shape: int) -> tuple[int, float]:
    """(parameters, multiply-adds) of one image of (C, H, W)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, *shape, device='meta'))
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops() / 2


@pytest.fixture(scope='module')
def parts() -> dict[str, tuple[int, float]]:
    """'stem', 'reduction_a', 'reduction_b' and 'STAGE.MODULE' -> (parameters, multiply-adds)."""
    layers = Layers()
    with torch.device('meta'):
        sizes = dict(
            stem=size(Stem(3, layers), 3, 331, 331),
            reduction_a=size(reduction('a', layers, stride=2, dilation=1), 384, 39, 39),
            reduction_b=size(reduction('b', layers, stride=2, dilation=1), 1152, 19, 19))
        for letter in STAGES:
            for name in ('1-way', *ABLATION_MODULES):
                sizes[f'{letter}.{name}'] = size(PolyInception(name, letter, layers),
                                                 BLOCKS[letter].channels, *[MAPS[letter]] * 2)
    return sizes


def net(parts, arch: Arch) -> tuple[int, float]:
    """(parameters, multiply-adds) with a classifier of 1000 classes."""
    names = ['stem', 'reduction_a', 'reduction_b', *(
        f'{letter}.{name}' for letter, stage in zip(STAGES, arch.stages, strict=True)
        for name in stage)]
    params, macs = (sum(parts[name][i] for name in names) for i in range(2))
    return params + CLASSIFIER + 1000, macs + CLASSIFIER


@pytest.mark.parametrize('name', ('1-way', *ABLATION_MODULES))
@pytest.mark.parametrize('letter', STAGES)
def test_modules(parts, letter, name):
    params, macs = parts[f'{letter}.{name}']
    expected = MODULES[letter][SAME_SIZE.get(name, name)]
    assert params == expected[0] and macs / 1e6 == pytest.approx(expected[1], abs=5.1e-3)


def test_parts_of_very_deep(parts):
    with torch.device('meta'):
        trunk = PolyNetTrunk(PRESETS['very-deep'])
    sizes = {name: sum(p.numel() for p in part.parameters())
             for name, part in trunk.named_children()}
    assert sizes == dict(stem=605_728, stage_a=2_759_040, reduction_a=2_902_528,
                         stage_b=44_112_000, reduction_b=3_542_784, stage_c=39_395_520)
    for name, expected in (('stem', 2.826), ('reduction_a', 1.845), ('reduction_b', 0.700)):
        assert parts[name][1] / 1e9 == pytest.approx(expected, abs=5.1e-4)
    for letter, expected in (('a', 4.159), ('b', 21.108), ('c', 4.060)):
        stage = PRESETS['very-deep'].stages[STAGES.index(letter)]
        macs = sum(parts[f'{letter}.{name}'][1] for name in stage)
        assert macs / 1e9 == pytest.approx(expected, abs=5.1e-4)


def test_the_parts_add_up_to_the_forward_pass(parts):
    assert net(parts, PRESETS['very-deep']) == (95_366_600, 69_398_986_944 / 2)


@pytest.mark.parametrize(('name', 'params', 'giga'), [
    ('very-deep', 95_366_600, 34.699), ('ir-3-6-3', 22_584_680, 9.017),
    ('ir-5-10-5', 31_574_440, 11.446), ('ir-6-12-6', 36_069_320, 12.661),
    ('ir-20-56-20', 117_766_536, 36.420), ('mixed-b', 58_406_344, 22.793)])
def test_presets(parts, name, params, giga):
    found, macs = net(parts, PRESETS[name])
    assert found == params and macs / 1e9 == pytest.approx(giga, abs=5.1e-4)


@pytest.mark.parametrize(('module', 'params'), [
    ('poly-3', 46_773_704), ('mpoly-3', 64_222_664), ('3-way', 64_222_664)])
def test_uniform_rivals_of_mixed_b(parts, module, params):
    found, macs = net(parts, Arch((('1-way',) * 6, (module,) * 12, ('1-way',) * 6)))
    assert found == params and macs / 1e9 == pytest.approx(22.793, abs=5.1e-4)


ABLATION = {  # millions of parameters, billions of multiply-adds
    'a': {'poly-2': (22.74, 9.64), '2-way': (23.00, 9.64), 'poly-3': (22.89, 10.26),
          '3-way': (23.41, 10.26)},
    'b': {'poly-2': (25.26, 11.55), '2-way': (29.62, 11.55), 'poly-3': (27.94, 14.08),
          '3-way': (36.66, 14.08)},
    'c': {'poly-2': (25.35, 9.50), '2-way': (28.62, 9.50), 'poly-3': (28.12, 9.99),
          '3-way': (34.65, 9.99)}}


@pytest.mark.parametrize('module', ABLATION_MODULES)
@pytest.mark.parametrize('letter', STAGES)
def test_the_eighteen_single_stage_nets(parts, letter, module):
    params, macs = net(parts, PRESETS[f'ir-3-6-3_{letter}-{module}'])
    expected = ABLATION[letter][SAME_SIZE.get(module, module)]
    assert params / 1e6 == pytest.approx(expected[0], abs=5.1e-3)
    assert macs / 1e9 == pytest.approx(expected[1], abs=5.1e-3)


def test_sharing_everything_is_a_third_of_different_blocks():
    """One block's convolutions instead of three; the norms per order are a small rest."""
    with torch.device('meta'):
        shared, different = (sum(p.numel() for p in PolyInception(
            name, 'b', Layers(), share='all').parameters()) for name in ('poly-3', 'mpoly-3'))
    assert shared / different == pytest.approx(1 / 3, abs=3e-3)


def test_entries_of_the_published_layout():
    with torch.device('meta'):
        trunk = PolyNetTrunk(PRESETS['very-deep'])
    assert sum(isinstance(module, nn.Conv2d) for module in trunk.modules()) == 417
    assert sum(isinstance(module, nn.BatchNorm2d) for module in trunk.modules()) == 537
    assert len(list(trunk.parameters())) + 2 == 1493
    assert len(trunk.state_dict()) + 2 == 3104
