import pytest

from vision.common.core.errors import VisionError
from vision.polynet.core.arch import (
    ABLATION_MODULES,
    PRESETS,
    Arch,
    find_arch,
    path_drops,
    released_path_scales,
)


def test_very_deep_is_10_20_10_with_poly_first_in_each_pair():
    stages = PRESETS['very-deep'].stages
    assert [len(stage) for stage in stages] == [10, 20, 10]
    assert set(stages[0]) == {'2-way'}
    assert stages[1] == ('poly-3', '2-way') * 10 and stages[2] == ('poly-3', '2-way') * 5


def test_the_eighteen_ablation_nets_differ_from_the_base_in_one_stage():
    names = [name for name in PRESETS if name.startswith('ir-3-6-3_')]
    assert len(names) == 3 * len(ABLATION_MODULES) == 18
    base = PRESETS['ir-3-6-3'].stages
    for name in names:
        changed = [i for i, stage in enumerate(PRESETS[name].stages) if stage != base[i]]
        assert len(changed) == 1 and 'abc'[changed[0]] == name.split('_')[1][0]


def test_released_scales_fall_by_one_130th_and_end_at_seven_tenths():
    scales = released_path_scales()
    assert scales[:3] == (1.0, 0.992308, 0.984615)
    assert (scales[9], scales[10], scales[29], scales[30], scales[39]) == (
        0.930769, 0.923077, 0.776923, 0.769231, 0.7)


def test_linear_drops_start_at_zero_and_reach_the_rate():
    assert path_drops(5, 0.2, 'linear') == pytest.approx((0, 0.05, 0.1, 0.15, 0.2))
    assert path_drops(3, 0.2, 'constant') == (0.2,) * 3


@pytest.mark.parametrize(('arch', 'message'), [
    ([['2-way'], ['poly-3']], 'three stages'),
    ([['2-way'], [], ['poly-3']], 'at least one'),
    ([['2-way'], ['poly-4'], ['poly-3']], r"'poly-4'"),
    ('very-deeep', 'did you mean very-deep'),
    ('resnet50', '(?s)presets: very-deep, .*ir-3-6-3_STAGE-MODULE'),
    (['2-way', 'poly-3', '2-way'], "(?s)list of module names, got '2-way'.*three lists"),
    ((10, 20, 10), 'list of module names, got 10'),
    ([[1], [2], [3]], r'list of module names, got \[1\]'),
    (dict(depths=(3, 6, 3)), 'depths.* is no architecture'),
    (None, 'arch=None is no architecture'),
])
def test_wrong_architectures_are_refused_with_what_is_allowed(arch, message):
    with pytest.raises(VisionError, match=message):
        find_arch(arch)


def test_an_arch_passes_through():
    arch = Arch((('1-way',), ('poly-2',), ('mpoly-3',)))
    assert find_arch(arch) is arch and arch.depths == (1, 1, 1)
