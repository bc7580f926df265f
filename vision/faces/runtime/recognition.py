"""Who is in a picture: faces found, aligned, embedded and looked up in a gallery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vision.common.core.boxes import box_areas
from vision.common.core.errors import VisionError
from vision.faces.core.evaluate.identification import Search, exact_search
from vision.faces.core.gallery.gallery import UNKNOWN, Gallery
from vision.faces.runtime.face_finder import FaceFinder, align_faces

SIDE = 112  # px of an aligned face


@dataclass(frozen=True)
class KnownFace:
    """A face of a picture and whose it is.

    Attributes:
        name: of the best person; ``UNKNOWN`` below the threshold.
        cosine: of the best enrolled picture.
        box_xyxy: (4,) px; landmarks: (5, 2) px; score: of the detection.
        best: (name, cosine) of the nearest people, best first, whatever the threshold.
    """

    name: str
    cosine: float
    box_xyxy: np.ndarray
    landmarks: np.ndarray
    score: float
    best: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict:
        """Numbers as the commands write them, px with one decimal."""
        return dict(name=self.name, cosine=round(self.cosine, 4), score=round(self.score, 4),
                    box=self.box_xyxy.astype(float).round(1).tolist(),
                    landmarks=self.landmarks.astype(float).round(1).tolist())


class Recognition:
    """Pictures to known faces.

    Args:
        finder: of faces.
        embedder: (N, S, S, 3) crops to rows, with its ``identity``.
        gallery: of the same embedder.
        threshold: least cosine of a known face.
        search: of the gallery's rows; None: all are compared.

    Raises:
        VisionError: VIS-CONFIG-1102, the gallery is of another embedder.
    """

    def __init__(self, finder: FaceFinder, embedder: Callable[..., np.ndarray], gallery: Gallery,
                 *, threshold: float = 0.4, search: Search | None = None) -> None:
        gallery.require(embedder.identity, 'gallery')
        self.finder, self.embedder, self.gallery = finder, embedder, gallery
        self.threshold = threshold
        self._search = search or self._exact

    def __call__(self, image_bgr: np.ndarray, top: int = 1) -> list[KnownFace]:
        """All faces of a picture (H, W, 3) uint8, the surest detection first."""
        faces = self.finder(image_bgr)
        if not len(faces):
            return []
        rows = self.embedder(align_faces(image_bgr, faces.landmarks, self.embedder.size))
        found = self.people(rows, top)
        return [KnownFace(best[0][0] if best[0][1] >= self.threshold else UNKNOWN, best[0][1],
                          box, points, float(score), best)
                for best, box, points, score in zip(found, faces.boxes_xyxy, faces.landmarks,
                                                    faces.scores, strict=True)]

    def people(self, rows: np.ndarray, top: int = 1) -> list[tuple[tuple[str, float], ...]]:
        """(name, cosine) of the ``top`` nearest people of each row, each person once."""
        depth = 1 if top == 1 else len(self.gallery.names)  # a person may have many pictures
        scores, entries = self._search(rows, depth)
        found = []
        for row_scores, row_entries in zip(scores, entries, strict=True):
            best: dict[str, float] = {}
            for score, entry in zip(row_scores, row_entries, strict=True):
                if entry >= 0:
                    best.setdefault(str(self.gallery.names[entry]), float(score))
            found.append(tuple(best.items())[:top])
        return found

    def _exact(self, rows: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        return exact_search(self.gallery.embeddings, rows, depth)


def largest_face(finder: FaceFinder, image_bgr: np.ndarray, where: str,
                 size: int = SIDE) -> np.ndarray:
    """Aligned crop (size, size, 3) of the largest face; VIS-DATA-1106 where there is none."""
    faces = finder(image_bgr)
    if not len(faces):
        raise no_face(where)
    best = int(box_areas(faces.boxes_xyxy).argmax())
    return align_faces(image_bgr, faces.landmarks[best:best + 1], size)[0]


def as_aligned(image_bgr: np.ndarray, where: str, size: int = SIDE) -> np.ndarray:
    """The picture (size, size, 3) uint8 BGR itself, which must be an aligned face.

    Raises:
        VisionError: it is of another size; ``where`` names it.
    """
    if image_bgr.shape[:2] != (size, size):
        raise VisionError('VIS-DATA-1731', f'{where} is {image_bgr.shape[1]} x '
                          f'{image_bgr.shape[0]} px', why=f'an aligned face has {size} x {size} '
                          'px', do='leave "aligned" out: then the face is looked for')
    return image_bgr


def no_face(where: str) -> VisionError:
    """The error, not raised, of a picture in which no face was found.

    Returns:
        VisionError: with ``where`` in its text.
    """
    return VisionError('VIS-DATA-1106', f'no face in {where}', why='a person needs a picture '
                       'with a face that the detector finds', do='bring another picture, or '
                       'lower the least score of a face')
