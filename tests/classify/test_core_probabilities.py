"""A place for what is of no class: laws of the probabilities, and a fit whose answer is known."""

import numpy as np
import pytest

from vision.classify.core.probabilities import calibrate, probabilities


def test_three_classes_by_hand():
    found = probabilities(np.log([[1.0, 2.0, 5.0]]))
    assert found[0] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    found = probabilities(np.log([[1.0, 2.0, 5.0]]), np.log(2.0))
    assert found[0] == pytest.approx([0.1, 0.2, 0.5, 0.2])


def test_large_logits_do_not_overflow():
    found = probabilities(np.array([[1e4, 0.0]], dtype=np.float32), 3.0)
    assert found[0] == pytest.approx([1, 0, 0])


def test_the_fit_finds_the_scale_and_the_place_that_made_the_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (6000, 5))
    true = probabilities(2.5 * logits, 1.0)
    labels = (true.cumsum(axis=1) < rng.random((6000, 1))).sum(axis=1)
    is_known = labels < 5
    scale, place = calibrate(logits[is_known], labels[is_known], logits[~is_known],
                             unknown_share=float((~is_known).mean()))
    assert scale == pytest.approx(2.5, rel=0.1) and place == pytest.approx(1.0, abs=0.2)
