"""A confusion matrix as numbers and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NOTHING = 'nothing'  # the last row and column of a detector's matrix


def class_matrix(truth: np.ndarray, found: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels (N,) -> (C, C) int64: row = true class, column = found class."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (truth, found), 1)
    return matrix


def class_rows(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: name, num_true, num_found, num_right, precision, recall and what it is mostly
    taken for. A share of nothing is None.

    Args:
        matrix: (C, C), or (C + 1, C + 1) with ``NOTHING`` at the end.
        names: of C classes.
    """
    shown = [*names, NOTHING][:len(matrix)]
    rows = []
    for label, name in enumerate(names):
        right, true, found = (int(n) for n in (matrix[label, label], matrix[label].sum(),
                                               matrix[:, label].sum()))
        others = matrix[label].copy()
        others[label] = 0
        rows.append(dict(
            name=name, num_true=true, num_found=found, num_right=right,
            precision=right / found if found else None, recall=right / true if true else None,
            taken_for=shown[int(others.argmax())] if others.any() else None,
            num_taken=int(others.max())))
    return rows
