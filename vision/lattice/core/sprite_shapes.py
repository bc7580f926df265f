"""Outlines and textures that MovingSprites is painted with (pure numpy).

A shape is a function of local coordinates u, v (arrays, the sprite's radius is 1) that is negative
inside and near the outline grows by 1 per unit, as a signed distance does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.95


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) - 0.8


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(0.866 * abs(u) - 0.5 * v, v) - 0.5


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Fold the plane into one tip (72 degrees, mirrored): there the star is one straight edge from
    # the tip (radius 0.98) to the inner corner (radius 0.42, 36 degrees).
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    edge = np.array([0.42 * np.cos(np.pi / 5) - 0.98, 0.42 * np.sin(np.pi / 5)])
    edge /= np.linalg.norm(edge)
    return (x - 0.98) * edge[1] - y * edge[0]


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = abs(u), abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.3), np.maximum(u - 0.3, v - 0.95))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return abs(np.hypot(u, v) - 0.7) - 0.25


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.5, v))


def _arrow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = abs(v)
    head = np.maximum(-u, 0.66 * (u - 0.95) + 0.75 * v)
    shaft = np.maximum(v - 0.26, np.maximum(-0.95 - u, u - 0.2))
    return np.minimum(head, shaft)


SHAPES: dict[str, Shape] = dict(disc=_disc, square=_square, triangle=_triangle, star=_star,
                                cross=_cross, ring=_ring, crescent=_crescent, arrow=_arrow)


def value_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth random field (height, width) float32 in [0, 1]; ``cell`` is its grain in pixels."""
    grid = rng.random((height // cell + 2, width // cell + 2), dtype=np.float32)

    def spread(num_points: int, num_knots: int) -> np.ndarray:
        position = np.arange(num_points) / cell
        knots = np.arange(num_knots)
        return np.clip(1 - abs(position[:, None] - knots), 0, 1).astype(np.float32)

    return spread(height, grid.shape[0]) @ grid @ spread(width, grid.shape[1]).T


def _colour(rng: np.random.Generator, saturation: float, value: float) -> np.ndarray:
    hue = (rng.random() * 6 + np.array([0.0, 2.0, 4.0])) % 6
    pure = np.clip(abs(hue - 3) - 1, 0, 1)
    return (255 * value * (1 - saturation * (1 - pure))).astype(np.float32)


def _pattern(rng: np.random.Generator, size: int, kind: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, period = rng.random() * np.pi, rng.uniform(size / 7, size / 3)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    wave, other = np.sin(2 * np.pi * along / period), np.sin(2 * np.pi * across / period)
    radius = np.hypot(x - size / 2, y - size / 2)
    fields = (wave, wave * other * 4, wave + other - 0.8, np.sin(2 * np.pi * radius / period),
              value_noise(rng, size, size, size // 5) * 6 - 3, (along / size - 0.5) * 2)
    return np.clip(0.5 + fields[kind] * 1.5, 0, 1)


NUM_PATTERNS = 6


def sprite_texture(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """Two strong colours in a random pattern: (size, size, 3) float32 BGR in [0, 255]."""
    dark = _colour(rng, rng.uniform(0.5, 1), rng.uniform(0.25, 0.55))
    light = _colour(rng, rng.uniform(0.2, 1), rng.uniform(0.8, 1))
    mix = _pattern(rng, size, int(rng.integers(NUM_PATTERNS)))[..., None]
    grain = value_noise(rng, size, size, 2)[..., None]
    return ((dark + (light - dark) * mix) * (0.85 + 0.3 * grain)).clip(0, 255).astype(np.float32)


def background_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Muted clouds with grain and sometimes a pattern: (height, width, 3) float32 BGR."""
    first = _colour(rng, rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.9))
    second = _colour(rng, rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.8))
    clouds = sum(value_noise(rng, height, width, cell) * weight
                 for cell, weight in ((80, 0.5), (24, 0.3), (7, 0.2)))
    if rng.random() < 0.5:
        size = max(height, width)
        pattern = _pattern(rng, size, int(rng.integers(4)))
        clouds = 0.75 * clouds + 0.25 * np.roll(pattern, 7, 0)[:height, :width]
    image = first + (second - first) * clouds[..., None]
    return (image * (0.9 + 0.2 * value_noise(rng, height, width, 2)[..., None])).clip(0, 255)
