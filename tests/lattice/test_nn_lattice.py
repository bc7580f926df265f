"""F_T, F_S and their loss: round trips, invariances, and that they learn."""

import pytest
import torch

from vision.lattice.nn.losses import MovementSample, lattice_losses, paired_iou
from vision.lattice.nn.propagation import (
    PropagationNet,
    apply_movement,
    motion_crops,
    movement_between,
)
from vision.lattice.nn.refinement import MAX_STEP, RefinementNet, apply_edges, edges_between


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def boxes_of(count: int) -> torch.Tensor:
    start = torch.rand(count, 2) * 100
    # Sides differ by less than exp(2), where apply_movement is clamped.
    return torch.cat([start, start + 8 + torch.rand(count, 2) * 40], dim=1)


def test_movement_round_trip():
    source, target = boxes_of(20), boxes_of(20)
    moved = apply_movement(source, movement_between(source, target))
    torch.testing.assert_close(moved, target, rtol=1e-4, atol=1e-3)


def test_movement_by_hand():
    source = torch.tensor([[0.0, 0, 40, 10]])  # sqrt(w h) = 20
    target = source + torch.tensor([10.0, -5, 10, -5])
    assert movement_between(source, target).tolist() == [pytest.approx([0.5, -0.25, 0, 0])]


def test_edges_round_trip_and_bound():
    boxes = boxes_of(20)
    near = boxes + torch.rand(20, 4) * 2
    torch.testing.assert_close(apply_edges(boxes, edges_between(boxes, near)), near,
                               rtol=1e-4, atol=1e-3)
    box = torch.tensor([[0.0, 0, 10, 10]])
    wild = apply_edges(box, torch.tensor([[-1e6, 0, 1e6, 0]]))
    assert wild.tolist() == [pytest.approx([-10 * MAX_STEP, 0, 10 + 10 * MAX_STEP, 10])]


def test_iou_by_hand():
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    assert paired_iou(a, b).item() == pytest.approx(1 / 3)


def test_exposure_and_contrast_do_not_reach_the_network():
    frames, history, boxes = torch.rand(2, 60, 80), torch.rand(30, 40), boxes_of(4) / 3
    before = motion_crops(frames, history, boxes, window=3.0)
    after = motion_crops(frames * 0.98 + 0.01, history, boxes, window=3.0)
    torch.testing.assert_close(before, after, rtol=0.01, atol=0.01)


@pytest.mark.parametrize('inputs', [('mhi', 'grey'), ('mhi',)])
def test_a_box_does_not_depend_on_its_neighbours(inputs):
    net = PropagationNet(inputs).eval()
    crops = torch.rand(5, 5, 64, 64)
    together = net(crops).deltas
    alone = torch.cat([net(crops[i:i + 1]).deltas for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_networks_are_small():
    count = sum(p.numel() for net in (PropagationNet(), RefinementNet())
                for p in net.parameters())
    assert count < 2_000_000


def test_unknown_inputs_and_sizes_are_refused():
    with pytest.raises(ValueError, match='inputs'):
        PropagationNet(('flow',))
    with pytest.raises(ValueError, match='multiple of 8'):
        RefinementNet(samples=60)


def moving_square(shift: int) -> MovementSample:
    """A textured square that moves over a textured ground."""
    ground, patch = torch.rand(1, 96, 96) * 0.4, torch.rand(1, 20, 20) * 0.5 + 0.5
    frames = ground.repeat(2, 1, 1)
    frames[0, 30:50, 30:50] = patch
    frames[1, 30:50, 30 + shift:50 + shift] = patch
    box = torch.tensor([[30.0, 30, 50, 50]])
    target = box + torch.tensor([[1.0, 0, 1, 0]]) * shift
    history = ((frames[1] - frames[0]).abs() > 0.1).float()[::2, ::2]
    image = (frames[1].expand(3, -1, -1) * 255).byte()
    ground_box = torch.tensor([[70.0, 70, 90, 90]])
    return MovementSample(frames, history, image, box, box, target, torch.tensor([True]),
                          torch.tensor([1]), target + 2, target, torch.tensor([1]), ground_box)


def test_learns_where_a_square_went():
    """From scratch, 40 steps: better than standing still on shifts that were never shown."""
    propagation, refinement = PropagationNet(), RefinementNet()
    parameters = [*propagation.parameters(), *refinement.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(40):
        samples = [moving_square((5 * step + 3 * i) % 21 - 10) for i in range(6)]
        losses = lattice_losses(propagation, refinement, samples)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if name.startswith('loss')).backward()
        optimizer.step()
    unseen = [moving_square(shift) for shift in (-11, 11, -12, 12)]
    with torch.no_grad():
        found = lattice_losses(propagation, refinement, unseen)['iou_temporal'].item()
    still = sum(paired_iou(s.boxes, s.target).item() for s in unseen) / len(unseen)
    assert found > still + 0.15, (found, still)


def test_vanished_objects_teach_no_movement():
    propagation, refinement = PropagationNet(), RefinementNet()
    sample = moving_square(4)
    gone = MovementSample(**(vars(sample) | dict(is_visible=torch.tensor([False]))))
    losses = lattice_losses(propagation, refinement, [gone])
    assert losses['loss_temporal'] == 0 and losses['loss_flow'] == 0
    assert losses['loss_visibility'] > 0


def test_refinement_learns_what_it_looks_at():
    """Class 0 never comes, 1 is the bright square, 2 the ground: told apart after 60 steps."""
    torch.manual_seed(0)
    propagation, refinement = PropagationNet(), RefinementNet(num_classes=2)
    optimizer = torch.optim.AdamW(refinement.parameters(), lr=1e-3)
    first = None
    for step in range(60):
        losses = lattice_losses(propagation, refinement, [moving_square(step % 7)])
        first = first or losses['loss_class'].item()
        optimizer.zero_grad()
        losses['loss_class'].backward()
        optimizer.step()
    assert losses['loss_class'].item() < first / 3
    assert losses['accuracy_class'] == 1


def test_without_classes_nothing_is_classified():
    refinement = RefinementNet()
    losses = lattice_losses(PropagationNet(), refinement, [moving_square(3)])
    assert 'loss_class' not in losses
    assert refinement(torch.zeros(2, 4, 64, 64)).classes is None
