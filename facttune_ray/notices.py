"""Whether this process's host will be taken away.

    if notices.draining():      # before a new piece of work

A cloud's notice reaches Ray by jobs/notices.py, a pod's SIGTERM by `ray start`, and anything else
by `ray drain-node`. Ray then starts no new task on the host; a task that runs goes on, and may
look here.
"""

from __future__ import annotations

import threading
import time

LOOK_S = 2.0  # seconds between two questions to Ray's head
WAIT_S = 0.5  # the longest wait for its answer, which takes a millisecond

_known = False
_looked_s = float("-inf")
_question = threading.Thread()


def draining() -> bool:
    """Whether Ray drains the node of this process. Cheap: the head is asked at most every LOOK_S
    seconds, and not after a yes, which is final. False without Ray and until the head answers."""
    global _looked_s, _question
    if not _known and time.monotonic() - _looked_s >= LOOK_S and not _question.is_alive():
        _looked_s = time.monotonic()
        # in a thread, because a head that falls silent lets the question wait for a minute
        _question = threading.Thread(target=_ask, name="draining", daemon=True)
        _question.start()
        _question.join(WAIT_S)
    return _known


def _ask() -> None:
    global _known
    import ray

    if ray.is_initialized():
        try:
            leaving = ray._private.state.state.get_draining_nodes()  # as Ray Train asks
            _known = ray.get_runtime_context().get_node_id() in leaving
        except Exception:  # Ray's errors have no common type
            pass
