import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision.classify.mm.classifier import ImageClassifier
from vision.cli.flops import build_network, build_parser, main
from vision.common.core.errors import VisionError
from vision.common.nn.macs import count, counted_macs

ROOT = Path(__file__).resolve().parents[2]


def build(*arguments: str) -> nn.Module:
    return build_network(build_parser().parse_args(arguments))


def test_published_sizes_of_very_deep_part_by_part(tmp_path):
    target = tmp_path / 'costs.json'
    assert main(['very-deep', '--json', str(target)]) == 0
    report = json.loads(target.read_text())
    assert report['parameters'] == 95_366_600
    assert 2 * report['macs'] == 69_398_986_944
    rows = {row['name'].split('.')[-1]: (row['parameters'], round(row['macs'] / 1e9, 3))
            for row in report['rows']}
    assert rows == {'stem': (605_728, 2.826), 'stage_a': (2_759_040, 4.159),
                    'reduction_a': (2_902_528, 1.845), 'stage_b': (44_112_000, 21.108),
                    'reduction_b': (3_542_784, 0.700), 'stage_c': (39_395_520, 4.060),
                    'head': (2_049_000, 0.002)}


@pytest.mark.parametrize('network', ['ir-3-6-3', 'ir-3-6-3_b-poly-3', 'small'])
def test_the_count_is_that_of_torch(network):
    model = build(network, '--num-classes', '10')
    costs = count(model, 97, 131)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 97, 131, device='meta'))
    assert 2 * sum(cost.macs for cost in costs) == counter.get_total_flops()


@pytest.mark.parametrize('layer', [
    nn.Conv2d(6, 9, (1, 3), stride=2, groups=3), nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
    nn.Linear(11, 5)])
def test_layers_of_every_kind_count_as_in_torch(layer):
    x = torch.zeros(2, 6, 10, 11)
    with counted_macs(layer) as macs, FlopCounterMode(display=False) as counter:
        layer(x)
    assert 2 * sum(macs.values()) == counter.get_total_flops()


def test_backbone_and_neck_of_a_detector_config():
    model = build(str(ROOT / 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'))
    costs = {cost.name: cost for cost in count(model, 64, 96)}
    assert costs['backbone'].macs > 0 and costs['neck'].macs > 0
    assert sum(c.parameters for c in costs.values()) == sum(p.numel() for p in model.parameters())


def test_a_detector_whose_stem_puts_pixels_into_channels_takes_an_image():
    model = build(str(ROOT / 'configs/detectors/yolox-nano_coco.py'))
    costs = {cost.name: cost for cost in count(model, 416, 416)}
    assert 0.2e9 < costs['backbone'].macs < 0.3e9  # published: 1.08 GFLOPs of the whole detector
    assert sum(c.parameters for c in costs.values()) == 912_159


@pytest.mark.parametrize('preset', ['very-deep', 'ir-3-6-3'])
def test_a_preset_is_counted_as_the_classifier_of_its_config(preset):
    path = str(ROOT / f'configs/polynet/polynet-{preset}_in1k.py')
    by_preset, by_config = build(preset), build(path)
    assert type(by_preset) is type(by_config) is ImageClassifier
    # Their residual scales differ, which costs nothing.
    assert count(by_preset, 331, 331) == count(by_config, 331, 331)


def test_options_change_the_model_of_a_config():
    path = str(ROOT / 'configs/polynet/polynet-ir-3-6-3_in1k.py')
    plain, dense = build(path), build(
        path, '--cfg-options', 'model.backbone.output_stride=16', 'model.head.num_classes=7')
    costs = [{cost.name: cost for cost in count(model, 224, 224)}
             for model in (plain, dense)]
    name = 'backbone.trunk.stage_c'
    assert costs[1][name].macs > 3 * costs[0][name].macs
    assert costs[1][name].parameters == costs[0][name].parameters
    assert costs[1]['head'].parameters == 7 * 2049


@pytest.mark.parametrize(('arguments', 'message'), [
    (['small', '--cfg-options', 'model.head.num_classes=3'],
     '(?s)VIS-INPUT-062.*polynet-small_in1k.py'),
    ([str(ROOT / 'configs/polynet/polynet-small_in1k.py'), '--num-classes', '3'],
     '(?s)VIS-INPUT-062.*model.head.num_classes'),
    (['small', '--shape', '0', '9'], 'VIS-INPUT-063'),
    (['small', '--num-classes', '0'], 'VIS-INPUT-063'),
    (['small', '--shape', '64', '331'], 'VIS-INPUT-014.*64x331'),
    ([str(ROOT / 'configs/detectors/yolox-nano_coco.py')], 'VIS-INPUT-063.*331 x 331')])
def test_options_without_effect_and_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(VisionError, match=message):
        main(arguments)


def test_a_config_of_the_package_is_counted_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['vit-tiny_imagenette160', '--shape', '128', '128']) == 0
    assert 'backbone' in capsys.readouterr().out


def test_what_is_neither_config_nor_preset_is_refused(tmp_path):
    with pytest.raises(VisionError, match='VIS-CONFIG-041.*neither[^$]*nearest: very-deep'):
        main(['very-depp'])
    (tmp_path / 'empty.py').write_text("work_dir = 'x'\n")
    with pytest.raises(VisionError, match='VIS-CONFIG-042'):
        main([str(tmp_path / 'empty.py')])
