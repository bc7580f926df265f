import pytest

from vision.lattice.core.planner import plan_interval, plan_midpoints


def test_two_stages_of_a_24_frame_gap():
    assert plan_midpoints(0, 24, num_stages=2) == [(0, 12, 24), (0, 6, 12), (12, 18, 24)]


@pytest.mark.parametrize('num_stages', range(5))
@pytest.mark.parametrize('gap', [*range(1, 20), 24, 31, 64])
def test_every_inner_frame_comes_about_exactly_once(gap, num_stages):
    plan = plan_interval(10, 10 + gap, num_stages=num_stages)
    frames = [node.mid for node in plan.nodes] + [fill.frame for fill in plan.fills]
    assert sorted(frames) == list(range(11, 10 + gap))
    assert len(plan.nodes) == min(len(plan.nodes), 2**num_stages - 1)
    filled = {10, 10 + gap}
    for node in plan.nodes:  # coarse first: both ends are there before the middle
        assert node.left < node.mid < node.right and {node.left, node.right} <= filled
        filled.add(node.mid)
    for fill in plan.fills:
        assert fill.before < fill.frame < fill.after and {fill.before, fill.after} <= filled
        assert not filled & set(range(fill.before + 1, fill.after))


@pytest.mark.parametrize('gap', range(8, 65))
def test_three_stages_fill_seven_frames_of_a_long_gap(gap):
    assert len(plan_midpoints(0, gap, num_stages=3)) == 7


def test_what_is_no_interval_is_refused():
    with pytest.raises(ValueError, match='3..3'):
        plan_interval(3, 3, num_stages=1)
    with pytest.raises(ValueError, match='num_stages'):
        plan_interval(0, 3, num_stages=-1)
