"""The benchmark of long lists, on short ones: what it makes is what verify_faces takes."""

import json

import numpy as np
import pytest
from scripts import load_script

from vision.common.core.errors import VisionError


@pytest.fixture
def tool(monkeypatch):
    module = load_script('benchmarks/face_protocols.py')
    for name, value in dict(PEOPLE=2_000, PICTURES=9_000, TEMPLATES=5_000, PAIRS=20_000).items():
        monkeypatch.setattr(module, name, value)
    return module


def test_lists_of_ijbc(tool, tmp_path):
    assert tool.main(['ijbc', '--dim', '16', '--json', str(tmp_path / 'r.json')]) == 0
    row, = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert row['num_pairs'] == 20_000 and row['num_templates'] == 5_000
    assert row['identification'][-1]['gallery'] == 'mean' and row['seconds'] > 0
    assert 1e7 < row['peak_own_bytes'] <= row['peak_with_mapped_bytes'] < 1e9


def test_people_of_a_file_among_distractors(tool, tmp_path):
    rows = np.repeat(np.eye(3, 8, dtype=np.float32), 2, axis=0)
    np.savez(tmp_path / 'e.npz', embeddings=rows,
             paths=np.array([f'{row // 2}/{row}.jpg' for row in range(6)]))
    assert tool.main(['megaface', '--dim', '8', '--share', '0.0001', '--people', str(
        tmp_path / 'e.npz'), '--json', str(tmp_path / 'r.json')]) == 0
    row, = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert row['num_questions'] == 6
    assert row['rank1'] == [dict(distractors=10, rate=1), dict(distractors=100, rate=1)]
    (tmp_path / 'e.npz').write_bytes(b'PK nonsense')
    with pytest.raises(VisionError, match='VIS-DATA-1132'):
        tool.main(['megaface', '--people', str(tmp_path / 'e.npz')])
