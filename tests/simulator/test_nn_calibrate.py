import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vision.common.core.errors import VisionError
from vision.simulator.core.calibration import cluster_text, line_of
from vision.simulator.core.cluster import cluster_from, read_cluster
from vision.simulator.core.pricing import Group, Prices

ROOT = Path(__file__).resolve().parents[2]


def test_a_line_is_found_again():
    points = [(size, 2e-4 + size / 5e8) for size in (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)]
    alpha, beta = line_of(points)
    assert alpha == pytest.approx(2e-4) and beta == pytest.approx(5e8)


def test_text_reads_as_the_cluster_that_was_measured():
    tables = {name: [(1e3, 1e-3), (1e6, 2e-3)] for name in ('all_reduce', 'all_gather')}
    text = cluster_text(dict(gemm=dict(fp32=[(1e6, 2e10), (1e9, 4e10)]),
                             memory=[(1e4, 5e9), (1e6, 1e10)], host=3e-6, collectives=tables,
                             slowdown=0.4), name='mine', ranks=2, memory_bytes=2**33,
                        provenance='2026-11-29, a test')
    cluster = cluster_from(yaml.safe_load(text), where='text')
    assert cluster.device.flops['fp32'] == pytest.approx(4e10)
    assert cluster.device.curves['gemm'] == ((1e6, 0.5), (1e9, 1.0))
    assert cluster.overheads.slowdown == 0.4 and cluster.overheads.host == pytest.approx(3e-6)
    assert Prices(cluster).all_reduce(1e6, Group(2, 2)) == 2e-3
    assert 'a test' in cluster.provenance['device']


def test_a_small_product_of_a_fast_device_is_not_rounded_to_nothing():
    """64 x 64 on a GPU of 800 TFLOP/s, in ten microseconds."""
    text = cluster_text(dict(gemm=dict(bf16=[(5.2e5, 5.2e10), (1e12, 8e14)]),
                             memory=[(1e5, 1e10), (1e9, 4e12)], host=4e-6), name='fast', ranks=1,
                        memory_bytes=1.5e11, provenance='2026-11-29, a test')
    curve = cluster_from(yaml.safe_load(text), where='text').device.curves['gemm']
    assert curve[0][1] == pytest.approx(6.5e-5)


@pytest.mark.distributed
def test_the_tool_measures_this_machine(tmp_path):
    out = tmp_path / 'machine.yaml'
    command = [sys.executable, '-m', 'vision', 'calibrate', '--out', str(out), '--per-size',
               '0.001']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    cluster = read_cluster(out)
    assert cluster.gpus_per_node == 2 and 'fp32' in cluster.device.flops
    table = cluster.links['intra'].table
    assert all(len(table[name]) >= 6 for name in ('all_reduce', 'all_gather'))
    assert cluster.device.curves['gemm'][0][1] > 0


@pytest.mark.parametrize('wrong', [['--ranks', '0'], ['--per-size', '0'], ['--dtype', 'tf32']])
def test_what_cannot_be_measured_is_refused(tmp_path, wrong, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)  # which has TF32
    from vision.cli import calibrate as tool
    with pytest.raises(VisionError, match='VIS-CONFIG-1647'):
        tool.main(['--out', str(tmp_path / 'x'), *wrong])
