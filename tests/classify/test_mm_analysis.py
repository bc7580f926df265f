"""What a classifier takes for what, counted by hand; its augmented tests."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from vision.classify.mm.analysis import write_analysis
from vision.classify.mm.augmented_test import with_tta
from vision.common.core.errors import VisionError


def test_matrix_and_worst_images(tmp_path):
    rows = [(0, [0.9, 0.1, 0.0]), (0, [0.2, 0.7, 0.1]), (1, [0.6, 0.4, 0.0]), (2, [0, 0, 1.0])]
    samples = []
    for number, (label, scores) in enumerate(rows):
        path = tmp_path / f'{number}.png'
        cv2.imwrite(str(path), np.full((20, 30, 3), 60 * number, np.uint8))
        samples.append(dict(gt_label=np.array([label]), pred_score=np.array(scores),
                            img_path=str(path)))
    report = write_analysis(samples, ('a', 'b', 'c'), tmp_path / 'out', topk=2)
    assert report['matrix'] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert report['totals'] == dict(images=4, right=2, accuracy=0.5)
    assert [(row['image'][-5], row['true'], row['found'], row['probability_of_true'])
            for row in report['worst']] == [('1', 'a', 'b', 0.2), ('2', 'b', 'a', 0.4)]
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'analysis.json', 'confusion_matrix.png', 'worst.jpg'}
    with pytest.raises(VisionError, match='VIS-DATA-1798'):
        write_analysis([dict(pred_score=np.ones(3))], ('a', 'b', 'c'), tmp_path / 'out')


READ, CROP = dict(type='ReadImage'), dict(type='CenterCrop', crop_size=8)
PACK = dict(type='PackInputs')


def config(*steps) -> Config:
    return Config(dict(test_dataloader=dict(dataset=dict(pipeline=list(steps)))))


def inputs(steps: list, image: np.ndarray) -> np.ndarray:
    from vision.registry import TRANSFORMS
    results = dict(img=image, img_shape=image.shape[:2])
    for step in steps[1:]:
        results = TRANSFORMS.build(dict(step)).transform(results)
    assert results['data_samples'].num_crops == len(results['inputs'])
    return results['inputs'].numpy()


def test_views_are_the_image_and_its_mirror_image():
    one = config(READ, CROP, PACK)
    with_tta(one, 'flip')
    image = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
    views = inputs(one.test_dataloader.dataset.pipeline, image)
    assert views.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(views[0], image[2:10, 3:11].transpose(2, 0, 1))
    np.testing.assert_array_equal(views[1], views[0][:, :, ::-1])


def test_ten_crops_take_the_place_of_one():
    one = config(READ, CROP, PACK)
    with_tta(one, '10crop')
    image = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
    views = inputs(one.test_dataloader.dataset.pipeline, image)
    assert views.shape == (10, 3, 8, 8)
    np.testing.assert_array_equal(views[1], image[:8, :8].transpose(2, 0, 1))
    np.testing.assert_array_equal(views[5:], views[:5, :, :, ::-1])


def test_the_score_is_the_mean_over_the_views():
    from mmengine.structures import BaseDataElement

    from vision.classify.mm.classifier import ImageClassifier
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    sample = BaseDataElement(metainfo=dict(num_crops=2))
    model = ImageClassifier.__new__(ImageClassifier)
    torch.nn.Module.__init__(model)
    model.crop_topk = None
    found = model.predictions(logits, [sample])[0].pred_score
    torch.testing.assert_close(found, logits.softmax(1).mean(0))


@pytest.mark.parametrize(('views', 'steps'), [
    ('10crop', (READ, PACK)), ('flip', (READ, CROP)),
    ('flip', (READ, dict(type='MultiCrop', crop_size=8), PACK)),
    ('10crop', (READ, dict(type='CenterCrop', crop_size=(8, 9)), PACK))])
def test_pipelines_without_a_place_for_it_are_refused(views, steps):
    with pytest.raises(VisionError, match='VIS-CONFIG-1785'):
        with_tta(config(*steps), views)
