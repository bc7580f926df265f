"""LatticeDetector: every frame once, the engine's boxes, refusals, training samples."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from vision import zoo
from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint, load_model, load_state
from vision.lattice.core import sprites
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.detector import LatticeDetector
from vision.lattice.mm.grey import grey_frame, small_history
from vision.lattice.mm.training_data import LatticeTrainingSample, jitter_boxes
from vision.registry import MODELS

HEIGHT, WIDTH, SIDE = 96, 128, 20


@MODELS.register_module()
class BrightSquareDetector(nn.Module):
    """A real detector of bright connected regions; its score tells the region's brightness."""

    classes = ('square',)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        bright = (image_bgr.min(axis=2) > 150).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        boxes = [(x, y, x + w, y + h) for x, y, w, h, area in stats[1:] if area > 30]
        scores = [image_bgr[y0:y1, x0:x1].mean() / 255 for x0, y0, x1, y1 in boxes]
        return FrameBoxes(np.array(boxes, np.float32), scores, np.zeros(len(boxes)))


def square_video(length: int) -> list[np.ndarray]:
    """A bright textured square that moves 2 px per frame over a dark textured ground."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    patch = rng.integers(170, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    frames = []
    for t in range(length):
        frame = ground.copy()
        frame[30:30 + SIDE, 10 + 2 * t:10 + 2 * t + SIDE] = patch
        frames.append(frame)
    return frames


def items(frames: list[np.ndarray], video_id: int = 0) -> list[dict]:
    packed = []
    for t, frame in enumerate(frames):
        sample = DetDataSample(metainfo=dict(img_id=100 * video_id + t, video_id=video_id,
                                             frame_id=t, video_length=len(frames)))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(
            [[10.0 + 2 * t, 30, 10 + 2 * t + SIDE, 30 + SIDE]]))
        packed.append(dict(inputs=[torch.from_numpy(frame.transpose(2, 0, 1).copy())],
                           data_samples=[sample]))
    return packed


def detector(**options) -> LatticeDetector:
    torch.manual_seed(0)
    options = dict(detector=dict(type='BrightSquareDetector')) | options
    return MODELS.build(dict(type='LatticeDetector', **options)).eval()


def run(model: LatticeDetector, batches: list[dict]) -> list[DetDataSample]:
    return [sample for batch in batches for sample in finished(model.test_step(batch))]


def finished(output: list) -> list[DetDataSample]:
    """What metrics get of a step: MMEngine's loops take away an element of losses alone."""
    return output[:-1] if output[-1].keys() == ['loss'] else output


@pytest.mark.parametrize('length', [1, 2, 8, 9, 21])
@pytest.mark.parametrize('rescoring', [None, 'average'])
def test_every_frame_comes_back_once_in_order_with_its_own_truth(length, rescoring):
    model = detector(rescoring=rescoring)
    found = run(model, items(square_video(length)) + items(square_video(length), video_id=1))
    assert [s.img_id for s in found] == [100 * v + t for v in (0, 1) for t in range(length)]
    for sample in found:
        x = sample.gt_instances.bboxes[0, 0].item()
        assert x == 10 + 2 * sample.frame_id
        assert set(sample.pred_instances.keys()) == {'bboxes', 'scores', 'labels', 'instances_id'}
        assert len(sample.pred_instances) == 1


def test_frames_are_given_back_as_soon_as_their_interval_is_done():
    model = detector(keyframes=dict(type='UniformKeyframes', gap_frames=4))
    counts = [len(finished(model.test_step(batch))) for batch in items(square_video(11))]
    assert counts == [1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 2]


def test_no_step_of_test_or_validation_gives_an_empty_list():
    # MMEngine's loops read outputs[-1]
    for step in ('test_step', 'val_step'):
        model = detector(keyframes=dict(type='UniformKeyframes', gap_frames=4))
        outputs = [getattr(model, step)(batch) for batch in items(square_video(6))]
        assert [len(output) for output in outputs] == [1, 1, 1, 1, 4, 1]
        assert [output[-1].keys() == ['loss'] for output in outputs] == \
            [False, True, True, True, False, False]
        assert outputs[1][0].loss == {}


def test_equal_to_the_engine_box_for_box():
    model, frames = detector(), square_video(19)
    found = run(model, items(frames))
    engine = model.build_engine()
    results = [r for t, frame in enumerate(frames) for r in engine.push(frame, t)]
    results += engine.flush()
    assert {r.source for r in results} == {'detected', 'propagated', 'interpolated'}
    for sample, result in zip(found, results, strict=True):
        np.testing.assert_array_equal(sample.pred_instances.bboxes.numpy(),
                                      result.boxes.boxes_xyxy)


def test_overrides_make_the_rivals():
    model, frames = detector(), square_video(17)
    per_frame = model.build_engine(policy=dict(type='UniformKeyframes', gap_frames=1))
    linear = model.build_engine(num_stages=0)
    sources = {}
    for engine in (per_frame, linear):
        results = [r for t, f in enumerate(frames) for r in engine.push(f, t)] + engine.flush()
        sources[engine] = {result.source for result in results}
        for t, result in enumerate(results):  # the square moves evenly: both are exact
            np.testing.assert_allclose(result.boxes.boxes_xyxy,
                                       [[10 + 2 * t, 30, 10 + 2 * t + SIDE, 30 + SIDE]], atol=1e-3)
    assert per_frame.stats.num_keyframes == 17 and linear.stats.num_keyframes == 3
    assert sources == {per_frame: {'detected'}, linear: {'detected', 'interpolated'}}


def test_average_gives_one_score_per_tube():
    found = run(detector(rescoring='average'), items(square_video(17)))
    scores = torch.cat([s.pred_instances.scores for s in found])
    assert len(found) == 17 and torch.allclose(scores, scores[0])


def test_checkpoint_holds_the_two_networks_only():
    model = detector()
    run(model, items(square_video(3)))  # the detector is built by now
    assert {key.split('.')[0] for key in model.state_dict()} == {'propagation', 'refinement'}
    assert model.classes == ('square',)


@pytest.mark.parametrize('batches, code', [
    pytest.param(items(square_video(12))[1:], 703, id='starts in the middle'),
    pytest.param(items(square_video(12))[:3] + items(square_video(12), 1), 703, id='not finished'),
    pytest.param(items(square_video(12))[:3] + items(square_video(12), 1)[3:], 708, id='mixed'),
])
def test_frames_out_of_order_are_refused(batches, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        run(detector(), batches)


@pytest.mark.parametrize(('options', 'code'), [
    (dict(rescoring='sum'), 'VIS-CONFIG-701'),
    (dict(keyframes=dict(type='Uniform')), 'VIS-CONFIG-704'),
    (dict(keyframes=dict(type='UniformKeyframes', gap=8)), 'VIS-CONFIG-709'),
])
def test_bad_configs_are_refused_before_work_starts(options, code):
    with pytest.raises(VisionError, match=code):
        detector(**options)


def test_mode_tensor_is_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-702'):
        detector()(None, mode='tensor')


# training data

@pytest.fixture
def video(tmp_path) -> dict:
    images = []
    for t, frame in enumerate(square_video(13)):
        cv2.imwrite(str(tmp_path / f'{t}.png'), frame)
        box = np.array([[10 + 2 * t, 30, 10 + 2 * t + SIDE, 30 + SIDE]], np.float32)
        images.append(dict(img_path=str(tmp_path / f'{t}.png'), bboxes=box,
                           labels=np.array([2]), instances_ids=np.array([1]),
                           is_crowd=np.array([False])))
    return dict(images=images, video_length=13)


def test_sample_shapes_and_truth(video):
    np.random.seed(0)
    inputs = LatticeTrainingSample(max_gap=6)(video)['inputs']
    assert inputs['frames'].shape == (2, 2, HEIGHT, WIDTH)
    assert inputs['history'].shape == (2, HEIGHT // 2, WIDTH // 2)
    assert inputs['image'].shape == (3, HEIGHT, WIDTH) and inputs['image'].dtype == torch.uint8
    shift = (inputs['target'] - inputs['source'])[:, :, 0]
    # Both ends lead to one middle frame: equal and opposite movements.
    assert torch.equal(shift[0], -shift[1]) and shift[0].abs().min() >= 2
    assert inputs['is_visible'].all()
    assert (inputs['labels'] == 2).all() and inputs['labels'].shape == (2, 8)
    assert (inputs['extra_labels'] == 2).all()
    overlap = iou_matrix(inputs['background'].numpy(), inputs['extra_target'].numpy())
    assert not overlap.size or overlap.max() < 0.2


def test_loss_reaches_both_networks(video):
    np.random.seed(0)
    rows = [LatticeTrainingSample(max_gap=6)(video)['inputs'] for _ in range(2)]
    model = detector().train()
    losses = model(dict((name, [row[name] for row in rows]) for name in rows[0]), mode='loss')
    sum(value for name, value in losses.items() if name.startswith('loss')).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert not model._detector  # training needs no detector


def test_refinement_must_know_the_detectors_classes():
    with pytest.raises(VisionError, match='VIS-CONFIG-705'):
        detector(refinement=dict(num_classes=7)).build_networks()


def judging(classes, **options):
    """A lattice whose refinement tells the detector's one class, loaded with weights that name
    ``classes``."""
    model = detector(refinement=dict(num_classes=1), **options)
    content = dict(state_dict=model.state_dict())
    if classes is not None:
        content['meta'] = dict(dataset_meta=dict(classes=classes))
    load_model(model, content, where='weights.pth')
    return model


def test_weights_that_judge_other_classes_are_refused():
    assert judging(('square',)).build_networks().refinement is not None
    with pytest.raises(VisionError, match="(?s)VIS-CKPT-706.*class 0 is 'disc'.*'square'"):
        judging(('disc',)).build_networks()
    assert judging(('disc',), use_refinement=False).build_networks().refinement is None


def test_weights_whose_classes_are_not_judged_may_name_any():
    model = detector()
    load_model(model, dict(state_dict=model.state_dict(),
                           meta=dict(dataset_meta=dict(classes=('a', 'b')))))
    assert model.build_networks().refinement is not None and model.weights_classes == ('a', 'b')


def test_weights_without_names_are_warned_of_once(monkeypatch):
    told = []
    monkeypatch.setattr('vision.lattice.mm.detector.print_log',
                        lambda text, **options: told.append(text))
    model = judging(None)
    for _ in range(3):
        model.build_networks()
    assert len(told) == 1 and told[0].startswith('weights.pth does not say')
    detector(refinement=dict(num_classes=1)).build_networks()  # nothing was loaded: nothing said
    assert len(told) == 1


def test_what_training_learns_replaces_what_the_weights_were_trained_on(video):
    np.random.seed(0)
    model = judging(('disc',)).train()
    model.check_dataset(dict(classes=('square',)), 'train_dataloader.dataset')
    sample = LatticeTrainingSample(max_gap=6)(video | dict(images=[
        info | dict(labels=np.array([0])) for info in video['images']]))['inputs']
    model({name: [value] for name, value in sample.items()}, mode='loss')
    assert model.weights_classes == ('square',)
    assert model.eval().build_networks().refinement is not None


def test_a_data_set_of_other_classes_is_refused_before_training():
    model = detector(refinement=dict(num_classes=8))
    with pytest.raises(VisionError, match='VIS-CONFIG-710.*knows 8 classes, the data set 3'):
        model.check_dataset(dict(classes=('a', 'b', 'c')), 'train_dataloader.dataset')
    detector().check_dataset(dict(classes=('a', 'b', 'c')), 'train_dataloader.dataset')


def test_the_shipped_weights_name_the_sprites():
    content = load_checkpoint(zoo.resolve('zoo:lattice-pru_moving-sprites'))
    model = detector(refinement=dict(num_classes=8))
    load_model(model, content)
    assert model.weights_classes == sprites.CLASSES


def refined_stages(stages) -> list[int]:
    """At which of the stages 0, 1, 2 the networks move a box."""
    model = detector(refine_stages=stages)
    torch.nn.init.constant_(model.refinement.output.bias, 0.5)
    networks, frame = model.build_networks(), square_video(1)[0]
    boxes = FrameBoxes([[10, 30, 30, 50]], [0.9], [0])
    return [stage for stage in range(3) if not np.array_equal(
        networks.refine(boxes, frame, stage=stage).boxes_xyxy, boxes.boxes_xyxy)]


@pytest.mark.parametrize(('stages', 'expected'), [
    (None, [0, 1, 2]), ([], []), ([1], [1]), ((0, 2), [0, 2])])
def test_refine_stages_none_is_all_and_empty_is_none(stages, expected):
    assert refined_stages(stages) == expected


def test_a_lattice_that_does_not_classify_takes_weights_of_one_that_does():
    source = detector(refinement=dict(num_classes=7))
    target = detector()
    load_state(target, source.state_dict(), unused_prefixes=target.checkpoint_unused_prefixes)
    assert torch.equal(target.refinement.output.weight, source.refinement.output.weight)
    with pytest.raises(VisionError, match='VIS-CKPT-305'):
        load_state(source, target.state_dict(),
                   unused_prefixes=source.checkpoint_unused_prefixes)


def test_short_and_empty_videos_give_nothing(video):
    sample = LatticeTrainingSample()
    assert sample(dict(images=video['images'][:2])) is None
    empty = [info | dict(bboxes=np.zeros((0, 4), np.float32), instances_ids=np.zeros(0, int),
                         is_crowd=np.zeros(0, bool)) for info in video['images']]
    assert sample(dict(images=empty)) is None


def test_jitter_never_falls_below_a_match():
    rng = np.random.default_rng(0)
    boxes = np.tile(np.array([[10, 10, 40, 30]], np.float32), (500, 1))
    moved = jitter_boxes(boxes, rng, strength=0.3)
    overlap = np.diagonal(iou_matrix(moved, boxes))
    assert overlap.min() > 0.5 and overlap.mean() < 0.95


def test_grey_frames_are_even_and_never_enlarged():
    assert grey_frame(np.zeros((241, 427, 3), np.uint8)).shape == (180, 320)
    assert grey_frame(np.full((63, 81, 3), 255, np.uint8)).shape == (64, 80)
    still = np.repeat(np.random.default_rng(0).random((1, 48, 64), np.float32), 4, axis=0)
    assert small_history(still).shape == (24, 32) and small_history(still).max() == 0


def test_predictions_get_the_labels_of_the_data_set_by_name():
    frames = items(square_video(9))
    plain = run(detector(), frames)
    model = detector()
    model.check_dataset(dict(classes=('ring', 'Square')), 'test_dataloader.dataset')
    found = run(model, items(square_video(9)))
    assert all((sample.pred_instances.labels == 1).all() for sample in found)
    for one, other in zip(plain, found, strict=True):
        assert len(one.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.scores, other.pred_instances.scores)


def test_boxes_of_classes_that_the_data_set_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setattr(BrightSquareDetector, 'classes', ('square', 'ring'))
    model = detector()
    model.check_dataset(dict(classes=('ring',)), 'test_dataloader.dataset')
    assert not any(len(sample.pred_instances.bboxes) for sample in run(model,
                                                                       items(square_video(9))))


def test_a_data_set_without_a_class_of_the_detector_is_refused():
    model = detector()
    model.check_dataset(dict(classes=('ring',)), 'test_dataloader.dataset')
    with pytest.raises(VisionError, match='VIS-CONFIG-1812[^$]*data set: ring; detector: square'):
        run(model, items(square_video(2)))
