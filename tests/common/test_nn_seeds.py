"""What is seeded for a step and for a sample, and what that costs."""

import traceback

import pytest
import torch

from vision.common.nn.seeds import seed_everything


@pytest.mark.parametrize('is_in_use', [False, True])
def test_the_gpus_in_use_are_seeded_and_no_stack_is_formatted(monkeypatch, is_in_use):
    seeds = []
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: is_in_use)
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    monkeypatch.setattr(traceback, 'format_stack', lambda *args: pytest.fail('a stack'))
    drawn = []
    for _ in range(2):
        seed_everything(3, 1, 4)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert len(seeds) == 2 * is_in_use and len(set(seeds)) == is_in_use
