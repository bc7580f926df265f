import json
import os
import subprocess
import sys


def test_no_kill_leaves_a_folder_without_its_newest_finished_checkpoint(repository, tmp_path):
    out = tmp_path / 'kills.json'
    result = subprocess.run(
        [sys.executable, 'tools/benchmarks/kill_while_saving.py', '--kills', '20', '--megabytes',
         '8', '--json', str(out)], cwd=repository, capture_output=True, text=True, timeout=200,
        env=dict(os.environ, PYTHONPATH=str(repository)))
    assert result.returncode == 0, result.stderr
    row, = json.loads(out.read_text())['rows']
    assert row['kills'] == 20 and row['unreadable'] == row['lost'] == 0
    assert row['torn'] > 0  # some kills met a file half written, or this proves nothing
