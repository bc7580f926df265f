"""Each detector config builds and trains one step on tiny images; each map fits its anchors."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from vision.lattice.mm.mmdet_adapter import MMDetDetector
from vision.registry import MODELS

SMALL = ('faster-rcnn_polynet-small_fpn_moving-sprites',
         'retinanet_polynet-small_fpn_moving-sprites')
VERY_DEEP = ('faster-rcnn_polynet-very-deep_fpn_coco', 'retinanet_polynet-very-deep_fpn_coco')


def read(repository, name: str) -> Config:
    return Config.fromfile(repository / f'configs/detectors/{name}.py')


def build(config: Config):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('vision'):
        return MODELS.build(config.model)


def batch(num_images: int = 2, height: int = 90, width: int = 101) -> dict:
    """Images of sizes that no stride divides, with one object each."""
    torch.manual_seed(1)
    samples = []
    for _ in range(num_images):
        sample = DetDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
            scale_factor=(1.0, 1.0), img_id=0))
        sample.gt_instances = InstanceData(bboxes=torch.tensor([[10.0, 12.0, 60.0, 70.0]]),
                                           labels=torch.tensor([1]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4),
                                                labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('name', [
    *SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in VERY_DEEP)])
def test_one_training_step_moves_what_is_not_frozen(repository, name):
    config = read(repository, name)
    model = build(config).train()
    with DefaultScope.overwrite_default_scope('vision'):
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    losses = model.train_step(batch(), wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    still = {key for key, p in model.named_parameters() if torch.equal(p, before[key])}
    assert frozen <= still
    stem, late = 'backbone.trunk.stem.entry.0.conv.weight', \
        'backbone.trunk.stage_c.0.block.paths.0.0.conv.weight'
    assert late not in still and (stem in frozen) is ('very-deep' in name)
    # Levels of the pyramid that hold no object may get a gradient of 0, but never none.
    assert wrapper.optimizer.state[dict(model.named_parameters())[late]]


@pytest.mark.parametrize('name', SMALL + VERY_DEEP)
def test_every_parameter_takes_part_in_the_loss(repository, name):
    """DistributedDataParallel would stop at an unused one. The backbone is cut to one module a
    stage: it is tested for itself."""
    config = read(repository, name)
    config.model.backbone.update(arch=[['1-way']] * 3, path_scales=None, frozen_stages=-1)
    model = build(config).train()
    losses, _ = model.parse_losses(model(**model.data_preprocessor(batch(), True), mode='loss'))
    losses.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', SMALL + VERY_DEEP)
@pytest.mark.parametrize('size', [(90, 101), (64, 97), (224, 320)])
def test_maps_are_the_padded_image_over_the_strides_of_the_anchors(repository, name, size):
    config = read(repository, name)
    config.model.backbone.update(arch=[['1-way']] * 3, path_scales=None)
    model = build(config).eval()
    inputs = model.data_preprocessor(batch(1, *size), False)['inputs']
    height, width = inputs.shape[-2:]
    assert height % 32 == width % 32 == 0 and height - size[0] < 32
    with torch.no_grad():
        maps = model.extract_feat(inputs)
    head = getattr(model, 'rpn_head', None) or model.bbox_head
    strides = [stride[0] for stride in head.prior_generator.strides]
    assert len(maps) == len(strides)
    for level, stride in zip(maps, strides, strict=True):
        assert level.shape[-2:] == (-(-height // stride), -(-width // stride))


@pytest.mark.parametrize('name', VERY_DEEP)
def test_coco_configs_use_the_published_network_as_it_is(repository, name):
    backbone = read(repository, name).model.backbone
    assert backbone.init_cfg.checkpoint == 'zoo:polynet-very-deep_in1k'
    assert (backbone.path_scales, backbone.padding_mode) == ('released', 'same')
    assert backbone.norm_eval and backbone.with_cp and backbone.frozen_stages == 1
    assert not backbone.get('path_drop_rate')


def test_the_lattice_runs_over_the_small_polynet(repository):
    lattice = Config.fromfile(
        repository / 'configs/lattice/lattice_frcnn-polynet-small_t8-s2_moving-sprites.py')
    assert lattice.model.detector.config == f'configs/detectors/{SMALL[0]}.py'
    options = dict(lattice.model.detector, config=str(repository / lattice.model.detector.config),
                   checkpoint=None, allow_random=True, score_thr=0.0)
    model = MODELS.build(lattice.model | dict(detector=options))
    engine = model.build_engine()
    assert isinstance(model.detector, MMDetDetector)
    torch.manual_seed(2)
    frames = torch.randint(0, 256, (9, 64, 96, 3), dtype=torch.uint8).numpy()
    results = [r for t, image in enumerate(frames) for r in engine.push(image, t)]
    results += engine.flush()
    assert [r.frame_id for r in results] == list(range(9))
    assert engine.stats.num_keyframes == 2
