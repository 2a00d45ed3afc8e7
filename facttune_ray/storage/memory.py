"""Return freed memory to the operating system; glibc would keep it."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def release_memory() -> None:
    """Call this after a large piece of work (a table, a database) in a process that goes on."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
