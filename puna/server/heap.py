"""Two heaps for all threads of the process, where the C library would give each its own.

glibc's threads take memory from heaps of their own, and each keeps what its greatest prompt needed. A server's threads
prepare requests for moments, most of them under the interpreter's lock, and seldom wait for each other in a common one.
It knows glibc's switch, and leaves other libraries as they are.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h
HEAPS = 2  # the first thread's, and one for all others


def share_heaps() -> bool:
    """Before the process has threads: those that have a heap keep it. Whether the library knows the switch."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, HEAPS))
