"""The gallery of one visitor, without a page. The face model finds yellow squares and takes their
shade for an embedding; the real one is tried in ``test_browser.py``."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.api import FaceModel
from vision.faces.runtime.face_finder import Faces
from vision.web import faces
from vision.web.faces import VisitorGallery
from vision.web.limits import Limits
from vision.web.models import Models
from vision.web.pieces import matches_html
from vision.web.visitors import Visitors


class SquareFinder:
    """Bright squares of 40 px on black: those whose corner is not black."""

    def __call__(self, image_bgr):
        corners = [(x, y) for y in (20, 100) for x in (20, 100) if image_bgr[y + 20, x + 20].any()]
        boxes = np.array([(x, y, x + 40, y + 40) for x, y in corners], np.float32).reshape(-1, 4)
        points = np.array([[(12, 15), (28, 15), (20, 23), (13, 31), (27, 31)]], np.float32)
        return Faces(boxes, points + boxes[:, None, :2], np.full(len(boxes), 0.9, np.float32))


class ColourEmbedder:
    size, identity = 112, 'colours'

    def __call__(self, crops):
        rows = np.array([crop[40:72, 40:72].reshape(-1, 3).mean(axis=0) for crop in crops])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def picture(*colours) -> np.ndarray:
    image = np.zeros((160, 160, 3), np.uint8)
    for (x, y), colour in zip(((20, 20), (100, 20)), colours, strict=False):
        image[y:y + 40, x:x + 40] = colour
    return image


RED, BLUE, PINK = (0, 0, 255), (255, 0, 0), (60, 60, 255)


@pytest.fixture
def model() -> FaceModel:
    return FaceModel(SquareFinder(), ColourEmbedder())


def test_people_are_enrolled_and_found(model):
    gallery = VisitorGallery()
    gallery.enrol(model, '  Ada   L. ', picture(RED))
    gallery.enrol(model, 'Bob', picture(BLUE))
    gallery.enrol(model, 'Bob', picture(BLUE))
    assert gallery.counts(model) == {'Ada L.': 1, 'Bob': 2}
    first, second = gallery.of(model).search(picture(PINK, BLUE), threshold=0.8)
    assert (first.name, second.name) == ('Ada L.', 'Bob') and first.cosine < second.cosine
    page = matches_html(picture(PINK, BLUE), [first, second], 0.8)
    assert 'Ada L.' in page and 'data:image/jpeg;base64' in page


def test_names_are_never_markup(model):
    gallery = VisitorGallery()
    gallery.enrol(model, '<script>alert(1)</script>', picture(RED))
    found = gallery.of(model).search(picture(RED))
    assert '<script' not in matches_html(picture(RED), found, 0.4)


@pytest.mark.parametrize('name', ['', '  ', None, 'x' * 61])
def test_a_name_is_needed(model, name):
    with pytest.raises(VisionError, match='name'):
        VisitorGallery().enrol(model, name, picture(RED))


def test_a_picture_without_a_face_is_told(model):
    gallery = VisitorGallery()
    with pytest.raises(VisionError, match='no face') as caught:
        gallery.enrol(model, 'Ada', picture())
    assert caught.value.code == 'VIS-DATA-1106' and not gallery.counts(model)


def test_a_gallery_has_an_end(model, monkeypatch):
    monkeypatch.setattr(faces, 'MAX_FACES', 2)
    gallery = VisitorGallery()
    for _ in range(2):
        gallery.enrol(model, 'Ada', picture(RED))
    with pytest.raises(VisionError, match='at most 2'):
        gallery.enrol(model, 'Ada', picture(RED))


@pytest.mark.fault('S38')
def test_a_gallery_is_of_one_visitor_and_goes_with_the_page(model, tmp_path):
    visitors = Visitors(tmp_path, Limits())
    ada, bob = visitors.of('a', 'page-a'), visitors.of('b', 'page-b')
    ada.faces.enrol(model, 'Ada', picture(RED))
    assert not bob.faces.counts(model) and list(tmp_path.iterdir()) == []  # nothing on the disk
    visitors.leave('page-a')
    assert not ada.faces.counts(model) and not visitors.of('a', 'page-c').faces.counts(model)


def test_what_the_package_brings_is_offered():
    models = Models()
    assert 'lattice_yolox-nano' in models.names('video')
    assert 'person' in models.classes('lattice_yolox-nano')
    with pytest.raises(VisionError, match='nobody'):
        models.get('nobody', 'faces')
