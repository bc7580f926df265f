"""Faces: found, turned into numbers, compared, and looked up in a gallery.

    model = vision.load('mobilefacenet')
    model.compare('a.jpg', 'b.jpg')              # cosine, same person or not, the threshold
    people = model.gallery('people/')            # people/NAME/*.jpg
    people.search('group.jpg')                   # one KnownFace for each face
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.common.core.verbs import Verbs
from vision.common.nn.images import as_image
from vision.faces.core.data.image_lists import read_identity_folders
from vision.faces.core.gallery.gallery import Gallery, load_gallery
from vision.faces.runtime.face_finder import FaceFinder, Faces
from vision.faces.runtime.recognition import (
    KnownFace,
    Recognition,
    as_aligned,
    largest_face,
    no_face,
)
from vision.zoo import ModelEntry, resolve

DETECTOR = 'yunet_widerface'
# Of MobileFaceNet's cosines (docs/results/mobilefacenet_threshold.json). Chosen on one half of
# LFW's pairs for the highest accuracy it is 0.30, on the other 0.27, and measured on the other
# half each 98.6 and 99.3 % are right; but there half a per cent of the strangers pass, and on
# other pictures (ORL) nearly two. So it is set higher, at 0.35. A gallery is asked about many
# people at once, and none of them must pass by chance: 0.4. Other embedders: give threshold=.
THRESHOLD, GALLERY_THRESHOLD = 0.35, 0.4
Image = str | os.PathLike | np.ndarray


@dataclass(frozen=True)
class FaceResults:
    """The faces of one picture, the surest first.

    Attributes:
        image_bgr: (H, W, 3) uint8, the picture itself.
        boxes_xyxy: (N, 4) float32 px; landmarks: (N, 5, 2) px, in the order left eye, right eye,
            nose, left and right mouth corner as they stand in the picture; scores: (N,).
    """

    image_bgr: np.ndarray
    boxes_xyxy: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def to_dicts(self) -> list[dict]:
        """A dict for each face: box (x1 y1 x2 y2), landmarks ((x, y) of five), score; px with one
        decimal."""
        return [dict(box=box.astype(float).round(1).tolist(), score=round(float(score), 4),
                     landmarks=points.astype(float).round(1).tolist())
                for box, points, score in zip(self.boxes_xyxy, self.landmarks, self.scores,
                                              strict=True)]

    def to_supervision(self):
        """``supervision.Detections`` of one class, with ``data['landmarks']``."""
        supervision = import_extra('supervision', extra='results', needed_for='to_supervision()')
        return supervision.Detections(
            xyxy=self.boxes_xyxy.reshape(-1, 4), confidence=self.scores,
            class_id=np.zeros(len(self), dtype=int),
            data=dict(class_name=np.full(len(self), 'face'), landmarks=self.landmarks))

    def to_pandas(self):
        """A row for each face: x1 y1 x2 y2 (px), score, and x and y of the five landmarks."""
        pandas = import_extra('pandas', extra='results', needed_for='to_pandas()')
        points = self.landmarks.reshape(len(self), 10)
        names = [f'{part}_{axis}' for part in ('left_eye', 'right_eye', 'nose', 'left_mouth',
                                               'right_mouth') for axis in 'xy']
        return pandas.DataFrame(
            np.concatenate([self.boxes_xyxy, self.scores[:, None], points], axis=1),
            columns=['x1', 'y1', 'x2', 'y2', 'score', *names])

    def draw(self) -> np.ndarray:
        """A copy of the picture (H, W, 3) uint8 BGR with boxes, scores and landmarks."""
        from vision.stream.io.face_overlay import draw_faces
        return draw_faces(self.image_bgr, self.to_dicts())


@dataclass(frozen=True)
class Comparison:
    """Two faces: the cosine of their embeddings, and whether it reaches the threshold."""

    cosine: float
    is_same: bool
    threshold: float


class FaceModel(Verbs):
    """Face detector and embedder; ``vision.load('mobilefacenet')`` makes one.

    Args:
        finder: faces of a picture.
        embedder: aligned faces (N, size, size, 3) uint8 BGR to rows (N, d) of length one; has
            ``size`` and ``identity``.
        threshold: least cosine of one person's two faces.

    Raises:
        VisionError: a threshold outside [-1, 1].
    """

    example = "model.embed('face.jpg'), .compare(a, b), .detect(image), .gallery('people/')"

    def __init__(self, finder: Callable[[np.ndarray], Faces],
                 embedder: Callable[..., np.ndarray], *,
                 threshold: float = THRESHOLD) -> None:
        if not -1 <= threshold <= 1:
            raise VisionError('VIS-CONFIG-1733', f'threshold={threshold}', where='threshold',
                              why='a cosine lies in [-1, 1]', do='leave it out, or choose one '
                              'with "vision faces verify" (cosine = 1 - squared L2 / 2)')
        self.finder, self.embedder, self.threshold = finder, embedder, threshold

    def detect(self, image: Image) -> FaceResults:
        """The faces of a picture: path, or (H, W, 3) uint8 BGR."""
        return detect_faces(self.finder, image)

    def embed(self, image: Image | Iterable[Image], *, aligned: bool = False) -> np.ndarray:
        """Embedding (d,) of the largest face of a picture, or (N, d) of N pictures; float32 rows
        of length one.

        Args:
            aligned: the pictures are aligned faces of ``embedder.size`` px already.

        Raises:
            VisionError: VIS-DATA-1106 a picture without a face, VIS-DATA-1731 a picture of
                another size with ``aligned``; both name it.
        """
        if isinstance(image, str | os.PathLike | np.ndarray) and np.ndim(image) != 4:
            return self.embedder([self.face(image, aligned=aligned)])[0]
        return self.embedder(self.face(one, aligned=aligned, position=position)
                             for position, one in enumerate(image))

    def face(self, image: Image, *, aligned: bool = False,
             position: int | None = None) -> np.ndarray:
        """Aligned crop (S, S, 3) of the largest face, as the embedder takes it."""
        pixels = as_image(image, position)
        where = os.fspath(image) if isinstance(image, str | os.PathLike) else \
            'the picture' if position is None else f'picture {position}'
        if aligned:
            return as_aligned(pixels, where, self.embedder.size)
        return largest_face(self.finder, pixels, where, self.embedder.size)

    def compare(self, a: Image, b: Image, *, aligned: bool = False) -> Comparison:
        """Are the largest faces of two pictures of one person?"""
        first, second = self.embed([a, b], aligned=aligned)
        cosine = float(first @ second)
        return Comparison(cosine, cosine >= self.threshold, self.threshold)

    def gallery(self, source: str | os.PathLike | None = None, *, aligned: bool = False,
                strict: bool = False, progress: Callable[[Sequence], Iterable] = iter
                ) -> FaceGallery:
        """People to look for.

        Args:
            source: a folder, SOURCE/NAME/*.jpg; or a file that ``FaceGallery.save`` or ``vision
                faces gallery`` wrote; None: nobody yet.
            aligned: the pictures are aligned faces.
            strict: stop at a picture without a face; otherwise it stands in ``left_out``.
            progress: wraps the paths of a folder, to show how far it is.

        Raises:
            VisionError: VIS-DATA-1101 no such folder or file, VIS-CONFIG-1102 a file of another
                embedder, VIS-DATA-1106 no face at all.
        """
        people = FaceGallery(self)
        if source is None:
            return people
        path = Path(source)
        if path.is_dir():
            people.add_folder(path, aligned=aligned, strict=strict, progress=progress)
        else:
            found = load_gallery(path)
            found.require(self.embedder.identity, str(path))
            people.rows = found
        return people


class FaceGallery:
    """Enrolled people of one ``FaceModel``; ``FaceModel.gallery`` makes it.

    A face is personal data: enrol people who agreed, and delete them with ``remove``. Kept are
    embeddings, names and file names, no pictures.

    Attributes:
        rows: the core's ``Gallery``, or None while nobody is enrolled.
        left_out: (file, reason) of pictures of a folder that gave no face.
    """

    def __init__(self, model: FaceModel) -> None:
        self.model, self.rows = model, None
        self.left_out: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Enrolled faces."""
        return 0 if self.rows is None else len(self.rows.names)

    @property
    def names(self) -> list[str]:
        """The people, in alphabetical order."""
        return [] if self.rows is None else sorted(set(self.rows.names.tolist()))

    def add(self, name: str, images: Image | Iterable[Image], *, aligned: bool = False) -> None:
        """Enrol a person with one picture or several; a file enrolled again takes its old row's
        place."""
        if isinstance(images, str | os.PathLike | np.ndarray) and np.ndim(images) != 4:
            images = [images]
        images = list(images)
        rows = self.model.embed(images, aligned=aligned)
        self._join(rows, [name] * len(images), [
            os.fspath(image) if isinstance(image, str | os.PathLike) else
            f'picture {len(self) + position}' for position, image in enumerate(images)])

    def add_folder(self, folder: str | os.PathLike, *, aligned: bool = False,
                   strict: bool = False, progress: Callable[[Sequence], Iterable] = iter) -> None:
        """Enrol FOLDER/NAME/*.jpg; see ``FaceModel.gallery``."""
        found = read_identity_folders(Path(folder))
        used: list[int] = []
        left = len(self.left_out)

        def faces():
            """One at a time: the crops of a large folder would fill the memory."""
            for row, path in enumerate(progress(found.paths)):
                try:
                    crop = self.model.face(found.root / path, aligned=aligned)
                except VisionError as error:
                    if strict:
                        raise
                    self.left_out.append((str(path), error.what))
                    continue
                used.append(row)
                yield crop

        rows = self.model.embedder(faces())
        if not used:
            raise no_face(f'any of {len(found.paths)} pictures of {folder}'
                          + ''.join(f'; first: {why}' for _, why in self.left_out[left:left + 1]))
        self._join(rows, [found.names[found.labels[row]] for row in used],
                   [found.paths[row] for row in used])

    def remove(self, name: str) -> None:
        """Delete a person; VIS-CONFIG-1105 when nobody has this name."""
        if self.rows is None:
            self.rows = _rows(np.zeros((0, 1), np.float32), [], [], '')
        rows = self.rows.without(name)
        self.rows = rows if len(rows.names) else None

    def search(self, image: Image, top: int = 1, *, threshold: float | None = None
               ) -> list[KnownFace]:
        """The faces of a picture, the surest detection first, and whose they are.

        Args:
            top: how many people ``KnownFace.best`` names.
            threshold: least cosine of a known face; None: ``GALLERY_THRESHOLD``, or the model's
                where that is higher.

        Raises:
            VisionError: nobody is enrolled, or the picture cannot be read.
        """
        if self.rows is None:
            raise VisionError('VIS-INPUT-1734', 'the gallery is empty', why='nobody is enrolled',
                              do="gallery.add('name', 'face.jpg')")
        recognise = Recognition(self.model.finder, self.model.embedder, self.rows, threshold=(
            max(GALLERY_THRESHOLD, self.model.threshold) if threshold is None else threshold))
        return recognise(as_image(image), top)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the gallery as one .npz file, whole or not at all.

        Raises:
            VisionError: nobody is enrolled.
        """
        if self.rows is None:
            raise VisionError('VIS-INPUT-1735', 'an empty gallery is not written',
                              where=os.fspath(path), do='enrol somebody first')
        self.rows.save(Path(path))
        return Path(path)

    def _join(self, embeddings: np.ndarray, names: list[str], sources: list[str]) -> None:
        new = _rows(embeddings, names, sources, self.model.embedder.identity)
        self.rows = new if self.rows is None else self.rows.joined(new)


def detect_faces(finder: Callable[[np.ndarray], Faces], image: Image) -> FaceResults:
    """The faces of a picture, without an embedder.

    Args:
        finder: faces of a picture (H, W, 3) uint8 BGR.
        image: a path or such a picture.
    """
    pixels = as_image(image)
    faces = finder(pixels)
    return FaceResults(pixels, faces.boxes_xyxy, faces.landmarks, faces.scores)


def _rows(embeddings: np.ndarray, names: list[str], sources: list[str], identity: str) -> Gallery:
    return Gallery(embeddings, np.array(names, dtype='U'), np.array(sources, dtype='U'), identity)


def open_faces(source: ModelEntry | Path, weights: str | os.PathLike | None = None,
               device: str = 'cpu', *, detector: str | os.PathLike | None = None,
               min_score: float = 0.7, threshold: float = THRESHOLD) -> FaceModel:
    """What ``vision.load`` calls for the task ``faces``.

    Args:
        source: a model of the zoo, a config of a ``FaceRecognizer``, or an .onnx file.
        weights: .onnx, .pt, .pth, .safetensors or zoo:NAME in place of the model's own.
        detector: YuNet as .onnx or zoo:NAME; None: the model's, or ``DETECTOR``.
        min_score: weaker faces are left out.
        threshold: least cosine of one person's two faces.

    Raises:
        VisionError: VIS-CONFIG-1736 a least score beyond (0, 1], VIS-INPUT-1737 a config without
            weights, and what reading detector and weights raises.
    """
    entry = source if isinstance(source, ModelEntry) else None
    if weights is None and entry:
        weights = f'zoo:{entry.weights}'
    config = entry.config if entry else source
    if weights is None and Path(source).suffix.lower() == '.onnx':
        config, weights = None, source
    if weights is None:
        raise VisionError('VIS-INPUT-1737', f'{source} says how the embedder is built, not what '
                          'it learned', where='weights', do="give weights='file.pth', or load "
                          "'mobilefacenet'")
    part = entry.parts.get('detector', DETECTOR) if entry else DETECTOR
    # The zoo's detector only when a face is looked for: aligned ones need none.
    finder = LateFinder(f'zoo:{part}', min_score) if detector is None else \
        open_finder(detector, min_score=min_score)
    return FaceModel(finder, open_embedder(config, weights, device), threshold=threshold)


class LateFinder:
    """A ``FaceFinder`` that is opened, and fetched, when it is first called."""

    def __init__(self, detector: str, min_score: float) -> None:
        check_min_score(min_score)
        self._detector, self._min_score = detector, min_score
        self._finder: FaceFinder | None = None

    def __call__(self, image_bgr: np.ndarray) -> Faces:
        """All faces of a picture (H, W, 3) uint8, in its own pixels."""
        if self._finder is None:
            self._finder = open_finder(self._detector, min_score=self._min_score)
        return self._finder(image_bgr)


def open_finder(detector: str | os.PathLike | None = None, *, min_score: float = 0.7
                ) -> FaceFinder:
    """YuNet of a file or zoo:NAME; None: ``DETECTOR``."""
    check_min_score(min_score)
    return FaceFinder(resolve(detector or f'zoo:{DETECTOR}'), min_score=min_score)


def check_min_score(min_score: float) -> None:
    """Refuse a least score of faces that is none.

    Raises:
        VisionError: it lies outside (0, 1].
    """
    if not 0 < min_score <= 1:
        raise VisionError('VIS-CONFIG-1736', f'min_score={min_score}', where='min_score',
                          why='the score of a face lies in (0, 1]', do='leave it out: 0.7')


def open_embedder(config: str | os.PathLike | None, weights: str | os.PathLike,
                  device: str = 'cpu') -> Callable[..., np.ndarray]:
    """``OnnxEmbedder`` of an .onnx file, ``TorchEmbedder`` of any other: aligned faces
    (N, size, size, 3) uint8 BGR to rows (N, d).

    The published MobileFaceNet is known by its tensors and needs no config, so no MMEngine.

    Raises:
        VisionError: VIS-CONFIG-1721, VIS-ENV-515, another device than it can run on; and what
            reading weights raises.
    """
    path = resolve(weights)
    if path.suffix.lower() == '.onnx':
        from vision.common.runtime.onnx_session import require_cpu
        from vision.faces.runtime.onnx_embedder import OnnxEmbedder
        require_cpu(device)
        return OnnxEmbedder(path)
    import_extra('torch', extra='faces', needed_for=f'the network in {path.name}')
    import_extra('safetensors', extra='faces', needed_for=f'the network in {path.name}')
    from vision.common.nn.checkpoint import load_checkpoint
    from vision.common.nn.devices import find_device
    from vision.faces.nn.backbones.embedder import TorchEmbedder
    from vision.faces.nn.backbones.published import is_published, published_embedder
    device = find_device(device)
    state = load_checkpoint(path)['state_dict']
    if is_published(state):
        return TorchEmbedder(published_embedder(state, str(path)).to(device))
    import_extra('mmengine', extra='train', needed_for=f'the config {config}')
    from vision.common.core.config_files import find_config
    from vision.faces.mm.loading import load_embedder
    found = find_config(os.fspath(config)) or Path(config)
    return TorchEmbedder(load_embedder(found, str(path), device=device))
