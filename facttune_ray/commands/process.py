"""Settings of a process that runs a command: secrets, threads, a library's warnings."""

from __future__ import annotations

import logging
import os

from facttune_ray import secrets


def prepare() -> None:
    """Call it before torch is imported."""
    secrets.install()
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that wait for their next loop spin: for as long as is default, two programs on the
        # same cores take ten times as long and more; a single one is as fast with this
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # transformers imports DeepSpeed where accelerate is there, which warns of a missing GPU
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
