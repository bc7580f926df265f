"""No rank waits for ever: one that dies, raises or hangs ends all of them and is named first.

Each rank runs a thread beside its work. Through the store of the process group the threads tell
each other the first fault; for a hang, they bring together the stacks of all ranks and the last
collective of each (from torch's flight recorder), and say which rank does not fit. After a short
grace every process ends with exit code 7, so that torchrun or Slurm can start the run again.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from vision.common.core.errors import EXIT_CODES, VisionError
from vision.common.nn.torch_private import flight_record

TIMEOUT_S = 1800.0  # torch's own for a collective
POLL_S = 0.25
CONNECT_S = 2.0
REPORTS_S = 2.0  # the wait for stacks of the other ranks
# Beside the time-out this is all that passes until a rank has ended: a rank that failed prints
# its traceback meanwhile.
GRACE_S = 4.0
# Texts of gloo and NCCL when the other side is no longer there, or never came: not the cause.
LOST = ('closed by peer', 'reset by peer', 'Connection refused', 'Broken pipe', 'Timed out',
        'timed out', 'Socket Timeout', 'Socket closed', 'remote process exited', 'NCCL',
        'Connection was likely closed', 'failed to connect')


@contextmanager
def ends_together(timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Context of the whole work of a rank, from before its process group is made.

    Without a group of several processes it does nothing. An exception inside is posted for the
    other ranks and raised on; one that only says that another rank is gone ends this process
    here, after that rank was named.

    Args:
        timeout_s: how long a rank may stand at one place without any collective beginning.
    """
    # Read once by torch, when the first collective of the process begins.
    os.environ.setdefault('TORCH_FR_BUFFER_SIZE', '64')
    watchdog = Watchdog(timeout_s)
    watchdog.start()
    try:
        yield
    except SystemExit:
        raise  # all ranks stop after the same step (SignalHook)
    except BaseException as error:
        watchdog.failed(error)
        raise
    finally:
        watchdog.stop()


class Watchdog:
    """The thread of one rank; it waits until the default process group is there.

    Args:
        timeout_s: as for ``ends_together``.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.store: dist.Store | None = None
        self.rank, self.world = 0, 1
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._run, name='watchdog', daemon=True)
        self._is_over, self._is_ending = threading.Event(), threading.Event()
        self._num_looks = 0
        self._place: tuple = ()
        self._since = time.monotonic()
        self._others: dict[int, tuple[int, str]] = {}
        self._failure: BaseException | None = None
        self._connecting, self._arming = threading.Lock(), threading.Lock()

    def start(self) -> None:
        """Begin to watch, in threads that end with the process."""
        self._thread.start()
        threading.Thread(target=self._guard, name='watchdog of the store', daemon=True).start()

    def stop(self) -> None:
        """The work of this rank has ended, well or not."""
        if self._failure is None:
            if self.store is not None:
                self._set(f'done/{self.rank}', '1')
                if self.rank == 0 and not is_store_of_torchrun():
                    # The store goes with this process, and who still watches would miss it. Until
                    # then a rank that dies or hangs in its last work is found as before.
                    wait_until(self._have_all_finished, float('inf'))
            with self._arming:
                self._is_over.set()
                faulthandler.cancel_dump_traceback_later()
            self._thread.join(2 * POLL_S)

    def _have_all_finished(self) -> bool:
        """All ranks that ever met the others here have ended their work."""
        return all(self._is_there(f'done/{rank}') or not self._is_there(f'who/{rank}')
                   for rank in range(self.world))

    def failed(self, error: BaseException) -> None:
        """Post what ended this rank. Does not come back if another rank is the cause."""
        try:
            self._post(error)
        except dist.DistError as caught:  # the store is gone, with rank 0
            if self.store is not None:
                self._thread.join(GRACE_S)  # it may be ending the process for that
            self._end_without_store('is gone', f'held the store of all ranks, where: {caught}')

    def _post(self, error: BaseException) -> None:
        if self._is_over.is_set() or not self._connect():  # it may be the very first step
            return
        with self._arming:
            self._failure = error
        if isinstance(error, RuntimeError) and any(text in str(error) for text in LOST):
            # Whoever is the cause may need a moment to say so, or to be found dead.
            wait_until(lambda: self.store.check(['cause']), REPORTS_S)
            self._blame(dict(kind='lost'))
            self._is_over.set()
            self._thread.join()  # it prints and ends the process
        is_first = self._blame(dict(kind='raised'))
        # Torch's gloo, or a worker of a data loader, may hold up Python's own way out. The C
        # thread of faulthandler ends the process also then.
        faulthandler.dump_traceback_later(GRACE_S, exit=True)
        if not is_first:
            self._is_over.set()
            self._thread.join()
        # Rank 0 may hold the store, and takes it along: the others must have read this before.
        wait_until(lambda: all(self._is_there(f'report/{rank}') for rank in range(self.world)),
                   REPORTS_S)

    def _run(self) -> None:
        # Until the store is found it looks often: rank 0 may take it along soon.
        while not self._is_over.wait(POLL_S if self.store else POLL_S / 20) or self._failure:
            try:
                if self.store is None and not is_several():
                    continue
                self._arm()
                if self._is_connected() and self._find_fault():
                    break
            except dist.DistError as error:  # the store is gone with the process that held it
                # Where all raised at once rank 0 may be gone first: what this rank raised is
                # still to be printed.
                with self._arming:
                    if self._has_finished() or self._failure is not None:
                        return
                self._end_without_store('is gone', f'held the store of all ranks, where: {error}')
        self._is_ending.set()
        if not self._has_finished():
            self._end()

    def _has_finished(self) -> bool:
        return self._is_over.is_set() and self._failure is None

    def _arm(self) -> None:
        """Before each look. Code that keeps Python's lock for ever stops all threads of this
        process: the C thread of faulthandler ends it also then, with its stacks."""
        with self._arming:
            if self._failure is None and not self._is_over.is_set():
                faulthandler.dump_traceback_later(self.timeout_s + GRACE_S, exit=True)
        self._num_looks += 1

    def _guard(self) -> None:
        """The process that holds the store may be stopped: then no call of it comes back, in
        whatever thread, and nobody can be told. This thread calls nothing and ends the process."""
        num_looks, silent_s, last = 0, 0.0, time.monotonic()
        while not self._is_ending.wait(POLL_S):
            # A time in which this process was stopped itself is no silence of another.
            passed_s = min(time.monotonic() - last, 2 * POLL_S)
            silent_s = silent_s + passed_s if 0 < num_looks == self._num_looks else 0.0
            num_looks, last = self._num_looks, time.monotonic()
            if silent_s >= self.timeout_s:
                with self._arming:
                    if self._has_finished():
                        return
                self._end_without_store(
                    'does not answer', f'holds the store of all ranks, silent for {silent_s:.0f} '
                    's: it was stopped, or its machine cannot be reached')

    def _is_connected(self) -> bool:
        try:
            return self._connect()
        except dist.DistError:
            return False  # in a large group the store may be busy: again at the next look

    def _connect(self) -> bool:
        """Has the group come into being? Then meet the others in its store."""
        with self._connecting:
            if self.store is None and is_several():
                self._meet()
            return self.store is not None

    def _meet(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']),
                              is_master=False, wait_for_workers=False,
                              timeout=datetime.timedelta(seconds=CONNECT_S))
        restart = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        store = dist.PrefixStore(f'vision-watchdog/{restart}', store)
        store.set(f'who/{self.rank}', json.dumps([os.getpid(), socket.gethostname()]))
        self.store = store

    def _find_fault(self) -> bool:
        """Look around once; True when a rank has posted a cause, this one included."""
        if self.store.check(['cause']):
            return True
        for rank in set(range(self.world)) - {self.rank} - set(self._others):
            if self.store.check([f'who/{rank}']):
                self._others[rank] = tuple(json.loads(self.store.get(f'who/{rank}')))
        here = socket.gethostname()
        for rank, (process, host) in self._others.items():
            if host == here and not is_alive(process) and not self.store.check([f'done/{rank}']):
                self._blame(dict(kind='gone', of=rank))
                return True
        place = self._where_it_stands(), last_collective()['begun']
        if place != self._place:
            self._place, self._since = place, time.monotonic()
        elif time.monotonic() - self._since >= self.timeout_s:
            self._blame(dict(kind='hang'))
            return True
        return False

    def _where_it_stands(self) -> tuple:
        frame = sys._current_frames().get(self._main.ident)
        return (frame.f_code, frame.f_lasti) if frame else ()

    def _blame(self, cause: dict[str, Any]) -> bool:
        """Post a cause; False if another rank did before."""
        mine = json.dumps(dict(cause, by=self.rank))
        return self.store.compare_set('cause', '', mine).decode() == mine

    def _end(self) -> None:
        """Report, let the rank that posted the cause print, end the process."""
        cause = json.loads(self.store.get('cause'))
        self._set(f'report/{self.rank}', json.dumps(self._report()))
        if cause['by'] == self.rank:
            if cause['kind'] == 'raised':
                # The main thread is on its way out with the traceback; so is faulthandler's.
                return
            _print(self._explained(cause))
            self._set('printed', '1')
        else:
            if cause['kind'] != 'raised':
                wait_until(lambda: self._is_there('printed'), GRACE_S)
            of = cause.get('of', cause['by'])
            _print(f'rank {self.rank} ends: see the message of rank {cause["by"]} about ' +
                   ('a hang' if cause['kind'] in ('hang', 'lost') else f'rank {of}'))
            if cause['kind'] == 'raised':
                # Its traceback comes first on a shared terminal; and torchrun ends that rank as
                # soon as this one has ended.
                time.sleep(GRACE_S / 4)
        _leave()

    def _explained(self, cause: dict[str, Any]) -> str:
        """The message about a rank that is gone or hangs, with the stacks of all."""
        reports: dict[int, dict] = {}

        def have_all_come() -> bool:
            for rank in set(range(self.world)) - set(reports):
                if self._is_there(f'report/{rank}'):
                    reports[rank] = json.loads(self.store.get(f'report/{rank}'))
            return len(reports) == self.world

        wait_until(have_all_come, REPORTS_S)
        silent = sorted(set(range(self.world)) - set(reports))
        if cause['kind'] == 'gone' or silent:
            error = self._gone(cause.get('of', (silent or [None])[0]), reports)
        else:
            error = VisionError(
                'VIS-DIST-340', f'a rank hangs: {suspect(reports)}',
                where='; '.join(f'rank {rank}: {report["place"]}'
                                for rank, report in sorted(reports.items())),
                why=f'no collective began within {self.timeout_s:g} s',
                do='the stacks of all ranks follow; ranks must call the same collectives in the '
                'same order. Slow work of one rank needs a larger env_cfg.dist_cfg.timeout')
        parts = [error.render()]
        parts += [f'--- stack of rank {rank} (process {report["process"]} on {report["host"]})\n'
                  f'{report["stack"]}' for rank, report in sorted(reports.items())]
        return '\n'.join(parts)

    def _gone(self, rank: int, reports: dict[int, dict]) -> VisionError:
        process, host = self._others.get(rank, ('unknown', 'unknown'))
        places = '; '.join(f'{report["place"]} (rank {other})'
                           for other, report in sorted(reports.items()))
        return _lost(
            f'rank {rank} of {self.world} is gone',
            f'process {process} on host {host}; the others are at {places}',
            'it left early while the others wait for it' if self._is_there(f'done/{rank}') else
            'it was killed, ran out of memory, was stopped, or its machine is unreachable')

    def _report(self) -> dict[str, Any]:
        last = last_collective()
        with tempfile.TemporaryFile('w+') as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stack = file.read()
        if self._failure is not None:  # the main thread is waiting for this one meanwhile
            entries = traceback.extract_tb(self._failure.__traceback__)
            stack = f'{stack}\n{"".join(traceback.format_exception(self._failure))}'
        else:
            entries = traceback.extract_stack(sys._current_frames().get(self._main.ident))
        place = f'{entries[-1].name} ({os.path.basename(entries[-1].filename)}:' \
                f'{entries[-1].lineno})' if entries else 'no Python code'
        is_waiting = any(
            os.sep + os.path.join('torch', 'distributed') + os.sep in entry.filename
            or entry.name == '_engine_run_backward' for entry in entries)
        return dict(last, stack=stack, place=place, is_waiting=is_waiting, process=os.getpid(),
                    host=socket.gethostname())

    def _end_without_store(self, what: str, why: str) -> None:
        process, host = self._others.get(0, ('unknown', os.environ['MASTER_ADDR']))
        holder = f'rank 0 of {self.world}'
        if is_store_of_torchrun():
            holder, process, host = 'torchrun', 'of torchrun', os.environ['MASTER_ADDR']
        place = f'rank {self.rank} is at {self._report()["place"]}'
        _print(_lost(f'{holder} {what}', f'process {process} on host {host}; {place}',
                     f'its process {why}').render())
        _leave()

    def _is_there(self, key: str) -> bool:
        try:
            return self.store is not None and self.store.check([key])
        except dist.DistError:
            return False

    def _set(self, key: str, value: str) -> None:
        try:
            self.store.set(key, value)
        except dist.DistError:
            pass  # the process that held the store has ended; so does this one


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Sleep until the condition holds, ``seconds`` at most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(POLL_S / 5)


def is_several() -> bool:
    """Are there other processes, with a store to meet in? A group that met in a file has none:
    torch's own time-out is all it has."""
    return dist.is_initialized() and dist.get_world_size() > 1 and 'MASTER_ADDR' in os.environ


def is_store_of_torchrun() -> bool:
    """Else rank 0 holds the store of all."""
    return os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def last_collective() -> dict[str, Any]:
    """What torch's flight recorder knows: collectives ``begun``, and ``name`` of the last one."""
    trace = flight_record()
    entries = trace.get('entries', [])
    begun = sum(int(status['last_enqueued_collective'])
                for status in trace.get('pg_status', {}).values())
    if not entries:
        return dict(begun=begun, name='')
    last = max(entries, key=lambda entry: entry['record_id'])
    sizes = ', '.join(str(tuple(size)) for size in last['input_sizes'])
    name = last['profiling_name'].split(':')[-1]
    return dict(begun=begun, name=f'{name} of {sizes}' if sizes else name)


def suspect(reports: dict[int, dict[str, Any]]) -> str:
    """Which rank does not fit, from ``begun``, ``name``, ``is_waiting``, ``place`` of each."""
    begun = {rank: report['begun'] for rank, report in reports.items()}
    names = {rank: report['name'] for rank, report in reports.items()}
    furthest = max(begun.values())
    outside = [rank for rank, report in sorted(reports.items()) if not report['is_waiting']]
    if outside and len(outside) < len(reports):
        rank = outside[0]
        waiting = next(other for other in sorted(reports) if reports[other]['is_waiting'])
        return (f'rank {rank} is in {reports[rank]["place"]} after its collective {begun[rank]} '
                f'({names[rank]}), while rank {waiting} waits in collective {begun[waiting]} '
                f'({names[waiting]})')
    if len(set(begun.values())) > 1:
        rank = min(begun, key=begun.get)
        return (f'rank {rank} has begun {begun[rank]} collectives, the last {names[rank]}; '
                f'others {furthest}')
    if len(set(names.values())) > 1:
        return f'collective {furthest} is ' + ', '.join(
            f'{names[rank]} on rank {rank}' for rank in sorted(names))
    return f'all ranks stand at collective {furthest} ({names[min(names)]})'


def is_alive(process: int) -> bool:
    """Does a process of this machine run? One that ended and was not yet waited for does not."""
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        if os.path.isdir('/proc/self'):
            return False
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _lost(what: str, where: str, why: str) -> VisionError:
    return VisionError(
        'VIS-DIST-341', what, where=where, why=why, do='look at its last lines and at dmesg of '
        'that host; --resume goes on from the newest checkpoint (tools/dist_train.sh '
        '--max-restarts N does so by itself)')


def _print(text: str) -> None:
    sys.stderr.write(text + '\n')
    sys.stderr.flush()


def _leave() -> None:
    sys.stdout.flush()
    os._exit(EXIT_CODES['DIST'])
