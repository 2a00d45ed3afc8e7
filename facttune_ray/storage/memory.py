"""Freed memory goes back to the system, which the C library would keep for later."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def release_memory() -> None:
    """For the end of a piece of work in a process that lives on: a table, a database."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
