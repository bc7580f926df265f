"""Data sets of images with one class each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from vision.classify.core.folders import class_folders, list_image_folder, read_image_list
from vision.common.core.errors import VisionError
from vision.common.nn.images import BAD_IMAGE
from vision.registry import DATASETS

MAX_BROKEN = 20  # file names kept for the message; a set with more needs repair, not a list


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """``data_root/data_prefix/CLASS/IMAGE``; a sample is dict(img_path, gt_label).

    Args:
        data_prefix: the folder above the classes: ``'train'`` or ``dict(img_path='train')``.
        pipeline, indices, lazy_init, serialize_data: as in MMEngine. Its options about annotation
            files and filters do nothing here and are refused.
        test_mode: the images are for a figure: none may be left out.
        metainfo: ``dict(classes=(...))`` fixes the labels; default: all folders, sorted.
        broken: a file that cannot be decoded: 'error' stops and names it; 'skip' takes the next
            image in its place, counts and prints it (``num_broken``).

    Raises:
        VisionError: VIS-CONFIG-1211 an unknown ``broken``, or 'skip' in ``test_mode``;
            VIS-CONFIG-1811 an option that would do nothing, VIS-DATA-210 a broken image, and what
            ``core.folders`` raises.
    """

    METAINFO: dict = {}
    WITHOUT_EFFECT = ('ann_file', 'filter_cfg', 'max_refetch')  # of MMEngine's options

    def __init__(self, data_root: str | None = '', data_prefix: str | dict = '', *,
                 pipeline: Sequence = (), broken: str = 'error', test_mode: bool = False,
                 **kwargs) -> None:
        useless = [name for name in self.WITHOUT_EFFECT if kwargs.get(name)]
        if useless:
            raise VisionError('VIS-CONFIG-1811', f'{type(self).__name__} does nothing with '
                              f'{useless[0]}', where=f'{useless[0]}={kwargs[useless[0]]!r:.60}',
                              why='classes are folders, and every image in them is a sample',
                              do='leave it out; ImageNet1k reads a list of names and labels as '
                              'ann_file')
        if broken not in (('error', ) if test_mode else ('error', 'skip')):
            raise VisionError('VIS-CONFIG-1211', f'broken={broken!r} is not possible'
                              f'{" with test_mode" if test_mode else ""}',
                              where=type(self).__name__, why='skipping counts another image '
                              'twice: in training that does no harm, a figure would be wrong',
                              do="choose 'error' or, in training, 'skip'")
        self.broken, self.broken_paths, self.num_broken = broken, [], 0
        if isinstance(data_prefix, str):
            data_prefix = dict(img_path=data_prefix)
        super().__init__(data_root=data_root, data_prefix=data_prefix, pipeline=list(pipeline),
                         test_mode=test_mode, **kwargs)

    @property
    def folder(self) -> Path:
        """The folder above the classes."""
        return Path(self.data_prefix['img_path'])

    def load_data_list(self) -> list[dict]:
        """A dict(img_path, gt_label) for each image; classes that the config does not fix are the
        folders."""
        images = list_image_folder(self.folder, classes=self._metainfo.get('classes'))
        self._metainfo['classes'] = images.classes
        return self.samples(images.paths, images.labels)

    def samples(self, paths: Sequence[str], labels: np.ndarray) -> list[dict]:
        """dict(img_path, gt_label) for paths relative to ``folder`` and labels (N,)."""
        return [dict(img_path=str(self.folder / path), gt_label=int(label))
                for path, label in zip(paths, labels, strict=True)]

    def _join_prefix(self) -> None:
        """MMEngine's, without demanding an annotation file; keeps an empty prefix a string."""
        prefix = self.data_prefix.get('img_path', '')
        self.data_prefix = dict(img_path=str(Path(self.data_root or '') / prefix))
        if self.ann_file:
            self.ann_file = str(Path(self.data_root or '') / self.ann_file)

    def get_labels(self) -> np.ndarray:
        """(N,) int64."""
        return np.array([self.get_data_info(i)['gt_label'] for i in range(len(self))])

    def __getitem__(self, idx: int) -> dict:
        if not self._fully_initialized:
            self.full_init()
        for offset in range(len(self)):
            index = (int(idx) + offset) % len(self)
            try:
                return self.prepare_data(index)
            except VisionError as error:
                if error.code != BAD_IMAGE or self.broken == 'error':
                    raise
                self._count(error)
        raise VisionError('VIS-DATA-1213', f'no image of {len(self)} could be read',
                          where=str(self.folder), do='look at the first one')

    def _count(self, error: VisionError) -> None:
        if error.where in self.broken_paths:
            return
        self.num_broken += 1
        self.broken_paths = [*self.broken_paths, error.where][-MAX_BROKEN:]
        print_log(f'broken image {self.num_broken} is skipped: {error.what}',
                  logger='current', level=30)


@DATASETS.register_module()
class ImageNet1k(ImageFolder):
    """ImageNet-1k: ``train/WNID/*.JPEG``, and ``val/`` as such folders or flat with a list.

    Args:
        split: 'train' or 'val', the folder below ``data_root``.
        ann_file: for a flat folder: lines ``NAME LABEL`` (labels from 0 in the sorted order of the
            wnids), as datasets/imagenet/prepare.py writes it: 'val.txt'.
        data_prefix: another folder in place of that of ``split``.

    Raises:
        VisionError: VIS-CONFIG-1214, no such split; and what ``ImageFolder`` raises.
    """

    WITHOUT_EFFECT = ('filter_cfg', 'max_refetch')

    def __init__(self, data_root: str, split: str = 'train', *, ann_file: str = '',
                 data_prefix: str | dict = '', **kwargs) -> None:
        if split not in ('train', 'val'):
            raise VisionError('VIS-CONFIG-1214', f'ImageNet1k has no split {split!r}',
                              where='split', do="choose 'train' or 'val'")
        super().__init__(data_root, data_prefix or split, ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict]:
        """As ``ImageFolder``, or from the lines of ``ann_file``; labels are positions of the
        training folders."""
        if not self.ann_file:
            return super().load_data_list()
        classes = self._metainfo.get('classes')
        if classes is None:  # the labels of the list are positions of the training folders
            classes = tuple(class_folders(Path(self.data_root) / 'train'))
            self._metainfo['classes'] = classes
        names, labels = read_image_list(self.ann_file, num_classes=len(classes))
        return self.samples(names, labels)
