"""The gallery of one visitor: faces enrolled, searched and compared; numbers in memory, no files."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vision.common.core.boxes import box_areas
from vision.web.limits import bad_field

MAX_FACES = 500  # of one visitor's gallery
MAX_NAME = 60


@dataclass(frozen=True)
class Match:
    """One face of a picture. Args: box_xyxy, px; name, the nearest of the gallery; cosine to it;
    is_known, that this is above the threshold."""

    box_xyxy: tuple[float, float, float, float]
    name: str
    cosine: float
    is_known: bool


@dataclass
class FacesOfVisitor:
    """Names and unit rows (N, d) of one visitor; nothing of it is written anywhere."""

    names: list[str] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)

    def enrol(self, model, name: str, image_bgr: np.ndarray) -> None:
        """Add the largest face of a picture under a name.

        Raises:
            VisionError: VIS-INPUT-1775 no name, or a full gallery; and what ``embed`` raises
                when there is no face.
        """
        name = ' '.join(name.split())
        if not 0 < len(name) <= MAX_NAME:
            raise bad_field('name', name, f'1 to {MAX_NAME} characters')
        if len(self.names) >= MAX_FACES:
            raise bad_field('pictures', name, f'at most {MAX_FACES} of all people together',
                            'delete the gallery first')
        row = model.embed(image_bgr)
        self.names.append(name)
        self.rows.append(row)

    def search(self, model, image_bgr: np.ndarray, threshold: float) -> list[Match]:
        """Every face of a picture with the nearest name, largest face first."""
        found = model.detect(image_bgr)
        order = np.argsort(-box_areas(found.boxes_xyxy), kind='stable')
        return [self._nearest(box, row, threshold) for box, row in zip(
            found.boxes_xyxy[order], embed_all(model, image_bgr, found.landmarks[order]),
            strict=True)]

    def counts(self) -> dict[str, int]:
        """Name -> faces of it."""
        return {name: self.names.count(name) for name in dict.fromkeys(self.names)}

    def clear(self) -> None:
        self.names.clear()
        self.rows.clear()

    def _nearest(self, box: np.ndarray, row: np.ndarray, threshold: float) -> Match:
        corners = tuple(float(value) for value in box)
        if not self.rows:
            return Match(corners, '', 0.0, False)
        cosines = np.stack(self.rows) @ row
        best = int(cosines.argmax())
        return Match(corners, self.names[best], float(cosines[best]),
                     bool(cosines[best] >= threshold))
