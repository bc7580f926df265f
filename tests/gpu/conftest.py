"""What tests that need a GPU share.

They are tried without one by ``VISION_TEST_DEVICE=cpu pytest tests/gpu``: all but those of streams
and of the device's memory run then.
"""

import os

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read once, when CUDA starts

import pytest
import torch


@pytest.fixture
def device():
    """The device that is judged."""
    name = os.environ.get('VISION_TEST_DEVICE', 'cuda')
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device (VISION_TEST_DEVICE=cpu tries the tests without one)')
    return torch.device(name)
