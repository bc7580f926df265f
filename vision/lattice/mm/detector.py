"""The Scale-Time Lattice as a model of MMEngine: trained on videos, run frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from vision.common.core.config_values import require_types
from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import class_names
from vision.lattice.core.class_names import LEFT_OUT
from vision.lattice.core.engine import LatticeEngine
from vision.lattice.core.interval import NodeFiller
from vision.lattice.core.rescoring import rescore_tubes
from vision.lattice.core.structures import FrameResult
from vision.lattice.mm.grey import GREY_LONG_SIDE
from vision.lattice.mm.networks import TorchNetworks
from vision.lattice.nn.losses import MovementSample, lattice_losses
from vision.lattice.nn.propagation import PropagationNet
from vision.lattice.nn.refinement import RefinementNet
from vision.lattice.runtime.detectors import OnnxDetector
from vision.lattice.runtime.methods import build_filler, build_policy, require_method
from vision.registry import MODELS

METHODS = ('paper', 'flow', 'linear')
RESCORINGS = (None, 'average')
NUM_NAMES = 4  # class names printed in a warning; all of them would fill the screen

MODELS.register_module(module=OnnxDetector)


@MODELS.register_module()
class LatticeDetector(BaseModel):
    """Any frozen detector on keyframes, and its boxes on the frames between.

    With ``method='paper'`` these come about as in the Scale-Time Lattice (arXiv:1804.05472):
    ``loss`` trains the propagation and refinement networks and never touches the detector, which
    is not even built until the first prediction. ``predict`` takes the frames of whole videos in
    order and gives the samples of the frames that are finished by then.

    Args:
        detector: config of a model with ``detect(image_bgr) -> FrameBoxes`` and ``classes``:
            ``MMDetDetector``, or ``OnnxDetector``, which runs in onnxruntime.
        method: ``paper``; ``flow``: boxes go with points of sparse flow; ``linear``: straight
            lines. The last two have nothing to train and no weights: ``propagation`` and
            ``refinement`` are refused, and what is said of stages and networks plays no part.
        propagation, refinement: arguments of ``PropagationNet`` and ``RefinementNet``.
            ``refinement=dict(num_classes=C)`` lets refinement judge the class, too; the classes
            are then the detector's, in its order; weights that name others are refused.
        use_refinement: False leaves propagated boxes uncorrected when testing.
        keyframes: dict(type=class of ``vision.lattice.core.keyframes``, its arguments).
        num_stages, merge, min_score: as in ``NodeFiller``.
        rescoring: None, or 'average', which holds the boxes of a video until its last frame.
        refine_stages, refine_step, use_confidence: as in ``TorchNetworks``.
        grey_long_side: px of the grey frames on which motion is measured.

    Attributes:
        runtime: ``onnxruntime`` or ``torch``, whichever the detector runs in.
        checkpoint_optional_prefixes: the detector's weights come from its own config; a
            checkpoint of this model need not hold them.
        checkpoint_unused_prefixes: what a checkpoint may hold and this model leaves aside: the
            classes of refinement where it is not to classify.
        weights_classes: class names that the weights loaded last were trained on; None when
            nothing was loaded, or a file that does not tell.

    Raises:
        VisionError: VIS-CONFIG-701, another ``rescoring``; VIS-CONFIG-711, networks for a method
            that has none; and what ``build_policy`` refuses of ``keyframes``.
    """

    checkpoint_optional_prefixes = ('detector.',)

    def __init__(self, detector: dict, *, method: str = 'paper',
                 propagation: dict | None = None, refinement: dict | None = None,
                 use_refinement: bool = True,
                 keyframes: dict | None = None, num_stages: int = 2, merge: str = 'median',
                 min_score: float = 0.05, rescoring: str | None = None,
                 refine_stages: Sequence[int] | None = None, refine_step: float = 1.0,
                 use_confidence: bool = False,
                 grey_long_side: int = GREY_LONG_SIDE,
                 data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        if rescoring not in RESCORINGS:
            raise VisionError('VIS-CONFIG-701', f'rescoring={rescoring!r} is not known',
                              where='LatticeDetector', why=f'it is one of {RESCORINGS}',
                              do="use None or 'average'")
        self.detector_config = detector
        self.method = require_method(method, METHODS, where='LatticeDetector')
        self.propagation = self.refinement = None
        if method == 'paper':
            for name, cls, options in (('propagation', PropagationNet, propagation),
                                       ('refinement', RefinementNet, refinement)):
                require_types(cls, options or {}, f'model.{name}')
            self.propagation = PropagationNet(**(propagation or {}))
            self.refinement = RefinementNet(**(refinement or {}))
        elif propagation is not None or refinement is not None:
            raise VisionError('VIS-CONFIG-711', f'networks for method={method!r}',
                              where='LatticeDetector', why='this method has none',
                              do="leave propagation and refinement out, or use method='paper'")
        self.checkpoint_unused_prefixes = \
            ('refinement.classes.',) if self.refinement and not self.refinement.num_classes else ()
        self.use_refinement, self.rescoring = use_refinement, rescoring
        self.node_options = dict(num_stages=num_stages, merge=merge, min_score=min_score)
        self.keyframes = dict(keyframes or dict(type='UniformKeyframes', gap_frames=8))
        self.network_options = dict(
            refine_stages=None if refine_stages is None else tuple(refine_stages),
            step=refine_step, use_confidence=use_confidence, grey_long_side=grey_long_side)
        self._detector = []  # in a list: no submodule, so neither trained, saved nor distributed
        self._session: _Session | None = None
        self.weights_classes: tuple[str, ...] | None = None
        self._nameless_weights = ''  # a file that does not tell, until the log says so
        self._training_classes: tuple[str, ...] | None = None
        self._data_classes: tuple[str, ...] = ()  # of the data set that is tested on
        # These refuse a bad config before training, not after it.
        build_policy(self.keyframes)
        NodeFiller(None, **self.node_options)

    @property
    def detector(self):
        """The frozen detector, built at its first use and kept on this model's device."""
        if not self._detector:
            # Built late: by then another library's scope may be the process's default.
            with DefaultScope.overwrite_default_scope('vision'):
                self._detector.append(MODELS.build(self.detector_config))
        detector = self._detector[0]
        return detector.to(self.device) if isinstance(detector, torch.nn.Module) else detector

    @property
    def device(self) -> torch.device:
        """Where inputs and networks are."""
        return self.data_preprocessor.device

    @property
    def runtime(self) -> str:
        """What the detector runs in: 'onnxruntime' or 'torch'."""
        return 'onnxruntime' if self.detector_config['type'] == 'OnnxDetector' else 'torch'

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the detector's classes, in label order; builds the detector."""
        return self.detector.classes

    def build_networks(self) -> TorchNetworks:
        """The networks with the detector, as ``NodeFiller`` asks them; precision as autocast has
        it now.

        Raises:
            VisionError: a method without networks; refinement that knows other classes than the
                detector.
        """
        self._require_networks()
        precision = torch.float32
        if torch.is_autocast_enabled(self.device.type):
            precision = torch.get_autocast_dtype(self.device.type)
        refinement = self.refinement if self.use_refinement else None
        if refinement and refinement.num_classes:
            self._require_detectors_classes(refinement.num_classes)
        return TorchNetworks(self.detector, self.propagation, refinement, precision=precision,
                             **self.network_options)

    def _require_detectors_classes(self, num_classes: int) -> None:
        advice = 'refinement=dict(num_classes=0) leaves the classes to the detector'
        own = tuple(self.classes)
        if num_classes != len(own):
            raise VisionError(
                'VIS-CONFIG-705', f'refinement knows {num_classes} classes, the detector '
                f'{len(own)}', where='model.refinement.num_classes',
                why='refinement judges the classes of the detector, in its order', do=advice)
        if self.weights_classes not in (None, own):
            row = next(i for i, pair in enumerate(zip(own, self.weights_classes, strict=True))
                       if pair[0] != pair[1])
            raise VisionError(
                'VIS-CKPT-706', f'refinement was trained on other classes: class {row} is '
                f'{self.weights_classes[row]!r} in its weights, {own[row]!r} in the detector',
                where='model.refinement.num_classes', do=advice,
                why='refinement judges the classes of the detector, in its order')
        if self._nameless_weights:
            print_log(f'{self._nameless_weights} does not say which classes its refinement was '
                      f"trained on; the detector's are taken: {', '.join(own[:NUM_NAMES])}, ... "
                      f'If they are others: {advice}', logger='current', level=logging.WARNING)
            self._nameless_weights = ''

    def take_checkpoint(self, content: dict, where: str) -> None:
        """Called with a checkpoint whose tensors were just loaded: keep its class names."""
        self.weights_classes = class_names(content)
        self._nameless_weights = '' if self.weights_classes else where

    def check_dataset(self, metainfo: dict, where: str) -> None:
        """Called with a data set before the first step. Of one that is tested on the class names
        are kept: predictions get its labels, by name, whatever the detector's order is.

        Raises:
            VisionError: VIS-CONFIG-710, refinement is to learn another number of classes;
                VIS-CONFIG-707, a method without networks.
        """
        if not where.startswith('train'):
            self._data_classes = tuple(metainfo.get('classes', ()))
            return
        self._require_networks()
        classes, known = tuple(metainfo.get('classes', ())), self.refinement.num_classes
        self._training_classes = classes or None
        if known and len(classes) != known:
            raise VisionError(
                'VIS-CONFIG-710', f'refinement knows {known} classes, the data set '
                f'{len(classes)}', where=where, why='refinement learns to tell them apart',
                do=f'refinement=dict(num_classes={len(classes)}), or 0 to leave the classes to '
                'the detector')

    def build_engine(self, **overrides) -> LatticeEngine:
        """A new engine with the options of this config.

        Args:
            overrides: ``policy`` (as ``keyframes`` of ``runtime.methods.build_engine``),
                ``method``, for the paper's form ``networks``, num_stages, merge and min_score,
                and any option of ``LatticeEngine`` (mode, cut_detector, executor).
        """
        policy = build_policy(overrides.pop('policy', self.keyframes))
        method = require_method(overrides.pop('method', self.method), METHODS,
                                where='LatticeDetector')
        self.eval()
        if method != 'paper':
            return LatticeEngine(self.detector, build_filler(method), policy, **overrides)
        networks = overrides.pop('networks', None) or self.build_networks()
        options = {name: overrides.pop(name, value) for name, value in self.node_options.items()}
        return LatticeEngine(networks, NodeFiller(networks, **options), policy, **overrides)

    def _require_networks(self) -> None:
        if self.propagation is None:
            raise VisionError('VIS-CONFIG-707', f'method={self.method!r} has no networks',
                              where='LatticeDetector', why="only those of method='paper' are "
                              'trained', do='test with it, or use a config of that method')

    def forward(self, inputs, data_samples: list | None = None, mode: str = 'tensor'):
        """``loss``: inputs of ``LatticeTrainingSample``, collated; ``predict``: frames (3, H, W)
        uint8 BGR with data_samples of ``PackVideoFrame``, in the order of the video.

        Raises:
            VisionError: VIS-CONFIG-702, another mode.
        """
        if mode == 'loss':
            return self.loss(inputs)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise VisionError('VIS-CONFIG-702', f'mode={mode!r}', where='LatticeDetector.forward',
                          why='a lattice has no output of one frame alone',
                          do="use mode='loss' or mode='predict'; build_engine() for frames")

    def loss(self, inputs: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """Scalar losses by name.

        Args:
            inputs: of ``LatticeTrainingSample`` (shapes there), in lists of one entry a sample;
                each sample is two, one from either end.
        """
        self._require_networks()
        self.weights_classes, self._nameless_weights = self._training_classes, ''
        columns = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(),
                                                                      strict=True)]
        samples = [_direction(row, end) for row in columns for end in (0, 1)]
        return lattice_losses(self.propagation, self.refinement, samples)

    def val_step(self, data: dict) -> list:
        """Samples of the frames that are finished; while there are none, one without results."""
        return super().val_step(data) or [_nothing_yet()]

    def test_step(self, data: dict) -> list:
        """Samples of the frames that are finished; while there are none, one without results."""
        return super().test_step(data) or [_nothing_yet()]

    @torch.no_grad()
    def predict(self, inputs: Sequence[Tensor], data_samples: list) -> list:
        """Samples of the frames finished by these, each with pred_instances (bboxes (N, 4) xyxy
        in original pixels, scores, labels, instances_id); the rest come on a video's last frame.
        """
        finished = []
        for image, sample in zip(inputs, data_samples, strict=True):
            if self._session is None or sample.frame_id == 0:
                self._refuse_unfinished(sample)
                self._session = _Session(self.build_engine(), sample.video_id, self.rescoring,
                                         _labels_by_name(self.classes, self._data_classes))
            frame = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
            finished += self._session.push(frame, sample)
            if sample.frame_id == sample.video_length - 1:
                finished += self._session.close()
                self._session = None
        return finished

    def _refuse_unfinished(self, sample) -> None:
        if sample.frame_id or self._session is not None and self._session.samples:
            raise VisionError(
                'VIS-CONFIG-703', f'frame {sample.frame_id} of video {sample.video_id} came '
                'without the frames before it, or another video was not finished',
                where='LatticeDetector', why='a lattice needs every frame of a video, in order',
                do="test_dataloader: sampler=dict(type='VideoFrameSampler'), no shuffling")

    def train(self, mode: bool = True) -> LatticeDetector:
        """As torch's; a test under way is dropped. The detector is no part of it and stays as it
        is."""
        self._session = None  # a test that was cut short must not reach into the next one
        return super().train(mode)


def _nothing_yet() -> BaseDataElement:
    """What a step gives while no frame is finished.

    MMEngine's loops look at the last element of what a step gives, and take it away when it
    holds losses alone: this one holds none, so that metrics and hooks get an empty list.
    """
    return BaseDataElement(loss={})


class _Session:
    """One video on its way through an engine, and the samples that wait for their boxes."""

    def __init__(self, engine: LatticeEngine, video_id: int, rescoring: str | None,
                 labels: np.ndarray | None) -> None:
        self.engine, self.video_id, self.rescoring = engine, video_id, rescoring
        self.labels = labels  # of the detector's labels those of the data set, or None: the same
        self.samples: dict[int, object] = {}
        self.held: list[FrameResult] = []

    def push(self, frame: np.ndarray, sample) -> list:
        if sample.video_id != self.video_id:
            raise VisionError('VIS-CONFIG-708', f'frame {sample.frame_id} of video '
                              f'{sample.video_id} came while video {self.video_id} is open',
                              where='LatticeDetector', why='videos come one after another',
                              do="test_dataloader: sampler=dict(type='VideoFrameSampler')")
        self.samples[sample.frame_id] = sample
        return self._emit(self.engine.push(frame, sample.frame_id))

    def close(self) -> list:
        finished = self._emit(self.engine.flush())
        if self.rescoring == 'average':
            finished = self._pack(rescore_tubes(self.held))
            self.held = []
        return finished

    def _emit(self, results: list[FrameResult]) -> list:
        if self.rescoring == 'average':
            self.held += results
            return []
        return self._pack(results)

    def _pack(self, results: list[FrameResult]) -> list:
        packed = []
        for result in results:
            sample, boxes = self.samples.pop(result.frame_id), result.boxes
            if self.labels is not None:
                labels = self.labels[boxes.labels]
                boxes = boxes.replace(labels=labels).select(labels != LEFT_OUT)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(boxes.boxes_xyxy), scores=torch.from_numpy(boxes.scores),
                labels=torch.from_numpy(boxes.labels),
                instances_id=torch.from_numpy(boxes.track_ids))
            packed.append(sample)
        return packed


def _labels_by_name(detector: Sequence[str], data: Sequence[str]) -> np.ndarray | None:
    """For each class of the detector the label of the data set's class of that name (case aside),
    ``LEFT_OUT`` where it has none; None when both have the same classes in the same order.

    Raises:
        VisionError: VIS-CONFIG-1812, there is no common name.
    """
    if not data or tuple(detector) == tuple(data):
        return None
    place = {name.lower(): label for label, name in enumerate(data)}
    labels = np.array([place.get(name.lower(), LEFT_OUT) for name in detector], np.int64)
    if (labels == LEFT_OUT).all():
        raise VisionError('VIS-CONFIG-1812', 'the detector has no class of this data set',
                          where='test_dataloader.dataset.metainfo.classes',
                          why=f'data set: {", ".join(data[:8])}; detector: '
                          f'{", ".join(detector[:8])}{", ..." if len(detector) > 8 else ""}',
                          do='take a detector of these classes, or label the data with its names')
    never = [name for label, name in enumerate(data) if label not in labels]
    if never:
        print_log(f'the detector has no class {", ".join(never[:NUM_NAMES])}: boxes of it count '
                  'as never found', logger='current', level=logging.WARNING)
    return labels


def _direction(row: dict[str, Tensor], end: int) -> MovementSample:
    """One direction of a training sample; F_S's own boxes go with the first alone."""
    own = {name: row[name][end] for name in ('frames', 'history', 'boxes', 'source', 'target',
                                             'is_visible', 'labels')}
    shared = {name: row[name] if end == 0 else row[name][:0]
              for name in ('extra', 'extra_target', 'extra_labels', 'background')}
    return MovementSample(image=row['image'], **own, **shared)
