"""The controller's rules, one by one."""

import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.select.controller import AllocationController, Readings, Rules

GOOD = dict(outside_mass=0.03, random_outside_mass=0.8, recall=0.95, drift=0.01)


def controller(nprobe=16, **rules):
    return AllocationController(100_000, 256, Rules(**rules), nprobe=nprobe)


def updated(made, *changes):
    for step, change in enumerate(changes):
        made.update(200 * step, Readings(**GOOD | change))
    return made.allocation


def test_start_values():
    made = controller()
    assert made.allocation.phase == 'warm-up' and made.allocation.interval == 100
    assert made.allocation.num_active == 1024 and made.num_random == 10_000
    assert AllocationController(500, 256).allocation.num_active == 256
    assert AllocationController(200, 256).allocation.num_active == 200


def test_rows_stop_growing_at_a_quarter_of_all():
    grown = updated(controller(), *[dict(outside_mass=0.4)] * 40)
    assert grown.num_active == 25_000
    wider = updated(controller(active_range=(256, 60_000)), *[dict(outside_mass=0.4)] * 40)
    assert wider.num_active == 60_000


@pytest.mark.parametrize(('change', 'phase'), [
    ({}, 'index'), (dict(recall=0.49), 'warm-up'), (dict(random_outside_mass=0.07), 'warm-up')])
def test_the_warm_up_ends_when_the_index_finds_more_than_chance(change, phase):
    assert updated(controller(), change).phase == phase


def test_the_phase_does_not_flip_on_the_border_but_returns_when_structure_is_lost():
    assert updated(controller(), {}, dict(recall=0.4)).phase == 'index'
    assert updated(controller(), {}, dict(recall=0.2)).phase == 'warm-up'


@pytest.mark.parametrize(('mass', 'expected'), [(0.2, 1280), (0.03, 1024), (0.001, 921)])
def test_rows_follow_the_outside_mass(mass, expected):
    assert updated(controller(), dict(outside_mass=mass)).num_active == expected


@pytest.mark.parametrize(('drift', 'expected'), [(0.03, 50), (0.01, 100), (0.001, 150)])
def test_the_interval_follows_the_drift(drift, expected):
    assert updated(controller(), dict(drift=drift)).interval == expected


@pytest.mark.parametrize(('recall', 'expected'), [(0.6, 32), (0.95, 16), (0.99, 12)])
def test_the_lists_searched_follow_the_recall(recall, expected):
    assert updated(controller(), dict(recall=recall)).nprobe == expected
    assert updated(controller(nprobe=None), dict(recall=recall)).nprobe is None


def test_the_warm_up_lasts_as_long_as_was_asked_for():
    made = controller(warm_steps=400)
    for step, phase in ((200, 'warm-up'), (399, 'warm-up'), (400, 'index'), (600, 'index')):
        assert made.update(step, Readings(**GOOD)).phase == phase


def test_a_warm_up_that_few_lists_keep_up_ends_with_more_of_them():
    made = controller()
    assert updated(made, dict(recall=0.3)).phase == 'warm-up' and made.allocation.nprobe == 32
    assert updated(made, dict(recall=0.6)).phase == 'index' and made.allocation.nprobe == 64


def test_all_stay_in_their_ranges():
    made = controller(active_range=(900, 1500), interval_range=(50, 300), nprobe_range=(8, 100))
    grown = updated(made, *[dict(outside_mass=0.4, drift=0.001, recall=0.6)] * 30)
    assert (grown.num_active, grown.interval, grown.nprobe) == (1500, 300, 100)
    shrunk = updated(made, *[dict(outside_mass=0.001, drift=0.5, recall=1.0)] * 30)
    assert (shrunk.num_active, shrunk.interval, shrunk.nprobe) == (900, 50, 8)


def test_the_warm_up_changes_nothing_else():
    assert updated(controller(), dict(recall=0.1, outside_mass=0.9)).num_active == 1024


def test_a_loaded_controller_goes_on_as_the_saved_one():
    first, second = controller(), controller()
    updated(first, dict(outside_mass=0.3), dict(drift=0.0))
    second.load_state_dict(first.state_dict())
    assert second.allocation == first.allocation and second.log == first.log
    assert [entry['step'] for entry in second.log] == [0, 200]
    assert updated(second, dict(outside_mass=0.2)) == updated(first, dict(outside_mass=0.2))


@pytest.mark.parametrize('rules', [dict(mass_range=(0.05, 0.01)), dict(warm_share=0),
                                   dict(interval_range=(0, 5)), dict(nprobe_range=3),
                                   dict(drift_range=(0.1,)),
                                   dict(mass_range=(0.1, None))])
def test_rules_out_of_range_are_refused(rules):
    with pytest.raises(VisionError, match='1048'):
        Rules(**rules)
