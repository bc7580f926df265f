"""Configs of this codebase as graphs, strategies and predictions."""

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config

from vision.common.core.errors import VisionError
from vision.common.mm.launch import add_common_arguments, find_classes, read_config
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.graph import FORWARD
from vision.simulator.mm.configs import read_training
from vision.simulator.mm.prediction import largest_batch, predict
from vision.simulator.mm.variants import repeated_blocks, search, variants

ROOT = Path(__file__).parents[2]
VIT = 'configs/classify/vit-tiny_imagenette160.py'


@pytest.fixture(scope='module')
def cluster():
    return read_cluster(ROOT / 'configs/clusters/a100-dgx.yaml')


def config_of(name, **changes):
    config = Config.fromfile(ROOT / name)
    config.merge_from_dict(changes)
    return config


@pytest.fixture(scope='module')
def vit():
    return read_training(config_of(VIT), num_gpus=8)


def test_a_classifier_is_read_without_data_or_weights(vit):
    assert vit.batch_size == 64 and vit.image_size == (128, 128)
    assert vit.settings.optimizer == 'adamw' and vit.notes == []
    tokens, layer = 64 * 65, 4 * 192 * 192 + 2 * 192 * 768
    products = sum(op.flops for op in vit.graph.ops_of('backbone.trunk.layers', FORWARD)
                   if op.kind == 'gemm')
    assert products == 2 * tokens * layer * 12
    assert vit.tree.num_ranks == 8 and len(repeated_blocks(vit.graph)) == 12


def test_amp_and_accumulation_and_fsdp2_are_read():
    config = config_of(VIT)
    config.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2)
    config.strategy = dict(type='FSDP2Strategy', wrap=['Layer'])
    found = read_training(config, num_gpus=4, batch_size=2)
    assert {op.dtype for op in found.graph.ops if op.kind == 'gemm'} == {'bfloat16'}
    assert found.settings.num_microbatches == 2
    spread = found.tree.spread(found.graph)
    assert spread.zero == 3 and spread.dp == 4 and len(spread.units) == 13


def test_gathers_of_fsdp2_have_its_param_dtype(cluster):
    def sent(**options):
        config = config_of(VIT, strategy=dict(type='FSDP2Strategy', **options))
        found = read_training(config, num_gpus=4, batch_size=2)
        whole = [each.num_bytes for name, each in predict(
            found, cluster).outcome.program.buffers.items() if name.startswith('gather ')]
        return found.settings.gathered_bytes, sum(whole)

    plain, half = sent(), sent(param_dtype='bfloat16')
    assert plain == (None, 2 * half[1]) and half[0] == 2


@pytest.mark.parametrize('name, known, told', [
    ('AdamW', 'adamw', False), ('RMSprop', 'adam', True), ('RMSpropTF', 'adam', True),
    ('Lion', 'adam', True)])
def test_an_optimizer_of_another_kind_is_priced_as_adam_which_is_said(name, known, told):
    config = config_of(VIT, train_dataloader=dict(batch_size=1))
    config.optim_wrapper.optimizer = dict(type=name, lr=0.1)
    found = read_training(config)
    assert found.settings.optimizer == known
    assert any(f'{name} is priced as Adam' in note for note in found.notes) is told


def test_a_detector_runs_once_for_real_and_is_grown():
    found = read_training(config_of('configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'),
                          batch_size=4)
    small = read_training(config_of('configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'),
                          batch_size=1)
    assert any('ran for real' in note for note in found.notes)
    assert found.graph.batch_size == 4
    assert found.graph.flops(FORWARD) == pytest.approx(4 * small.graph.flops(FORWARD), rel=0.2)
    assert found.graph.ops_of('roi_head') and found.graph.parameters == small.graph.parameters


def faces_of(num_gpus=1, batch_size=8, **head):
    config = config_of('configs/faces/mobilefacenet_ivf_folder.py')
    config.model.head.num_classes = 100_000
    for key, value in head.items():
        config.model.head[key] = value
    return read_training(config, batch_size=batch_size, num_gpus=num_gpus)


def test_faces_take_their_size_from_the_backbone():
    found = faces_of(selector=dict(type='ivf', num_active=5000))
    assert found.image_size == (112, 112) and found.graph.flops() > 0
    products = [op for op in found.graph.ops if op.kind == 'gemm' and not op.module]
    assert sum(op.flops for op in products) == pytest.approx(3 * 2 * 8 * 5000 * 128)
    assert any('5000 of the 100000 class rows' in note for note in found.notes)
    grey = config_of('configs/faces/iresnet18-small_ivf_glyphs.py')
    assert read_training(grey, batch_size=8).graph.input_bytes == 4 * 8 * 32 * 32


def test_class_rows_lie_on_all_ranks_and_cost_messages(cluster):
    sgd = dict(type='sgd', momentum=0.9)
    many = [predict(faces_of(num_gpus, selector=dict(type='ivf', num_active=8000),
                             store=dict(optimizer=sgd)), cluster) for num_gpus in (1, 4)]

    def held(result):
        return result.outcome.program.buffers['buffers'].num_bytes
    # Rows, their momentum, and when they were up to date.
    whole, part = (4 * 100_000 // ranks * (128 + 128 + 1) for ranks in (1, 4))
    assert held(many[0]) - held(many[1]) == whole - part
    kinds = [Counter(node.kind for node in each.outcome.program.nodes if 'head' in node.name)
             for each in many]
    assert not kinds[0]['all_gather'] and kinds[1]['all_gather'] == 1
    assert kinds[1]['all_reduce'] == 2
    away = predict(faces_of(4, selector=dict(type='ivf', num_active=8000),
                            store=dict(backend='host', optimizer=sgd)), cluster)
    assert held(many[1]) - held(away) == part
    assert {'h2d', 'd2h'} <= {node.kind for node in away.outcome.program.nodes}
    full = predict(faces_of(4, selector=dict(type='full')), cluster)
    assert full.step_seconds > many[1].step_seconds


def test_a_config_that_trains_nothing_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1630(.|\n)*train_dataloader'):
        read_training(config_of('configs/faces/mobilefacenet_ms1m.py'))


def test_an_unknown_size_and_wrong_ranks_are_refused():
    config = config_of(VIT)
    config.train_dataloader.dataset.pipeline = [dict(type='ReadImage'), dict(type='PackInputs')]
    config.model.backbone = dict(_delete_=True, type='mmdet.ResNet', depth=18)
    config.model.backbone.pop('_delete_')
    with pytest.raises(VisionError, match='VIS-CONFIG-1631'):
        read_training(config)
    pipeline = config_of('configs/pipeline/vit-tiny_pp4_imagenette160.py')
    with pytest.raises(VisionError, match='VIS-CONFIG-1639'):
        read_training(pipeline, batch_size=12)
    with pytest.raises(VisionError, match='VIS-CONFIG-1632(.|\n)*--gpus 4'):
        read_training(pipeline, num_gpus=8)


def test_more_ranks_share_a_step_and_pay_for_it(vit, cluster):
    one = predict(read_training(config_of(VIT)), cluster)
    eight = predict(vit, cluster)
    assert eight.samples == 8 * one.samples == 512
    assert one.step_seconds < eight.step_seconds < 1.5 * one.step_seconds
    assert 0 < eight.mfu < one.mfu < 1 and eight.verdict.state == 'fits'
    told = json.loads(json.dumps(eight.to_dict()))
    assert told['interval_seconds'][0] < told['step_seconds'] < told['interval_seconds'][1]
    assert len(told['top_costs']) == 10 and told['memory']['largest']


def test_what_a_device_needs_is_its_peak_and_what_the_cluster_adds(vit, cluster):
    result, over = predict(vit, cluster), cluster.overheads
    peak = result.outcome.peak(0).num_bytes
    assert 0 < over.fragmentation < 0.5
    assert result.verdict.needed_bytes == pytest.approx(
        over.context_bytes + (1 + over.fragmentation) * peak, rel=1e-6)


def test_too_many_ranks_for_the_cluster(vit, cluster):
    many = cluster.num_nodes * cluster.gpus_per_node * 2
    with pytest.raises(VisionError, match='VIS-CONFIG-1633'):
        predict(read_training(config_of(VIT), num_gpus=many, batch_size=2), cluster)


def test_the_table_that_the_pipeline_runs_is_simulated(cluster):
    found = read_training(config_of('configs/pipeline/vit-tiny_pp4_imagenette160.py'))
    assert found.stages[0].startswith('backbone') and found.graph.batch_size == 8
    result = predict(found, cluster)
    assert result.num_ranks == 4 and result.samples == 64 and result.outcome.bubble > 0
    assert {node.kind for node in result.outcome.program.nodes} >= {'F', 'optimizer'}


PIPELINE = 'configs/pipeline/vit-tiny_pp4_imagenette160.py'


def pipeline_of(**options):
    return read_training(config_of(PIPELINE, strategy=options))


def test_a_budget_of_activations_is_planned_and_paid_for(cluster):
    plain = predict(read_training(config_of(VIT)), cluster)
    found = read_training(config_of(VIT, activation_memory=dict(budget=0.5, actions='recompute')))
    assert found.memory.ratio == 0.5 and found.memory.actions == 'recompute'
    held = predict(found, cluster)
    kinds = {node.kind for node in held.outcome.program.nodes}
    assert 'recompute' in kinds
    assert held.outcome.peak(0).num_bytes < 0.65 * plain.outcome.peak(0).num_bytes
    assert plain.step_seconds < held.step_seconds < 1.3 * plain.step_seconds
    least = predict(read_training(config_of(VIT, activation_memory=dict(budget='2MB'))), cluster)
    assert any('no plan found' in text for text in least.notes['assumed'])


@pytest.mark.parametrize('name, options, code', [
    (VIT, dict(actions='recompute'), 1677), (PIPELINE, dict(budget=0.5), 1677),
    (VIT, dict(budget=0.5, actions='magic'), 1678),
    (VIT, dict(budget=0.5, host_budget=0.5), 1678)])
def test_a_budget_that_training_refuses_is_refused(name, options, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        read_training(config_of(name, activation_memory=options))


def test_a_cut_by_hand_is_the_cut_that_is_simulated(cluster):
    found = pipeline_of(chunks=1, schedule='1f1b')
    num = len(found.stages)
    uneven = pipeline_of(chunks=1, schedule='1f1b', cut=[num - 3, 1, 1, 1])
    even, slow = predict(found, cluster), predict(uneven, cluster)
    assert slow.step_seconds > 1.5 * even.step_seconds
    measured = pipeline_of(chunks=1, schedule='1f1b', cut='measured')
    assert predict(measured, cluster).step_seconds == even.step_seconds
    assert any("'measured'" in note for note in measured.notes) and not found.notes
    for wrong in ([1, 1, 1], [num, 1, 1, 1], [num - 2, 0, 1, 1], 'evenly'):
        with pytest.raises(VisionError, match='VIS-CONFIG-1637'):
            predict(pipeline_of(chunks=1, schedule='1f1b', cut=wrong), cluster)


def test_the_memory_of_a_pipeline_is_kept(cluster):
    with pytest.raises(VisionError, match='VIS-CONFIG-1529'):
        predict(pipeline_of(chunks=1, schedule='gpipe', memory='1MB'), cluster)
    with pytest.raises(VisionError, match='VIS-CONFIG-1636'):
        predict(pipeline_of(memory='50%'), cluster)
    assert predict(pipeline_of(memory='60GB'), cluster).verdict.state == 'fits'


def test_what_a_pipeline_gathers_is_said():
    found = pipeline_of(dp=2, param_dtype='bfloat16')
    assert found.settings.gathered_bytes == 2
    assert any('gathers of stages' in note for note in found.notes)


def test_the_largest_batch_fits_and_twice_as_much_does_not(vit, cluster):
    batch, result = largest_batch(vit, cluster)
    assert result.verdict.state == 'fits' and result.samples == 8 * batch
    assert result.verdict.margin < 0.08  # the limit is 0.05, the step 1/64 of the batch


@pytest.fixture(scope='module')
def searched(vit, cluster):
    return search(vit, cluster)


def test_what_search_prints_is_a_config_that_training_reads(searched, tmp_path):
    """As tools/train.py reads it: keys and arguments that nobody knows are errors there."""
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    path = tmp_path / 'best.py'
    assert len(searched.tried) >= 3
    num_read = 0
    assert {'DDP, 40 % recompute', 'FSDP2, Layer, 60 % both'} <= set(searched.tried)
    for name, result in searched.tried.items():
        path.write_text(f'_base_ = [{str(ROOT / VIT)!r}]\n{result.text}\n')
        config = read_config(parser.parse_args([str(path)]))
        assert config.runner_type == 'ExactFlexibleRunner', name  # no other has strategies
        assert find_classes(config.strategy.type)
        if name in ('DDP', 'FSDP2, Layer, 60 % both', 'ZeroPP pp=4 dp=2 M=8'):
            again = read_training(config, num_gpus=8)  # and so does the simulator
            assert again.batch_size == result.samples // (config.strategy.get('dp', 8)), name
            assert (again.memory is not None) == ('%' in name)
            num_read += 1
        path.write_text(f"{path.read_text()}strategy['unti'] = 1\n")
        with pytest.raises(VisionError, match='unti'):
            read_config(parser.parse_args([str(path)]))
    assert num_read == 3


def test_what_search_prints_has_the_dtype_that_was_simulated():
    config = config_of(VIT, strategy=dict(type='FSDP2Strategy', param_dtype='bfloat16'))
    texts = {each.name: each.text for each in variants(
        read_training(config, num_gpus=4, batch_size=4))}
    assert "'param_dtype': 'bfloat16'" in texts['FSDP2, Layer'] and len(texts) > 2
    assert 'AmpOptimWrapper' in texts['DDP']
    assert all('bfloat16' in text for text in texts.values())


def test_search_prints_the_config_of_the_winner(searched):
    found = searched
    assert {'DDP', 'FSDP2, Layer'} <= set(found.tried)
    assert found.best is found.tried[found.name] and found.name in found.front
    assert all(each.step_seconds >= found.best.step_seconds for each in found.tried.values())
    scope = {}
    exec(found.best.text, scope)
    assert scope['strategy']['type'] in ('DDPStrategy', 'FSDP2Strategy', 'ZeroPPStrategy')


def test_a_search_from_a_pipeline_is_refused(cluster):
    with pytest.raises(VisionError, match='VIS-CONFIG-1638'):
        search(read_training(config_of(PIPELINE)), cluster)


def test_a_backbone_that_cannot_be_cut_is_simulated_all_the_same(cluster):
    config = Config(dict(
        default_scope='vision', train_dataloader=dict(batch_size=2),
        train_cfg=dict(by_epoch=False), model=dict(
            type='ImageClassifier', backbone=dict(type='mmdet.ResNet', depth=18),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=512)),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))))
    found = read_training(config, image_size=(64, 64))
    assert found.stages == () and predict(found, cluster).step_seconds > 0
