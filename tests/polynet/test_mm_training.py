"""Path drop that begins late, and learning rates that fall towards the stem, in real runs."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from vision.common.core.errors import VisionError
from vision.polynet.mm import PathDropHook, PolyNet

TINY = [['2-way'], ['1-way'] * 2, ['1-way']]


class Model(BaseModel):
    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone = PolyNet(TINY, out_indices=(2,), **options)
        self.fc = nn.Linear(384, 2)
        self.seen = []

    def forward(self, inputs, mode='tensor', **_):
        self.seen.append(self.backbone.trunk.stage_a[0].drop)
        logits = self.fc(self.backbone(torch.stack(inputs))[0].mean((2, 3)))
        return dict(loss=logits.square().mean()) if mode == 'loss' else logits


def train(folder, model: nn.Module, hook: PathDropHook, *, resume: str | None = None) -> Runner:
    data = [dict(inputs=torch.randn(3, 75, 75)) for _ in range(2)]
    runner = Runner(
        model, str(folder), train_dataloader=dict(
            dataset=data, batch_size=1, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=3), custom_hooks=[hook],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)), experiment_name=str(folder.name),
        load_from=resume, resume=resume is not None)
    runner.train()
    return runner


@pytest.mark.parametrize(('hook', 'expected'), [
    (PathDropHook(1), [0, 0, 0.2, 0.2, 0.2, 0.2]),
    (PathDropHook(3, by_epoch=False), [0, 0, 0, 0.2, 0.2, 0.2]),
    (PathDropHook(0), [0.2] * 6)])
def test_paths_are_dropped_from_the_beginning_named(hook, expected, tmp_path):
    model = Model(path_drop_rate=0.2, path_drop_schedule='constant', norm_eval=True)
    train(tmp_path, model, hook)
    assert model.seen == expected


def test_a_resumed_run_drops_what_the_whole_run_would(tmp_path):
    options = dict(path_drop_rate=0.2, path_drop_schedule='constant', norm_eval=True)
    train(tmp_path / 'first', Model(**options), PathDropHook(1))
    model = Model(**options)
    train(tmp_path / 'second', model, PathDropHook(1), resume=str(tmp_path / 'first/epoch_2.pth'))
    assert model.seen == [0.2, 0.2]


def test_a_hook_without_effect_is_refused(tmp_path):
    with pytest.raises(VisionError, match='1 PolyNets, none with path_drop_rate'):
        train(tmp_path, Model(), PathDropHook(1))
    with pytest.raises(VisionError, match='begin=-1'):
        PathDropHook(-1)


def optimizer(model: nn.Module, **paramwise):
    with DefaultScope.overwrite_default_scope('vision'):
        return build_optim_wrapper(model, dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.5, weight_decay=0.1),
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise)).optimizer


def test_rates_fall_with_the_distance_from_the_head():
    model = Model()
    groups = optimizer(model, layer_decay_rate=0.5, norm_decay_mult=0.0).param_groups
    num_depths = len(model.backbone.trunk.stage_a) + 2  # the other stages are not built
    names = {id(param): name for name, param in model.named_parameters()}
    found = {names[id(param)]: (group['lr'], group['weight_decay'])
             for group in groups for param in group['params']}
    assert set(found) == set(names.values())
    assert found['fc.weight'] == (0.5, 0.1)
    assert found['backbone.trunk.stage_a.0.blocks.0.projection.conv.weight'] == \
        pytest.approx((0.5 * 0.5 ** (num_depths - 2), 0.1))
    assert found['backbone.trunk.stem.entry.0.norm.weight'] == \
        pytest.approx((0.5 * 0.5 ** (num_depths - 1), 0.0))
    assert len(groups) == len({setting for setting in found.values()})


def test_keys_of_the_default_constructor_still_hold():
    model = Model()
    groups = optimizer(model, layer_decay_rate=1.0, custom_keys={'stem': dict(lr_mult=0.1)})
    rates = {id(p): g['lr'] for g in groups.param_groups for p in g['params']}
    assert rates[id(model.fc.weight)] == 0.5
    assert rates[id(model.backbone.trunk.stem.entry[0].conv.weight)] == pytest.approx(0.05)


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'a'])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(VisionError, match='layer_decay_rate'):
        optimizer(Model(), layer_decay_rate=rate)


def test_without_any_setting_the_constructor_is_refused_too():
    """MMEngine leaves its own constructor early when there is no paramwise_cfg."""
    with pytest.raises(VisionError, match='VIS-CONFIG-060'):
        optimizer(Model())


def test_a_model_without_depths_is_refused():
    with pytest.raises(VisionError, match='Linear has no backbone'):
        optimizer(nn.Linear(2, 2), layer_decay_rate=0.9)
