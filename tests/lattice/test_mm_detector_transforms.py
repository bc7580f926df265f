"""RandomObjectCrop: a case worked by hand, laws over random frames, refusals."""

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes

from vision.lattice.mm.detector_transforms import RandomObjectCrop


def frame(boxes, height=240, width=320):
    """A frame whose pixels hold their own place, so that a crop tells where it was taken."""
    rows, columns = np.mgrid[:height, :width]
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return dict(img=np.stack([rows, columns], axis=-1), img_shape=(height, width),
                gt_bboxes=HorizontalBoxes(torch.from_numpy(boxes.copy())),
                gt_bboxes_labels=np.arange(len(boxes)),
                gt_ignore_flags=np.zeros(len(boxes), bool))


def crop(boxes, size=(100, 100), seed=0, **shape):
    np.random.seed(seed)
    return RandomObjectCrop(size).transform(frame(boxes, **shape))


def test_what_the_window_cuts_is_kept_ignored_or_gone(monkeypatch):
    """Window x 60..160, y 40..140 around box 0: half of box 1 is inside, a fifth of box 2."""
    monkeypatch.setattr(np.random, 'randint', lambda low, high=None: low if high else 0)
    out = crop([[60, 40, 160, 140], [150, 50, 170, 60], [158, 50, 168, 60], [200, 200, 220, 220]])
    assert tuple(out['img'][0, 0]) == (40, 60) and out['img_shape'] == (100, 100)
    assert out['gt_bboxes'].numpy().tolist() == [[0, 0, 100, 100], [90, 10, 100, 20],
                                                 [98, 10, 100, 20]]
    assert out['gt_bboxes_labels'].tolist() == [0, 1, 2]
    assert out['gt_ignore_flags'].tolist() == [False, False, True]


@pytest.mark.parametrize('seed', range(20))
def test_a_box_that_fits_is_whole_and_keeps_its_place(seed):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, [230, 150]), rng.uniform(16, 90, 2)
    box = np.concatenate([corner, corner + side]).astype(np.float32)
    out = crop([box], (128, 128), seed)
    top, left = out['img'][0, 0]
    moved = out['gt_bboxes'].numpy()[0] + np.array([left, top, left, top])
    np.testing.assert_allclose(moved, box, atol=1e-4)
    assert out['img'].shape[:2] == (128, 128) and not out['gt_ignore_flags'].any()


def test_windows_differ_and_follow_the_global_random_state():
    box = [[100, 100, 140, 140]]
    starts = [tuple(crop(box, seed=seed)['img'][0, 0]) for seed in range(12)]
    assert len(set(starts)) > 6
    assert starts == [tuple(crop(box, seed=seed)['img'][0, 0]) for seed in range(12)]


def test_a_small_image_an_empty_frame_and_a_box_beyond_the_window():
    assert crop([[5, 5, 30, 30]], height=60, width=80)['img_shape'] == (60, 80)
    assert crop([])['img_shape'] == (100, 100) and len(crop([])['gt_bboxes']) == 0
    wide = crop([[20, 20, 300, 60]])
    assert wide['gt_bboxes'].numpy()[0, [0, 2]].tolist() == [0, 100]
    assert wide['gt_ignore_flags'].tolist() == [True]  # 100 of 280 pixels are inside


@pytest.mark.parametrize('options', [dict(crop_size=(0, 8)), dict(crop_size=(8, 8), min_visible=0),
                                     dict(crop_size=(8, 8), min_visible=1.1)])
def test_sizes_and_shares_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match='crop_size='):
        RandomObjectCrop(**options)
