"""The benchmark of the live path on a short clip: its rows, and what it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from vision.stream.io.sinks import VideoSink


@pytest.fixture
def clip(tmp_path):
    """Noise enough that a stream of it is larger than what a decoder looks at first."""
    sink, rng = VideoSink(tmp_path / 'clip.mp4', fps=25), np.random.default_rng(0)
    for t in range(30):
        image = rng.integers(0, 80, (64, 96, 3), np.uint8)
        image[10:22, 5 + 2 * t:17 + 2 * t] = 220
        sink.write(image, t / 25)
    return sink.close()


def run(repository, *arguments):
    return subprocess.run([sys.executable, 'benchmarks/live_path.py', *map(str, arguments)],
                          cwd=repository, capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(PYTHONPATH=str(repository)))


def test_lost_connections_leave_no_file_and_no_thread_open(clip, tmp_path, repository):
    report = tmp_path / 'r.json'
    result = run(repository, clip, '--parts', 'connections', '--drops', '7', '--json', report)
    assert result.returncode == 0, result.stderr
    rows = json.loads(report.read_text())['rows']
    assert [row['setting'] for row in rows] == ['open files after 7 losses',
                                                'threads after 7 losses']
    assert all(row['is_met'] and row['num_losses'] >= 7 and row['num_frames'] for row in rows)


@pytest.mark.slow
def test_all_parts_have_their_rows(clip, tmp_path, repository):
    """Bars are not judged here: so few frames hold no budget, and this machine does more."""
    report = tmp_path / 'r.json'
    result = run(repository, clip, '--latency-frames', 30, '--frames', 200, '--drops', 3,
                 '--budget-frames', 60, '--json', report)
    assert result.returncode in (0, 1), result.stderr
    rows = json.loads(report.read_text())['rows']
    assert [row['part'] for row in rows] == ['latency'] * 3 + ['memory'] + ['connections'] * 2 \
        + ['budget'] * 3
    assert [row['num_frames'] + row['num_dropped'] for row in rows[:3]] == [30] * 3
    assert rows[3]['num_frames'] == 200
    assert rows[-1]['bar'] == 0.15 and 0.1 < rows[-1]['measured'] < 0.25


def test_parts_that_are_none_are_refused(clip, repository):
    result = run(repository, clip, '--parts', 'speed')
    assert result.returncode == 2 and 'VIS-CONFIG-517' in result.stderr
