"""Calibration, simulation and inference on a GPU, by the commands of a user."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vision
from vision.simulator.core.cluster import read_cluster

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'classify'))
pytestmark = pytest.mark.gpu
VIT = str(ROOT / 'configs/classify/vit-tiny_imagenette160.py')
TINY = str(ROOT / 'configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py')


def command(name: str, *arguments: object) -> None:
    assert importlib.import_module(f'vision.cli.{name}').main([*map(str, arguments)]) == 0


@pytest.fixture(scope='module')
def cluster_file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('cluster') / 'here.yaml'
    command('calibrate', '--out', out, '--per-size', 0.01, '--ranks', 1)
    return out


def test_a_gpu_is_calibrated_and_reads_as_one(device, cluster_file):
    found = read_cluster(cluster_file).device
    if device.type != 'cuda':
        assert set(found.flops) == {'fp32'}
        return
    # Any GPU with tensor cores: bfloat16 far above float32, TF32 between.
    assert found.flops['bf16'] > found.flops['tf32'] > 1.5 * found.flops['fp32'] > 1e12
    assert found.memory_rate > 1e11
    total = torch.cuda.get_device_properties(0).total_memory
    assert found.memory_bytes == pytest.approx(total, rel=1e-3)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_config_is_simulated_on_what_was_calibrated(device, cluster_file, tmp_path):
    command('simulate', VIT, '--cluster', cluster_file, '--json', tmp_path / 'p.json')
    found = json.loads((tmp_path / 'p.json').read_text())
    assert 0 < found['step_seconds'] < 100 and 0 < found['mfu'] <= 1


def test_a_predicted_step_is_near_the_measured_one(device, cluster_file):
    """A large product-bound step, of which nothing but the products' rate matters: a chain of
    linear layers. The measurement with networks is benchmarks/gpu_training.py."""
    if device.type != 'cuda':
        pytest.skip('about the time of a GPU')
    from vision.simulator.core.compile import Settings, compile_strategy
    from vision.simulator.core.engine import run
    from vision.simulator.core.priced import ClusterPricing
    from vision.simulator.core.pricing import Prices
    from vision.simulator.core.strategy import StrategyTree
    from vision.simulator.nn.trace import trace
    layers = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(8)))
    graph = trace(layers, torch.zeros(8192, 4096), autocast='bfloat16')
    pricing = ClusterPricing(Prices(read_cluster(cluster_file)))
    expected = run(compile_strategy(graph, StrategyTree(), pricing, Settings())).makespan
    layers = layers.to(device)
    optimizer, x = torch.optim.SGD(layers.parameters(), 1e-3), torch.randn(8192, 4096).to(device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast('cuda', torch.bfloat16):
            loss = layers(x).float().sum()
        loss.backward()
        optimizer.step()
    for _ in range(3):
        step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        step()
    end.record()
    torch.cuda.synchronize()
    measured = start.elapsed_time(end) / 1e4
    assert expected == pytest.approx(measured, rel=0.5), (expected, measured)


def test_the_trace_of_a_network_on_the_gpu_is_that_of_one_on_the_cpu(device):
    from vision.simulator.nn.trace import trace
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8),
                                 torch.nn.ReLU())
    x = torch.zeros(2, 3, 16, 16)
    here = trace(layers, x)
    there = trace(layers.to(device), x.to(device))
    assert {p.device.type for p in layers.parameters()} == {device.type}
    assert [(op.name, op.flops, op.kind) for op in here.ops] == \
        [(op.name, op.flops, op.kind) for op in there.ops]


# Inference.
@pytest.fixture(scope='module')
def small_vit(tmp_path_factory) -> tuple[str, Path]:
    """A config and weights of a classifier that was never trained."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    from vision.registry import MODELS
    folder = tmp_path_factory.mktemp('vit')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('vision'):
        model = MODELS.build(Config.fromfile(VIT).model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=[f'c{i}' for i in range(10)]))), folder / 'w.pth')
    return VIT, folder / 'w.pth'


def pictures(folder: Path, num: int = 3) -> list[Path]:
    import cv2
    generator = np.random.default_rng(0)
    paths = [folder / f'{i}.png' for i in range(num)]
    for path in paths:
        cv2.imwrite(str(path), generator.integers(0, 255, (160, 200, 3), dtype=np.uint8))
    return paths


def test_a_classifier_says_the_same_on_both_devices(device, small_vit, tmp_path):
    config, weights = small_vit
    paths = pictures(tmp_path)
    there, here = (vision.load(config, weights, device=name)(paths)
                   for name in (str(device), 'cpu'))
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-3)
    command('classify', *paths, '--model', config, '--weights', weights, '--device', device,
            '--out', tmp_path / 't.csv')
    assert len((tmp_path / 't.csv').read_text().splitlines()) == 1 + 3 * 5


def test_detect_and_benchmark_run_on_the_device(device, tmp_path):
    """A detector without weights; speeds of its network and of a classifier's, on noise."""
    out = tmp_path / 'speed.json'
    for config, shape in ((TINY, (240, 320)), (VIT, (128, 128))):
        command('benchmark', config, '--shape', *shape, '--batch-size', 1, 4, '--max-iter', 5,
                '--num-warmup', 2, '--device', device, '--json', out)
        rows = json.loads(out.read_text())['rows']
        assert [row['batch_size'] for row in rows] == [1, 4]
        assert all(row['images_per_s'] > 0 and row['device'].startswith(device.type)
                   for row in rows)


def test_an_onnx_model_of_the_zoo_classifies_beside_a_gpu(device, tmp_path):
    """onnxruntime computes on the processor; that a GPU is there must not change what it says."""
    command('classify', *pictures(tmp_path, 1), '--out', tmp_path / 't.csv')
    assert (tmp_path / 't.csv').read_text().count('\n') == 6
