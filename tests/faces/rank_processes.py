"""Ranks as forks of one process: torch and MMEngine are imported once, not by each of them."""

import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent


def run_ranks(script, folder, repository, *, num=4, timeout=180):
    """What each of ``num`` ranks of SCRIPT NUM FOLDER left in FOLDER/RANK.json, if it did."""
    result = subprocess.run(
        [sys.executable, str(HERE / script), str(num), str(folder)], stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(repository), 'OMP_NUM_THREADS': '1'}, text=True,
        timeout=timeout)
    assert result.returncode == 0, result.stderr
    files = [Path(folder) / f'{rank}.json' for rank in range(num)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def fork_ranks(work):
    """In the script: ``work(rank, num, folder)`` in each rank. Does not come back."""
    num, folder = int(sys.argv[1]), sys.argv[2]
    children = {}
    gc.freeze()  # MMEngine collects garbage for each data set, also what was imported
    for rank in range(num):
        if not (child := os.fork()):
            try:
                work(rank, num, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # torch's gloo now and then aborts while Python shuts down, all work done
        children[child] = rank
    while children:
        child, status = os.wait()
        children.pop(child)
        if status:  # the others would wait for it
            for other in children:
                os.kill(other, 9)
            sys.exit(1)
    sys.exit(0)
