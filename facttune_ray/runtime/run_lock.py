"""One driver at a time makes a run's tables: two would both pay for the same requests.

    with locked(Folder.of("runs/bio")):     UserError when another driver has it

A folder is locked; one in an object store, or on a network's file system that locks none, has an
actor of its name on the cluster. Both end with the process that took them, however it ends, so
nothing has to be cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder, writing
from facttune_ray.storage.schema import digest

WAIT_S = 10.0  # a driver that was told to end, or was killed, may need some seconds


class Owner:
    """An actor that does nothing: its name is taken while its driver lives."""


@contextlib.contextmanager
def locked(root: Folder) -> Iterator[None]:
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        take = _lock if root.local else _name
        while not take(root, held):
            if time.monotonic() - began > WAIT_S:
                raise UserError(
                    f"{root}: another driver is making this run's tables, and both would pay: wait "
                    f"for it, or end it and run the same command again, or give another run.out"
                )
            time.sleep(0.2)
        yield


def _lock(root: Folder, held: contextlib.ExitStack) -> bool:
    if not os.path.isdir(root.path):
        held.callback(_remove_empty, root.path)
    with writing(root):
        os.makedirs(root.path, exist_ok=True)
        folder = os.open(root.path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(folder)
        return not isinstance(e, BlockingIOError) and _name(root, held)
    held.callback(os.close, folder)
    return True


def _remove_empty(path: str) -> None:
    """A run that was refused before its first table leaves nothing."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _name(root: Folder, held: contextlib.ExitStack) -> bool:
    import ray

    from facttune_ray.llm.actors import NAMESPACE, ON_HEAD
    from facttune_ray.runtime import worker

    worker.start_ray()
    owner: Any = ray.remote(Owner)
    name = f"facttune-run-{digest(root.uri)}"
    try:
        made = owner.options(name=name, namespace=NAMESPACE, num_cpus=0, resources=ON_HEAD).remote()
    except ValueError:  # the name is taken
        return False
    held.callback(_release, made)
    return True


def _release(owner: Any) -> None:
    import ray

    if ray.is_initialized():  # `kill` would start another
        with contextlib.suppress(ray.exceptions.RayError):  # a cluster that is gone has no names
            ray.kill(owner)
