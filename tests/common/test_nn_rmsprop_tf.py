import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.rmsprop_tf import RMSpropTF


def by_hand(weight, gradients, *, lr, alpha, momentum, eps, weight_decay, square):
    velocity = 0.0
    for gradient in gradients:
        gradient = gradient + weight_decay * weight
        square = alpha * square + (1 - alpha) * gradient ** 2
        velocity = momentum * velocity + lr * gradient / (square + eps) ** 0.5
        weight = weight - velocity
    return weight


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('square', [0.0, 1.0])
@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_equals_a_loop_by_hand(momentum, square, weight_decay):
    start, gradients = 0.7, [0.3, -1.2, 0.05, 2.0]
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = RMSpropTF([parameter], lr=0.45, alpha=0.9, momentum=momentum, eps=1.0,
                          weight_decay=weight_decay, initial_square=square)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    expected = by_hand(start, gradients, lr=0.45, alpha=0.9, momentum=momentum, eps=1.0,
                       weight_decay=weight_decay, square=square)
    assert float(parameter.detach()) == pytest.approx(expected, rel=1e-12)


def test_epsilon_is_inside_the_root_unlike_torchs():
    ours, theirs = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    for parameter in (ours, theirs):
        parameter.grad = torch.ones(1)
    RMSpropTF([ours], lr=1.0, alpha=0.0, eps=3.0, initial_square=0.0).step()
    torch.optim.RMSprop([theirs], lr=1.0, alpha=0.0, eps=3.0).step()
    assert float(ours.detach()) == -0.5 and float(theirs.detach()) == -0.25


def test_state_survives_saving():
    def steps(optimizer, parameter, gradients):
        for gradient in gradients:
            parameter.grad = torch.full((2,), gradient)
            optimizer.step()
    whole, parts = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = RMSpropTF([whole], momentum=0.9)
    steps(optimizer, whole, [1.0, 2.0, 3.0])
    first = RMSpropTF([parts], momentum=0.9)
    steps(first, parts, [1.0, 2.0])
    second = RMSpropTF([parts], momentum=0.9)
    second.load_state_dict(first.state_dict())
    steps(second, parts, [3.0])
    assert torch.equal(whole, parts)


def test_registered_and_refuses():
    from vision.registry import OPTIMIZERS
    assert OPTIMIZERS.get('RMSpropTF') is RMSpropTF
    with pytest.raises(VisionError, match='VIS-CONFIG-1231'):
        RMSpropTF([torch.nn.Parameter(torch.ones(1))], alpha=1.0)
