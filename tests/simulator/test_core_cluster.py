import re
from pathlib import Path

import pytest
import yaml

from vision.common.core.errors import VisionError
from vision.simulator.core.cluster import cluster_from, interpolate, read_cluster
from vision.simulator.core.parameters import read_parameters

CLUSTERS = Path(__file__).resolve().parents[2] / 'configs' / 'clusters'
PRESETS = ('a100-dgx', 'cpu-gloo', 'h100', 'rtx4090', 'v100-dgx1')


def raw(**changes):
    """The A100 preset with values at dotted keys changed; None takes a key out."""
    content = yaml.safe_load((CLUSTERS / 'a100-dgx.yaml').read_text())
    for key, value in changes.items():
        *path, last = key.split('__')
        inner = content
        for name in path:
            inner = inner[name]
        inner[last] = value
        if value is None:
            del inner[last]
    return content


@pytest.mark.parametrize('name', PRESETS)
def test_presets_read_and_say_where_figures_are_from(name):
    cluster = read_cluster(CLUSTERS / f'{name}.yaml')
    assert cluster.world_size == cluster.gpus_per_node
    for key in ('device', 'links.intra', 'links.inter', 'overheads'):
        assert cluster.provenance[key]


def test_presets_have_names_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ('h100', 'configs/clusters/h100.yaml', str(CLUSTERS / 'h100.yaml')):
        assert read_cluster(text) == read_cluster(CLUSTERS / 'h100.yaml')
    assert read_parameters('fitted').constants
    with pytest.raises(VisionError, match='VIS-CONFIG-1642[^$]*'
                       'name of one: a100-dgx, cpu-gloo, h100, rtx4090, v100-dgx1$'):
        read_cluster('h1000')


def test_units_become_seconds_and_bytes():
    cluster = read_cluster(CLUSTERS / 'a100-dgx.yaml')
    assert cluster.device.flops['bf16'] == 312e12
    assert cluster.device.memory_bytes == 80 * 2**30
    assert cluster.links['inter'].rate == 25e9
    assert cluster.links['intra'].latency == pytest.approx(3e-6)
    assert cluster.overheads.launch == pytest.approx(2e-6)


@pytest.mark.parametrize('changes, code, words', [
    (dict(links__intra=None), 1640, "no link 'intra'.*8 devices"),
    (dict(nodes=4, links__inter=None), 1640, "no link 'inter'.*4 nodes"),
    (dict(links__inter__bandwidth_gb_per_s=200), 1641, 'as 25 would be'),
    (dict(links__inter__bandwidth_gb_per_s=100, links__host__bandwidth_gb_per_s=32), 1648,
     'which is 12.5 GB/s'),
    (dict(links__intra__bandwidth_gb_per_s=2400), 1641, 'as 300 would be'),
    (dict(device__tflops=dict(bf16=312_000)), 1641, 'GFLOP/s'),
    (dict(device__memory_gib=81_920), 1641, 'MiB'),
    (dict(device__memory_bandwidth_gb_per_s=2.039e6), 1641, 'MB/s'),
    (dict(links__intra__latency_us=3e6), 1641, 'nanoseconds'),
    (dict(gpu_per_node=8), 1642, 'unknown keys: gpu_per_node'),
    (dict(device__efficiency__gem=0.8), 1642, 'unknown keys: gem'),
    (dict(links__nvlink=dict(latency_us=1, bandwidth_gb_per_s=1)), 1642, "no link 'nvlink'"),
    (dict(nodes=0), 1642, 'nodes is 0'),
    (dict(device__memory_gib='80GB'), 1642, "'80GB'"),
    (dict(device__tflops=dict(int8=624)), 1642, "'int8'"),
    (dict(device__curves=dict(gemm=[[1e9]])), 1642, 'not a list of'),
    (dict(device=None), 1642, 'no device'),
    (dict(nodes=10**400), 1642, 'nodes is 1000'),
    (dict(overheads=dict(host_us=10**400)), 1642, 'host_us is 1000'),
    (dict(overheads=dict(host_us=float('inf'))), 1642, 'host_us is inf'),
    (dict(device__curves=dict(gemm=[[1e9, 10**400]])), 1642, 'not a list of'),
    (dict(device__curves=dict(gemm=[[1e9, float('nan')]])), 1642, 'not above 0'),
])
def test_faults_of_a_file_are_told(changes, code, words):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}') as caught:
        cluster_from(raw(**changes), where='cluster.yaml')
    assert re.search(words, str(caught.value), re.S), str(caught.value)


NO_YAML = [b'nodes: [1', b'!!python/object/apply:os.system [true]', b'[' * 2000,
           b'nodes: ' + b'9' * 5000, b'nodes: 2001-13-45', b'name: \xff', b'? [a]\n: 1', b'']


@pytest.mark.parametrize('content', NO_YAML, ids=lambda content: repr(content[:20]))
def test_a_file_that_is_no_yaml_is_told(tmp_path, content):
    path = tmp_path / 'cluster.yaml'
    path.write_bytes(content)
    with pytest.raises(VisionError, match='VIS-CONFIG-1642'):
        read_cluster(path)
    with pytest.raises(VisionError, match='VIS-CONFIG-1651'):
        read_parameters(path)


@pytest.mark.parametrize('interval', ['.nan', '-1', '.inf', '9' * 400])
def test_an_interval_is_a_number(tmp_path, interval):
    path = tmp_path / 'fitted.yaml'
    path.write_text(f'source: x\ninterval: {interval}\nconstants: {{}}\n')
    with pytest.raises(VisionError, match='VIS-CONFIG-1651'):
        read_parameters(path)


def test_one_adapter_of_800_gbit_is_believed_behind_a_fast_bus():
    cluster_from(raw(links__inter__bandwidth_gb_per_s=100, links__host__bandwidth_gb_per_s=128),
                 where='x')


def test_interpolation_is_linear_in_the_logarithm():
    points = ((1.0, 0.0), (100.0, 1.0))
    assert interpolate(points, 10.0) == pytest.approx(0.5)
    assert interpolate(points, 0.1) == 0.0 and interpolate(points, 1e9) == 1.0
