"""Names of torch that are not in all its versions; here alone. Those with an underscore explain
and end things.

Torch may rename them in any version. One that is not there costs what it would have told or
saved (the last collective of a rank, the process of a loader that is gone), never the run:
``missing_names`` says which, and a test fails on it.
"""

from __future__ import annotations

import json
import signal
import threading
import traceback
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist

RECORDER = 'torch._C._distributed_c10d', '_dump_fr_trace_json'
NCCL_RECORDER = 'torch._C._distributed_c10d', '_dump_nccl_trace_json'  # of CUDA builds alone
LOADER = 'torch.utils.data.dataloader', '_MultiProcessingDataLoaderIter'
HANDLER = 'torch.utils.data._utils.signal_handling', '_SIGCHLD_handler_set'
NAMES = RECORDER, LOADER, HANDLER


# What torch calls them since 2.13, which warns of the names that it had before.
all_gather_single = getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, 'reduce_scatter_single', None) or dist.reduce_scatter_tensor


def missing_names() -> list[str]:
    """Those of ``NAMES`` that this torch does not have."""
    return ['.'.join(name) for name in NAMES if _found(*name) is None]


def _found(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def flight_record() -> dict[str, Any]:
    """Torch's record of the newest collectives of this process; without one, an empty dict. NCCL
    and gloo keep one each: where NCCL has begun any, they are those of the run."""
    found: dict[str, Any] = {}
    for name in (NCCL_RECORDER, RECORDER):
        dump = _found(*name)
        try:
            found = json.loads(dump()) if dump else {}
        except (ValueError, RuntimeError):
            found = {}
        if found.get('entries'):
            break
    return found


def loader_processes(error: BaseException) -> list[BaseProcess]:
    """The processes of the data loaders in which an error was raised."""
    iterator = _found(*LOADER)
    loaders = [frame.f_locals['self'] for frame, _ in traceback.walk_tb(error.__traceback__)
               if iterator and isinstance(frame.f_locals.get('self'), iterator)]
    return list(dict.fromkeys(
        process for loader in loaders for process in getattr(loader, '_workers', ())))


def end_loader_processes(loader: Any) -> None:
    """End the processes that a loader with ``persistent_workers`` keeps. Python's collection of
    garbage would take their queues first: then each is waited for, five seconds, and killed."""
    iterator = getattr(loader, '_iterator', None)
    if hasattr(iterator, '_shutdown_workers'):
        loader._iterator = None  # the next pass over the data starts new ones
        iterator._shutdown_workers()


def forget_dead_loaders() -> None:
    """Take torch's signal handler away, which raises for each loader process that ends; its next
    loader sets it anew. Only the main thread may; in any other this does nothing."""
    if threading.current_thread() is threading.main_thread() and _found(*HANDLER) is not None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        setattr(import_module(HANDLER[0]), HANDLER[1], False)
