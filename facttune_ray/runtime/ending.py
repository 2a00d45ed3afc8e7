"""How a signal ends a command: Ctrl-C, SIGTERM (`ray job stop`, batch systems) and SIGHUP alike.

    with ending.heeded():                    in the command line: KeyboardInterrupt on a signal
        with ending.drained(meter_stop):     while an endpoint is asked: what is in flight is kept
            ...

The first signal ends the command and later ones are ignored, but for a second Ctrl-C, which does
not wait for what is in flight.
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
KILLED_S = 10.0  # containers are killed so long after they were told to end
JOB_KILLED_S = 3.0  # the same of Ray's jobs, unless they are told otherwise
DRAIN = 0.6  # of that time, for what is in flight; the rest is for Ray to end in

received: int | None = None  # the signal that ended this process's command
_told = False
_heeding = False
_stops: list[Callable[[], None]] = []  # what lets the stages end that ask an endpoint


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Signals end the block with a KeyboardInterrupt. They are the main thread's alone."""
    global _heeding
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    _heeding = True
    install()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _heeding = False
        for number, handler in before.items():
            # the next one would cut short what ends now; Ctrl-C may, where Ray does not end
            again = received is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if again else handler or signal.SIG_DFL)


def heeding() -> bool:
    return _heeding and threading.current_thread() is threading.main_thread()


def install() -> None:
    """Ray's C++ part takes SIGTERM when it starts: called once more then. What was ignored when the
    command began (`nohup`) stays so."""
    if heeding():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _heed)


def _heed(number: int, _: FrameType | None) -> None:
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
    for stop in _stops:  # in threads: this one may be in the midst of a call to Ray
        threading.Thread(target=stop, daemon=True).start()
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, DRAIN * left_s)


def _silence() -> None:
    """Ray's C++ part writes to the descriptor itself, where its other processes end, too."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _exit() -> None:
    """The end of a command that waits for a Ray which has ended before it, say."""
    tell()
    sys.stdout.flush()
    os._exit(exit_code())


def _late(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _left_s() -> float:
    """Until this process is killed, less some time to be safe."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return KILLED_S - 1.0
    return max(1.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", JOB_KILLED_S)) - 0.4)


@contextlib.contextmanager
def drained(stop: Callable[[], None]) -> Iterator[None]:
    """A signal calls `stop` and lets the block end by itself, for some seconds. Stopped then."""
    _stops.append(stop)
    try:
        yield
        if received is not None:
            raise Stopped("the command was told to end")
    finally:
        _stops.remove(stop)


def aside(call: Callable[[], T]) -> T:
    """Its result, from a thread that nobody waits for when a signal comes."""
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(call())
        except BaseException as e:
            made.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return made.result()


def tell() -> None:
    """The one line."""
    global _told
    if not _told:
        _told = True
        how = "interrupted" if received in (None, signal.SIGINT) else "terminated"
        print(f"facttune: {how}; the same command goes on from here", file=sys.stderr, flush=True)


def exit_code() -> int:
    """128 + the signal's number, as shells count."""
    return 128 + (received or signal.SIGINT)
