"""Nothing that runs here reports to anybody: no files, threads or connections of a collector."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A detection, as the video demo makes it; then what the process left in its home and has open.
DETECT = """
import json, os, sys
from pathlib import Path
import numpy as np
from vision.lattice.runtime.detectors import as_detector
as_detector('zoo:yolox-nano_coco').detect(np.zeros((48, 64, 3), np.uint8))
files = [str(path) for path in Path.home().rglob('*') if path.is_file()]
descriptors = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')
               if os.path.exists(f'/proc/self/fd/{fd}')]
print(json.dumps([files, [name for name in descriptors if 'onnxruntime.db' in name],
                  os.environ.get('ORT_DISABLE_TELEMETRY')]))
"""


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='looks at open files in /proc')
def test_a_detection_leaves_nothing_for_a_collector(tmp_path):
    # Without the variable there is a data base, some time after the import.
    assert run(tmp_path) == [[], [], '1']


def run(home: Path) -> list:
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('ORT_DISABLE_TELEMETRY', 'XDG_CACHE_HOME')}
    done = subprocess.run([sys.executable, '-c', DETECT], cwd=ROOT, capture_output=True, text=True,
                          env=environment | dict(HOME=str(home)), timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
