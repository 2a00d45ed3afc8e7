"""Tables that are made side by side: a part is begun once the parts that it reads are there.

    streams = Streams()
    streams.start("base/tune/responses", make_responses)
    streams.start("base/tune/facts", make_facts)       # asks streams.ready(...) what it may begin
    streams.finish()                                   # raises what went wrong first

When one fails the others end, too: what goes wrong is told at once, nothing more is begun, and
answers that are under way are kept.

It saves time where two stages use different things: GPUs sample while an endpoint is asked about
what they have sampled. Parts are durable one by one, so nothing else changes: a run that is killed
goes on from the parts that are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from facttune_ray.errors import Stopped
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder
from facttune_ray.telemetry import say

LOOK_S = 0.5  # between two looks for new parts


class Streams:
    def __init__(self, end: Callable[[], None] = lambda: None) -> None:
        """`end`: called when one has failed, for what waits elsewhere than in `ready`."""
        self.threads: dict[str, threading.Thread] = {}  # table -> what makes it, in order
        self.errors: dict[str, BaseException] = {}
        self.stopped = threading.Event()
        self._end = end

    def start(self, name: str, make: Callable[[], None]) -> None:
        def run() -> None:
            try:
                make()
            except BaseException as e:  # raised by `finish`
                self.errors[name] = e
                own = not isinstance(e, Stopped) and not self.stopped.is_set()
                if own and self._others(name):
                    why = (str(e).strip() or type(e).__name__).splitlines()[-1]  # of a traceback
                    say(f"{name}: {why}; the tables beside it end, too", event="failed", table=name)
                self.stop()

        self.threads[name] = threading.Thread(target=run, name=name, daemon=True)
        self.threads[name].start()

    def _others(self, name: str) -> bool:
        return any(t.is_alive() for other, t in self.threads.items() if other != name)

    def stop(self) -> None:
        """Let all of them end."""
        self.stopped.set()
        self._end()

    def ready(self, root: Folder, inputs: Iterable[str], left: set[int]) -> set[int]:
        """Those of the shards left whose inputs are there, once there are some."""
        growing = [i for i in inputs if i in self.threads]
        while not self.stopped.is_set():
            found = set(left)
            for name in growing:
                if not tables.has_manifest(root / name):
                    found &= tables.present(root / name, max(left) + 1)
            if found:
                return found
            self.stopped.wait(LOOK_S)
        raise Stopped

    def withdraw(self, root: Folder, name: str) -> None:
        """Before a table is removed: end those begun after it, and remove what they have made of
        it."""
        self.stop()
        later = list(self.threads)[list(self.threads).index(name) + 1 :]
        for other in later:
            self.threads[other].join()
            if not tables.has_manifest(root / other):
                (root / other).delete()

    def finish(self) -> None:
        """Wait for all; raise the error of the first table that has one of its own."""
        try:
            for thread in self.threads.values():
                thread.join()
        except KeyboardInterrupt:
            self.stop()
            raise
        own = [e for name in self.threads if (e := self.errors.get(name)) is not None]
        for error in own:
            if not isinstance(error, Stopped):
                raise error
