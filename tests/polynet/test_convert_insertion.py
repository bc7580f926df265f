"""From a checkpoint and two architectures to the checkpoint of the larger one."""

import json

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint, load_state
from vision.polynet.mm import PolyNet, insertion

CONFIG = """
model = dict(type='X', backbone=dict(type='PolyNet', arch={arch}, path_scales='released'))
"""
SMALL, LARGE = [['1-way'], ['1-way', '1-way'], ['1-way']], [['2-way'], ['poly-2'] * 4, ['1-way']]


@pytest.fixture(scope='module')
def tool():
    from vision.cli import convert_polynet_insertion
    return convert_polynet_insertion


@pytest.fixture
def trained(tmp_path):
    """Folder with the configs of both networks and a checkpoint of the small one."""
    for name, arch in (('small', SMALL), ('large', LARGE)):
        (tmp_path / f'{name}.py').write_text(CONFIG.format(arch=arch))
    torch.manual_seed(0)
    backbone = PolyNet(SMALL, path_scales='released')
    state = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    torch.save(dict(state_dict=state | {'head.fc.bias': torch.arange(5.0)}, meta=dict(epoch=3)),
               tmp_path / 'small.pth')
    return tmp_path


def run(tool, folder, *options: str) -> dict:
    assert tool.main([str(folder / 'small.py'), str(folder / 'small.pth'),
                      str(folder / 'large.py'), str(folder / 'out.pth'), *options]) == 0
    return load_checkpoint(folder / 'out.pth')['state_dict']


def test_the_larger_network_computes_the_same_and_the_classifier_stays(tool, trained, capsys):
    state = run(tool, trained, '--identity-start', '--map', str(trained / 'map.json'))
    assert torch.equal(state.pop('head.fc.bias'), torch.arange(5.0))
    networks = []
    for arch, tensors in ((SMALL, torch.load(trained / 'small.pth', weights_only=True)
                           ['state_dict']), (LARGE, state)):
        network = PolyNet(arch, path_scales='released').eval()
        load_state(network, {name.removeprefix('backbone.'): tensor
                             for name, tensor in tensors.items() if 'head' not in name})
        networks.append(network)
    x = torch.randn(1, 3, 75, 75)
    with torch.inference_mode():
        torch.testing.assert_close(networks[0](x)[0], networks[1](x)[0], rtol=1e-4, atol=1e-5)
    printed = capsys.readouterr().out
    assert printed.count('\n') < 30  # not a page of log for each tensor
    assert 'a.0 2-way: from a.0 1-way, 1 new term' in printed and 'b.1 poly-2: new' in printed
    listed = json.loads((trained / 'map.json').read_text())
    assert len(listed['copied']) + len(listed['new']) == len(state)


def test_new_tensors_depend_on_the_seed_alone(tool, trained):
    name = 'backbone.trunk.stage_b.1.block.paths.0.0.conv.weight'
    first, again, other = (run(tool, trained, '--seed', seed)[name] for seed in '001')
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_identity_start_on_other_maps_is_refused(tool, trained):
    (trained / 'large.py').write_text(CONFIG.format(arch=LARGE).replace(
        'path_scales=', "padding_mode='same', path_scales="))
    with pytest.raises(VisionError, match='(?s)VIS-CONFIG-054.*padding_mode'):
        run(tool, trained, '--identity-start')
    assert run(tool, trained)  # other maps are no obstacle to starting from trained weights


def test_the_trained_checkpoint_is_never_replaced(tool, trained):
    (trained / 'out.pth').symlink_to(trained / 'small.pth')
    with pytest.raises(VisionError, match='VIS-INPUT-108'):
        run(tool, trained)


def test_faults_are_named(tool, trained):
    with pytest.raises(VisionError, match='VIS-INPUT-055'):
        insertion.backbone_options('nowhere.py')
    (trained / 'small.py').write_text('model = dict(backbone=')
    with pytest.raises(VisionError, match='VIS-CONFIG-339'):
        run(tool, trained)
    (trained / 'small.py').write_text("model = dict(type='X', backbone=dict(type='ResNet'))")
    with pytest.raises(VisionError, match='no PolyNet'):
        run(tool, trained)
    with pytest.raises(VisionError, match='holds 0 PolyNets'):
        insertion.trunk_prefix({'backbone.conv1.weight': torch.zeros(1)}, 'x.pth')
