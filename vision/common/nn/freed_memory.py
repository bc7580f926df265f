"""Memory that a process frees, kept for its next use."""

from __future__ import annotations

import ctypes

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to give no freed memory back to the system; whether it will.

    Maps of some megabytes otherwise come from the system and go back at every layer, and the
    system clears each page again: most of the time of a large network on some CPUs. The process
    then stays as large as it ever was. For all threads; before the first large tensor.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library: its own ways
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, LARGEST) == 1
