"""LatticeDetector without networks: flow and straight lines, ONNX files, tools/test.py."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from scipy import ndimage

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import save_checkpoint
from vision.lattice.core.class_names import COCO_CLASSES
from vision.lattice.core.structures import FrameBoxes
from vision.lattice.mm.loading import load_lattice
from vision.lattice.runtime.detectors import OnnxDetector
from vision.lattice.runtime.methods import build_engine
from vision.registry import MODELS

SIDE, HEIGHT, WIDTH = 22, 96, 200
FLOW_CONFIG = 'configs/lattice/lattice_yolox-nano_flow_coco.py'


@MODELS.register_module()
class SunDetector:
    """The boxes of bright connected regions."""

    classes = ('sun',)

    def detect(self, image_bgr: np.ndarray) -> FrameBoxes:
        regions, _ = ndimage.label(image_bgr.min(axis=2) > 150)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(regions)]
        return FrameBoxes(np.array(boxes).reshape(-1, 4), np.full(len(boxes), 0.9),
                          np.zeros(len(boxes)))


def place(t: int) -> tuple[int, int]:
    return 10 + 4 * t, round(35 + 25 * np.sin(t / 4))


def sun_video(length: int) -> list[np.ndarray]:
    """A bright textured square on a curved way over a dark textured ground."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 2) // 2
    patch = cv2.GaussianBlur(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8), (0, 0), 2)
    patch = cv2.normalize(patch, None, 160, 255, cv2.NORM_MINMAX)
    frames = []
    for t in range(length):
        frame = ground.copy()
        x, y = place(t)
        frame[y:y + SIDE, x:x + SIDE] = patch
        frames.append(frame)
    return frames


def lattice(**options):
    options = dict(detector=dict(type='SunDetector'), method='flow') | options
    return MODELS.build(dict(type='LatticeDetector', **options)).eval()


def batches(frames: list[np.ndarray]) -> list[dict]:
    return [dict(inputs=[torch.from_numpy(frame.transpose(2, 0, 1).copy())],
                 data_samples=[BaseDataElement(metainfo=dict(
                     video_id=0, frame_id=t, video_length=len(frames)))])
            for t, frame in enumerate(frames)]


def samples_of(model, frames) -> list:
    steps = [model.test_step(batch) for batch in batches(frames)]
    return [sample for step in steps for sample in step if 'pred_instances' in sample]


def pushed(engine, frames) -> list:
    return [r for t, frame in enumerate(frames) for r in engine.push(frame, t)] + engine.flush()


@pytest.mark.parametrize('method', ['flow', 'linear'])
def test_the_model_gives_the_boxes_of_the_engine_without_training_software(method):
    frames = sun_video(21)
    found = samples_of(lattice(method=method), frames)
    expected = pushed(build_engine(SunDetector(), method=method, keyframes=8), frames)
    assert [sample.frame_id for sample in found] == list(range(21))
    for sample, result in zip(found, expected, strict=True):
        np.testing.assert_array_equal(sample.pred_instances.bboxes.numpy(),
                                      result.boxes.boxes_xyxy)
        assert sample.pred_instances.instances_id.tolist() == [1]


def errors(results) -> float:
    return max(np.abs(r.boxes.boxes_xyxy[0, :2] - place(r.frame_id)).max() for r in results)


def test_flow_follows_what_lines_cut_short_and_lines_are_the_papers_without_a_stage():
    frames, model = sun_video(25), lattice()
    assert errors(pushed(model.build_engine(), frames)) < 2
    linear = pushed(model.build_engine(method='linear'), frames)
    assert errors(linear) > 6
    paper = pushed(lattice(method='paper').build_engine(num_stages=0, cut_detector=None), frames)
    for one, other in zip(linear, paper, strict=True):
        np.testing.assert_array_equal(one.boxes.boxes_xyxy, other.boxes.boxes_xyxy)


def test_overrides_reach_the_engine():
    frames, model = sun_video(12), lattice(method='paper')
    causal = pushed(model.build_engine(method='flow', mode='causal', policy=5), frames)
    assert [r.frame_id for r in causal if r.is_keyframe] == [0, 5, 10]
    assert [r.frame_id for r in causal] == list(range(12))
    with pytest.raises(TypeError, match='num_stages'):
        model.build_engine(method='flow', num_stages=2)


@pytest.mark.parametrize('method', ['flow', 'linear'])
def test_a_method_without_networks_has_nothing_to_save_to_load_or_to_train(method):
    model = lattice(method=method)
    assert not list(model.parameters()) and not model.state_dict()
    assert model.device == torch.device('cpu')
    for refused in (model.build_networks, lambda: model({}, mode='loss'),
                    lambda: model.check_dataset(dict(classes=('sun',)),
                                                'train_dataloader.dataset')):
        with pytest.raises(VisionError, match='VIS-CONFIG-707'):
            refused()
    model.check_dataset(dict(classes=('sun',)), 'test_dataloader.dataset')


@pytest.mark.parametrize(('options', 'code'), [
    (dict(method='magic'), 'VIS-CONFIG-111'), (dict(method='detect'), 'VIS-CONFIG-111'),
    (dict(propagation={}), 'VIS-CONFIG-711'), (dict(refinement={}), 'VIS-CONFIG-711'),
    (dict(keyframes=dict(type='Uniform')), 'VIS-CONFIG-704')])
def test_bad_configs_are_refused_before_work_starts(options, code):
    with pytest.raises(VisionError, match=code):
        lattice(**options)


def test_an_onnx_file_is_a_detector_by_config():
    model = lattice(detector=dict(type='OnnxDetector', path='zoo:yolox-nano_coco', score_thr=0.2))
    assert model.runtime == 'onnxruntime' and lattice().runtime == 'torch'
    assert isinstance(model.detector, OnnxDetector) and model.detector is model.detector
    assert model.classes == COCO_CLASSES and model.detector.score_thr == 0.2
    frames = sun_video(3)
    for sample, frame in zip(samples_of(model, frames), frames, strict=True):
        assert (sample.pred_instances.scores >= 0.1).all()
        assert sample.pred_instances.bboxes.shape[1] == 4 and frame.shape == (HEIGHT, WIDTH, 3)


def test_the_shipped_config_needs_no_checkpoint_and_takes_none(repository, tmp_path):
    model = load_lattice(str(repository / FLOW_CONFIG))
    assert model.method == 'flow' and model.runtime == 'onnxruntime' and not model.training
    save_checkpoint(dict(state_dict=lattice(method='paper').state_dict()), tmp_path / 'w.pth')
    with pytest.raises(VisionError, match='VIS-CKPT-305'):
        load_lattice(str(repository / FLOW_CONFIG), str(tmp_path / 'w.pth'))
    with pytest.raises(VisionError, match='VIS-CONFIG-324'):
        load_lattice(str(repository / 'configs/lattice/lattice_yolox-nano_t8-s2_coco.py'))


# tools/test.py

CONFIG = """
_base_ = [{base!r}]
model = dict({model})
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='VideoFrameSampler'),
    dataset=dict(type='CocoVideoDataset', data_root={root!r}, ann_file={ann!r},
                 data_prefix=dict(img=''), metainfo=dict(classes={classes!r}), test_mode=True,
                 pipeline=[dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]))
test_evaluator = dict(type='VIDMetric', protocol='coco', speed=False, classwise=False)
"""


@pytest.fixture
def tool(repository, tmp_path):
    """Write a config over the shipped one and run tools/test.py on it; gives the metrics."""
    from vision.cli.test import main

    def run(model: str, root, ann: str, classes: tuple[str, ...]) -> dict:
        path, out = tmp_path / 'config.py', tmp_path / 'out.json'
        path.write_text(CONFIG.format(base=str(repository / FLOW_CONFIG), model=model,
                                      root=f'{root}/', ann=ann, classes=classes))
        assert main([str(path), '--work-dir', str(tmp_path / 'work'), '--out', str(out),
                     '--out-item', 'metrics']) == 0
        return json.loads(out.read_text())
    return run


def write_suns(folder, length: int) -> None:
    images, annotations = [], []
    for t, frame in enumerate(sun_video(length)):
        cv2.imwrite(str(folder / f'{t:03}.png'), frame)
        images.append(dict(id=t + 1, video_id=1, frame_id=t, file_name=f'{t:03}.png',
                           height=HEIGHT, width=WIDTH))
        annotations.append(dict(id=t + 1, image_id=t + 1, video_id=1, category_id=1,
                                instance_id=1, bbox=[*place(t), SIDE, SIDE], area=SIDE**2,
                                iscrowd=0))
    (folder / 'ann.json').write_text(json.dumps(dict(
        videos=[dict(id=1, name='suns')], images=images, annotations=annotations,
        categories=[dict(id=1, name='sun')])))


def test_the_tool_judges_flow_without_a_checkpoint(tool, tmp_path):
    write_suns(tmp_path, 25)
    detector = "detector=dict(_delete_=True, type='SunDetector')"
    flow = tool(detector, tmp_path, 'ann.json', ('sun',))
    assert flow['vid/map50'] == pytest.approx(1) and flow['vid/map5095'] > 0.9
    linear = tool(f"{detector}, method='linear'", tmp_path, 'ann.json', ('sun',))
    assert linear['vid/map5095'] < flow['vid/map5095'] - 0.1
    with pytest.raises(VisionError, match='VIS-CONFIG-324'):
        tool(f"{detector}, method='paper'", tmp_path, 'ann.json', ('sun',))


def test_the_tool_judges_the_shipped_config_on_real_people(tool, shared_data, tmp_path):
    root = shared_data / 'mot15-mini'
    content = json.loads((root / 'annotations' / 'val.json').read_text())
    assert [row['name'] for row in content['categories']] == ['person']
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(COCO_CLASSES, 1)]
    (tmp_path / 'val.json').write_text(json.dumps(content))  # labels are the detector's
    flow = tool('', root, str(tmp_path / 'val.json'), COCO_CLASSES)
    linear = tool("method='linear'", root, str(tmp_path / 'val.json'), COCO_CLASSES)
    assert flow['vid/map50'] > linear['vid/map50'] + 0.03
