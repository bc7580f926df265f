"""Pieces of models: what is refused, what is counted, and that a cut model computes the same."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vision.common.core.errors import VisionError
from vision.pipeline.nn.chunks import (
    Absent,
    Chunk,
    Piece,
    count_pieces,
    keep_pieces,
    measure_pieces,
    pieces_of,
)

NAMES = ['a', 'b', 'c']


class Row(nn.Module):
    """a, b, c one after the other; subclasses do something between them."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class SkipLink(Row):
    def forward(self, x):
        first = self.a(x)
        return self.c(first + self.b(first))


class LongSkipLink(Row):
    def forward(self, x):
        first = self.a(x)
        self.b(first)
        return self.c(first)


class InPlace(Row):
    def forward(self, x):
        return self.c(functional.relu_(self.b(self.a(x))))


class Overwritten(Row):
    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        y[:, 0] = 0
        return self.c(y)


class AfterTheEnd(Row):
    def forward(self, x):
        return self.c(self.b(self.a(x))).mean((2, 3))


class BeforeTheBegin(Row):
    def forward(self, x):
        return self.c(self.b(self.a(x / 255)))


class Twice(Row):
    def forward(self, x):
        return self.c(self.b(self.b(self.a(x))))


class Swapped(Row):
    def __init__(self):
        super().__init__()
        self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.b(self.c(self.a(x)))


class Nested(Row):
    """A tuple goes from a to b as one argument."""

    def __init__(self):
        super().__init__()
        self.a, self.b = _Split(), _Joined()

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class _Split(nn.Module):
    def forward(self, x):
        return x * 2, x * 3


class _Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 1)

    def forward(self, pair):
        return self.conv(torch.cat(pair, 1))


IMAGES = torch.empty(2, 3, 8, 8)


def images():
    return torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(('model', 'message'), [
    (SkipLink, r'add\(\) runs between b and c'),
    (LongSkipLink, 'tensors change between b and c'),
    (InPlace, r'relu_\(\) runs between b and c'),
    (Overwritten, r'__setitem__\(\) runs between b and c'),
    (AfterTheEnd, r'mean\(\) runs between c and the end of the model'),
    (BeforeTheBegin, r'\(\) runs between the inputs of the model and a'),
    (Twice, "runs 'b' where piece 'c' is listed"),
    (Swapped, "runs 'c' where piece 'b' is listed"),
    (Nested, 'tensors change between a and b.*one argument')])
def test_what_happens_between_pieces_is_refused_by_name(model, message):
    model = model()
    with pytest.raises(VisionError, match=f'(?s)VIS-CONFIG-1524: .*{message}'):
        count_pieces(model, pieces_of(model, NAMES), IMAGES)


def test_a_listed_module_that_never_runs_is_refused():
    model = Row()
    model.d = nn.Identity()
    with pytest.raises(VisionError, match='(?s)1524: of 4 pieces the model runs 3.*a, b, c'):
        count_pieces(model, pieces_of(model, [*NAMES, 'd']), IMAGES)


def test_a_second_path_past_a_piece_is_seen_at_its_receiver():
    class Carried(Row):
        def __init__(self):
            super().__init__()
            self.c = _Two()

        def forward(self, x):
            first = self.a(x)
            return self.c(first, self.b(first))

    model = Carried()
    with pytest.raises(VisionError, match='1524: tensors change between b and c'):
        count_pieces(model, pieces_of(model, NAMES), IMAGES)
    model.pipeline_stages = lambda: ['a', ('b', lambda module, x: (x, module(x))), 'c']
    model.eval()  # of dropout
    inputs, pieces = images(), pieces_of(model)
    count_pieces(model, pieces, inputs)
    assert torch.equal(Chunk(model, pieces)(inputs), model(inputs))


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, x, y):
        return self.conv(x - y)


def with_tie(model):
    model.c.weight = model.extra = nn.Parameter(torch.zeros(2, 4, 1, 1))
    return model


def with_shared(model):
    model.c = nn.Conv2d(4, 4, 1)
    model.c.weight = model.b[0].weight
    return model


@pytest.mark.parametrize(('change', 'names', 'code', 'message'), [
    (None, None, 1520, 'how to cut Row'),
    (None, [], 1547, 'no list'),
    (None, 'abc', 1547, 'no list'),
    (None, ['a', 'b', 'd'], 1521, "no module 'd'.*a, b, c"),
    (None, ['a', 'b.7', 'c'], 1521, "no module 'b.7'.*b has 0, 1"),
    (None, ['a', 'b', 'a', 'c'], 1521, "'a' is named twice"),
    (None, ['a', 'b', 'b.0', 'c'], 1522, "'b.0' lies inside piece 'b'"),
    (None, ['a', 'b'], 1523, "'c.weight' is in no piece"),
    (with_tie, NAMES, 1523, "'extra' is in no piece"),
    (with_shared, NAMES, 1525, "'b' and 'c' share.*b.0.weight and c.weight.*inside one piece")])
def test_pieces_that_are_refused(change, names, code, message):
    model = Row() if change is None else change(Row())
    with pytest.raises(VisionError, match=f'(?s)VIS-CONFIG-{code}: .*{message}'):
        pieces_of(model, names)


def test_a_piece_that_cannot_run_tells_what_it_got():
    class Wrong(Row):
        def pipeline_stages(self):
            return ['a', ('b', lambda module, x: module(x).flatten(1)), 'c']

    with pytest.raises(VisionError, match=r"(?s)1526: piece 'c'.*what 'b' gives: \(2, 144\)"):
        count_pieces(Wrong(), pieces_of(Wrong()), IMAGES)


def test_an_input_changed_in_place_is_refused():
    """The tensor that arrives from another rank is a leaf; torch would stop in the first step."""
    class Body(Row):
        def __init__(self):
            super().__init__()
            self.b = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    with pytest.raises(VisionError, match="(?s)1526: piece 'b'.*in-place.*inplace=False"):
        count_pieces(Body(), pieces_of(Body(), NAMES), IMAGES)


def test_a_piece_gives_tensors_only():
    pieces = [Piece('a', lambda module, x: dict(x=module(x))), Piece('b'), Piece('c')]
    with pytest.raises(VisionError, match="1548: piece 'a' gives dict"):
        count_pieces(Row(), pieces, IMAGES)


def test_pieces_that_lose_the_end_are_refused():
    pieces = [Piece('a', lambda module, x: module(x)), Piece('b'), Piece('c')]
    with pytest.raises(VisionError, match=r'1527: the pieces end with \[\(\(2, 2, 6, 6\)'):
        count_pieces(AfterTheEnd(), pieces, IMAGES)


def saved_bytes(model, inputs):
    """The slow way: everything that the whole model saves, by address, on real tensors."""
    constants = {each.untyped_storage().data_ptr()
                 for each in (*model.parameters(), *model.buffers(), inputs)}
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(inputs)
    keep(output)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in found.items()
               if address not in constants)


class Plain(Row):
    """Each output is saved by the layer after it, so no piece's is counted on top."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())


def test_counts_are_those_of_the_whole_model():
    model, inputs = Plain(), images()
    costs = count_pieces(model, pieces_of(model, NAMES), inputs)
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    assert sum(cost.flops for cost in costs) == counter.get_total_flops() > 0
    assert costs[1].flops == 2 * 4 * 4 * 2 * 36  # 1x1, 4 to 4 channels, 2 images of 6 x 6
    assert sum(cost.activation_bytes for cost in costs) == saved_bytes(model, inputs)
    assert [cost.output_bytes for cost in costs] == [4 * 2 * 36 * width for width in (4, 4, 2)]
    assert [cost.parameter_bytes for cost in costs] == [4 * (112 + 8), 4 * 20, 4 * 10]
    assert costs[0].seconds is None


def test_a_view_of_the_input_costs_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    costs = count_pieces(model, pieces_of(model, ['0', '1', '2']), IMAGES)
    assert costs[1].activation_bytes == 0 and costs[1].output_bytes == 2 * 144 * 4


def test_counting_and_measuring_leave_everything_as_it_was():
    model, inputs = Row(), images()
    model(inputs).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [each.grad.clone() for each in model.parameters()]
    pieces, state = pieces_of(model, NAMES), torch.get_rng_state()
    counted = count_pieces(model, pieces, inputs)
    measured = measure_pieces(model, pieces, inputs, repeats=2)
    assert torch.equal(torch.get_rng_state(), state)  # dropout has drawn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(each.grad, old)
               for each, old in zip(model.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    for cost, other in zip(counted, measured, strict=True):
        assert other.forward_seconds > 0 and other.backward_seconds > 0
        assert other.seconds == other.forward_seconds + other.backward_seconds
        assert (cost.name, cost.flops, cost.activation_bytes, cost.output_bytes) == (
            other.name, other.flops, other.activation_bytes, other.output_bytes)


def test_counting_copies_no_data():
    """Sixteen terabytes are counted as quickly as sixteen bytes."""
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.Linear(10**6, 10**6))
    costs = count_pieces(model, pieces_of(model, ['0', '1']), torch.empty(2, 10**6))
    assert [cost.parameter_bytes for cost in costs] == [4 * (10**12 + 10**6)] * 2
    assert costs[0].flops == 4 * 10**12 and model[0].weight.is_meta


def test_a_frozen_begin_keeps_nothing_for_backward():
    model = Row()
    model.a.requires_grad_(False)
    costs = measure_pieces(model, pieces_of(model, NAMES), images(), repeats=1)
    assert costs[0].activation_bytes == costs[0].output_bytes


def test_a_shell_has_the_names_of_the_whole_model():
    whole = Row()
    model = copy.deepcopy(whole)
    pieces = pieces_of(model, ['a.0', 'a.1', 'a.2', 'b', 'c'])
    keep_pieces(model, [pieces[1], pieces[3]], pieces)
    assert set(dict(model.named_parameters())) == {'a.1.weight', 'a.1.bias', 'b.0.weight',
                                                   'b.0.bias'}
    assert set(model.state_dict()) < set(whole.state_dict())
    assert isinstance(model.c, Absent) and isinstance(model.a[0], Absent)
    model.train().eval()
    assert not model.a[1].training
    with pytest.raises(AssertionError, match='a.0 is on another rank'):
        model(images())
    chunk = Chunk(model, [pieces[1]])
    assert chunk.parts[0] is model.a[1]


def test_chunks_in_a_row_are_the_model():
    model = Row()
    pieces, inputs = pieces_of(model, NAMES), images()
    torch.manual_seed(1)
    expected = model(inputs)
    torch.manual_seed(1)
    actual = Chunk(model, pieces[2:])(Chunk(model, pieces[:2])(inputs))
    assert torch.equal(actual, expected)
