"""What a dropped value is made from may go before it comes back: it is held, or made again too."""

import pytest
import torch

from vision.memory.nn.manager import MemoryBudget


def step(x, weights, branch):
    """``branch`` frees what the first product was made from at different times."""
    root = torch.ones_like(x)  # a factory's: never made again
    plain = root + x  # no one saves it
    del root
    first = plain * 2 + plain
    kept = first * weights[0] if branch != 'unsaved' else (plain * 2) * weights[0]
    if branch == 'saved':  # also saved, by a branch that backward reads before the other
        late = plain * weights[1]
    del first
    other = torch.cat([kept, kept * weights[2]])
    if branch != 'saved':
        late = other * 0.5
    del plain
    for _ in range(3):
        other = torch.tanh(other)
    return kept.square().sum() + other.sum() + late.sum()


@pytest.mark.parametrize('branch', ['unsaved', 'saved', 'plain'])
@pytest.mark.parametrize('actions', ['recompute', 'both'])
@pytest.mark.parametrize('mode', ['reactive', 'planned'])
def test_ancestors_that_go_first(branch, actions, mode):
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    weights = [torch.randn(64, 256, requires_grad=True) for _ in range(3)]

    def gradients():
        step(x, weights, branch).backward()
        found = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            weight.grad = None
        return found

    expected = gradients()
    manager = MemoryBudget(ratio=0.6, min_bytes=1, actions=actions, mode=mode)
    num_dropped = 0
    for _ in range(4):
        with manager:
            found = gradients()
        num_dropped += sum(manager.report().drops.values())
        assert all(map(torch.equal, found, expected))
    assert num_dropped > 0
    manager.close()
