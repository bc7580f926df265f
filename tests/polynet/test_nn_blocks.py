"""Laws of PolyInception modules; stage A's block is the judge's material, being the smallest."""

import collections
import itertools

import pytest
import torch
from torch import nn

from vision.polynet.core.arch import MODULE_FORMS
from vision.polynet.nn.blocks import Layers, PolyInception


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 384, 5, 6, dtype=torch.float64)


def module(name: str, **options) -> PolyInception:
    torch.manual_seed(0)
    made = PolyInception(name, 'a', Layers(), **options).double().eval()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    return made


def naive(made: PolyInception, name: str, x: torch.Tensor, scale: float) -> torch.Tensor:
    """The polynomial written out, every term computed from x anew."""
    order, is_chained, is_tied = MODULE_FORMS[name]

    def block(k: int, y: torch.Tensor) -> torch.Tensor:
        return made.block(y, k) if is_tied else made.blocks[k](y)

    def term(k: int) -> torch.Tensor:
        return block(k, x if k == 0 or not is_chained else torch.relu(term(k - 1)))

    return torch.relu(x + sum(scale * term(k) for k in range(order)))


@pytest.mark.parametrize('share', ['conv', 'all'])
@pytest.mark.parametrize('name', MODULE_FORMS)
def test_cascade_equals_the_polynomial_written_out(name, share, x):
    made = module(name, scale=0.7, share=share)
    torch.testing.assert_close(made(x), naive(made, name, x, 0.7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('name', 'evaluations'), [('poly-3', 3), ('mpoly-3', 3), ('3-way', 3),
                                                   ('poly-2', 2), ('1-way', 1)])
def test_each_term_is_computed_once(name, evaluations, x):
    made, calls = module(name), []
    blocks = [made.block] if made.is_tied else made.blocks
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    made(x)
    assert len(calls) == evaluations


def test_mpoly_with_tied_weights_is_poly(x):
    poly, mpoly = module('poly-3'), module('mpoly-3')
    for order, block in enumerate(mpoly.blocks):
        for path, tied_path in zip(block.paths, poly.block.paths, strict=True):
            for unit, tied in zip(path, tied_path, strict=True):
                unit.conv, unit.norm = tied.conv, tied.norms[order]
        block.projection = poly.block.projections[order]
    assert torch.equal(poly(x), mpoly(x))


@pytest.mark.parametrize(('parallel', 'chained'), [('2-way', 'mpoly-2'), ('3-way', 'mpoly-3')])
def test_no_checkpoint_of_a_sum_loads_into_a_chain(parallel, chained):
    """Their tensors are of the same shapes; only the names tell I + F + G from I + F + GF."""
    names = [set(module(name).state_dict()) for name in (parallel, chained)]
    assert names[0].isdisjoint(names[1]) and len(names[0]) == len(names[1])


def test_ways_may_change_places(x):
    made = module('3-way')
    before = made(x)
    made.blocks = nn.ModuleList(reversed(made.blocks))
    torch.testing.assert_close(made(x), before, rtol=1e-12, atol=1e-12)


def test_a_way_with_silent_projection_is_one_way_less(x):
    three, two = module('3-way'), module('2-way')
    two.load_state_dict({k: v for k, v in three.state_dict().items()
                         if not k.startswith('blocks.2')})
    nn.init.zeros_(three.blocks[2].projection.norm.weight)
    nn.init.zeros_(three.blocks[2].projection.norm.bias)
    torch.testing.assert_close(three(x), two(x), rtol=1e-12, atol=1e-12)


def test_scale_zero_leaves_the_activation(x):
    assert torch.equal(module('poly-2', scale=0.0)(x), torch.relu(x))


def test_dropped_terms_are_dropped_per_sample_and_kept_on_average(x):
    made = module('1-way', drop=0.25).train()
    made.blocks[0].eval()  # the norm must not see the batch here
    whole = module('1-way')(x)
    torch.manual_seed(3)
    outputs = torch.stack([made(x) for _ in range(400)])
    bare = torch.relu(x)
    is_dropped = (outputs == bare).flatten(2).all(-1)
    is_kept = (outputs == whole).flatten(2).all(-1)
    assert (is_dropped ^ is_kept).all()
    assert abs(is_dropped.double().mean() - 0.25) < 0.05
    assert (is_dropped[:, 0] != is_dropped[:, 1]).any()


@pytest.mark.parametrize('name', ['mpoly-3', '3-way', 'poly-3'])
def test_each_term_is_dropped_for_itself_and_still_feeds_the_next(name, x):
    """All eight sums appear, I + GF and I + HGF among them: a dropped term is computed anyway."""
    made = module(name, drop=0.5).train()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()  # the same terms at every call
    terms, order = [], made.order
    with torch.no_grad():
        source = x
        for k in range(order):
            terms.append(made.block(source, k) if made.is_tied else made.blocks[k](source))
            source = torch.relu(terms[-1]) if made.is_chained else x
        sums = {kept: torch.relu(x + sum(t for t, keep in zip(terms, kept, strict=True) if keep))
                for kept in itertools.product((False, True), repeat=order)}
        torch.manual_seed(4)
        found = collections.Counter(
            next(kept for kept, total in sums.items() if torch.allclose(y, total[i]))
            for _ in range(60) for i, y in enumerate(made(x)))
    assert set(found) == set(sums) and max(found.values()) < 40  # 120 draws of 8 kinds


@pytest.mark.parametrize('is_inverted', [False, True])
def test_expected_term_at_training_is_the_term_at_evaluation(is_inverted, x):
    made = module('1-way', drop=0.4, is_inverted=is_inverted)
    ones = torch.ones(20000, 1, 1, 1)
    at_evaluation = made.weigh(ones).mean()
    assert abs(made.train().weigh(ones).mean() - at_evaluation) < 0.02


def test_rate_zero_is_no_drop(x):
    made = module('poly-3', drop=0.0)
    made.train()
    for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    assert torch.equal(made(x), module('poly-3')(x))
