"""The lock of a run: one driver at a time makes its tables. Two would pay for the same requests.

    with locked(Folder.of("runs/bio")):     UserError when another driver holds it

A local folder is locked by flock. A folder in an object store, or on a network file system without
locks, is locked by a named actor on the cluster. Both locks end with the process that holds them,
however it ends, so there is nothing to clean up.
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

WAIT_S = 10.0  # a driver that was told to end or was killed may need some seconds to be gone


class Owner:
    """An actor that does nothing. Its name is the lock, and exists while its driver lives."""


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


def driver(root: Folder) -> bool | None:
    """Whether a process of this machine holds the lock of a local folder, as the kernel lists it:
    taking the lock could end another driver. None where this cannot be known."""
    if not root.local:
        return None
    try:
        found = os.stat(root.path)
        with open("/proc/locks") as file:
            locks = [line.split() for line in file]
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(words[1] == "FLOCK" and place in words for words in locks)


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
    """Leave nothing of a run that was refused before its first table."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _name(root: Folder, held: contextlib.ExitStack) -> bool:
    import ray

    from facttune_ray.llm.actors import NAMESPACE, ON_HEAD
    from facttune_ray.runtime import cluster

    cluster.start_ray()
    owner: Any = ray.remote(Owner)
    name = f"facttune-run-{digest(root.uri)}"
    try:
        made = owner.options(name=name, namespace=NAMESPACE, num_cpus=0, resources=ON_HEAD).remote()
    except ValueError:  # another driver has an actor of this name
        return False
    held.callback(_release, made)
    return True


def _release(owner: Any) -> None:
    import ray

    if ray.is_initialized():  # without this check `kill` would start a Ray of its own
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is gone, with the name
            ray.kill(owner)
