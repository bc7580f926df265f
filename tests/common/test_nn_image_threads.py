"""Images side by side: the same results, faults and settings as one after the other."""

import copy
import threading

import pytest
import torch
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.nn.image_threads import ImageThreads


class Levels(nn.Module):
    """Two maps; notes in which threads it ran and how many of torch's threads it had there."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.seen = set()

    def forward(self, x):
        self.seen.add((threading.current_thread().name.split('_')[0], torch.get_num_threads()))
        x = self.norm(self.conv(x))
        return x, x.relu().mean((2, 3))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('num_images', [1, 2, 5])
def test_same_results_in_threads_of_one_core(two_threads, num_images):
    model = Levels().eval()
    images = torch.randn(num_images, 3, 9, 8)
    expected = model(images)
    model.seen.clear()
    together = ImageThreads(model)
    for _ in range(2):
        with torch.inference_mode():
            actual = together(images)
        assert isinstance(actual, tuple) and actual[0].is_inference()
        torch.testing.assert_close(actual, expected)
    wanted = {('MainThread', 2)} if num_images == 1 else {('images', 1)}
    assert model.seen == wanted and torch.get_num_threads() == 2
    torch.testing.assert_close(copy.deepcopy(together)(images), expected)


def test_a_single_tensor_and_no_gradient(two_threads):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    images = torch.randn(3, 3, 4, 4)
    result = ImageThreads(model)(images)
    torch.testing.assert_close(result, model(images))
    assert not result.requires_grad


def test_a_fault_in_a_thread_arrives(two_threads):
    with pytest.raises(RuntimeError, match='channels'):
        ImageThreads(Levels().eval())(torch.randn(2, 5, 9, 9))


def test_training_mode_is_refused():
    with pytest.raises(VisionError, match='VIS-RUN-1244.*training'):
        ImageThreads(Levels()).train()(torch.randn(2, 3, 9, 9))
