import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from vision.common.core.errors import VisionError
from vision.lattice.mm.metrics import VIDMetric


def frame(video, frame_id, length, *, score=0.9, shift=0.0, labelled=True):
    sample = DetDataSample(metainfo=dict(img_id=100 * video + frame_id, video_id=video,
                                         frame_id=frame_id, video_length=length,
                                         is_labelled=labelled))
    boxes = torch.tensor([[10.0, 10, 60, 60]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]),
                                       instances_ids=torch.tensor([1]))
    sample.pred_instances = InstanceData(bboxes=boxes + shift, scores=torch.tensor([score]),
                                         labels=torch.tensor([1]))
    return sample


def evaluate(samples, **options):
    metric = VIDMetric(**options)
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=('a', 'b'))
    for start in range(0, len(samples), 3):  # samples come in other groups than their inputs
        evaluator.process(samples[start:start + 3])
    return evaluator.evaluate(1)  # the size that MMEngine passes counts videos


def test_frames_in_any_grouping_and_order_are_judged():
    samples = [frame(v, t, 5) for v in (1, 2) for t in range(5)]
    result = evaluate(samples[::-1])
    assert result['vid/map50'] == 1 and result['vid/map50_slow'] == 1


def test_misses_count():
    samples = [frame(1, t, 4, shift=100.0 if t % 2 else 0.0) for t in range(4)]
    assert evaluate(samples, speed=False)['vid/map50'] < 0.6


def test_unlabelled_frames_are_not_judged():
    samples = [frame(1, t, 4, shift=100.0 if t else 0.0, labelled=t == 0) for t in range(4)]
    assert evaluate(samples, classwise=False)['vid/map50'] == 1


def test_missing_frames_and_unknown_protocols_are_refused():
    with pytest.raises(VisionError, match=r'VIS-DATA-406[^$]*video 1: 3 of 4'):
        evaluate([frame(1, t, 4) for t in range(3)])
    with pytest.raises(VisionError, match='VIS-CONFIG-405'):
        VIDMetric(protocol='voc')
