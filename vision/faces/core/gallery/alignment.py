"""Five landmarks to the standard face: own similarity solver, in batches.

In two dimensions a similarity without mirroring is z -> a z + b with complex a, b, so the least
squares solution (Umeyama, 1991, for proper rotations) is one complex regression: with both point
sets centred, a = sum(conj(z) w) / sum(|z|^2).

Points are x, y in pixels, in the order left eye, right eye, nose, left and right mouth corner as
they stand in the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vision.common.core.errors import VisionError

# Where the five points lie in the 112 x 112 crop of the ArcFace line of work (arXiv:1801.07698).
TEMPLATE_112 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
                         [41.5493, 92.3655], [70.7299, 92.2041]])


def template(size: int) -> np.ndarray:
    """The five points (5, 2), x y in px, for a square crop of ``size`` px.

    Sizes are multiples of 112, or of 128: there the crop is wider by 8 px on the left and right of
    a 112 px face and taller below.

    Raises:
        VisionError: VIS-CONFIG-1066, another size.
    """
    if size < 1 or (size % 112 and size % 128):
        raise VisionError('VIS-CONFIG-1066', f'a face crop of {size} px',
                          why='the standard crops are multiples of 112 or of 128 px',
                          do='use 112')
    if size % 112 == 0:
        return TEMPLATE_112 * (size / 112)
    return (TEMPLATE_112 + [8.0, 0.0]) * (size / 128)


def similarity_transforms(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares similarities that bring ``points`` (N, K, 2) onto ``target`` (K, 2).

    Returns:
        (N, 2, 3) matrices m with target ~ m[:, :2] @ point + m[:, 2]: rotation, one scale, shift.

    Raises:
        VisionError: VIS-DATA-1065 when a face's points are not finite or all in one place.
    """
    points = np.asarray(points, dtype=np.float64)
    z = points[..., 0] + 1j * points[..., 1]
    w = target[:, 0] + 1j * target[:, 1]
    z_mean, w_mean = z.mean(axis=1, keepdims=True), w.mean()
    centred = z - z_mean
    spread = (np.abs(centred)**2).sum(axis=1)
    bad = np.flatnonzero(~np.isfinite(spread) | (spread < 1e-9))
    if len(bad):
        raise VisionError('VIS-DATA-1065', f'landmarks of face {bad[0]} (of {len(points)}) are '
                          'not finite or all in one place', why='no similarity is defined by them',
                          do='leave that face out')
    a = (centred.conj() * (w - w_mean)).sum(axis=1) / spread
    b = w_mean - a * z_mean[:, 0]
    rows = np.stack([np.stack([a.real, -a.imag, b.real], axis=1),
                     np.stack([a.imag, a.real, b.imag], axis=1)], axis=1)
    return rows


def checked_faces(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same pictures (size, size, C), one by one.

    Raises:
        VisionError: at the first that is not ``size`` px high and wide.
    """
    for position, image in enumerate(images):
        refuse_other_size(position, image.shape[1], image.shape[0], size)
        yield image


def refuse_other_size(position: int, width: int, height: int, size: int) -> None:
    """Refuse a picture of width x height px unless it is size x size; ``position`` names it.

    Raises:
        VisionError: it is of another size.
    """
    if (width, height) != (size, size):
        raise VisionError('VIS-DATA-1082', f'picture {position} is {width} x {height} px',
                          why=f'the embedder takes aligned faces of {size} x {size} px; '
                          'stretching would change the result',
                          do='align the faces first, or give --image-size')
