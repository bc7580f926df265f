"""Ranks that die, raise or hang: all end in time, and the message names the one that was hit."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vision.common.nn import watchdog
from vision.common.nn.watchdog import Watchdog, suspect

pytestmark = pytest.mark.distributed
FAULTS = [('kill', 2, 1), ('kill', 4, 0), ('exit', 2, 0), ('raise', 4, 3), ('raise', 2, 0),
          ('sleep', 4, 2), ('swap', 2, 1), ('stop', 2, 1), ('stop', 2, 0), ('lock', 2, 1),
          ('stage-raises', 3, 1), ('stage-waits', 3, 1)]


@pytest.fixture(scope='module')
def played(repository, tmp_path_factory):
    """(codes, seconds, texts) of the ranks by fault, from a process that forks them."""
    folder = tmp_path_factory.mktemp('faults')
    (folder / 'faults.json').write_text(json.dumps(FAULTS))
    play('faults', folder, repository)
    rows = json.loads((folder / 'played.json').read_text())
    return {tuple(fault): row for fault, row in zip(FAULTS, rows, strict=True)}


def play(case, folder, repository):
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('rank_cases.py')), case, str(folder)],
        capture_output=True, text=True, cwd=repository, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.fault('R28')
def test_ranks_that_end_later_than_the_one_with_the_store_end_well(repository, tmp_path):
    play('late', tmp_path, repository)


@pytest.mark.fault('R28')
def test_what_all_ranks_raise_at_once_is_printed(repository, tmp_path):
    play('together', tmp_path, repository)
    for row in json.loads((tmp_path / 'together.json').read_text()):
        text = ''.join(text for _, text in row)
        assert 'ValueError: what rank 0 has found' in text and 'is gone' not in text
        assert all(code != 0 for code, _ in row)


def others(row, rank):
    return [part for other, part in enumerate(row) if other != rank]


@pytest.mark.fault('R28', 'R29')
@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: '-'.join(map(str, fault)))
def test_all_ranks_end_within_the_time_out_and_ten_seconds(played, fault):
    kind, _, rank = fault
    for code, seconds, _ in others(played[fault], rank):
        assert code not in (0, None) and seconds < 3 + 10
    code = played[fault][rank][0]
    # Nothing but SIGKILL ends a process that was stopped.
    assert code == {'kill': -9, 'stop': None, 'exit': 3}.get(kind, code) != 0


@pytest.mark.fault('R28')
@pytest.mark.parametrize('fault', [f for f in FAULTS if f[0] in ('kill', 'exit', 'lock', 'stop')
                                   and f != ('stop', 2, 0)],
                         ids=lambda fault: '-'.join(map(str, fault)))
def test_a_rank_that_is_gone_is_named(played, fault):
    _, world, rank = fault
    text = ''.join(text for _, _, text in others(played[fault], rank))
    assert f'VIS-DIST-341: rank {rank} of {world} is gone' in text


@pytest.mark.fault('R29')
def test_a_stopped_rank_that_holds_the_store_is_named_with_its_host(played):
    text = played['stop', 2, 0][1][2]
    assert 'VIS-DIST-341: rank 0 of 2 does not answer' in text
    # The address stands for the host when rank 0 was stopped before they had met in the store.
    assert re.search(rf'on host ({socket.gethostname()}|127\.0\.0\.1); rank 1 is at all_reduce',
                     text)
    assert 'holds the store of all ranks' in text and 'Traceback' not in text


def test_code_that_keeps_pythons_lock_ends_with_its_stacks(played):
    code, _, text = played['lock', 2, 1][1]
    assert code == 1 and 'in meet' in text


def test_under_torchrun_it_is_torchrun_that_holds_the_store(monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setenv('MASTER_ADDR', 'node-7')
    monkeypatch.setattr(watchdog, '_leave', lambda: None)
    Watchdog(1)._end_without_store('does not answer', 'holds the store')
    said = capsys.readouterr().err
    assert 'torchrun does not answer' in said and 'host node-7' in said and 'rank 0 of' not in said


@pytest.mark.fault('R28')
@pytest.mark.parametrize('fault', [f for f in FAULTS if f[0] == 'raise'],
                         ids=lambda fault: '-'.join(map(str, fault)))
def test_the_rank_that_raised_shows_its_traceback_and_no_other_does(played, fault):
    rank = fault[2]
    assert 'ValueError: a sample that cannot be read' in played[fault][rank][2]
    for _, _, text in others(played[fault], rank):
        assert f'rank {rank}' in text and 'Traceback' not in text


@pytest.mark.fault('R29')
def test_a_rank_that_sleeps_is_named_with_the_stacks_of_all(played):
    fault = 'sleep', 4, 2
    text = ''.join(text for _, _, text in played[fault])
    assert 'VIS-DIST-340: a rank hangs: rank 2 is in meet' in text
    assert 'all_reduce of (100,)' in text
    for rank in range(4):
        assert f'--- stack of rank {rank} ' in text
    assert 'in meet\n' in text.split('--- stack of rank 2 ')[1].split('--- stack')[0]


@pytest.mark.fault('R29')
def test_collectives_in_another_order_are_named(played):
    text = ''.join(text for _, _, text in played['swap', 2, 1])
    assert 'is all_reduce of (100,) on rank 0, broadcast of (100,) on rank 1' in text


@pytest.mark.fault('R30')
def test_a_stage_that_raises_between_send_and_receive_ends_the_others(played):
    """The room of pipelines is not built yet: this is its form, a chain of ranks that send and
    receive point to point, of which one raises, or waits for what nobody sends."""
    fault = 'stage-raises', 3, 1
    assert 'ValueError: stage 1' in played[fault][1][2]
    for _, _, text in others(played[fault], 1):
        assert 'rank 1' in text and 'Traceback' not in text
    text = ''.join(text for _, _, text in played['stage-waits', 3, 1])
    assert 'VIS-DIST-340' in text and 'recv' in text


def report(begun, name, is_waiting=True, place='all_reduce (d.py:1)'):
    return dict(begun=begun, name=name, is_waiting=is_waiting, place=place)


@pytest.mark.parametrize(('reports', 'expected'), [
    ({0: report(5, 'all_reduce'), 1: report(4, 'barrier', False, 'load (data.py:7)')},
     'rank 1 is in load (data.py:7) after its collective 4 (barrier)'),
    ({0: report(5, 'all_reduce'), 1: report(4, 'barrier'), 2: report(5, 'all_reduce')},
     'rank 1 has begun 4 collectives, the last barrier; others 5'),
    ({0: report(5, 'all_reduce'), 1: report(5, 'broadcast')},
     'collective 5 is all_reduce on rank 0, broadcast on rank 1'),
    ({0: report(5, 'all_reduce'), 1: report(5, 'all_reduce')},
     'all ranks stand at collective 5 (all_reduce)')])
def test_the_rank_that_does_not_fit(reports, expected):
    assert suspect(reports).startswith(expected)
