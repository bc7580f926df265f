"""A character brought to one place and size: what must not change it does not."""

import cv2
import numpy as np
import pytest

from vision.classify.runtime.ink import fit_ink


def stroke(side=64, colour=255, paper=0, place=(10, 14)):
    image = np.full((side, side), paper, np.uint8)
    x, y = place
    cv2.rectangle(image, (x, y), (x + 30, y + 9), colour, -1)
    cv2.rectangle(image, (x, y), (x + 9, y + 40), colour, -1)
    return image


def test_the_longer_side_fills_the_box_in_the_middle():
    found = fit_ink(stroke(), 32, 26)
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert found.shape == (32, 32) and found.max() == 255
    assert (rows[0], rows[-1]) == (3, 28) and len(columns) == 20  # 31 of 41 px
    assert columns[0] - (31 - columns[-1]) in (-1, 0, 1)


def test_place_paper_and_channels_make_no_difference():
    expected = fit_ink(stroke())
    assert np.array_equal(fit_ink(stroke(place=(20, 5))), expected)
    assert np.array_equal(fit_ink(255 - stroke()), expected)
    assert np.array_equal(fit_ink(stroke()[:, :, None]), expected)
    assert np.array_equal(fit_ink(cv2.cvtColor(stroke(), cv2.COLOR_GRAY2BGR)), expected)


def test_a_larger_picture_of_it_is_nearly_the_same():
    large = cv2.resize(stroke(), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    assert np.abs(fit_ink(large).astype(int) - fit_ink(stroke())).mean() < 8


@pytest.mark.parametrize('image', [np.zeros((9, 7), np.uint8), np.full((1, 1, 3), 200, np.uint8),
                                   np.full((40, 40, 3), 250, np.uint8)])
def test_a_blank_picture_gives_nothing(image):
    assert not fit_ink(image).any()
