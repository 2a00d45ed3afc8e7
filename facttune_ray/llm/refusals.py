"""Decides whether a refused request fails its row or stops the run.

Servers word refusals in many ways, so evidence decides. A request that is refused while its
endpoint answers other requests fails its row. A refusal waits for the next answer of its endpoint.
It stops the run when IN_A_ROW different requests were refused without an answer between them, or
when nothing else runs and no request was ever answered. Answers in the ledger count, because a
worker may begin anew in the middle of a run.

A 429 usually concerns the whole cluster. A request that gets one 429 after another is larger than
the limit, and fails alone, if other requests are answered meanwhile, or if for over a minute
neither this worker nor another one has sent any other request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass
from typing import NamedTuple

from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.funds import Funds

IN_A_ROW = 16  # different requests refused without an answer between them: the run stops
OTHERS = 10  # answers between two 429s of one request which show that the limit was not used up
STRIKES = 3  # such pairs of 429s until the request fails
ALONE_S = 61.0  # a limit per minute is unused again when only this request was sent for so long


class _Refused(NamedTuple):
    endpoint: object
    completions: int  # that the request was to bring
    message: str
    stop: EndpointError
    decided: asyncio.Future[Exception]


@dataclass
class Throttled:
    """The 429s of one request."""

    times: int = 0
    strikes: int = 0
    # the counters of `Refusals` at the request's last 429
    answered: int = 0
    throttled: int = 0
    sent: int = 0
    alone_since_s: float = 0.0  # no other request was sent since
    at_fault: bool = False  # the request itself is too large


class Refusals:
    """Refusals of one client. `running`: completions that the client has started and that have not
    ended. `answered_before`: the ledger has answers."""

    def __init__(self, running: Sized, funds: Funds, answered_before: bool = False) -> None:
        self._running, self._funds, self._answered_before = running, funds, answered_before
        self._refused: list[_Refused] = []
        self._answered: Counter[object] = Counter()  # endpoint -> answers
        self._stopped: EndpointError | None = None
        self.sent = 0  # requests
        self._throttled = 0  # requests that got a 429

    def answered(self, endpoint: object) -> None:
        """The endpoint has answered a request: the requests that it refused fail alone."""
        self._answered[endpoint] += 1
        for refused in [r for r in self._refused if r.endpoint is endpoint]:
            self._decide(refused, RowError(refused.message))

    async def judge(
        self, endpoint: object, completions: int, message: str, stop: EndpointError
    ) -> Exception:
        """Return a RowError or `stop`, as soon as there is evidence for it."""
        decided = asyncio.get_running_loop().create_future()
        self._refused.append(_Refused(endpoint, completions, message, stop, decided))
        self.settle()
        return await decided

    def settle(self) -> None:
        """Decide where no more evidence can come. Call this also when a request has ended."""
        by_endpoint = Counter(r.endpoint for r in self._refused)
        alone = sum(r.completions for r in self._refused) >= len(self._running)
        for refused in list(self._refused):
            here = self._answered[refused.endpoint] or self._funds.stage_was_answered
            ever = here or self._answered_before
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

    def throttled(self, request: Throttled, now_s: float, alone_since_s: float) -> bool:
        """Record a 429 of this request. Return whether it concerns the cluster's limit.
        `alone_since_s`: no other worker has had requests since this time."""
        first = request.times == 0
        alone = not first and self._throttled == request.throttled  # no other request got a 429
        answered = self._answered.total()
        too_large = alone and answered - request.answered >= OTHERS
        request.strikes = request.strikes + too_large if alone else 0
        if first or self.sent > request.sent + 1:
            request.alone_since_s = now_s
        request.alone_since_s = max(request.alone_since_s, alone_since_s)
        self._throttled += first
        request.times += 1
        request.answered, request.throttled, request.sent = answered, self._throttled, self.sent
        long_alone = alone and now_s - request.alone_since_s > ALONE_S
        request.at_fault = request.strikes >= STRIKES or long_alone
        return not too_large
