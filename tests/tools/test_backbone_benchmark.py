import json
from pathlib import Path

import pytest
import torch
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.common.nn.live_memory import LiveMemory
from vision.polynet.core.arch import PRESETS, Arch

ROOT = Path(__file__).resolve().parents[2]


tool = load_script('benchmarks/backbone.py')


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, 'tiny', Arch((('2-way',) * 3, ('poly-3',), ('mpoly-2',))))
    monkeypatch.setattr(tool, 'MATRIX_SIZES', (128,))


def test_a_run_writes_every_variant_beside_the_plain_one(tiny, tmp_path):
    target = tmp_path / 'speed.json'
    assert tool.main(['tiny', '--size', '75', '--batch', '2', '--variants', 'plain',
                      'fused', 'fused_channels_last', '--rounds', '1', '--train-rounds', '1',
                      '--json', str(target)]) == 0
    report = json.loads(target.read_text())
    rows = {(row['task'], row['variant']): row for row in report['rows']}
    assert len(rows) == 7 and report['matrix_gflops_peak'] > 0
    assert rows['inference', 'matrix products']['of_limit'] == 1
    assert rows['inference', 'weights read once']['megabytes'] > 1
    for row in report['rows']:
        assert row['min_ms'] <= row['median_ms']
        assert row['task'] == 'training' or 'megabytes' in row \
            or (row['is_exact'] and row['of_limit'] > 0)
    plain, frugal = rows['training', 'plain'], rows['training', 'with_cp']
    assert plain['memory_ratio'] == 1 and frugal['memory_ratio'] < 1
    table = target.with_suffix('.md').read_text().splitlines()
    assert len(table) == 2 + 7


def test_live_memory_is_the_peak_by_hand():
    x = torch.zeros(1000)  # made before: does not count
    with LiveMemory() as memory:
        a = x + 1
        b = a + 1
        view = b[:10]  # a view has no storage of its own
        del a
        c = b + 1
        c.add_(1)
    assert memory.peak_bytes == 8000 and memory.live_bytes == 8000
    del b, c
    assert memory.live_bytes == 4000 and len(view) == 10
    del view
    assert memory.live_bytes == 0


def test_live_memory_sees_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    with LiveMemory() as memory:
        x.exp().exp().sum().backward()
    assert memory.peak_bytes >= 3 * 4000  # two saved results and a gradient
    assert memory.live_bytes == 4000  # x.grad


@pytest.mark.parametrize(('arguments', 'message'), [
    (['ir-3-6-3', '--variants', 'plain', 'fast'], r"VIS-CONFIG-047.*\['fast'\]"),
    (['ir-3-6-3', '--variants', 'fused'], 'VIS-CONFIG-047.*plain'),
    (['very-depp'], 'VIS-CONFIG-048'), (['ir-3-6-3', '--rounds', '0'], 'VIS-INPUT-049')])
def test_wrong_arguments_are_refused_before_any_work(arguments, message):
    with pytest.raises(VisionError, match=message):
        tool.main(arguments)
