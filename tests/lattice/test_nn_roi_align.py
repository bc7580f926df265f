"""Windows: equal to mmcv's operator, exact on ramps, no pixel skipped on large boxes."""

import pytest
import torch

from vision.lattice.nn.roi_align import (
    box_sizes,
    enlarge,
    image_pyramid,
    roi_align,
    sample_pyramid,
    sample_windows,
    square_windows,
)


def random_rois(count: int, *, low: float, high: float) -> torch.Tensor:
    corners = torch.rand(count, 2, 2) * (high - low) + low
    corners = corners.sort(dim=1).values
    index = torch.arange(count).remainder(2).float()[:, None]
    return torch.cat([index, corners.reshape(count, 4)], dim=1)


@pytest.mark.parametrize('sampling_ratio', [1, 2, 3])
@pytest.mark.parametrize('spatial_scale', [1.0, 0.25])
@pytest.mark.parametrize(('low', 'high'), [(2, 28), (-20, 60)])  # inside; far over the edges
def test_equals_mmcv(sampling_ratio, spatial_scale, low, high):
    ops = pytest.importorskip('mmcv.ops')
    torch.manual_seed(0)
    features = torch.randn(2, 5, 24, 30)
    rois = random_rois(24, low=low / spatial_scale, high=high / spatial_scale)
    ours = roi_align(features, rois, 7, spatial_scale=spatial_scale,
                     sampling_ratio=sampling_ratio)
    theirs = ops.roi_align(features, rois, (7, 7), spatial_scale, sampling_ratio, 'avg', True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_window_of_whole_pixels_is_a_slice():
    image = torch.rand(3, 20, 30)
    crops, inside = sample_windows(image, torch.tensor([[4.0, 6.0, 12.0, 14.0]]), 8)
    torch.testing.assert_close(crops[0], image[:, 6:14, 4:12])
    assert inside.min() == 1


def test_outside_is_zero_and_marked():
    crops, inside = sample_windows(torch.ones(1, 8, 8), torch.tensor([[-8.0, 0.0, 8.0, 8.0]]), 16)
    assert torch.equal(inside[0, 0, 4], torch.tensor([0.0] * 8 + [1.0] * 8))
    assert crops[0, 0, 4, :7].abs().max() == 0 and crops[0, 0, 4, 8:].min() == 1


def test_pyramid_keeps_a_ramp_at_every_size():
    x = torch.arange(128.0).expand(128, -1)[None] + 0.5  # value = x coordinate of the centre
    windows = torch.tensor([[32.0, 32, 48, 48], [16.0, 16, 112, 112], [10.0, 40, 40, 70]])
    crops, _ = sample_pyramid(image_pyramid(x), windows, 8)
    steps = (torch.arange(8) + 0.5) / 8
    wanted = windows[:, 0:1] + steps * (windows[:, 2:3] - windows[:, 0:1])
    torch.testing.assert_close(crops[:, 0], wanted[:, None].expand(-1, 8, -1))


def test_pyramid_averages_a_fine_checkerboard_away():
    board = (torch.arange(128)[:, None] + torch.arange(128)).remainder(2).float()[None]
    crops, _ = sample_pyramid(image_pyramid(board), torch.tensor([[0.0, 0, 128, 128]]), 16)
    torch.testing.assert_close(crops, torch.full_like(crops, 0.5))


def test_enlarged_and_square_windows_keep_the_centre():
    boxes = torch.tensor([[10.0, 20, 30, 100]])
    assert enlarge(boxes, 2).tolist() == [[0, -20, 40, 140]]
    assert box_sizes(boxes).item() == pytest.approx(40)
    assert square_windows(boxes, 2).tolist() == [pytest.approx([-20, 20, 60, 100])]
