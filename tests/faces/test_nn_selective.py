"""Selective softmax: against plain autograd, its exactness statement, and over ranks."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import run_ranks
from selective_ranks import NAMES

from vision.common.core.errors import VisionError
from vision.faces.nn.head.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    Softmax,
)
from vision.faces.nn.head.selective import _Softmax, selective_loss

EVERY = [Softmax(8), ArcFace(8), CosFace(8), CombinedMargin(8, 1.2, 0.3, 0.1), AdaFace(8),
         CurricularFace(8), ArcFace(8, filter_above=0.3), CurricularFace(8, filter_above=0.3)]


def data(num_classes=40, num=7, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_classes, dim, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (num,), generator=generator)
    features = rows[labels] + torch.randn(num, dim, generator=generator, dtype=dtype)
    return features.requires_grad_(), rows.requires_grad_(), labels


def plain_loss(features, rows, columns, margin, num_subcentres=1):
    """The judge: the same by autograd alone."""
    norms = features.detach().norm(dim=1, keepdim=True)
    cosine = functional.normalize(features) @ functional.normalize(rows).T
    cosine = cosine.view(len(features), -1, num_subcentres).amax(2)
    return functional.cross_entropy(margin(cosine, columns, norms), columns)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize('margin', EVERY, ids=lambda m: f'{type(m).__name__}-{m.filter_above}')
@pytest.mark.parametrize('num_subcentres', [1, 3])
def test_equals_plain_autograd(margin, num_subcentres):
    features, rows, labels = data(42)
    margin = margin.double().eval()
    columns = labels % (len(rows) // num_subcentres)
    expected = plain_loss(features, rows, columns, margin, num_subcentres)
    actual = selective_loss(features, rows, columns, margin, num_subcentres=num_subcentres)
    torch.testing.assert_close(actual.loss, expected)
    torch.testing.assert_close(gradients(actual.loss, features, rows),
                               gradients(expected, features, rows))


@pytest.mark.parametrize('margin', [ArcFace(8), CurricularFace(8)], ids=lambda m: type(m).__name__)
def test_gradcheck(margin):
    features, rows, labels = data(9, num=4, dim=3, seed=2)
    margin = margin.double().eval()
    assert torch.autograd.gradcheck(
        lambda x, w: selective_loss(x, w, labels, margin).loss, (features, rows))


def test_running_statistics_move_as_in_plain_code():
    features, rows, labels = data(dtype=torch.float32)
    for build in (AdaFace, CurricularFace):
        one, two = build(8), build(8)
        plain_loss(features, rows, labels, one)
        selective_loss(features, rows, labels, two)
        torch.testing.assert_close(dict(one.named_buffers()), dict(two.named_buffers()))


def test_inner_products_equal_cross_entropy():
    features, rows, labels = data()
    expected = functional.cross_entropy(features @ rows.T, labels)
    actual = selective_loss(features, rows, labels, Softmax(), is_cosine=False)
    torch.testing.assert_close(actual.loss, expected)
    torch.testing.assert_close(gradients(actual.loss, features, rows),
                               gradients(expected, features, rows))
    probability = (features @ rows.T).softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(actual.target_probability, probability.detach())


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('margin', [Softmax(4), ArcFace(4)], ids=lambda m: type(m).__name__)
def test_exactness_statement(margin, seed):
    features, rows, labels = data(seed=seed)
    is_active = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < 0.3
    is_active[labels] = True
    active = is_active.nonzero()[:, 0]
    columns = torch.searchsorted(active, labels)
    x = functional.normalize(features).detach().requires_grad_()
    w = functional.normalize(rows).detach()
    cosine = functional.normalize(x) @ w.T
    logits = margin.eval()(cosine, labels)
    full = functional.cross_entropy(logits, labels, reduction='none')
    chosen = functional.cross_entropy(margin(cosine[:, active], columns), columns,
                                      reduction='none')
    p = logits.softmax(1).detach()
    q = p[:, ~is_active].sum(1)
    torch.testing.assert_close((full - chosen).detach(), -torch.log1p(-q))

    actual = selective_loss(x, w[active], columns, margin)
    torch.testing.assert_close(actual.loss.detach(), chosen.mean().detach())
    outside_mass = 1 - (actual.log_normaliser - logits.detach().logsumexp(1)).exp()
    torch.testing.assert_close(outside_mass, q)

    error = (gradients(full.sum(), x)[0]
             - len(x) * gradients(actual.loss, x)[0])
    directions = _logit_gradients(margin, x, w, labels)  # d logit_j / d x, (B, C, d)
    outside = _weighted_mean(p, directions, ~is_active)
    inside = _weighted_mean(p, directions, is_active)
    torch.testing.assert_close(error, q[:, None] * (outside - inside))
    bound = 2 * q * directions.norm(dim=2).amax(1)
    assert (error.norm(dim=1) <= bound + 1e-12).all()
    if isinstance(margin, Softmax):  # every |row| is 1
        assert (error.norm(dim=1) <= 2 * q * margin.scale + 1e-12).all()


def _logit_gradients(margin, x, w, labels):
    jacobian = torch.autograd.functional.jacobian(
        lambda v: margin(functional.normalize(v) @ w.T, labels).sum(0), x)
    return jacobian.transpose(0, 1)


def _weighted_mean(p, directions, mask):
    weights = p * mask
    return torch.einsum('bc,bcd->bd', weights / weights.sum(1, keepdim=True), directions)


def test_sampled_correction_estimates_the_full_sum_without_bias():
    features, rows, labels = data(30, num=2)
    full = (functional.normalize(features) @ functional.normalize(rows).T * 3).logsumexp(1).exp()
    generator = torch.Generator().manual_seed(1)
    forced = labels.unique()
    others = torch.tensor([c for c in range(30) if c not in forced])
    total, num_draws = 0, 4000
    for _ in range(num_draws):
        drawn = others[torch.randperm(len(others), generator=generator)[:10]]
        active = torch.cat([forced, drawn]).sort()[0]
        counts = torch.where(torch.isin(active, forced), 1.0, 10 / len(others))
        with torch.no_grad():
            result = selective_loss(features, rows[active], torch.searchsorted(active, labels),
                                    Softmax(3), correction='sampled', expected_counts=counts)
        total = total + result.log_normaliser.exp()
    torch.testing.assert_close(total / num_draws, full.detach(), rtol=0.01, atol=0)


def test_a_second_backward_gives_the_same():
    features, rows, labels = data()
    loss = selective_loss(features, rows, labels, ArcFace(8)).loss
    first = torch.autograd.grad(3 * loss, (features, rows), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (features, rows))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_half_precision_and_autocast():
    features, rows, labels = data(dtype=torch.float32)
    expected = selective_loss(features, rows, labels, ArcFace(8)).loss
    with torch.autocast('cpu', torch.bfloat16):
        inside = selective_loss(features, rows, labels, ArcFace(8))
    torch.testing.assert_close(inside.loss, expected, rtol=0, atol=0)
    rough = selective_loss(features.bfloat16(), rows, labels, ArcFace(8),
                           matmul_dtype=torch.bfloat16).loss
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.03, atol=0)


@pytest.mark.parametrize('scale', [10.0, 14.0])
def test_float16_keeps_negatives_whose_probability_is_tiny(scale):
    """Cosines are multiples of 1/4, exact in float16: what differs is the way of the gradients."""
    generator = torch.Generator().manual_seed(2)
    num, dim = 256, 32
    place = torch.rand(1000, dim // 2, generator=generator).topk(4).indices
    place[500:] += dim // 2  # at right angles to all features: p is about exp(-scale)
    sign = torch.randint(2, (1000, 4), generator=generator) - 0.5
    rows = torch.zeros(1000, dim).scatter_(1, place, sign)  # four entries of +-1/2: unit length
    labels = torch.randint(500, (num,), generator=generator)
    found = {}
    for dtype in (None, torch.float16):
        x, w = (side.clone().requires_grad_() for side in (rows[labels], rows))
        result = selective_loss(x, w, labels, Softmax(scale), matmul_dtype=dtype)
        found[dtype] = *gradients(result.loss, x, w), result.loss
    assert found[None][2] == found[torch.float16][2]
    for side in (slice(None), slice(500, None)):  # those from 500 on are negatives alone
        for exact, half in zip(found[None][:2], found[torch.float16][:2], strict=True):
            assert (half - exact)[side].norm() <= 1e-3 * exact[side].norm()


@pytest.mark.parametrize('power', [-30, -6, 0, 6])
def test_products_of_gradients_in_float16_neither_vanish_nor_overflow(power):
    generator = torch.Generator().manual_seed(3)
    softmax = _Softmax(None, None, Softmax(1.0), True, 1, None, torch.float16, None)
    a = torch.randn(5, 4000, generator=generator) * 10.0 ** power
    a[3] = 0
    b = functional.normalize(torch.randn(4000, 16, generator=generator))
    exact, half = a.double() @ b.double(), softmax.gradient_product(a, b)
    assert (half - exact).norm() < 2e-3 * exact.norm() and (half[3] == 0).all()


def test_large_logits_do_not_overflow():
    features, rows, labels = data(dtype=torch.float32)
    loss = selective_loss(features * 1e3, rows * 1e3, labels, Softmax(), is_cosine=False).loss
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients(loss, features, rows))


def test_a_label_that_no_rank_has_is_never_trained_on():
    features, rows, labels = data()
    labels[0] = -1
    assert selective_loss(features, rows, labels, Softmax(8)).loss.isnan()


@pytest.mark.parametrize('options', [
    dict(is_cosine=False), dict(correction='sampled'), dict(correction='both'),
    dict(expected_counts=torch.ones(40))])
def test_contradictions_are_refused(options):
    features, rows, labels = data()
    with pytest.raises(VisionError, match='VIS-CONFIG-1003'):
        selective_loss(features, rows, labels, ArcFace(8), **options)


@pytest.fixture(scope='module')
def computed(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp('ranks')
    run_ranks('selective_ranks.py', folder, repository)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize('world', [2, 4])
def test_ranks_with_unequal_batches_and_rows_equal_one_process(world, computed):
    for name in NAMES:
        alone = torch.load(computed / f'{name}_1_0.pt', weights_only=True)
        parts = [torch.load(computed / f'{name}_{world}_{rank}.pt', weights_only=True)
                 for rank in range(world)]
        for part in parts:
            torch.testing.assert_close(part['loss'], alone['loss'])
            torch.testing.assert_close(part['buffers'], alone['buffers'])
        for key in ('features', 'rows'):
            torch.testing.assert_close(torch.cat([part[key] for part in parts]), alone[key])
        assert math.isfinite(alone['loss']) and alone['rows'].norm() > 0


def test_nothing_of_the_logits_size_is_kept_for_backward():
    features, rows, labels = data(500, num=64, dim=4)

    def kept_by(loss_of):
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of()
        assert loss.requires_grad
        return sum(numel >= 64 * 500 for numel in kept.values())

    margin = ArcFace(8.0)
    assert kept_by(lambda: selective_loss(features, rows, labels, margin).loss) == 0
    assert kept_by(lambda: plain_loss(features, rows, labels, margin)) >= 1


def test_a_zero_feature_has_no_direction_and_no_gradient():
    features, rows, labels = data()
    features = features.detach().clone()
    features[0] = 0
    features.requires_grad_()
    loss = selective_loss(features, rows, labels, Softmax(8)).loss
    torch.testing.assert_close(loss, plain_loss(features, rows, labels, Softmax(8)))
    for_features, for_rows = gradients(loss, features, rows)
    assert (for_features[0] == 0).all() and (for_features[1:] != 0).all()
    assert for_rows.isfinite().all()
