"""Classifiers cut into pieces compute what they compute whole, bit for bit."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from vision.classify.mm.backbones import VisionTransformer
from vision.classify.mm.classifier import ImageClassifier
from vision.common.core.errors import VisionError
from vision.common.mm.launch import read_config
from vision.pipeline.nn.chunks import Chunk, count_pieces, keep_pieces, pieces_of
from vision.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
POLYNET = dict(type='PolyNet', arch=[['2-way', 'poly-2'], ['mpoly-2'], ['1-way']],
               padding_mode='same', residual_scale=0.3)
VIT = dict(type='VisionTransformer', img_size=32, patch_size=8, drop_rate=0.1, drop_path_rate=0.2,
           arch=dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48))


@MODELS.register_module()
class LastLevelNorm(torch.nn.Module):
    """A neck that takes levels as a tuple, and gives one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, feats: tuple) -> tuple:
        assert isinstance(feats, tuple)
        return (self.norm(feats[-1]),)


def classifier(backbone: dict, width: int, **options) -> ImageClassifier:
    torch.manual_seed(0)
    head = dict(type='LinearClsHead', num_classes=5, in_channels=width, dropout=0.2, topk=(1,))
    model = ImageClassifier(backbone, head, **options)
    model.init_weights()
    return model.train()


CASES = dict(
    polynet=(POLYNET, 2048, {}), recomputed=(dict(POLYNET, with_cp=True), 2048, {}),
    paths=(dict(POLYNET, path_drop_rate=0.4), 2048, {}),
    valid=(dict(POLYNET, padding_mode='valid', out_indices=(-2,)), 1152, {}),
    stem=(dict(POLYNET, out_indices=(1,)), 192, {}),
    neck=(POLYNET, 2048, dict(neck=dict(type='LastLevelNorm', channels=2048))),
    vit=(VIT, 24, {}), vit_mean=(dict(VIT, out_type='avg_featmap'), 24, {}))


@pytest.mark.parametrize('case', CASES)
def test_pieces_are_the_model_bit_by_bit(case):
    """Forward, gradients of parameters, averages of BatchNorm, what dropout draws."""
    backbone, width, options = CASES[case]
    size = 75 if case == 'valid' else 32
    inputs = torch.randn(2, 3, size, size)
    samples = [BaseDataElement(gt_label=torch.tensor([label])) for label in (1, 3)]
    whole, cut = (classifier(backbone, width, **options) for _ in range(2))
    pieces = pieces_of(cut)
    torch.manual_seed(1)
    expected = whole(inputs, samples, mode='loss')
    expected['loss'].backward()
    torch.manual_seed(1)
    # As ranks do it: what arrives is a leaf of its own.
    received, links = inputs, []
    for piece in pieces:
        output = Chunk(cut, [piece])(received)
        links.append((received, output))
        received = output.detach().requires_grad_()
    actual = cut.finish(received, samples, 'loss')
    actual['loss'].backward()
    gradient = received.grad
    for source, output in reversed(links):
        output.backward(gradient)
        gradient = source.grad
    assert actual.keys() == expected.keys() and torch.equal(actual['loss'], expected['loss'])
    for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
        assert ours.grad is not None and torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(cut.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize('case', ['polynet', 'vit'])
def test_every_module_of_the_stages_is_a_piece_and_can_be_counted(case):
    backbone, width, _ = CASES[case]
    model = classifier(backbone, width)
    pieces = pieces_of(model)
    names = [piece.name.removeprefix('backbone.trunk.') for piece in pieces]
    assert names == {'polynet': ['stem', 'stage_a.0', 'stage_a.1', 'reduction_a', 'stage_b.0',
                                 'reduction_b', 'stage_c.0', 'head'],
                     'vit': ['embed', 'layers.0', 'layers.1', 'layers.2', 'norm', 'head']}[case]
    costs = count_pieces(model, pieces, torch.empty(2, 3, 32, 32))
    assert all(cost.flops > 0 for cost in costs if 'norm' not in cost.name)


def test_recomputed_modules_keep_less():
    inputs = torch.empty(2, 3, 64, 64)
    kept, recomputed = ([cost.activation_bytes for cost in count_pieces(
        model, pieces_of(model), inputs)] for model in (classifier(*CASES[case][:2])
                                                        for case in ('polynet', 'recomputed')))
    assert recomputed[1] < 0.2 * kept[1] and recomputed[0] == kept[0]


def test_recomputing_happens_inside_a_piece():
    """The forward pass of a module of stage A runs again when its gradient is asked for."""
    model = classifier(*CASES['recomputed'][:2])
    calls, piece = [], pieces_of(model)[1]
    module = model.get_submodule(piece.name)
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    Chunk(model, [piece])(torch.randn(2, 384, 4, 4, requires_grad=True)).sum().backward()
    assert len(calls) == 2


def test_a_shell_trains_with_frozen_parts_missing():
    model = classifier(dict(POLYNET, frozen_stages=1, norm_eval=True), 2048)
    pieces = pieces_of(model)
    whole = dict(model.named_parameters())
    keep_pieces(model, pieces[2:5], pieces)
    model.train()
    assert all(whole[name] is parameter for name, parameter in model.named_parameters())
    frozen = model.get_submodule('backbone.trunk.stage_a.1')
    assert not frozen.training and not any(each.requires_grad for each in frozen.parameters())
    assert model.get_submodule('backbone.trunk.stage_b.0').training
    model.eval()


def test_forward_ends_with_finish():
    """The last rank of a pipeline has logits only; what it makes of them is the model's."""
    model = classifier(VIT, 24).eval()
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = Chunk(model, pieces_of(model))(inputs)
        assert torch.equal(model.finish(logits), model(inputs))
        ours, theirs = (call[0].pred_score for call in (
            model.finish(logits, None, 'predict'), model(inputs, mode='predict')))
    assert torch.equal(ours, theirs)
    model.finish = lambda logits, data_samples, mode: (logits.shape, mode)
    assert model(inputs, mode='loss') == ((2, 5), 'loss')


def test_what_cannot_be_cut_is_refused():
    two = classifier(dict(POLYNET, out_indices=(3, 4)), 2048)
    with pytest.raises(VisionError, match=r'(?s)VIS-CONFIG-1245.*\(3, 4\).*one level'):
        pieces_of(two)
    two.backbone = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(VisionError, match='VIS-CONFIG-1244: Conv2d does not say'):
        pieces_of(two)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(arch='huge'), "arch='huge'.*tiny, small, base"),
    (dict(arch=dict(embed_dims=8)), 'keys embed_dims.*num_layers'),
    (dict(arch=dict(embed_dims=8, num_layers=1, num_heads=3, feedforward_channels=8)),
     'embed_dims a multiple'),
    (dict(img_size=225), 'img_size=225.*multiple of patch_size'),
    (dict(img_size=(224, 224)), 'one side'),
    (dict(out_type='raw'), "out_type='raw'.*avg_featmap"),
    (dict(drop_rate=1.0), '0 <= drop_rate < 1'), (dict(drop_path_rate=-0.1), 'drop_path_rate')])
def test_vision_transformer_refuses(options, message):
    with pytest.raises(VisionError, match=f'(?s)VIS-CONFIG-1246: .*{message}'):
        VisionTransformer(**{'arch': 'tiny', **options})


def test_a_model_built_without_memory_gets_its_first_values():
    with torch.device('meta'):
        backbone = VisionTransformer(VIT['arch'], img_size=32, patch_size=8)
    backbone.to_empty(device='cpu')
    for parameter in backbone.parameters():
        torch.nn.init.constant_(parameter, float('nan'))
    backbone.init_weights()
    assert all(torch.isfinite(parameter).all() for parameter in backbone.parameters())
    assert backbone(torch.zeros(1, 3, 32, 32))[0].shape == (1, 24)


@pytest.mark.parametrize('name', ['vit-tiny_pp4', 'polynet-small_pp2'])
def test_configs_name_models_that_can_be_cut(name):
    config = read(f'pipeline/{name}_imagenette160.py')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    assert len(pieces_of(model)) >= 2 * config.strategy.pp
    assert config.train_dataloader.batch_size % config.strategy.num_microbatches == 0
    assert config.strategy.num_microbatches >= 2 * config.strategy.pp - 1


def test_the_plain_twin_is_the_same_run():
    """A key or argument that nobody reads would be refused here."""
    twin, cut = (read(f'{name}_imagenette160.py')
                 for name in ('classify/vit-tiny', 'pipeline/vit-tiny_pp4'))
    assert {key for key in cut if cut[key] != twin.get(key)} == {'runner_type', 'strategy'}


def read(name: str) -> Config:
    """As tools read it."""
    return read_config(Namespace(config=str(CONFIGS / name), cfg_options=None, local_rank=0,
                                 launcher='none', work_dir='work'))
