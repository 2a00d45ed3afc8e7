"""Tables that are made side by side: a part begins once the parts that it reads are written.

    streams = Streams()
    streams.start("base/tune/responses", make_responses)
    streams.start("base/tune/facts", make_facts)       # uses streams.ready(...)
    streams.finish()                                   # raises the first error

When a table fails, its error is printed at once, the other tables begin nothing more, and answers
in flight are kept.

This saves time if two stages use different resources: GPUs sample while an endpoint judges what
they have sampled. Each part is durable by itself: a killed run continues from the parts there are.
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
        """`end`: called when a table has failed, to end what waits elsewhere than in `ready`."""
        self.threads: dict[str, threading.Thread] = {}  # table -> its thread, in order
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
        """Let all tables end."""
        self.stopped.set()
        self._end()

    def ready(self, root: Folder, inputs: Iterable[str], left: set[int]) -> set[int]:
        """The shards of `left` whose inputs are written; waits until there are some."""
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
        """Call it before the table is removed: the tables that were begun after it end, and what
        they have made is removed."""
        self.stop()
        later = list(self.threads)[list(self.threads).index(name) + 1 :]
        for other in later:
            self.threads[other].join()
            if not tables.has_manifest(root / other):
                (root / other).delete()

    def finish(self) -> None:
        """Wait for all tables. Raises the error of the first table that failed by itself."""
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
