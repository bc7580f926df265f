"""Starts a script once for each rank and waits for all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_ranks(script, folder, repository, *, num=4, timeout=180):
    """What each of ``num`` processes SCRIPT RANK NUM FOLDER left in FOLDER/RANK.json."""
    environment = {**os.environ, 'PYTHONPATH': str(repository), 'OMP_NUM_THREADS': '1'}
    processes = [subprocess.Popen(
        [sys.executable, str(HERE / script), str(rank), str(num), str(folder)],
        env=environment, stderr=subprocess.PIPE, text=True) for rank in range(num)]
    try:
        faults = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * num, faults
    return [json.loads((Path(folder) / f'{rank}.json').read_text()) for rank in range(num)]
