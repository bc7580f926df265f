"""PolyNet as mmengine and mmdet use it: built from config, frozen, copied, loaded."""

import copy
import pickle

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_state
from vision.polynet.core.arch import PRESETS, uniform
from vision.registry import MODELS

TINY = [['2-way'], ['poly-3'], ['mpoly-2']]
PARTS = ('stem', 'stage_a', 'reduction_a', 'stage_b', 'reduction_b', 'stage_c')
FROZEN = {-1: 0, 0: 1, 1: 2, 2: 4, 3: 6}  # frozen_stages: parts frozen, in the order above


def build(arch=TINY, **options):
    torch.manual_seed(0)
    return MODELS.build(dict(type='vision.PolyNet', arch=arch, **options))


def norms(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 80, 80)


@pytest.mark.parametrize(('given', 'levels'), [
    ((4,), (4,)), ((-1,), (4,)), ((1, 2, 3, 4), (1, 2, 3, 4)), ((-5, -2), (0, 3)), ((0,), (0,)),
    ((1,), (1,))])
def test_levels_by_number_and_from_the_end(given, levels):
    with torch.device('meta'):
        backbone = build(out_indices=given)
        maps = backbone.eval()(torch.zeros(1, 3, 96, 96))
    channels, strides = (64, 192, 384, 1152, 2048), (2, 4, 8, 16, 32)
    assert isinstance(maps, tuple)
    assert backbone.out_channels == tuple(channels[level] for level in levels)
    assert backbone.strides == tuple(strides[level] for level in levels)
    assert tuple(y.shape[1] for y in maps) == backbone.out_channels


@pytest.mark.parametrize('out_indices', [(0,), (1,), (2,), (3,), (1, 4)])
def test_every_parameter_gets_a_gradient(out_indices, x):
    """DistributedDataParallel stops at parameters without one."""
    backbone = build(out_indices=out_indices)
    sum(y.square().mean() for y in backbone(x)).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('frozen_stages', FROZEN)
def test_frozen_parts_have_no_gradient_and_stay_in_evaluation(frozen_stages, x):
    backbone = build(frozen_stages=frozen_stages).train()
    for index, name in enumerate(PARTS):
        part = getattr(backbone.trunk, name)
        is_frozen = index < FROZEN[frozen_stages]
        assert all(p.requires_grad is not is_frozen for p in part.parameters()), name
        assert all(module.training is not is_frozen for module in part.modules()), name
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(x)
    moved = {name.split('.')[1] for name, buffer in backbone.named_buffers()
             if not torch.equal(buffer, before[name])}
    assert moved == set(PARTS[FROZEN[frozen_stages]:])


def test_norm_eval_fixes_statistics_and_trains_weights(x):
    backbone = build(norm_eval=True).train()
    before = [norm.running_mean.clone() for norm in norms(backbone)]
    backbone(x)[0].mean().backward()
    assert backbone.training and not any(norm.training for norm in norms(backbone))
    assert all(torch.equal(norm.running_mean, mean)
               for norm, mean in zip(norms(backbone), before, strict=True))
    assert all(norm.weight.grad is not None for norm in norms(backbone))


@pytest.mark.parametrize('options', [dict(), dict(frozen_stages=1, norm_eval=True),
                                     dict(path_drop_rate=0.3, norm_cfg=dict(type='BN')),
                                     dict(norm_cfg=dict(type='SyncBN'))])
def test_with_cp_changes_no_number(options, x):
    results = []
    for with_cp in (False, True):
        backbone = build(with_cp=with_cp, **options).train()
        torch.manual_seed(7)
        out = backbone(x)[0]
        out.square().mean().backward()
        results.append((out, [p.grad for p in backbone.parameters() if p.grad is not None],
                        list(backbone.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_depths_for_layer_wise_learning_rates():
    backbone = build([['2-way'] * 2, ['poly-3'] * 3, ['mpoly-2'] * 2])
    depth = {name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.')[0]
             for name, _ in backbone.named_parameters()}
    assert all(total == 9 for total in (backbone.get_layer_depth(n)[1] for n in depth))
    assert {d for name, d in depth.items() if 'stem' in name} == {0}
    for start, expected in (('stage_a.1', 2), ('reduction_a', 3), ('stage_b.0', 3),
                            ('stage_b.2', 5), ('reduction_b', 6), ('stage_c.1', 7)):
        assert {d for n, d in depth.items() if n.startswith(f'trunk.{start}')} == {expected}
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (8, 9)


def test_stages_that_are_not_built_are_no_depths():
    """Else a backbone of two stages would begin far below the full rate."""
    arch = [['2-way'] * 2, ['poly-3'] * 3, ['mpoly-2'] * 2]
    backbone = build(arch, out_indices=(3,))
    depths = {backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()}
    assert {total for _, total in depths} == {7} and max(depths)[0] == 5
    assert build(arch, out_indices=(0,)).get_layer_depth('trunk.stem.x') == (0, 2)
    # frozen stages are built: they keep their distance from the head
    assert build(arch, frozen_stages=1).get_layer_depth('trunk.stem.x') == (0, 9)


def test_a_copy_is_independent_and_equal(x):
    backbone = build(path_drop_rate=0.2).eval()
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other(x)[0], backbone(x)[0])
        assert not {p.data_ptr() for p in other.parameters()} & \
            {p.data_ptr() for p in backbone.parameters()}


def test_synchronised_norms_include_those_per_order(x):
    backbone = build().eval()
    expected, num_norms = backbone(x)[0], len(norms(backbone))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))
    assert norms(synced) == []
    tied = synced.trunk.stage_b[0].block.paths[0][0].norms
    assert len(tied) == 3 and all(isinstance(norm, nn.SyncBatchNorm) for norm in tied)
    back = revert_sync_batchnorm(synced)
    assert len([m for m in back.modules() if type(m).__name__ == '_BatchNormXd']) == num_norms
    assert torch.equal(back.eval()(x)[0], expected)


def test_norms_and_activations_by_config(x):
    backbone = build(norm_cfg=dict(type='GN', num_groups=16), act_cfg=dict(type='SiLU'))
    kinds = {type(module) for module in backbone.modules()}
    assert nn.GroupNorm in kinds and nn.SiLU in kinds
    assert nn.BatchNorm2d not in kinds and nn.ReLU not in kinds
    assert backbone(x)[0].shape == (2, 2048, 1, 1)
    assert {m.eps for m in norms(build(norm_cfg=dict(type='BN', eps=1e-3)))} == {1e-3}


def test_default_initialisation_keeps_the_signal(x):
    backbone = build(out_indices=(1, 2, 3, 4), padding_mode='same')
    backbone.init_weights()
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms(backbone))
    assert all(0.1 < y.std() < 10 for y in backbone.train()(x))


@pytest.mark.parametrize('in_channels', [1, 2, 3, 4, 6])
def test_pretrained_stem_answers_alike_to_grey_images(in_channels, tmp_path):
    trained = build().eval()
    torch.save(trained.state_dict(), tmp_path / 'trained.pth')
    backbone = build(in_channels=in_channels, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'trained.pth'))).eval()
    backbone.init_weights()
    grey = torch.randn(1, 1, 75, 75)
    torch.testing.assert_close(backbone(grey.expand(-1, in_channels, -1, -1))[0],
                               trained(grey.expand(-1, 3, -1, -1))[0])


@pytest.mark.parametrize('prefix', ['backbone', 'backbone.', None])
def test_pretrained_from_a_classifier_with_fewer_levels(prefix, tmp_path, x):
    trained = build(out_indices=(3,)).eval()
    whole = build().eval()
    state = {f'backbone.{name}': tensor for name, tensor in whole.state_dict().items()
             if 'num_batches_tracked' not in name}
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.zeros(5, 2048)}),
               tmp_path / 'classifier.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth'), prefix=prefix)
    trained = build(out_indices=(3,), init_cfg=cfg).eval()
    trained.init_weights()
    expected = whole.trunk.state_dict()
    assert all(torch.equal(tensor, expected[name])
               for name, tensor in trained.trunk.state_dict().items())


@pytest.mark.parametrize(('options', 'cfg', 'message'), [
    (dict(arch=[['1-way']] * 3), dict(), 'VIS-CKPT-305.*stage_b.0.blocks.0'),
    (dict(), dict(prefix='neck.'), "VIS-CKPT-066.*found under: 'trunk.'"),
    (dict(share='all'), dict(), 'VIS-CKPT-305.*projection')])
def test_weights_of_another_network_are_refused_by_name(options, cfg, message, tmp_path):
    torch.save(build().state_dict(), tmp_path / 'x.pth')
    backbone = build(**options, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'x.pth'), **cfg))
    with pytest.raises(VisionError, match=f'(?s){message}'):
        backbone.init_weights()


@pytest.mark.parametrize(('options', 'message'), [
    (dict(out_indices=(5,)), r'out_indices=\(5,\)'), (dict(out_indices=(-6,)), 'out_indices'),
    (dict(out_indices=()), 'out_indices'), (dict(out_indices=4), r'write out_indices=\(4,\)'),
    (dict(path_scales='relased'), "path_scales='relased' means nothing"),
    (dict(path_scales=[]), '0 path_scales for 3'), (dict(share='some'), "share='some'"),
    (dict(output_stride=4), 'output_stride=4'), (dict(padding_mode='full'), 'padding_mode'),
    (dict(frozen_stages=4), 'frozen_stages=4'), (dict(path_drop_rate=1.0), 'path_drop_rate=1.0'),
    (dict(path_drop_schedule='cosine'), 'path_drop_schedule'),
    (dict(path_scales=[1.0, 1.0]), '2 path_scales for 3'), (dict(arch='very-deepp'), 'very-deep')])
def test_arguments_that_are_not_possible(options, message):
    with pytest.raises(VisionError, match=message):
        build(**options)


def test_scales_multiply_and_the_released_ones_are_known():
    backbone = build('very-deep', path_scales='released', residual_scale=0.5, out_indices=(2,))
    assert [module.scale for module in backbone.trunk.stage_a][:2] == [0.5, 0.496154]
    backbone = build(path_drop_rate=0.2, path_drop_schedule='constant', path_drop_inverted=True)
    modules = [stage[0] for stage in backbone.trunk.stages]
    assert all(module.drop == 0.2 and module.is_inverted for module in modules)


def test_residual_scale_is_a_factor_on_every_term(x):
    plain, scaled = build(uniform(1, 1, 1)).eval(), build(uniform(1, 1, 1), residual_scale=0.3)
    scaled.eval().load_state_dict(plain.state_dict())
    for stage in plain.trunk.stages:
        for tensor in (stage[0].blocks[0].projection.norm.weight,
                       stage[0].blocks[0].projection.norm.bias):
            tensor.data.mul_(0.3)
    torch.testing.assert_close(scaled(x)[0], plain(x)[0])


def test_zero_init_residual_begins_as_the_activation_of_the_stem_and_the_reductions(x):
    backbone = build(zero_init_residual=True, out_indices=(1, 2))
    backbone.init_weights()
    stage = backbone.trunk.stage_a[0]
    assert [stage.blocks[k].projection.norm.weight.abs().sum() for k in range(2)] == [0, 0]
    assert (stage.blocks[0].paths[0][0].norm.weight == 1).all()
    backbone.eval()
    torch.testing.assert_close(backbone(x)[1], backbone.trunk.stem(x)[2])


def test_convolutions_by_config(x):
    backbone = build(conv_cfg=dict(type='ConvWS'), padding_mode='same')
    kinds = {type(m).__name__ for m in backbone.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {'ConvWS2d'} and backbone(x)[0].shape == (2, 2048, 3, 3)


@pytest.mark.parametrize('stride', [16, 8])
def test_smaller_output_stride_computes_the_same_values_at_more_places(stride):
    """Dilation in place of a stride: every second or fourth value is that of stride 32, so that
    weights trained there serve here."""
    options = dict(arch=[['2-way'], ['poly-3'] * 2, ['mpoly-2', '2-way']], padding_mode='same')
    coarse, dense = build(**options).eval(), build(output_stride=stride, **options).eval()
    dense.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 70, 103)
    with torch.inference_mode():
        step = 32 // stride
        torch.testing.assert_close(dense(image)[0][..., ::step, ::step], coarse(image)[0])


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(prefixx='a.', checkpoint='x.pth'), "VIS-CONFIG-064.*'prefixx'"),
    (dict(), 'VIS-CONFIG-064.*no checkpoint')])
def test_pretrained_with_keys_that_nobody_reads_is_refused(cfg, message):
    with pytest.raises(VisionError, match=message):
        build(init_cfg=dict(type='Pretrained', **cfg)).init_weights()


@pytest.mark.parametrize(('options', 'is_told'), [
    (dict(), True), (dict(path_scales='released', residual_scale=0.3), True),
    (dict(path_scales='released'), False), (dict(path_drop_rate=0.3), False)])
def test_published_weights_in_other_path_scales_are_a_warning(options, is_told, tmp_path, capsys):
    content = dict(state_dict=build().state_dict(), meta=dict(path_scales='released'))
    torch.save(content, tmp_path / 'x.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    build(init_cfg=cfg, **options).init_weights()
    assert ("path_scales='released'" in ''.join(capsys.readouterr())) is is_told


@pytest.mark.parametrize(('saved', 'built'), [
    ('ir-3-6-3_b-2-way', 'ir-3-6-3_b-mpoly-2'), ('ir-3-6-3_c-poly-2', 'ir-3-6-3_c-poly-3'),
    ('ir-3-6-3', 'small'), ('very-deep', 'ir-3-6-3')])
def test_the_checkpoint_of_another_preset_is_refused(saved, built):
    with torch.device('meta'):
        state, backbone = build(saved).state_dict(), build(built)
    with pytest.raises(VisionError, match='(?s)VIS-CKPT-305.*trunk.stage_'):
        load_state(backbone, state)


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_builds_by_its_name(name):
    with torch.device('meta'):
        backbone = build(name)
    assert backbone.arch.depths == tuple(len(stage) for stage in backbone.trunk.stages)
