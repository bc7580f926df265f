"""Runs on a GPU: against the same run on a CPU, and resumed against uninterrupted.

A run takes the device that MMEngine finds, so the reference is made by hiding the GPU from it.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from scripts import load_script

from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
for room in ('common', 'classify', 'faces'):
    sys.path.insert(0, str(ROOT / 'tests' / room))
import runs  # noqa: E402
import toy_faces  # noqa: E402
from resume_points import KINDS  # noqa: E402

pytestmark = pytest.mark.gpu
# Sums of float32 in another order: the first losses agree to this, relative; what follows goes
# apart, as every step carries the difference on.
SAME_LOSS = 1e-3


@pytest.fixture(autouse=True)
def float32_is_float32():
    """torch lets cuDNN round convolutions' inputs to TF32, which is no float32 to compare."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.fixture
def on_cpu():
    """Runs made after a call of it compute on the CPU, until it is called with False."""
    hidden = pytest.MonkeyPatch()

    def hide(is_hidden: bool = True) -> None:
        if is_hidden:
            hidden.setattr('mmengine.runner.runner.get_device', lambda: 'cpu')
        else:
            hidden.undo()
    yield hide
    hidden.undo()


def exact(config):
    config.randomness = dict(seed=0, deterministic=True)
    return config


def ended(config, device) -> dict[str, torch.Tensor]:
    """What a run ends with; its model was on the device."""
    runner = ExactRunner.from_cfg(config)
    runner.train()
    assert {p.device.type for p in runner.model.parameters()} == {device.type}
    return runs.outcome(runner)


# Resumed equals uninterrupted, bit for bit.
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('crash', [1, 11])
def test_resumed_ends_with_the_same_bits(device, tmp_path, kind, crash):
    """Dropout and BatchNorm on the device; ``amp`` and ``all`` are float16 with a loss scale."""
    options = KINDS[kind]
    straight = ended(exact(runs.config(tmp_path / 'straight', interval=17, **options)), device)
    config = exact(runs.config(tmp_path / 'cut', crash=crash, interval=crash, **options))
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(config).train()
    config = exact(runs.config(tmp_path / 'cut', interval=17, **options))
    config.resume, config.experiment_name = True, f'{config.experiment_name}-resumed'
    runs.assert_equal(straight, ended(config, device))


def test_resumed_in_bfloat16_ends_with_the_same_bits(device, tmp_path):
    def config(name, **options):
        made = exact(runs.config(tmp_path / name, amp=True, ema=True, **options))
        made.optim_wrapper.dtype = 'bfloat16'
        return made
    straight = ended(config('straight'), device)
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(config('cut', crash=5)).train()
    again = config('cut')
    again.resume, again.experiment_name = True, 'again'
    runs.assert_equal(straight, ended(again, device))


def plain(folder, **options):
    """A run without dropout, whose numbers do not depend on the device's random generator."""
    config = runs.config(folder, is_plain=True, **options)
    config.model.is_plain = True
    config.optim_wrapper.clip_grad = dict(max_norm=0.5)
    return config


def test_losses_and_weights_are_those_of_the_cpu(device, tmp_path, on_cpu):
    """Clipped and accumulated: 17 steps of a small net stay together to 1e-4."""
    found = ended(plain(tmp_path / 'device', accumulation=3, ema=True), device)
    on_cpu()
    wanted = ended(plain(tmp_path / 'cpu', accumulation=3, ema=True), torch.device('cpu'))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].cpu(), tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_checkpoint_of_the_device_goes_on_on_a_cpu_and_back(device, tmp_path, on_cpu):
    straight = ended(plain(tmp_path / 'straight', ema=True), device)
    path = tmp_path / 'moved'
    with pytest.raises(RuntimeError, match='crash'):
        ExactRunner.from_cfg(plain(path, crash=6, ema=True)).train()
    content = load_checkpoint(path / 'iter_6.pth')
    assert {tensor.device.type for _, tensor in runs._tensors(content, '')} == {'cpu'}
    on_cpu()
    with pytest.raises(RuntimeError, match='crash'):
        config = plain(path, crash=12, ema=True)
        config.resume, config.experiment_name = True, 'on-cpu'
        ExactRunner.from_cfg(config).train()
    on_cpu(False)
    config = plain(path, ema=True)
    config.resume, config.experiment_name = True, 'back'
    found = ended(config, device)
    for name, tensor in straight.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


# Mixed precision.
def test_steps_that_overflow_in_float16_are_left_out_until_the_scale_fits(device, tmp_path):
    if device.type != 'cuda':
        pytest.skip('float16 is of GPUs')
    config = runs.config(tmp_path, amp=True)
    config.optim_wrapper.loss_scale = dict(init_scale=2.0 ** 24)
    runner = ExactRunner.from_cfg(config)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    wrapper = runner.optim_wrapper
    assert wrapper.cast_dtype == torch.float16
    assert 3 <= wrapper.num_skipped < 17 and wrapper.num_skipped_in_row == 0
    assert wrapper.loss_scaler.get_scale() < 2.0 ** 24
    after = runner.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name].cpu(), before[name].cpu()) for name in before)


@pytest.mark.parametrize('amp', [False, True])
def test_a_step_that_is_not_finite_leaves_nothing_behind(device, tmp_path, amp):
    """One of the gradients is NaN in the third step, with BatchNorm's averages put back."""
    def run(name, steps, poisoned):
        config = runs.config(tmp_path / name, amp=amp, steps=steps)
        if poisoned:
            config.custom_hooks.append(dict(type='PoisonHook', where='gradient', steps=[3]))
        if amp and device.type == 'cuda':  # one that the first step does not lower
            config.optim_wrapper.loss_scale = dict(init_scale=16.0)
        runner = ExactRunner.from_cfg(exact(config))
        runner.train()
        return runner
    two, three = run('two', 2, False), run('three', 3, True)
    assert three.optim_wrapper.num_skipped == 1
    runs.assert_equal(two.model.state_dict(), three.model.state_dict())


def test_a_step_waits_once_for_the_device(device, tmp_path):
    """Whether gradients are finite is asked once a step; the house waits for nothing else. What
    MMEngine logs is taken away."""
    if device.type != 'cuda':
        pytest.skip('about waiting for a GPU')
    runner = ExactRunner.from_cfg(plain(tmp_path))
    runner.train()
    model, wrapper = runner.model, runner.optim_wrapper
    wrapper.clip_grad_kwargs, waits = None, []
    finite = wrapper._are_gradients_finite

    def allowed() -> bool:
        torch.cuda.set_sync_debug_mode('default')
        waits.append(1)
        try:
            return finite()
        finally:
            torch.cuda.set_sync_debug_mode('error')
    wrapper._are_gradients_finite = allowed
    loss = sum(p.square().sum() for p in model.parameters())
    assert loss.is_cuda
    torch.cuda.set_sync_debug_mode('error')
    try:
        wrapper.update_params(loss)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert waits == [1]


# The rooms, by their own configs.
def losses_of(work_dir: Path) -> list[float]:
    rows = [json.loads(line) for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
            for line in path.read_text().splitlines()]
    return [row['loss'] for row in rows if 'loss' in row]


def train(config: str, work_dir: Path, *options: str) -> list[float]:
    for kind in (DefaultScope, MessageHub, MMLogger, Visualizer):  # of the run before
        kind._instance_dict.clear()
    main = importlib.import_module('vision.cli.train').main
    logs = 'default_hooks.logger.interval=1', 'log_processor.window_size=1'
    assert main([config, '--work-dir', str(work_dir), '--cfg-options', *logs, *options]) == 0
    return losses_of(work_dir)


def in_process(*names: str, batch: int) -> list[str]:
    return [f'{name}_dataloader.{key}' for name in names for key in (
        'num_workers=0', 'persistent_workers=False', f'batch_size={batch}')]


def assert_as_on_cpu(found: list[float], wanted: list[float], same: float = SAME_LOSS) -> None:
    assert len(found) == len(wanted) > 1
    assert found[0] == pytest.approx(wanted[0], rel=same)
    assert found[1:] == pytest.approx(wanted[1:], rel=0.3)


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_classifier_trains_validates_and_is_tested(device, tmp_path, on_cpu, at_root):
    """PolyNet's small form on pictures whose colour is their class."""
    from conftest import write_images
    data = tmp_path / 'data'
    write_images(data / 'train', 8)
    write_images(data / 'val', 3, seed=1)
    options = [f'{name}_dataloader.dataset.data_root={data}' for name in ('train', 'val', 'test')]
    options += in_process('train', 'val', 'test', batch=8)
    config = tmp_path / 'small.py'
    config.write_text(f'''
_base_ = [{str(ROOT / 'configs/polynet/polynet-small_imagenette160.py')!r}]
model = dict(backbone=dict(arch=[['1-way']] * 3), head=dict(num_classes=3, dropout=0.0))
val_evaluator = dict(topk=(1, 2))
test_evaluator = dict(topk=(1, 2))
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
train_cfg = dict(max_epochs=4, val_interval=4)
''')
    found = train(str(config), tmp_path / 'device', *options)
    checkpoint = next((tmp_path / 'device').glob('best_*.pth'))
    test = importlib.import_module('vision.cli.test').main
    assert test([str(config), str(checkpoint), '--work-dir', str(tmp_path / 'device'), '--out',
                 str(tmp_path / 'm.json'), '--out-item', 'metrics', '--cfg-options',
                 *options]) == 0
    assert json.loads((tmp_path / 'm.json').read_text())['accuracy/top1'] > 50  # chance: 33
    assert found[-1] < found[0]
    on_cpu()
    short = [*options, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9']
    wanted = train(str(config), tmp_path / 'cpu', *short)
    assert found[0] == pytest.approx(wanted[0], rel=SAME_LOSS)


def test_a_recogniser_of_faces_trains(device, tmp_path, on_cpu):
    """A head whose active classes are drawn, with momentum of its rows."""
    def losses(name):
        runner = ExactRunner.from_cfg(toy_faces.config(tmp_path / name, experiment_name=name))
        runner.train()
        return list(runner.message_hub.get_scalar('train/loss').data[0])
    found = losses('device')
    on_cpu()
    assert_as_on_cpu(found, losses('cpu'))


@pytest.fixture(scope='module')
def sprites(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sprites') / 'data'
    prepare = load_script('datasets/moving_sprites/prepare.py').main
    assert prepare(['--out', str(folder), '--num-train', '6', '--num-val', '1', '--num-frames',
                    '12', '--workers', '1']) == 0
    return folder


def of_sprites(folder: Path) -> list[str]:
    """Options of a detector's config: three data sets, and what they are judged by."""
    return [*(f'{name}_dataloader.dataset.data_root={folder}'
              for name in ('train', 'val', 'test')),
            *(f'{name}_evaluator.ann_file={folder}/annotations/val.json'
              for name in ('val', 'test'))]


TINY = 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py'


def test_a_detector_trains_and_finds_as_on_a_cpu(device, tmp_path, on_cpu, at_root, sprites):
    """Faster R-CNN with mmcv's nms and roi_align; then boxes of one picture, by the API. The
    scores of a new RPN are so near each other that rounding changes which proposals are taken."""
    options = [*of_sprites(sprites), *in_process('train', batch=4), 'train_cfg.max_iters=4',
               'train_cfg.val_interval=100']
    found = train(TINY, tmp_path / 'device', *options)
    on_cpu()
    assert_as_on_cpu(found, train(TINY, tmp_path / 'cpu', *options), same=0.05)
    import vision
    picture = next((sprites / 'val').glob('*/000003.jpg'))
    weights = tmp_path / 'device' / 'iter_4.pth'
    there, here = (vision.load(TINY, weights, device=name)(picture)
                   for name in (str(device), 'cpu'))
    assert_same_boxes(there, here)


def assert_same_boxes(found, wanted) -> None:
    """In order of score; a score at the threshold may fall to one side of it."""
    assert abs(len(found) - len(wanted)) <= 1
    num = min(len(found), len(wanted), 5)
    assert found.scores[:num] == pytest.approx(wanted.scores[:num], abs=0.01)


def test_a_detector_trains_in_float16(device, tmp_path, at_root, sprites):
    if device.type != 'cuda':
        pytest.skip('roi_align has no narrow form on a CPU')
    losses = train(TINY, tmp_path, *of_sprites(sprites), *in_process('train', batch=4),
                   'train_cfg.max_iters=6', 'train_cfg.val_interval=100',
                   'optim_wrapper.type=AmpOptimWrapper')
    assert len(losses) == 6 and all(loss < 100 for loss in losses)


def test_a_lattice_trains(device, tmp_path, on_cpu, at_root, sprites):
    config = 'configs/lattice/lattice_frcnn-tiny_t8-s2_moving-sprites.py'
    options = [f'train_dataloader.dataset.data_root={sprites}', *in_process('train', batch=2),
               'train_cfg.max_iters=4', 'train_cfg.val_interval=100']
    found = train(config, tmp_path / 'device', *options)
    on_cpu()
    assert_as_on_cpu(found, train(config, tmp_path / 'cpu', *options))
