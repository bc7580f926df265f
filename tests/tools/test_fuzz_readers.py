"""Every reader over spoiled files for some seconds; and a fuzzer that sees what it must see."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import load_script

from vision.common.core.errors import VisionError

TOOL = Path(__file__).resolve().parents[2] / 'benchmarks' / 'fuzz_readers.py'


@pytest.fixture(scope='module')
def fuzzer():
    return load_script('benchmarks/fuzz_readers.py')


def counts(fuzzer, reader, number=20):
    fuzzer.READERS['probe'] = reader
    row = dict(reader='probe', inputs=0, read=0, refused=0, shown=[],
               **dict.fromkeys(fuzzer.FAULTS, 0))
    fuzzer.fuzz('probe', row, 0, number)
    return row


@pytest.mark.fault('S33')
@pytest.mark.fault('R19')
@pytest.mark.slow
def test_every_reader_reads_or_refuses(fuzzer, tmp_path):
    """Torch in the parent would live in each child; a process of its own has none."""
    out = tmp_path / 'x.json'
    done = subprocess.run([sys.executable, str(TOOL), '--inputs', '4500', '--annotations', '10000',
                           '--json', str(out)], cwd=TOOL.parents[1], text=True, timeout=300,
                          capture_output=True,
                          env=os.environ | dict(PYTHONPATH=str(TOOL.parents[1])))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = json.loads(out.read_text())['rows']
    assert {row['reader'] for row in rows} == set(fuzzer.READERS)
    for row in rows:
        assert row['read'] + row['refused'] == row['inputs'] > 100, row
        # What a config of Python does not tell is not told: it is a program, and is run later.
        assert row['refused'] > 0 or row['reader'] == 'config-python', row


def test_a_fuzzer_sees_crashes_hangs_memory_and_foreign_errors(fuzzer, monkeypatch):
    monkeypatch.setattr(fuzzer, 'HANG_S', 0.5)

    def on(number, deed):
        """Do it at one input, and count them in a file: each process begins anew."""
        def read(path):
            seen = path.with_name('seen')
            seen.write_text(str(int(seen.read_text()) + 1) if seen.exists() else '0')
            if int(seen.read_text()) == number:
                deed()
        return fuzzer.Reader(lambda folder: [b'seed'], read, '.x')

    def burn():
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pass

    row = counts(fuzzer, on(5, lambda: os.kill(os.getpid(), 11)))
    assert row['crash'] > 0 and row['inputs'] == 20 and 'crash' in row['shown'][0]
    assert row['read'] + row['crash'] == 20
    row = counts(fuzzer, on(5, burn), 8)
    assert row['hang'] == 1 and row['read'] == 7
    row = counts(fuzzer, on(5, lambda: bytearray(3 << 30)))
    assert row['memory'] == 1 and row['read'] == 19
    row = counts(fuzzer, on(5, lambda: {}['x']))
    assert row['foreign'] == 1 and 'KeyError' in row['shown'][0]

    def refuse():
        raise VisionError('VIS-DATA-217', 'x')

    row = counts(fuzzer, on(5, refuse))
    assert row['refused'] == 1 and row['read'] == 19 and not row['shown']


def test_inputs_depend_on_seed_name_and_number_alone(fuzzer, tmp_path):
    reader = fuzzer.READERS['mot']
    seeds = reader.seeds(tmp_path)

    def made(seed, number):
        return reader.mutated(seeds, fuzzer._random(seed, 'mot', number))

    assert [made(0, i) for i in range(50)] == [made(0, i) for i in range(50)]
    assert len({made(0, i) for i in range(50)} | {made(1, i) for i in range(50)}) > 60
    assert all(made(0, i) not in seeds for i in range(5))


def test_an_earlier_call_is_gone_on_with(fuzzer, tmp_path, capsys):
    for inputs in (100, 300):
        assert fuzzer.main(['--reader', 'mot', '--annotations', str(inputs), '--state',
                            str(tmp_path / 'state.json')]) == 0
    kinds = sum(reader.is_annotation for reader in fuzzer.READERS.values())
    state = json.loads((tmp_path / 'state.json').read_text())['mot']
    assert 300 / kinds <= state['inputs'] <= 300 / kinds + 2
