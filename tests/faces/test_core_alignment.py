"""The similarity solver against transforms that are known, and against scipy's least squares."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from vision.common.core.errors import VisionError
from vision.faces.core.gallery.alignment import TEMPLATE_112, similarity_transforms, template


def random_similarities(count, seed=0):
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-np.pi, np.pi, count), rng.uniform(0.2, 5, count)
    cos, sin, shift = scale * np.cos(angle), scale * np.sin(angle), rng.normal(0, 99, (2, count))
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]]).transpose(2, 0, 1)


def test_a_known_transform_is_found_back():
    expected = random_similarities(50)
    points = np.linalg.solve(expected[:, None, :, :2],
                             (TEMPLATE_112 - expected[:, None, :, 2])[..., None])[..., 0]
    assert similarity_transforms(points, TEMPLATE_112) == pytest.approx(expected, abs=1e-6)


def test_noisy_points_get_the_least_squares_answer():
    points = TEMPLATE_112 * 1.7 + np.random.default_rng(1).normal(0, 4, (5, 2))

    def error(p):
        linear = np.array([[p[0], -p[1]], [p[1], p[0]]])
        return (points @ linear.T + p[2:] - TEMPLATE_112).ravel()

    best = least_squares(error, [1.0, 0, 0, 0], xtol=1e-12, ftol=1e-12).x
    found = similarity_transforms(points[None], TEMPLATE_112)[0]
    assert [found[0, 0], found[1, 0], found[0, 2], found[1, 2]] == pytest.approx(best, abs=1e-4)


def test_templates():
    assert template(112) is not None and template(224) == pytest.approx(2 * TEMPLATE_112)
    assert template(128) - TEMPLATE_112 == pytest.approx(np.tile([8.0, 0], (5, 1)))
    with pytest.raises(VisionError, match='VIS-CONFIG-1066'):
        template(100)


@pytest.mark.parametrize('value', [0.0, np.nan])
def test_points_that_define_nothing_are_refused(value):
    points = np.stack([TEMPLATE_112, np.full((5, 2), value)])
    with pytest.raises(VisionError, match='face 1'):
        similarity_transforms(points, TEMPLATE_112)
