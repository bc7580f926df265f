"""The benchmark of the whole pipeline on a short clip: rows, figures, and what it refuses."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    for t in range(10):
        image = np.full((64, 96, 3), 20, np.uint8)
        image[10:22, 5 + 2 * t:17 + 2 * t] = 220
        cv2.imwrite(str(folder / f'{t:03}.png'), image)
    return folder


def run(repository, *arguments):
    return subprocess.run([sys.executable, 'benchmarks/video_pipeline.py', *arguments],
                          cwd=repository, capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(PYTHONPATH=str(repository)))


@pytest.mark.slow
def test_all_rows_have_their_figures(frames, tmp_path, repository):
    report = tmp_path / 'r.json'
    result = run(repository, str(frames), '--repeats', '2', '--max-frames', '8', '--json',
                 str(report))
    assert result.returncode == 0, result.stderr
    rows = {row['method']: row for row in json.loads(report.read_text())['rows']}
    assert list(rows) == ['serial', 'parallel', 'lattice', 'causal']
    assert all(row['num_frames'] == 8 and row['fps_end_to_end'] > 0 for row in rows.values())
    assert rows['serial']['keyframe_rate'] == rows['parallel']['keyframe_rate'] == 1
    assert rows['lattice']['keyframe_rate'] < 0.5
    assert all(row['fps_lowest'] <= row['fps_end_to_end'] <= row['fps_highest'] + 0.01
               for row in rows.values())


@pytest.mark.parametrize(('code', 'options'), [
    (521, ('--rows', 'fast')), (522, ('--size', '1920')), (522, ('--size', '0x40'))])
def test_rows_and_sizes_that_are_none_are_refused(frames, repository, code, options):
    result = run(repository, str(frames), *options)
    assert result.returncode == 2 and f'VIS-CONFIG-{code}' in result.stderr


def test_another_size_is_measured_on_a_scaled_clip(frames, tmp_path, repository):
    report = tmp_path / 'r.json'
    result = run(repository, str(frames), '--repeats', '1', '--rows', 'lattice', '--size',
                 '128x48', '--json', str(report))
    assert result.returncode == 0, result.stderr
    row, = json.loads(report.read_text())['rows']
    assert (row['width'], row['height'], row['num_frames']) == (128, 48, 10)
