"""Workers of a training on this machine, which talk by gloo.

with gloo.workers(__file__, folder, 4) as ranks:      each runs `python FILE FOLDER`
    gloo.wait(ranks)                                  until all have ended well
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[1])


@contextlib.contextmanager
def workers(
    script: str, folder: Path, count: int, **variables: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes; those that still run at the end are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | variables
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    env |= {"PYTHONPATH": os.pathsep.join([PACKAGE, *sys.path])}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(folder)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def wait(ranks: list[subprocess.Popen[str]], timeout_s: float) -> None:
    """Wait for the end of all workers; fail with their errors if one has failed."""
    errors = [rank.communicate(timeout=timeout_s)[1] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(e[-3000:] for e in errors)
