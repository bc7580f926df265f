"""Class names against annotation files, heads against data sets."""

import json

import cv2
import numpy as np
import pytest
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm.classes import build_dataset, require_head_classes

NAMES = ('disc', 'ring', 'star')


@pytest.fixture
def coco(tmp_path):
    """Config of a data set of mmdet over three pictures."""
    images, rows = [], []
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.zeros((40, 60, 3), np.uint8))
        images.append(dict(id=number, file_name=f'{number}.png', width=60, height=40))
        rows.append(dict(id=number + 1, image_id=number, category_id=number + 5, area=100,
                         bbox=[5, 5, 10, 10], iscrowd=0))
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=images, annotations=rows,
        categories=[dict(id=i + 5, name=name) for i, name in enumerate(NAMES)])))

    def config(classes, **options):
        return dict(type='mmdet.CocoDataset', _scope_='mmdet', data_root=str(tmp_path),
                    ann_file='a.json', metainfo=dict(classes=classes), pipeline=[],
                    data_prefix=dict(img=''),
                    filter_cfg=dict(filter_empty_gt=True)) | options
    return config


def test_names_of_the_file_pass_in_any_order_and_number(coco):
    dataset = build_dataset(coco(('star', 'disc')))
    assert len(dataset) == 2


@pytest.mark.parametrize('classes', [('disk', 'ring', 'star'), ('disk', 'rings'), ('disk',)])
def test_a_name_that_the_file_does_not_have_is_refused_also_when_others_fit(coco, classes):
    """Without this the first trains, with 'ring' as label 0 and 'star' as label 1."""
    with pytest.raises(VisionError, match="VIS-DATA-1808[^$]*'disk' -> disc[^$]*disc, ring, star"):
        build_dataset(coco(classes))


def test_names_inside_of_wrappers_are_looked_at(coco):
    with pytest.raises(VisionError, match='VIS-DATA-1808'):
        build_dataset(dict(type='RepeatDataset', times=2, dataset=coco(('disk', 'ring'))))


def test_a_set_without_a_sample_is_one_error(coco):
    with pytest.raises(VisionError, match='VIS-DATA-1809[^$]*filter_cfg'):
        build_dataset(coco(NAMES, filter_cfg=dict(filter_empty_gt=True, min_size=1000)))


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


class Detector(nn.Module):
    def __init__(self, num_classes, num_objects=1):
        super().__init__()
        self.rpn_head, self.roi_head = Head(num_objects), nn.Module()
        self.roi_head.bbox_head = Head(num_classes)


def test_a_head_of_as_many_classes_passes():
    require_head_classes(Detector(3), dict(classes=NAMES), 'train_dataloader.dataset')
    require_head_classes(Detector(3), dict(), 'train_dataloader.dataset')
    require_head_classes(nn.Linear(1, 1), dict(classes=NAMES), 'train_dataloader.dataset')


@pytest.mark.parametrize('number', [2, 4, 80])
def test_a_head_of_more_or_fewer_classes_is_refused(number):
    with pytest.raises(VisionError, match='VIS-CONFIG-1807[^$]*set model.roi_head.bbox_head.'
                                          'num_classes=3'):
        require_head_classes(Detector(number), dict(classes=NAMES), 'train_dataloader.dataset')
