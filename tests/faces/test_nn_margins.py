"""Margins: the formulas by hand, exact gradients, the rules at the edges."""

import math

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.faces.nn.head.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    Softmax,
    build_margin,
)

EVERY = [Softmax(8), ArcFace(8, 0.5), CosFace(8, 0.4), CombinedMargin(8, 1.2, 0.3, 0.1),
         AdaFace(8, 0.4), CurricularFace(8, 0.5), Softmax(8, filter_above=0.4),
         ArcFace(8, 0.5, filter_above=0.4), CurricularFace(8, filter_above=0.4),
         *(ArcFace(8, 0.5, beyond=rule) for rule in ('shift', 'easy', 'raw'))]


def ids(margin):
    return f'{type(margin).__name__}-{margin.filter_above}-{getattr(margin, "beyond", "")}'


def batch(dtype=torch.float64, num=6, columns=9):
    generator = torch.Generator().manual_seed(3)
    cosine = torch.rand(num, columns, generator=generator, dtype=dtype) * 1.9 - 0.95
    target = torch.tensor([0, 3, 8, -1, 2, 2])
    norms = torch.rand(num, 1, generator=generator, dtype=dtype) * 40
    return cosine, target, norms


@pytest.mark.parametrize('margin', EVERY, ids=ids)
def test_gradients_are_exact(margin):
    cosine, target, norms = batch()
    margin = margin.double().eval()
    assert torch.autograd.gradcheck(lambda c: margin(c, target, norms), cosine.requires_grad_())


@pytest.mark.parametrize('margin', EVERY, ids=ids)
def test_slope_in_place_equals_autograd(margin):
    cosine, _, _ = batch()
    margin = margin.double().eval()
    target_cosine = cosine[:, :1].clone()
    variable = cosine.clone().requires_grad_()
    plain = margin.negatives(variable, target_cosine)
    expected, = torch.autograd.grad(plain.sum(), variable)
    actual = cosine.clone()
    slope = margin.negatives_(actual, target_cosine)
    torch.testing.assert_close(actual, plain.detach())
    torch.testing.assert_close(torch.ones_like(cosine) if slope is None else slope.double(),
                               expected)


def test_formulas_by_hand():
    theta = torch.tensor([0.7, 1.1], dtype=torch.float64)
    cosine = torch.stack([theta.cos(), torch.tensor([0.3, 0.2], dtype=torch.float64)], 1)
    target = torch.tensor([0, 0])
    for margin, wanted in ((Softmax(2), theta.cos()), (ArcFace(2, 0.5), (theta + 0.5).cos()),
                           (CosFace(2, 0.4), theta.cos() - 0.4),
                           (CombinedMargin(2, 1.5, 0.2, 0.1), (1.5 * theta + 0.2).cos() - 0.1)):
        logits = margin(cosine, target)
        torch.testing.assert_close(logits[:, 0], 2 * wanted)
        torch.testing.assert_close(logits[:, 1], 2 * cosine[:, 1])


def test_adaface_by_hand():
    margin = AdaFace(1.0, 0.4, h=0.5, momentum=0.0)
    norms = torch.tensor([[10.0], [20.0], [30.0]])
    theta = torch.tensor([0.9, 1.0, 1.2])
    logits = margin(theta.cos()[:, None], torch.zeros(3, dtype=torch.int64), norms)
    assert margin.norm_mean == 20 and margin.norm_std == 10
    quality = torch.tensor([-0.5, 0.0, 0.5]) * 10 / 10.001
    wanted = (theta - 0.4 * quality).cos() - 0.4 * (quality + 1)
    torch.testing.assert_close(logits[:, 0], wanted)


def test_adaface_statistics_move_only_while_training():
    margin = AdaFace().eval()
    margin(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(3, 1))
    assert margin.norm_mean == 20
    margin.train()(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.ones(1, 1))
    assert margin.norm_mean == 20 and margin.norm_std.isfinite()  # one sample has no deviation


def test_curricularface_by_hand():
    margin = CurricularFace(1.0, 0.5, momentum=0.5)
    cosine = torch.tensor([[0.8, 0.6, -0.1]])
    logits = margin(cosine, torch.tensor([0]))
    assert margin.t == pytest.approx(0.4)
    threshold = math.cos(math.acos(0.8) + 0.5)  # 0.414: 0.6 is hard, -0.1 is not
    torch.testing.assert_close(logits, torch.tensor([[threshold, 0.6 * (0.4 + 0.6), -0.1]]))


def test_the_filter_takes_negatives_only():
    cosine = torch.tensor([[0.9, 0.5, 0.3]], requires_grad=True)
    logits = Softmax(10, filter_above=0.4)(cosine, torch.tensor([0]))
    torch.testing.assert_close(logits, torch.tensor([[9.0, 0.0, 3.0]]))
    logits.sum().backward()
    assert cosine.grad.tolist() == [[10, 0, 10]]


@pytest.mark.parametrize('m1, m2', [(1.0, 0.5), (1.35, 0.2), (2.0, 0.0)])
def test_continuous_rule_is_monotone_and_has_no_jump(m1, m2):
    cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    target = CombinedMargin(1.0, m1, m2, 0.0).target(cosine)
    steps = target.diff()
    assert (steps > 0).all()
    assert steps[:-200].max() < 1e-3  # the cosine moves by 1e-4; only near 1 the slope is large


def test_other_rules_at_a_wide_angle():
    cosine = torch.tensor([math.cos(3.0)], dtype=torch.float64)
    shift = ArcFace(1, 0.5, beyond='shift').target(cosine)
    assert shift == pytest.approx(math.cos(3.0) - 0.5 * math.sin(0.5))
    assert ArcFace(1, 0.5, beyond='easy').target(cosine) == pytest.approx(math.cos(3.0))
    assert ArcFace(1, 0.5, beyond='raw').target(cosine) == pytest.approx(math.cos(3.5))


@pytest.mark.parametrize('margin', EVERY, ids=ids)
def test_finite_at_the_poles_and_one_rounding_beyond(margin):
    values = torch.tensor([1.0, -1.0, 1 + 1.2e-7, -1 - 1.2e-7, 1 - 6e-8, -1 + 6e-8])
    cosine = values[:, None].repeat(1, 3).requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = margin.float().eval()(cosine, target, torch.full((6, 1), 20.0))
    logits.sum().backward()
    assert logits.isfinite().all() and cosine.grad.isfinite().all()


@pytest.mark.parametrize('distance, rel', [(1e-1, 1e-3), (1e-2, 1e-2), (1e-3, 1e-1)])
def test_gradient_of_the_feature_stays_bounded_near_the_row(distance, rel):
    # The slope sin(theta + m) / sin(theta) grows without bound, but it meets d cosine / d x of
    # length sin(theta): the product must be sin(theta + m), up to what a float32 cosine tells of
    # so small an angle.
    row = torch.nn.functional.normalize(torch.ones(8), dim=0)
    side = torch.zeros(8)
    side[0], side[1] = 2 ** -0.5, -(2 ** -0.5)
    x = (row * math.cos(distance) + side * math.sin(distance)).requires_grad_()
    cosine = torch.nn.functional.normalize(x, dim=0) @ row
    ArcFace(1.0, 0.5).target(cosine[None]).sum().backward()
    assert x.grad.norm() == pytest.approx(math.sin(distance + 0.5), rel=rel)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    cosine, target, norms = batch(torch.float32)
    margin = ArcFace(64).eval()
    with torch.autocast('cpu', torch.bfloat16):
        actual = margin(cosine.to(dtype), target, norms)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, margin(cosine.to(dtype).float(), target, norms))


def test_column_of_another_rank_gets_no_margin():
    cosine = torch.tensor([[0.5, 0.2]])
    torch.testing.assert_close(CosFace(2, 0.4)(cosine, torch.tensor([-1])), 2 * cosine)


@pytest.mark.parametrize('build', [
    lambda: ArcFace(scale=0), lambda: ArcFace(margin=2.0), lambda: CosFace(margin=-0.1),
    lambda: CombinedMargin(m1=0.5), lambda: ArcFace(beyond='bounce'), lambda: AdaFace(h=0),
    lambda: CombinedMargin(m1=1.5, beyond='shift'), lambda: Softmax(filter_above=1.5),
    lambda: CurricularFace(momentum=1.0)])
def test_impossible_values_are_refused(build):
    with pytest.raises(VisionError, match='VIS-CONFIG-1001'):
        build()


def test_unknown_names_and_options_are_refused():
    assert isinstance(build_margin('ArcFace', scale=32), ArcFace)
    with pytest.raises(VisionError, match='VIS-CONFIG-1002.*\n.*\n.*CurricularFace'):
        build_margin('ArcFase')
    with pytest.raises(VisionError, match='VIS-CONFIG-1008'):
        build_margin('ArcFace', angle=0.5)


def test_adaface_without_norms_says_so():
    with pytest.raises(ValueError, match='norms'):
        AdaFace()(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
