import pytest
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import PRESETS, Arch, released_path_scales
from vision.polynet.nn.blocks import Layers
from vision.polynet.nn.cadene import convert, name_pairs
from vision.polynet.nn.trunk import PolyNetTrunk

TINY = Arch((('2-way',), ('poly-3',), ('mpoly-2',)))


def num_parameters(name: str) -> int:
    with torch.device('meta'):
        trunk = PolyNetTrunk(PRESETS[name])
    return sum(p.numel() for p in trunk.parameters()) + 2048 * 1000 + 1000


@pytest.mark.parametrize(('name', 'expected'), [
    ('very-deep', 95_366_600), ('ir-3-6-3', 22_584_680), ('ir-5-10-5', 31_574_440),
    ('ir-6-12-6', 36_069_320), ('ir-20-56-20', 117_766_536), ('mixed-b', 58_406_344)])
def test_published_sizes(name, expected):
    assert num_parameters(name) == expected


@pytest.mark.parametrize(('stage', 'module', 'millions'), [
    ('a', 'poly-2', 22.74), ('a', '2-way', 23.00), ('a', 'poly-3', 22.89), ('a', '3-way', 23.41),
    ('b', 'poly-2', 25.26), ('b', 'mpoly-2', 29.62), ('b', 'poly-3', 27.94),
    ('b', 'mpoly-3', 36.66), ('c', 'poly-2', 25.35), ('c', '2-way', 28.62),
    ('c', 'poly-3', 28.12), ('c', 'mpoly-3', 34.65)])
def test_sizes_of_the_ablation_nets(stage, module, millions):
    assert num_parameters(f'ir-3-6-3_{stage}-{module}') / 1e6 == pytest.approx(millions, abs=6e-3)


def test_operations_of_very_deep_at_331():
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device('meta'):
        trunk, fc = PolyNetTrunk(PRESETS['very-deep']).eval(), nn.Linear(2048, 1000)
        with FlopCounterMode(display=False) as counter:
            fc(trunk(torch.zeros(1, 3, 331, 331))[0].mean((2, 3)))
    assert counter.get_total_flops() == 69_398_986_944


@pytest.mark.parametrize(('size', 'expected'), [
    (331, [163, 79, 39, 19, 9]), (299, [147, 71, 35, 17, 8]), (75, [35, 15, 7, 3, 1])])
def test_map_sizes_without_padding(size, expected):
    with torch.device('meta'):
        maps = PolyNetTrunk(TINY, out_levels=range(5)).eval()(torch.zeros(1, 3, size, size))
    assert [y.shape[-1] for y in maps] == expected
    assert [y.shape[1] for y in maps] == [64, 192, 384, 1152, 2048]


@pytest.mark.parametrize('stride', [8, 16, 32])
@pytest.mark.parametrize('size', [64, 97, 130])
def test_padded_maps_are_the_size_over_the_stride_rounded_up(size, stride):
    with torch.device('meta'):
        trunk = PolyNetTrunk(TINY, out_levels=range(5), layers=Layers(is_same=True),
                             output_stride=stride).eval()
        maps = trunk(torch.zeros(1, 3, size, size))
    assert [y.shape[-1] for y in maps] == [-(-size // min(s, stride)) for s in (2, 4, 8, 16, 32)]


def test_same_weights_fit_every_stride_and_padding():
    states = [{k: v.shape for k, v in PolyNetTrunk(TINY, layers=Layers(is_same=same),
                                                   output_stride=stride).state_dict().items()}
              for same in (False, True) for stride in (8, 16, 32)]
    assert all(state == states[0] for state in states)


def test_too_small_an_image_is_refused_by_name():
    with pytest.raises(VisionError, match='74x90.*too small'):
        PolyNetTrunk(TINY)(torch.zeros(1, 3, 74, 90))


def test_evaluation_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    trunk, x = PolyNetTrunk(TINY).double().eval(), torch.randn(3, 3, 80, 80).double()
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x)[0][1:2], trunk(x[1:2])[0], rtol=1e-12, atol=1e-12)


def test_recomputation_changes_neither_gradients_nor_statistics():
    torch.manual_seed(0)
    plain = PolyNetTrunk(TINY, path_drops=(0.3, 0.3, 0.3)).train()
    frugal = PolyNetTrunk(TINY, path_drops=(0.3, 0.3, 0.3), uses_checkpoint=True).train()
    frugal.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 80, 80)
    for trunk in (plain, frugal):
        torch.manual_seed(5)
        trunk(x)[0].square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        assert torch.equal(p, q), name


class VeryDeep(nn.Module):
    """Names as the classifier has them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Module()
        self.backbone.trunk = PolyNetTrunk(PRESETS['very-deep'],
                                           path_scales=released_path_scales())
        self.head.fc = nn.Linear(2048, 1000)


def test_names_of_the_port_are_ours_one_to_one():
    with torch.device('meta'):
        ours = VeryDeep().state_dict()
    pairs = name_pairs()
    assert set(pairs) == set(ours) and len(set(pairs.values())) == len(pairs) == 3104
    theirs = convert(ours, reverse=True)
    back = convert(theirs)
    assert all(back[name] is ours[name] for name in ours)


def test_leftovers_and_gaps_are_refused_by_name():
    state = dict.fromkeys(name_pairs().values(), torch.zeros(0))
    state.pop('stem.conv1.0.conv.weight')
    state['stem.conv9.conv.weight'] = torch.zeros(0)
    with pytest.raises(VisionError, match=r'1 tensors are left over \(first: .*conv9.*1 are miss'):
        convert(state)


def test_old_files_without_batch_counts_are_taken():
    state = {name: torch.zeros(0) for name in name_pairs().values()
             if not name.endswith('num_batches_tracked')}
    assert len(convert(state)) == 3104 - 537
