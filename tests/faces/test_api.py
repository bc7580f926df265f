"""FaceModel on a network with known answers, and on real faces."""

import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.api import FaceModel
from vision.faces.core.gallery.alignment import TEMPLATE_112
from vision.faces.runtime.face_finder import Faces


class Finder:
    """Faces lie aligned at ``places``, the left top corners; the second is twice as large."""

    def __init__(self, *places):
        self.places = places

    def __call__(self, image):
        corners = np.array(self.places, np.float32).reshape(-1, 2)
        scales = np.arange(1, len(corners) + 1, dtype=np.float32)[:, None]
        return Faces(np.concatenate([corners, corners + 112 * scales], axis=1),
                     (corners[:, None] + scales[:, :, None] * TEMPLATE_112).astype(np.float32),
                     np.linspace(0.9, 0.8, len(corners)))


class MeanColour:
    """Embedding: the face's mean colour, of length one."""

    size, identity = 112, 'mean colour'

    def __call__(self, faces):
        rows = [face.reshape(-1, 3).mean(axis=0) for face in faces]
        if not rows:
            return np.zeros((0, 0), np.float32)
        rows = np.array(rows, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


RED, GREEN = (0, 0, 200), (0, 200, 0)


def picture(*colours, shape=(240, 520, 3)):
    """Faces of these colours where ``Finder((0, 0), (200, 0))`` finds them."""
    image = np.zeros(shape, np.uint8)
    for place, scale, colour in zip((0, 200), (1, 2), colours, strict=False):
        image[:112 * scale, place:place + 112 * scale] = colour
    return image


@pytest.fixture
def model():
    return FaceModel(Finder((0, 0), (200, 0)), MeanColour(), threshold=0.9)


def test_the_largest_face_counts(model):
    assert model.embed(picture(RED, GREEN)) == pytest.approx([0, 1, 0], abs=0.02)
    assert model.embed([picture(RED, GREEN), picture(GREEN, RED)]).shape == (2, 3)
    assert model.compare(picture(RED, GREEN), picture(RED, GREEN)).is_same
    other = model.compare(picture(RED, GREEN), picture(GREEN, RED))
    assert not other.is_same and other.cosine == pytest.approx(0, abs=0.02)
    found = model.detect(picture(RED, GREEN))
    assert len(found) == 2 and found.to_dicts()[0]['box'] == [0, 0, 112, 112]
    assert found.draw().shape == found.image_bgr.shape


def test_people_of_a_gallery(model, tmp_path):
    for name, colour in (('ruby', RED), ('fern', GREEN)):
        (tmp_path / 'people' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'people' / name / '1.png'), picture((9, 9, 9), colour))
    (tmp_path / 'people' / 'fern' / '2.png').write_bytes(b'torn')
    people = model.gallery(tmp_path / 'people')
    assert people.names == ['fern', 'ruby'] and len(people) == 2
    assert [file for file, _ in people.left_out] == ['fern/2.png']
    left, right = people.search(picture((200, 200, 200), RED), top=2)
    assert left.name == 'unknown' and right.name == 'ruby'
    assert [name for name, _ in right.best] == ['ruby', 'fern']
    people.add('gray', picture((9, 9, 9), (100, 100, 100)))
    people.remove('fern')
    again = model.gallery(people.save(tmp_path / 'g.npz'))
    assert again.names == ['gray', 'ruby']
    assert [face.name for face in again.search(picture((200, 200, 200), RED))] == ['gray', 'ruby']
    other = MeanColour()
    other.identity = 'another'
    with pytest.raises(VisionError, match='VIS-CONFIG-1102'):
        FaceModel(Finder((0, 0)), other).gallery(tmp_path / 'g.npz')


def test_what_is_refused(model, tmp_path):
    blind = FaceModel(Finder(), MeanColour())
    with pytest.raises(VisionError, match='VIS-DATA-1106: no face in picture 0'):
        blind.embed([picture(RED)])
    with pytest.raises(VisionError, match='VIS-DATA-1731: the picture is 520 x 240'):
        model.embed(picture(RED, GREEN), aligned=True)
    with pytest.raises(VisionError, match='VIS-DATA-210'):
        model.embed(tmp_path / 'none.jpg')
    with pytest.raises(VisionError, match='VIS-CONFIG-1733'):
        FaceModel(Finder(), MeanColour(), threshold=2)
    empty = model.gallery()
    with pytest.raises(VisionError, match='VIS-INPUT-1734'):
        empty.search(picture(RED, GREEN))
    with pytest.raises(VisionError, match='VIS-INPUT-1735'):
        empty.save(tmp_path / 'g.npz')
    with pytest.raises(VisionError, match='VIS-CONFIG-1105'):
        empty.remove('nobody')
    with pytest.raises(VisionError, match='VIS-INPUT-1712'):
        model.video('clip.mp4')


def test_the_published_weights_need_no_config(shared_data, monkeypatch, tmp_path):
    """Their tensors tell what they are; the config's embedder is the judge."""
    torch = pytest.importorskip('torch')
    import vision
    from vision.faces.core.data.image_lists import read_identity_folders
    from vision.faces.mm.loading import load_embedder
    monkeypatch.setenv('VISION_ZOO_MIRROR', str(shared_data / 'weights'))
    monkeypatch.setenv('VISION_ZOO_CACHE', str(tmp_path))
    model = vision.load('mobilefacenet')
    config = vision.loading.find_config('mobilefacenet_ms1m')
    judge = load_embedder(config, 'zoo:mobilefacenet_ms1m')
    crops = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = judge(torch.from_numpy(crops).permute(0, 3, 1, 2).float()).numpy()
    assert np.array_equal(model.embed(crops, aligned=True), expected)
    orl = shared_data / 'orl-faces'
    found = read_identity_folders(orl)
    firsts = [orl / path for path in found.paths][:30:5]  # two of each of three people
    rows = model.embed(firsts)
    cosines = rows @ rows.T
    same = np.arange(6)[:, None] // 2 == np.arange(6) // 2
    assert cosines[same].min() > model.threshold > cosines[~same].max()


def test_an_exported_embedder_gives_the_same_rows(tmp_path):
    pytest.importorskip('onnx')
    torch = pytest.importorskip('torch')
    from vision.faces.nn.backbones.embedder import Embedder, TorchEmbedder
    from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk
    from vision.faces.nn.export import export_embedder
    from vision.faces.runtime.onnx_embedder import OnnxEmbedder
    torch.manual_seed(0)
    module = Embedder(MobileFaceNetTrunk(16, image_size=32), mean=[100.0], std=[50.0]).eval()
    export_embedder(module, tmp_path / 'e.onnx', image_size=32)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours = OnnxEmbedder(tmp_path / 'e.onnx')
    assert ours.size == 32
    assert ours(crops) == pytest.approx(TorchEmbedder(module, size=32)(crops), abs=1e-4)
    with pytest.raises(VisionError, match='VIS-DATA-1082'):
        ours([np.zeros((40, 32, 3), np.uint8)])
    (tmp_path / 'x.onnx').write_bytes(b'x')
    with pytest.raises(VisionError, match='VIS-CKPT-1730'):
        OnnxEmbedder(tmp_path / 'x.onnx')
