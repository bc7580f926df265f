"""Feed mutated files to every reader, in processes with a memory limit and a clock.

The promise: whatever stands in a file, a reader gives its content or one of our errors. Counted
are inputs that were read and refused, and what must not be: crashes (a signal), hangs (5 s),
memory (2 GiB more than the process had) and foreign errors. Input i of a reader depends on the
seed, the name and i alone: --reader NAME --only I shows one.

  python benchmarks/fuzz_readers.py --inputs 100000 --annotations 1000000 \\
      --json docs/results/fuzz_readers.json --record
  python benchmarks/fuzz_readers.py --reader checkpoint --only 4711
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_annotations import ANNOTATIONS
from fuzz_inputs import FILES
from fuzz_mutators import Reader
from fuzz_tables import TABLES

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write
from vision.common.core.report import (
    add_report_options,
    refuse_no_evidence,
    running_commit,
    write_report,
)

READERS = ANNOTATIONS | FILES | TABLES
MEMORY_BYTES, HANG_S = 2 << 30, 5.0
STARVED_S = 60.0  # on a busy machine a process may wait: it hangs when it computes that long
BATCH = 5000  # inputs of one process; the state is saved after each
FAULTS = ('crash', 'hang', 'memory', 'foreign')
MAX_SHOWN = 20  # faults of a reader that are kept with their text
_START = struct.Struct('<cI')  # 's' and the number of an input that begins
_OUTCOMES = {'r': 'read', 'e': 'refused', 'm': 'memory', 'f': 'foreign'}


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--inputs', type=int, default=20_000,
                        help='over readers that are not of annotations (default: %(default)s)')
    parser.add_argument('--annotations', type=int, default=100_000,
                        help='over readers of annotations (default: %(default)s)')
    parser.add_argument('--reader', nargs='+', choices=sorted(READERS), metavar='NAME',
                        help=f'of {", ".join(sorted(READERS))}')
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument('--only', type=int, metavar='I', help='show one input and its end')
    parser.add_argument('--state', type=Path, help='counts of an earlier call: go on from there')
    add_report_options(parser, what='counts')
    args = parser.parse_args(argv)
    refuse_no_evidence(args.json, is_recorded=args.record)
    names = args.reader or list(READERS)
    if args.only is not None:
        return show_one(READERS[names[0]], names[0], args.seed, args.only)
    rows = read_state(args.state)
    for name in sorted(names, key=lambda name: READERS[name].needs):  # those without come first
        if READERS[name].needs:
            importlib.import_module(READERS[name].needs)
        kinds = [other for other in READERS
                 if READERS[other].is_annotation == READERS[name].is_annotation]
        share = (args.annotations if READERS[name].is_annotation else args.inputs) / len(kinds)
        row = rows.setdefault(name, dict(reader=name, commit=running_commit(), inputs=0, read=0,
                                         refused=0, **dict.fromkeys(FAULTS, 0), shown=[]))
        while row['inputs'] < share:
            fuzz(name, row, args.seed, min(BATCH, int(share - row['inputs']) + 1))
            if args.state:
                with atomic_write(args.state, 'w') as file:
                    json.dump(rows, file)
        print(' '.join(f'{key}={value}' for key, value in row.items() if key != 'shown'),
              flush=True)
    found = sum(row[fault] for row in rows.values() for fault in FAULTS)
    if args.json:
        write_report(args.json, list(rows.values()), is_recorded=args.record, seed=args.seed,
                     faults=found)
    if found:
        raise VisionError('VIS-DATA-344', f'{found} inputs were neither read nor refused',
                          where=', '.join(sorted({name for name, row in rows.items() for fault in
                                                  FAULTS if row[fault]})),
                          why='; '.join(shown for row in rows.values() for shown in row['shown']
                                        )[:2000], do='look at one with --reader NAME --only I')
    return 0


def read_state(path: Path | None) -> dict[str, dict]:
    """Counts of an earlier call of the same commit.

    Raises:
        VisionError: VIS-DATA-1755, the code was another one.
    """
    rows = json.loads(path.read_text()) if path and path.exists() else {}
    others = sorted({str(row.get('commit')) for row in rows.values()} - {running_commit()})
    if others:
        raise VisionError('VIS-DATA-1755', f'{path} counts what code of {", ".join(others)} read',
                          where=str(path), why='a sum over two commits says nothing of either',
                          do='remove it, or give another --state')
    return rows


def fuzz(name: str, row: dict, seed: int, number: int) -> None:
    """Run ``number`` inputs more, in as many processes as it takes, and count them in ``row``."""
    start, end = row['inputs'], row['inputs'] + number
    while row['inputs'] < end:
        reader, writer = os.pipe()
        with tempfile.TemporaryDirectory() as folder:
            child = os.fork()
            if not child:
                os.close(reader)
                _child(name, seed, range(row['inputs'], end), Path(folder), writer)
            os.close(writer)
            fault, at = _watch(reader, child, row)
        os.close(reader)
        if fault:
            row['inputs'] = max(at + 1, row['inputs'])
            row[fault] += 1
            _show(row, f'{name} {at}: {fault}')
        elif row['inputs'] < end:
            raise VisionError('VIS-DATA-350', f'the fuzzing of {name} ended early',
                              where=f'input {row["inputs"]} of {start}..{end}',
                              do='see the traceback above')


def _watch(pipe: int, child: int, row: dict) -> tuple[str, int]:
    """Count what a child tells until it ends; ('', _), or ('crash' or 'hang', input)."""
    content, current, since, cpu = b'', row['inputs'], time.monotonic(), 0.0
    is_fed = False  # before the first input it imports what the reader needs
    while True:
        ready, _, _ = select.select([pipe], [], [], HANG_S / 5)
        if ready:
            data = os.read(pipe, 1 << 16)
            if not data:
                break
            content, current = _count(content + data, row, current)
            since, cpu, is_fed = time.monotonic(), _cpu_s(child), True
            continue
        waited = time.monotonic() - since
        is_busy = is_fed and waited > HANG_S and _cpu_s(child) - cpu > HANG_S * 0.8
        if is_busy or waited > STARVED_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 'hang', current
    status = os.waitpid(child, 0)[1]
    return ('crash', current) if os.WIFSIGNALED(status) else ('', current)


def _count(content: bytes, row: dict, current: int) -> tuple[bytes, int]:
    """Take whole messages off: s + number, then r, e, m or f + number + length + text."""
    place = 0
    while place + _START.size <= len(content):
        kind, number = _START.unpack_from(content, place)
        after = place + _START.size
        if kind == b's':
            current = number
        else:
            if len(content) < after + 2 or len(content) < after + 2 + int.from_bytes(
                    content[after:after + 2], 'little'):
                break
            length = int.from_bytes(content[after:after + 2], 'little')
            text = content[after + 2:after + 2 + length].decode('utf-8', 'replace')
            after += 2 + length
            outcome = _OUTCOMES[kind.decode()]
            row[outcome] += 1
            row['inputs'] = number + 1
            if outcome in FAULTS:
                _show(row, f'{row["reader"]} {number}: {outcome}: {text}')
        place = after
    return content[place:], current


def _show(row: dict, text: str) -> None:
    if len(row['shown']) < MAX_SHOWN:
        row['shown'].append(text)


def _cpu_s(child: int) -> float:
    try:
        fields = Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _child(name: str, seed: int, numbers: range, folder: Path, pipe: int) -> None:
    """Run inputs and tell of each; never returns."""
    try:
        faulthandler.disable()
        os.close(2)
        os.open(os.devnull, os.O_WRONLY)  # decoders tell each fault they meet
        seeds, read = _ready(READERS[name], folder)
        limit = _virtual_bytes() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            os.write(pipe, _START.pack(b's', number))
            kind, text = _end_of(read, READERS[name].mutated(
                seeds, _random(seed, name, number)))
            data = text.encode('utf-8', 'replace')[:1000]
            os.write(pipe, _START.pack(kind, number) + len(data).to_bytes(2, 'little') + data)
        os._exit(0)
    except BaseException:
        os.write(1, traceback.format_exc().encode())
        os._exit(1)


def _ready(reader: Reader, folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """Seeds, and a function that reads bytes; both have been tried: a seed is read."""
    seeds = reader.seeds(folder)
    path = folder / f'input{reader.suffix}'

    def read(data: bytes) -> None:
        path.write_bytes(data)
        reader.read(path)

    for one in seeds:
        read(one)
    return seeds, read


def _end_of(read: Callable[[bytes], None], data: bytes) -> tuple[bytes, str]:
    try:
        read(data)
        return b'r', ''
    except VisionError:
        return b'e', ''
    except MemoryError:
        return b'm', traceback.format_exc(limit=-3)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return b'f', f'{type(error).__name__}: {str(error)[:200]} ({place.name}:{place.lineno})'


def _random(seed: int, name: str, number: int) -> random.Random:
    return random.Random(zlib.crc32(f'{seed} {name} {number}'.encode()) << 32 | number)


def _virtual_bytes() -> int:
    return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()


def show_one(reader: Reader, name: str, seed: int, number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        seeds, read = _ready(reader, Path(folder))
        data = reader.mutated(seeds, _random(seed, name, number))
        print(f'{len(data)} bytes: {data[:2000]!r}', flush=True)
        start = time.perf_counter()
        try:
            read(data)
            print('read')
        except VisionError as error:
            print(error.render())
        print(f'{time.perf_counter() - start:.3f} s, '
              f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB')
    return 0


def outcomes(rows: list[dict]) -> Counter:
    """All counts of all readers together."""
    return Counter({key: sum(row[key] for row in rows)
                    for key in ('inputs', 'read', 'refused', *FAULTS)})


if __name__ == '__main__':
    run_cli(main)
