import pytest

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import MODULE_FORMS, PRESETS, Arch, uniform
from vision.polynet.core.insertion import (
    is_projection_affine,
    join_term,
    nearest_places,
    plan_insertion,
    refusal,
    split_term,
    wanted_places,
)


def test_doubling_puts_each_new_module_behind_a_trained_one():
    plan = plan_insertion(PRESETS['ir-5-10-5'], PRESETS['very-deep'])
    assert plan.origins[0] == (0, None, 1, None, 2, None, 3, None, 4, None)
    assert plan.origins[1][::2] == tuple(range(10)) and set(plan.origins[1][1::2]) == {None}


@pytest.mark.parametrize('num_old', range(1, 13))
@pytest.mark.parametrize('num_added', range(15))
def test_new_modules_are_spread_as_evenly_as_can_be(num_old, num_added):
    places = wanted_places(num_old, num_old + num_added)
    assert places[0] == 0 and places == sorted(set(places)) and places[-1] < num_old + num_added
    runs = [b - a - 1 for a, b in zip(places, [*places[1:], num_old + num_added], strict=True)]
    assert sum(runs) == num_added and max(runs) == -(-num_added // num_old)
    if num_added < num_old:
        assert runs[-1] == 0  # every new one stands between two trained ones


def test_a_trained_module_goes_to_the_nearest_place_that_can_hold_it():
    source = Arch((('2-way',), ('poly-3', '2-way'), ('1-way',)))
    target = Arch((('2-way',), ('poly-3', '2-way') * 2, ('1-way',)))
    assert plan_insertion(source, target).origins[1] == (0, None, None, 1)


def test_places_follow_by_brute_force():
    from itertools import combinations
    possible = [[True, False, True, True, False], [True, True, False, False, True]]
    wanted = [1, 3]
    ways = [way for way in combinations(range(5), 2)
            if all(row[p] for row, p in zip(possible, way, strict=True))]
    cost = {way: sum(abs(p - w) for p, w in zip(way, wanted, strict=True)) for way in ways}
    places = tuple(nearest_places(possible, wanted))
    assert cost[places] == min(cost.values())
    assert nearest_places([[False, True], [True, False]], [0, 1]) is None


def test_the_same_architecture_keeps_everything():
    plan = plan_insertion(PRESETS['very-deep'], PRESETS['very-deep'])
    for name in ('stem.entry.0.conv.weight', 'stage_b.4.block.projections.2.norm.bias',
                 'stage_a.9.blocks.1.paths.2.0.conv.weight'):
        assert plan.origin(name) == name


def test_names_by_hand():
    plan = plan_insertion(uniform(1, 1, 1), uniform(2, 1, 1, a='mpoly-2', b='poly-2'))
    origin = plan.origin
    assert origin('reduction_a.branches.0.0.conv.weight') == 'reduction_a.branches.0.0.conv.weight'
    assert origin('stage_a.0.chain.0.paths.1.0.norm.bias') == \
        'stage_a.0.blocks.0.paths.1.0.norm.bias'
    assert origin('stage_a.0.chain.1.projection.conv.weight') is None  # G of I + F + GF
    assert origin('stage_a.1.chain.0.projection.conv.weight') is None  # a new module
    assert origin('stage_b.0.block.paths.0.2.conv.weight') == \
        'stage_b.0.blocks.0.paths.0.2.conv.weight'
    assert origin('stage_b.0.block.paths.0.2.norms.0.weight') == \
        'stage_b.0.blocks.0.paths.0.2.norm.weight'
    assert origin('stage_b.0.block.paths.0.2.norms.1.weight') is None
    assert origin('stage_b.0.block.projections.0.conv.weight') == \
        'stage_b.0.blocks.0.projection.conv.weight'


@pytest.mark.parametrize('share', ['conv', 'all'])
@pytest.mark.parametrize('module', ['3-way', 'mpoly-3', 'poly-3'])
@pytest.mark.parametrize('tail', ['paths.0.1.norm.running_var', 'projection.norm.weight'])
def test_term_names_split_and_join(tail, module, share):
    assert split_term(join_term(2, tail, MODULE_FORMS[module], share)) == (2, tail)


@pytest.mark.parametrize(('name', 'expected'), [
    ('stage_a.0.blocks.1.projection.norm.weight', True),
    ('stage_a.0.chain.1.projection.norm.bias', True),
    ('stage_b.0.block.projections.2.norm.bias', True),
    ('stage_b.0.block.projection.norms.2.bias', True),
    ('stage_b.0.block.projection.norms.2.running_var', False),
    ('stage_b.0.block.projection.conv.weight', False),
    ('stage_a.0.blocks.1.paths.0.0.norm.weight', False)])
def test_what_silences_a_term(name, expected):
    assert is_projection_affine(name) is expected


@pytest.mark.parametrize(('source', 'target', 'message'), [
    ('2-way', '1-way', 'fewer terms'), ('2-way', 'mpoly-2', 'different inputs'),
    ('poly-2', '3-way', 'different inputs'), ('mpoly-2', 'poly-3', 'one block')])
def test_what_cannot_become_what(source, target, message):
    assert message in refusal(source, target)
    with pytest.raises(VisionError, match=message):
        plan_insertion(uniform(1, 1, 1, b=source), uniform(1, 1, 1, b=target))


def test_what_can():
    can = {(a, b) for a in MODULE_FORMS for b in MODULE_FORMS if not refusal(a, b)}
    assert {(a, a) for a in MODULE_FORMS} <= can
    assert {('1-way', b) for b in MODULE_FORMS} <= can
    assert {('2-way', '3-way'), ('poly-2', 'poly-3'), ('poly-2', 'mpoly-3'),
            ('mpoly-2', 'mpoly-3')} <= can
    assert refusal('poly-2', 'poly-3', is_share_kept=False)


def test_fewer_modules_and_unknown_placements_are_refused():
    with pytest.raises(VisionError, match='6 trained modules do not fit into 4'):
        plan_insertion(uniform(3, 6, 3), uniform(3, 4, 3))
    with pytest.raises(VisionError, match="'middle'"):
        plan_insertion(uniform(1, 1, 1), uniform(2, 2, 2), placement='middle')


def test_at_the_end_new_modules_stand_behind():
    plan = plan_insertion(uniform(2, 2, 2), uniform(4, 4, 4), placement='end')
    assert plan.origins == ((0, 1, None, None),) * 3
