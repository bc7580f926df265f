"""Fewer pages from the system once freed memory is kept, seen from outside."""

import subprocess
import sys

import pytest

SCRIPT = '''
import resource, sys
import torch
from vision.common.nn.freed_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == 'keep' and not keep_freed_memory():
    sys.exit(77)
def used():
    for _ in range(30):
        a = torch.ones(10_000_000)  # 40 MB: glibc maps such by itself
        del a
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = used()
print(used() - first)
'''


def new_pages(mode, repository):
    run = subprocess.run([sys.executable, '-c', SCRIPT, mode], capture_output=True, text=True,
                         cwd=repository)
    if run.returncode == 77:
        pytest.skip('not the C library of GNU')
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_memory_that_is_used_again_needs_no_new_pages(repository):
    assert new_pages('keep', repository) < new_pages('return', repository) / 20
