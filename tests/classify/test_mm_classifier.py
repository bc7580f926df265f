import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from vision.classify.mm.classifier import ClsDataPreprocessor, ImageClassifier, LinearClsHead
from vision.classify.mm.metrics import TopKAccuracy
from vision.common.core.errors import VisionError


def labelled(*labels, **meta):
    return [BaseDataElement(metainfo=meta, gt_label=torch.tensor([label])) for label in labels]


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ImageClassifier(
        dict(type='PolyNet', arch=[['1-way']] * 3, padding_mode='same'),
        dict(type='LinearClsHead', num_classes=3, in_channels=2048)).eval()


def test_tensor_mode_gives_logits_and_names_are_fixed(classifier):
    with torch.no_grad():
        assert classifier(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    names = {name.rsplit('.', 1)[0] if name.startswith('head') else
             '.'.join(name.split('.')[:2]) for name in classifier.state_dict()}
    assert names == {'backbone.trunk', 'head.fc'}  # what the weight converter writes


def test_prediction_is_the_softmax_of_the_logits(classifier):
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = classifier(inputs)
        samples = classifier(inputs, labelled(1, 2), mode='predict')
    torch.testing.assert_close(torch.stack([s.pred_score for s in samples]), logits.softmax(1))
    assert [int(s.pred_label) for s in samples] == logits.argmax(1).tolist()


def test_loss_with_smoothing_by_hand():
    head = LinearClsHead(4, 8, label_smoothing=0.2, topk=(1,))
    logits, labels = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 1.0]]), torch.tensor([0, 0])
    target = torch.full((2, 4), 0.05)
    target[:, 0] = 0.85
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    losses = head.loss(logits, labels)
    torch.testing.assert_close(losses['loss'], expected)
    assert losses['accuracy_top-1'] == 50


def test_head_pools_the_last_map_over_all_places():
    head = LinearClsHead(5, 3)
    feat = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(head((torch.zeros(1), feat)), head.fc(feat.flatten(2).mean(2)))


@pytest.mark.parametrize(('crop_topk', 'expected'), [(None, [0.5, 0.5]), (1, [0.9, 0.8]),
                                                     (2, [0.6, 0.65])])
def test_crops_of_an_image_are_pooled(classifier, crop_topk, expected):
    classifier.crop_topk = crop_topk
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.5], [0.6, 0.6]])[:3]
    pooled = classifier.pooled(scores)
    by_hand = scores.sort(0, descending=True).values[:crop_topk or 3].mean(0)
    torch.testing.assert_close(pooled, by_hand)
    if crop_topk:
        torch.testing.assert_close(pooled, torch.tensor(expected))


def test_crops_are_counted_back_to_their_images(classifier):
    crops = torch.randint(0, 255, (2, 4, 3, 32, 32), dtype=torch.uint8)
    samples = labelled(0, 1, num_crops=4)
    data = classifier.data_preprocessor(dict(inputs=list(crops), data_samples=samples))
    assert data['inputs'].shape == (8, 3, 32, 32)
    with torch.no_grad():
        predicted = classifier(**data, mode='predict')
        alone = classifier(crops[1].float(), mode='tensor').softmax(1).mean(0)
    torch.testing.assert_close(predicted[1].pred_score, alone)
    stacked = classifier.data_preprocessor(dict(inputs=crops, data_samples=samples))
    assert torch.equal(stacked['inputs'], data['inputs'])
    classifier.crop_topk = 5
    with torch.no_grad(), pytest.raises(VisionError, match='VIS-CONFIG-1225'):
        classifier(**data, mode='predict')


def test_preprocessor_swaps_then_normalises():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    out = ClsDataPreprocessor([30, 20, 10], [1, 2, 5], to_rgb=True)(dict(inputs=[image]))
    assert out['inputs'].abs().max() == 0 and out['data_samples'] is None
    plain = ClsDataPreprocessor()(dict(inputs=[image]))['inputs']
    assert plain[0, :, 0, 0].tolist() == [10, 20, 30]


def test_sizes_of_a_batch_must_agree():
    with pytest.raises(VisionError, match='VIS-CONFIG-1221'):
        ClsDataPreprocessor()(dict(inputs=[torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]))


@pytest.mark.parametrize(('options', 'code'), [
    (dict(dropout=1.0), 1222), (dict(label_smoothing=-0.1), 1222), (dict(topk=(1, 5)), 1223)])
def test_head_refuses(options, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        LinearClsHead(4, 8, **options)


def test_head_and_backbone_must_fit():
    with pytest.raises(VisionError, match='(?s)VIS-CONFIG-1229.*1152.*2048.*in_channels=1152'):
        ImageClassifier(dict(type='PolyNet', arch=[['1-way']] * 3, out_indices=(3,)),
                        dict(type='LinearClsHead', num_classes=3, in_channels=2048))


def test_data_of_other_classes_is_refused_before_the_first_step(classifier):
    classifier.check_dataset(dict(classes=('a', 'b', 'c')), 'train_dataloader.dataset')
    classifier.check_dataset(dict(), 'no classes, nothing to compare')
    with pytest.raises(VisionError, match='(?s)VIS-CONFIG-1230: the data has 2 .* the head 3'):
        classifier.check_dataset(dict(classes=('a', 'c')), 'val_dataloader.dataset')
    with pytest.raises(VisionError, match="VIS-DATA-1219: class 'd' stands where .* 'b'"):
        classifier.check_dataset(dict(classes=('a', 'd', 'e')), 'val_dataloader.dataset')


def test_unknown_test_option_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1224'):
        ImageClassifier(dict(type='PolyNet'), dict(type='LinearClsHead'), test_cfg=dict(k=1))


def judged(scores, label, **options):
    metric = TopKAccuracy(**options)
    for row, own in zip(scores, label, strict=True):
        metric.process({}, [dict(pred_score=torch.as_tensor(row), gt_label=torch.tensor([own]))])
    return metric.evaluate(len(scores))


def test_topk_by_hand():
    scores = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]]
    assert judged(scores, [0, 2, 0, 0], topk=(1, 2)) == {'accuracy/top1': 50.0,
                                                         'accuracy/top2': 75.0}


def test_topk_equals_a_full_sort():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(60, 11)), generator.integers(0, 11, 60)
    order = np.argsort(-scores, 1)
    expected = 100 * np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)])
    assert judged(scores, labels, topk=5)['accuracy/top5'] == pytest.approx(expected)


def test_constant_and_broken_scores_hit_nothing():
    assert judged([[0.25] * 4, [float('nan')] * 4], [0, 0], topk=(1, 3)) == {
        'accuracy/top1': 0.0, 'accuracy/top3': 0.0}


def test_metric_refuses():
    with pytest.raises(VisionError, match='VIS-CONFIG-1226'):
        TopKAccuracy(topk=(0, 1))
    with pytest.raises(VisionError, match='VIS-CONFIG-1209'):
        judged([[0.5, 0.5]], [0], topk=(1, 5))
    metric = TopKAccuracy(topk=(1, 5))
    with pytest.raises(VisionError, match='(?s)VIS-CONFIG-1209.*val_evaluator'):
        metric.dataset_meta = dict(classes=('a', 'b'))  # as the loop does, before any step
    metric.dataset_meta = dict(classes=tuple('abcde'))
    assert metric.dataset_meta['classes'][4] == 'e'
