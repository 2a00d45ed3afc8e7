"""Signals end a command in order: Ctrl-C, SIGTERM (`ray job stop`, batch systems) and SIGHUP.

    with ending.signals_handled():           in the command line: KeyboardInterrupt on a signal
        with ending.drained(meter_stop):     around requests: answers in flight are kept
            ...

The first signal ends the command. Later signals are ignored, except a second Ctrl-C, which does
not wait for the answers in flight.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

from facttune_ray.errors import Stopped

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILLED_S = 10.0  # a container is killed this long after SIGTERM
JOB_KILLED_S = 3.0  # a Ray job is killed this long after it was told to stop (Ray's default)
DRAIN = 0.6  # share of that time to wait for answers in flight; Ray shuts down in the rest

received: int | None = None  # the signal that ended this process's command
_told = False
_handling = False
_stops: list[Callable[[], None]] = []  # callbacks that make the asking stages end


@contextlib.contextmanager
def signals_handled() -> Iterator[None]:
    """A signal ends the block with a KeyboardInterrupt. Only the main thread can handle signals."""
    global _handling
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    _handling = True
    install()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _handling = False
        for number, handler in before.items():
            # Ignore further signals while the process ends. Ctrl-C stays, in case Ray hangs.
            again = received is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if again else handler or signal.SIG_DFL)


def handling() -> bool:
    return _handling and threading.current_thread() is threading.main_thread()


def install() -> None:
    """Install the handlers. Call it again after ray.init, which replaces the handler of SIGTERM. A
    signal that was ignored when the command began (`nohup`) stays ignored."""
    if handling():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)


def _handle(number: int, _: FrameType | None) -> None:
    global received
    if received is not None:
        if number == signal.SIGINT and _stops:
            raise KeyboardInterrupt
        return
    received = number
    _silence()
    left_s = _left_s()
    last = threading.Timer(left_s, _exit)
    last.daemon = True
    last.start()
    if not _stops:
        raise KeyboardInterrupt
    for stop in _stops:  # in threads, because this thread may be inside a call to Ray
        threading.Thread(target=stop, daemon=True).start()
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, DRAIN * left_s)


def _silence() -> None:
    """Redirect file descriptor 2 to /dev/null: Ray's C++ code writes stack traces to it."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _exit() -> None:
    """Exit although the command has not returned, for example because Ray ended before it."""
    tell()
    sys.stdout.flush()
    os._exit(exit_code())


def _late(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _left_s() -> float:
    """Seconds until this process is killed, with some time to spare."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return KILLED_S - 1.0
    return max(1.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", JOB_KILLED_S)) - 0.4)


@contextlib.contextmanager
def drained(stop: Callable[[], None]) -> Iterator[None]:
    """On a signal call `stop`, give the block some seconds to end by itself, and raise Stopped."""
    _stops.append(stop)
    try:
        yield
        if received is not None:
            raise Stopped("the command was told to end")
    finally:
        _stops.remove(stop)


def in_daemon_thread(call: Callable[[], T]) -> T:
    """The result of the call. It runs in a daemon thread: a signal does not wait for its end."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as e:
            result.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def tell() -> None:
    """Print the one line that says how the command ended."""
    global _told
    if not _told:
        _told = True
        how = "interrupted" if received in (None, signal.SIGINT) else "terminated"
        print(f"facttune: {how}; the same command goes on from here", file=sys.stderr, flush=True)


def exit_code() -> int:
    """128 plus the signal's number, as shells report it."""
    return 128 + (received or signal.SIGINT)
