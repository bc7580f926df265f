"""Data sets of labelled pictures, and of the pictures of a pair list."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from vision.common.core.errors import VisionError
from vision.common.nn import images
from vision.faces.core.data.glyphs import SPLITS, PreparedGlyphs, warp_matrix
from vision.faces.core.data.image_lists import (
    LabelledPaths,
    read_identity_folders,
    read_label_list,
    without_labels,
)
from vision.faces.core.data.insightface_bin import read_bin
from vision.faces.core.data.pairs import read_pairs
from vision.faces.core.data.recordio import FaceRecords
from vision.faces.runtime.face_finder import align_faces
from vision.registry import DATASETS, TRANSFORMS

# A picture that is left out, or half grey, would change the result.
_REFUSAL = dict(do='get the file again or take it off the list')
read_image = partial(images.read_image, **_REFUSAL)
decode_image = partial(images.decode_image, **_REFUSAL)
size_of_image = partial(images.size_of_image, **_REFUSAL)


class LabelledImages(Dataset):
    """Base of the room's data sets: labels in one array, pictures read one by one.

    An item begins as dict(img (H, W, 3) uint8 BGR, gt_label, sample_idx, is_gallery) and goes
    through ``pipeline``. Labels are held as an array, not as a list of dicts: millions of pictures
    cost eight bytes each, and workers share them.

    Args:
        pipeline: transforms; default: ``PackFaceInputs`` alone.
    """

    def __init__(self, labels: np.ndarray, pipeline: Sequence[dict] | None = None, *,
                 num_classes: int | None = None, **metainfo) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.num_classes = int(self.labels.max()) + 1 if num_classes is None else num_classes
        self._is_first = np.zeros(len(self.labels), dtype=bool)
        self._is_first[np.unique(self.labels, return_index=True)[1]] = True
        self.metainfo = dict(num_classes=self.num_classes, num_samples=len(self.labels),
                             **metainfo)
        self.pipeline = Compose([TRANSFORMS.build(step) for step in
                                 pipeline or [dict(type='PackFaceInputs')]])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> dict:
        position = int(position)
        return self.pipeline(dict(img=self.read(position), gt_label=int(self.labels[position]),
                                  sample_idx=position, is_gallery=self.is_gallery(position)))

    def read(self, position: int) -> np.ndarray:
        """Picture (H, W, C) uint8."""
        raise AssertionError('a data set reads its own pictures')

    def is_gallery(self, position: int) -> bool:
        """Enrolled in identification; here: the first picture of its identity, in any order."""
        return bool(self._is_first[position])


class FaceFiles(LabelledImages):
    """Pictures of a list; ``FaceFolder`` and ``FaceList`` are the forms for configs.

    Args:
        must_exist: look for all of them now; millions on a slow disk take their time.

    Raises:
        VisionError: VIS-DATA-1127, with ``must_exist`` pictures are not there.
    """

    def __init__(self, found: LabelledPaths, pipeline: Sequence[dict] | None = None, *,
                 must_exist: bool = False, **metainfo) -> None:
        super().__init__(found.labels, pipeline, num_classes=len(found.names),
                         classes=found.names, **metainfo)
        self.root, self.paths = found.root, np.array(found.paths)
        missing = [path for path in found.paths if not (self.root / path).is_file()] \
            if must_exist else []
        if missing:
            raise VisionError('VIS-DATA-1127', f'{len(missing)} of {len(found.paths)} pictures of '
                              f'the list are not there, first: {missing[0]}',
                              where=str(self.root), why='a result on a part of a list is not the '
                              'result of the list', do='check the folder; LFW names are '
                              'NAME/NAME_0001.jpg')

    def read(self, position: int) -> np.ndarray:
        """The picture (H, W, 3) uint8 BGR at a position of the list.

        Raises:
            VisionError: VIS-DATA-1075, it cannot be decoded.
        """
        return read_image(self.root / str(self.paths[position]))

    def size_of(self, position: int) -> tuple[int, int]:
        """(width, height) in px, without decoding the picture."""
        path = self.root / str(self.paths[position])
        return size_of_image(path.read_bytes(), str(path))


class TemplateFaces(FaceFiles):
    """Pictures that are aligned by their landmarks (N, 5, 2) px as they are read, to ``size``."""

    def __init__(self, found: LabelledPaths, landmarks: np.ndarray, size: int) -> None:
        super().__init__(found, must_exist=True)
        self.landmarks, self.size = landmarks, size

    def read(self, position: int) -> np.ndarray:
        """The face (size, size, 3) uint8 BGR at a position, aligned."""
        return align_faces(super().read(position), self.landmarks[position][None], self.size)[0]

    def size_of(self, position: int) -> tuple[int, int]:
        """(size, size), once the file has turned out to be a picture."""
        super().size_of(position)  # refuses what is no picture
        return self.size, self.size


@DATASETS.register_module()
class FaceFolder(FaceFiles):
    """``data_root/NAME/*.jpg``: a folder for each identity (LFW, ORL, Omniglot, crops)."""

    def __init__(self, data_root: str, pipeline: Sequence[dict] | None = None) -> None:
        super().__init__(read_identity_folders(Path(data_root)), pipeline)


@DATASETS.register_module()
class FaceList(FaceFiles):
    """Lines ``path label`` of ``ann_file``, paths relative to ``data_root``."""

    def __init__(self, ann_file: str, data_root: str,
                 pipeline: Sequence[dict] | None = None) -> None:
        super().__init__(read_label_list(Path(ann_file), Path(data_root)), pipeline)


@DATASETS.register_module()
class FacePairs(FaceFiles):
    """The distinct pictures of a pair list; ``VerificationMetric`` finds the pairs in metainfo.

    Args:
        pairs: a list in one of the forms of ``core.data.pairs``.
        data_root: folder of the pictures. All of them are looked for before anything is computed.
    """

    def __init__(self, pairs: str, data_root: str,
                 pipeline: Sequence[dict] | None = None) -> None:
        found = read_pairs(Path(pairs))
        super().__init__(without_labels(Path(data_root), found.paths), pipeline, must_exist=True,
                         pairs=found)


@DATASETS.register_module()
class FaceRecord(LabelledImages):
    """A RecordIO file ``path`` (.rec) with its index beside it."""

    def __init__(self, path: str, pipeline: Sequence[dict] | None = None, *,
                 index: str | None = None) -> None:
        self.records = FaceRecords(Path(path), Path(index) if index else None)
        super().__init__(self.records.labels(), pipeline, num_classes=self.records.num_classes)

    def read(self, position: int) -> np.ndarray:
        """The picture (H, W, 3) uint8 BGR at a position.

        Raises:
            VisionError: VIS-DATA-1075, it cannot be decoded; VIS-DATA-1068, the record is damaged.
        """
        content, _ = self.records.read(position)
        return decode_image(content, f'{self.records.reader.path}, '
                            f'record {self.records.keys[position]}')


@DATASETS.register_module()
class FaceBin(LabelledImages):
    """The pictures of an InsightFace ``.bin`` verification set."""

    def __init__(self, path: str, pipeline: Sequence[dict] | None = None) -> None:
        self.path, found = path, read_bin(Path(path))
        self.images = found.images
        super().__init__(np.zeros(len(found.images)), pipeline, pairs=found.pairs())

    def read(self, position: int) -> np.ndarray:
        """The picture (H, W, 3) uint8 BGR at a position.

        Raises:
            VisionError: VIS-DATA-1075, it cannot be decoded.
        """
        image = self.images[position]
        return image if isinstance(image, np.ndarray) else decode_image(
            image, f'{self.path}, image {position}')

    def size_of(self, position: int) -> tuple[int, int]:
        """(width, height) in px, without decoding the picture."""
        image = self.images[position]
        return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else \
            size_of_image(image, f'{self.path}, image {position}')


@DATASETS.register_module()
class GlyphDataset(LabelledImages):
    """Characters of a folder that ``datasets/glyphs/prepare.py`` made, (size, size, 1) uint8.

    Args:
        split: 'train': the training families; 'val': the held-out ones, of which the first style
            is the gallery (unseen characters have no gallery picture); 'known' and 'unseen': the
            part of 'val' with characters of the training, and the rest. 'train' and 'known' name
            their ``classes``, for a classifier.
        data_root: the prepared folder; it says classes, styles and size.
        every: keep each so-many-th character only: a quicker look while training.

    Raises:
        VisionError: VIS-CONFIG-1077 for another split, and what ``PreparedGlyphs`` raises.
    """

    def __init__(self, split: str = 'train', pipeline: Sequence[dict] | None = None, *,
                 data_root: str = 'data/glyphs', every: int = 1) -> None:
        if split not in SPLITS:
            raise VisionError('VIS-CONFIG-1077', f'split={split!r}', where='GlyphDataset',
                              do=f'use one of {", ".join(SPLITS)}')
        self.source = PreparedGlyphs(Path(data_root))
        samples = self.source.samples(split)
        samples = samples[samples[:, 0] % every == 0]
        self.styles, self.is_val = samples[:, 1], split != 'train'
        names = dict(classes=tuple(map(chr, self.source.characters[:self.source.num_classes]))) \
            if split in ('train', 'known') else {}
        super().__init__(samples[:, 0], pipeline, num_classes=self.source.num_classes,
                         characters=self.source.characters, **names)

    def read(self, position: int) -> np.ndarray:
        """The character (size, size, 1) uint8 at a position."""
        return self.source(int(self.labels[position]), int(self.styles[position]))[:, :, None]

    def is_gallery(self, position: int) -> bool:
        """Whether the picture is of the first held-out style and of a character that
        training saw."""
        is_first = self.styles[position] == self.source.num_train_styles
        return bool(self.is_val and is_first and self.labels[position] < self.num_classes)


@TRANSFORMS.register_module()
class GlyphWarp:
    """Mild affine changes of a character, about its middle; see ``warp_matrix`` for the units."""

    def __init__(self, *, degrees: float = 8.0, scale: float = 0.1, shear: float = 0.1,
                 shift: float = 2.0) -> None:
        self.ranges = dict(degrees=degrees, scale=scale, shear=shear, shift=shift)

    def __call__(self, results: dict) -> dict:
        image = results['img']
        # NumPy's global state is what the runner seeds for each sample.
        rng = np.random.default_rng(np.random.randint(1 << 31))
        matrix = warp_matrix(rng, image.shape[0], **self.ranges)
        warped = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
        results['img'] = warped if warped.ndim == 3 else warped[:, :, None]
        return results


@TRANSFORMS.register_module()
class PackFaceInputs:
    """Picture to tensor (C, H, W) uint8, labels to a data sample."""

    def __call__(self, results: dict) -> dict:
        image = results['img'] if results['img'].ndim == 3 else results['img'][:, :, None]
        sample = BaseDataElement(gt_label=torch.tensor([results['gt_label']]))
        sample.set_metainfo({key: results[key] for key in ('sample_idx', 'is_gallery')})
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(planes), data_samples=sample)


@TRANSFORMS.register_module()
class RandomMirror:
    """Left and right exchanged in half of the pictures; for faces, not for characters."""

    def __call__(self, results: dict) -> dict:
        if np.random.random() < 0.5:
            results['img'] = np.ascontiguousarray(results['img'][:, ::-1])
        return results


@TRANSFORMS.register_module()
class ResizeSquare:
    """Picture to ``size`` x ``size`` px; proportions are not kept."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, results: dict) -> dict:
        smaller = results['img'].shape[0] > self.size
        results['img'] = cv2.resize(results['img'], (self.size, self.size), interpolation=(
            cv2.INTER_AREA if smaller else cv2.INTER_LINEAR))
        return results
