"""The published port's state_dict to our checkpoint and back, exactly."""


import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.polynet.core.arch import PRESETS, released_path_scales
from vision.polynet.mm import PolyNet
from vision.polynet.nn.cadene import name_pairs
from vision.polynet.nn.trunk import PolyNetTrunk
from vision.registry import MODELS


@pytest.fixture(scope='module')
def tool():
    from vision.cli import convert_polynet
    return convert_polynet


@pytest.fixture(scope='module')
def port():
    """A random state as the port has it. Expanded single numbers: 95 million would be slow to
    write, and torch keeps the expansion."""
    with torch.device('meta'):
        trunk = PolyNetTrunk(PRESETS['very-deep'])
    shapes = {f'backbone.trunk.{name}': tensor for name, tensor in trunk.state_dict().items()}
    shapes |= {'head.fc.weight': torch.empty(1000, 2048, device='meta'),
               'head.fc.bias': torch.empty(1000, device='meta')}
    torch.manual_seed(0)
    state = {}
    for ours, theirs in name_pairs().items():
        shape, dtype = shapes[ours].shape, shapes[ours].dtype
        value = torch.rand(()) if dtype == torch.float32 else torch.randint(9, ())
        state[theirs] = value.expand(shape)
    state['stem.conv1.0.conv.weight'] = torch.randn(32, 3, 3, 3)
    return state


def run(tool, state: dict, folder, *options: str) -> dict:
    torch.save(state, folder / 'in.pth')
    assert tool.main([str(folder / 'in.pth'), str(folder / 'out.pth'), *options]) == 0
    return load_checkpoint(folder / 'out.pth')


def test_round_trip_is_exact(tool, port, tmp_path):
    content = run(tool, port, tmp_path)
    assert len(content['state_dict']) == 3104
    back = run(tool, content, tmp_path, '--reverse')['state_dict']
    assert list(back) == list(port)
    for name, tensor in port.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_old_files_without_counters_come_back_without(tool, port, tmp_path):
    old = {name: tensor for name, tensor in port.items() if 'num_batches' not in name}
    content = run(tool, old, tmp_path)
    counters = [t for name, t in content['state_dict'].items() if 'num_batches' in name]
    assert len(counters) == 537 and not any(counters)
    back = run(tool, content, tmp_path, '--reverse')['state_dict']
    assert list(back) == list(old) and all(torch.equal(back[name], old[name]) for name in old)


def test_the_result_fits_the_classifier_of_the_config(tool, port, tmp_path, repository):
    state = run(tool, port, tmp_path)['state_dict']
    config = Config.fromfile(repository / 'configs/polynet/polynet-very-deep_in1k.py')
    with DefaultScope.overwrite_default_scope('vision'):
        model = MODELS.build(config.model)
    load_state(model, state)
    trunk = model.backbone.trunk
    assert torch.equal(trunk.stem.entry[0].conv.weight, port['stem.conv1.0.conv.weight'])
    assert torch.equal(model.head.fc.bias, port['last_linear.bias'])
    modules = [module for stage in trunk.stages for module in stage]
    # The factors of the published network, and no others, weigh its terms at evaluation.
    assert [module.scale for module in modules] == list(released_path_scales())
    assert not any(module.drop for module in modules)


def test_the_backbone_alone(tool, port, tmp_path):
    state = run(tool, port, tmp_path, '--backbone-only')['state_dict']
    assert len(state) == 3102 and all(name.startswith('backbone.trunk.') for name in state)


def test_the_port_itself_may_be_named_as_pretrained(port, tmp_path):
    torch.save(port, tmp_path / 'port.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'port.pth'))
    backbone = PolyNet('very-deep', out_indices=(2,), init_cfg=cfg)
    backbone.init_weights()
    name = 'stage_a.9.blocks.1.conv2d.bn.running_var'
    assert torch.equal(backbone.trunk.stage_a[9].blocks[1].projection.norm.running_var, port[name])
    other = PolyNet('small', out_indices=(2,), init_cfg=cfg)
    with pytest.raises(VisionError, match='another architecture'):
        other.init_weights()


def test_another_task_keeps_no_classifier_and_other_channels_adapt(tool, port, tmp_path):
    state = run(tool, port, tmp_path, '--num-classes', '10', '--in-channels', '4')['state_dict']
    assert 'head.fc.weight' not in state
    stem = state['backbone.trunk.stem.entry.0.conv.weight']
    assert stem.shape == (32, 4, 3, 3)
    torch.testing.assert_close(stem.sum(1), port['stem.conv1.0.conv.weight'].sum(1))


def test_a_classifier_of_ones_own_classes_is_kept(tool, port, tmp_path):
    own = port | {'last_linear.weight': torch.zeros(10, 2048), 'last_linear.bias': torch.zeros(10)}
    state = run(tool, own, tmp_path, '--num-classes', '10')['state_dict']
    assert state['head.fc.weight'].shape == (10, 2048)
    with pytest.raises(VisionError, match=r'last_linear.weight.*\(10, 2048\) instead of \(1000'):
        run(tool, own, tmp_path)


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'module.model.'])
def test_what_wrappers_put_before_all_names_is_left_out(tool, port, tmp_path, prefix):
    state = run(tool, {f'{prefix}{name}': tensor for name, tensor in port.items()},
                tmp_path)['state_dict']
    assert len(state) == 3104 and 'head.fc.bias' in state


def test_a_trunk_without_classifier_is_read_as_one(tool, port, tmp_path, capsys):
    bare = {name: tensor for name, tensor in port.items() if not name.startswith('last_linear')}
    state = run(tool, bare, tmp_path)['state_dict']
    assert len(state) == 3102 and 'no classifier' in capsys.readouterr().out


def test_a_bare_trunk_of_ours_is_not_taken_for_the_port(tmp_path):
    trunk = PolyNet('small', out_indices=(2,)).trunk
    torch.save(trunk.state_dict(), tmp_path / 'trunk.pth')
    other = PolyNet('small', out_indices=(2,), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'trunk.pth')))
    other.init_weights()
    for name, tensor in other.trunk.state_dict().items():
        assert torch.equal(tensor, trunk.state_dict()[name]), name


@pytest.mark.parametrize(('change', 'message'), [
    (dict(extra=torch.zeros(1)), r'VIS-CKPT-015: 1 tensors are left over \(first: .*extra'),
    ({'stem.conv1.0.conv.weight': torch.zeros(32, 4, 3, 3)},
     r'(?s)VIS-CKPT-057: 1 tensors.*stem.conv1.0.conv.weight .*\(32, 4, 3, 3\) instead of'),
    ({'stage_b.0.path1.bn_blocks.2.bias': None},
     r'VIS-CKPT-015.*1 are missing \(first: .*stage_b.0.path1.bn_blocks.2.bias'),
    ({'last_linear.bias': torch.zeros(999)}, '(?s)VIS-CKPT-057.*last_linear.bias')])
def test_faults_are_named(tool, port, tmp_path, change, message):
    state = {name: tensor for name, tensor in (port | change).items() if tensor is not None}
    with pytest.raises(VisionError, match=message):
        run(tool, state, tmp_path)
    assert not (tmp_path / 'out.pth').exists()


def test_the_wrong_direction_and_useless_options_are_refused(tool, port, tmp_path):
    with pytest.raises(VisionError, match='VIS-CKPT-1754'):
        run(tool, port, tmp_path, '--reverse')
    with pytest.raises(VisionError, match='(?s)VIS-CKPT-059.*conv1'):
        run(tool, {'conv1.weight': torch.zeros(1)}, tmp_path)
    with pytest.raises(VisionError, match='VIS-INPUT-058'):
        run(tool, port, tmp_path, '--reverse', '--backbone-only')
    with pytest.raises(VisionError, match='VIS-INPUT-071'):
        run(tool, port, tmp_path, '--in-channels', '0')
