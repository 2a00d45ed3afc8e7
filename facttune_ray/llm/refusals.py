"""Whose fault a refusal is: decided by evidence, because servers word it in a hundred ways.

A request that is refused while its endpoint answers others is at fault itself: its row fails. Where
nothing is answered, the run is at fault and stops. So a refusal waits for the next answer, and
stops the run when IN_A_ROW different requests were refused without one, or when nothing else runs
and the endpoint has never answered.

A 429 speaks of the whole cluster, but one that a single request gets again and again, while others
are answered, speaks of that request: it is larger than the limit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from facttune_ray.errors import EndpointError, RowError

IN_A_ROW = 16  # different requests refused without an answer between them
OTHERS = 10  # answers between two 429s of one request which show that the limit was not used up
STRIKES = 3  # such pairs of 429s
ALONE_S = 61.0  # a limit a minute is whole again when only this request was sent for so long


class _Refused(NamedTuple):
    endpoint: object
    completions: int  # that this request was to bring
    message: str
    stop: EndpointError
    decided: asyncio.Future[Exception]


@dataclass
class Limited:
    """The 429s of one request."""

    times: int = 0
    strikes: int = 0
    answered: int = 0  # of all requests, at its last 429
    others: int = 0  # requests that had got a 429 by then
    sent: int = 0  # requests sent by then
    alone_since_s: float = 0.0
    fault: bool = False  # it is this request's own


class Refusals:
    """Of one client. `running`: completions it is asked for and has not got. `elsewhere`: whether
    another worker's requests of the same kind were answered."""

    def __init__(self, running: Callable[[], int], elsewhere: Callable[[], bool]) -> None:
        self._running, self._elsewhere = running, elsewhere
        self._refused: list[_Refused] = []
        self._answered: Counter[object] = Counter()  # endpoint -> answers
        self._stopped: EndpointError | None = None
        self.sent = self._limited = 0

    def answered(self, endpoint: object) -> None:
        """The endpoint has answered: what it refused meanwhile was at fault itself."""
        self._answered[endpoint] += 1
        for refused in [r for r in self._refused if r.endpoint is endpoint]:
            self._decide(refused, RowError(refused.message))

    async def judge(
        self, endpoint: object, completions: int, message: str, stop: EndpointError
    ) -> Exception:
        """RowError, or `stop`, as soon as it is known which."""
        decided = asyncio.get_running_loop().create_future()
        self._refused.append(_Refused(endpoint, completions, message, stop, decided))
        self.settle()
        return await decided

    def settle(self) -> None:
        """Decide where no more evidence can come. To be called when a request has ended, too."""
        by_endpoint = Counter(r.endpoint for r in self._refused)
        alone = sum(r.completions for r in self._refused) >= self._running()
        for refused in list(self._refused):
            ever = self._answered[refused.endpoint] or self._elsewhere()
            if by_endpoint[refused.endpoint] >= IN_A_ROW or (alone and not ever):
                self._stopped = self._stopped or refused.stop
            if self._stopped is not None:
                self._decide(refused, self._stopped)
            elif alone:
                self._decide(refused, RowError(refused.message))

    def _decide(self, refused: _Refused, error: Exception) -> None:
        self._refused.remove(refused)
        if not refused.decided.done():
            refused.decided.set_result(error)

    def limited(self, mine: Limited, now_s: float) -> bool:
        """Take note of a 429. -> whether it speaks of the cluster's limit"""
        first = mine.times == 0
        alone = not first and self._limited == mine.others  # nobody else was refused since
        answered = self._answered.total()
        large = alone and answered - mine.answered >= OTHERS
        mine.strikes = mine.strikes + large if alone else 0
        if first or self.sent > mine.sent + 1:
            mine.alone_since_s = now_s
        self._limited += first
        mine.times += 1
        mine.answered, mine.others, mine.sent = answered, self._limited, self.sent
        mine.fault = mine.strikes >= STRIKES or (alone and now_s - mine.alone_since_s > ALONE_S)
        return not large
