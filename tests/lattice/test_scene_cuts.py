"""benchmarks/scene_cuts.py on generated videos."""

import json
import os
import subprocess
import sys


def test_joins_are_cuts_and_videos_have_none(repository, tmp_path):
    data = tmp_path / 'set'
    prepared = subprocess.run(
        [sys.executable, 'datasets/moving_sprites/prepare.py', '--out', str(data), '--num-train',
         '1', '--num-val', '3', '--num-frames', '6'], cwd=repository, capture_output=True,
        text=True, env=os.environ | {'PYTHONPATH': str(repository)})
    assert prepared.returncode == 0, prepared.stderr
    out = tmp_path / 'cuts.json'
    done = subprocess.run(
        [sys.executable, 'benchmarks/scene_cuts.py', '--set',
         str(data / 'annotations' / 'val.json'), str(data / 'val'), '--json', str(out)],
        cwd=repository, capture_output=True, text=True,
        env=os.environ | {'PYTHONPATH': str(repository)})
    assert done.returncode == 0, done.stderr
    row, = json.loads(out.read_text())['rows']
    assert (row['frame_pairs'], row['cuts'], row['false_alarms']) == (15, 6, 0)
    assert row['missed_cuts'] < 6 and 'val: 0 false alarms' in done.stdout
