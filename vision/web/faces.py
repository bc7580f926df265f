"""The gallery of one visitor: numbers in memory, no files and no pictures."""

from __future__ import annotations

import numpy as np

from vision.web.limits import bad_field

MAX_FACES = 500  # of one visitor
MAX_NAME = 60  # characters


class VisitorGallery:
    """People whom one visitor enrolled; a gallery for each face model that was used."""

    def __init__(self) -> None:
        self._galleries: dict[int, object] = {}

    def of(self, model):
        """The ``FaceGallery`` of a ``vision.faces.api.FaceModel``, empty at first."""
        return self._galleries.setdefault(id(model), model.gallery())

    def enrol(self, model, name: str, image_bgr: np.ndarray) -> None:
        """Add the largest face of a picture (H, W, 3) uint8 BGR under a name.

        Raises:
            VisionError: VIS-INPUT-1775 no name, or a full gallery; VIS-DATA-1106 no face.
        """
        name = ' '.join((name or '').split())
        if not 0 < len(name) <= MAX_NAME:
            raise bad_field('name', name, f'1 to {MAX_NAME} characters')
        gallery = self.of(model)
        if len(gallery) >= MAX_FACES:
            raise bad_field('pictures', len(gallery) + 1, f'at most {MAX_FACES} of all people',
                            'delete the gallery first')
        gallery.add(name, image_bgr)

    def counts(self, model) -> dict[str, int]:
        """Name -> enrolled faces."""
        rows = self.of(model).rows
        names = [] if rows is None else rows.names.tolist()
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def clear(self) -> None:
        """Nobody is enrolled any more."""
        self._galleries.clear()
