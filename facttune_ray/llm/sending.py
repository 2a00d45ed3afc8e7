"""Sends requests: budget -> permit -> journal -> endpoint -> ledger, until there is an answer.

    sender = Sender(cfg, ledger, endpoints, funds, refusals)
    completions = await sender.send(sender.request([key], prompt, {"max_tokens": 64}))

One loop repeats an attempt that may succeed later, after a random pause (full jitter). A 429 does
not count as an attempt: the limiter pauses the cluster instead. A completion is in the ledger
before it is returned.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from facttune_ray.config import LLMConfig
from facttune_ray.errors import RowError
from facttune_ray.llm.background import Background, as_response
from facttune_ray.llm.cost import price_of
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.estimates import Estimates
from facttune_ray.llm.funds import Funds
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.parameters import Prompt
from facttune_ray.llm.permits import Gate, permit
from facttune_ray.llm.refusals import Refusals, Throttled
from facttune_ray.llm.replies import Completion, Meaning

# A request whose estimated cost has grown by this factor while it waited for its permit gives its
# funds back and takes them anew: its cost and the rest of the budget are known better by then.
GROWN = 1.5


@dataclass
class Request:
    """One request, until it has an answer."""

    keys: list[bytes]  # of the completions that it is to bring
    body: dict[str, Any]
    chars: int  # characters of the prompt
    ticket: int
    attempts: int = 0
    first_s: float = math.inf  # when the first attempt was sent
    throttled: Throttled = field(default_factory=Throttled)

    @functools.cached_property
    def name(self) -> bytes:
        """The key; of several keys their hash, because a repetition asks for the same keys."""
        return self.keys[0] if len(self.keys) == 1 else hashlib.sha256(b"".join(self.keys)).digest()


class Sender:
    """Sends the requests of one worker. A sender lives on one event loop."""

    def __init__(
        self,
        cfg: LLMConfig,
        ledger: Ledger,
        endpoints: list[Endpoint],
        funds: Funds,
        refusals: Refusals,
    ) -> None:
        self.cfg, self.ledger, self.endpoints, self.usage = cfg, ledger, endpoints, funds.usage
        self._funds, self._refusals = funds, refusals
        self._gates = [e.gate for e in endpoints]
        self._background: Background | None = None
        if cfg.mode == "background":
            self._background = Background(ledger.folder, ledger.journal, cfg.max_elapsed_s)
        self._tickets = itertools.count()
        self._price, self._estimates = price_of(cfg), Estimates()
        # With a budget, the first request is sent alone: its answer shows what a request costs.
        self._limited = cfg.budget_usd is not None
        self._first = asyncio.Lock() if self._limited else None

    def request(self, keys: list[bytes], prompt: Prompt, params: dict[str, Any]) -> Request:
        """One request for as many completions as there are keys."""
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        form = "prompt" if isinstance(prompt, str) else "messages"
        body = {"model": self.cfg.model, form: prompt, **params}
        if len(keys) > 1:
            body["n"] = len(keys)
        if self._background is not None:
            body = as_response(body, self.endpoints[0].section)
        return Request(keys, body, sum(map(len, texts)), next(self._tickets))

    def estimated_usd(self, request: Request) -> float:
        return self._price.usd(*self._tokens(request))

    def _tokens(self, request: Request) -> tuple[float, float]:
        """(prompt, completion) tokens, estimated."""
        return self._estimates.tokens(request.chars, len(request.keys))

    async def send(self, request: Request) -> list[Completion]:
        """Send the request until it has an answer. Return its completions, which are in the ledger.
        Raise EndpointError when every request would fail, RowError when only this one fails."""
        while True:
            endpoint, meaning, paid, number = await self._attempt_in_turn(request)
            if paid:
                await self.ledger.put_all(dict(zip(request.keys, paid, strict=False)))
            if paid or not meaning.unknown:
                self.ledger.journal.end(number)
            if paid:
                return paid
            await self._before_retry(request, endpoint, meaning)

    async def _attempt_in_turn(
        self, request: Request
    ) -> tuple[Endpoint, Meaning, list[Completion], int]:
        """`_attempt`; with a budget and before the first answer, one request at a time."""
        if (first := self._first) is not None:
            async with first:
                if self._first is not None:  # no answer came while this request waited
                    return await self._attempt(request)
        return await self._attempt(request)

    async def _admit(self, request: Request) -> tuple[float, Gate, float]:
        """Wait for funds and a permit. Return (dollars taken, gate of the permit, its tokens)."""
        while True:
            usd = await self._funds.take(lambda: self.estimated_usd(request))
            tokens = sum(self._tokens(request))

            def outdated(usd: float = usd) -> bool:
                return self._limited and self.estimated_usd(request) > GROWN * usd

            gate = None
            try:
                gate = await permit(self._gates, tokens, request.ticket, outdated)
            finally:
                if gate is None:
                    self._funds.done(usd)
            if gate is not None:
                return usd, gate, tokens

    async def _attempt(self, request: Request) -> tuple[Endpoint, Meaning, list[Completion], int]:
        """Send the request once. Return (endpoint, meaning of the reply, paid completions, number
        in the journal)."""
        clock = asyncio.get_running_loop().time
        usd, gate, tokens = await self._admit(request)
        try:
            try:
                number = await self.ledger.journal.begin(request.name, usd)
            except BaseException:
                gate.unsent(tokens)
                raise
            endpoint, sent_s = self.endpoints[self._gates.index(gate)], clock()
            request.attempts += 1
            request.first_s = min(request.first_s, sent_s)
            self._refusals.sent += 1
            try:
                # A server that supports this header does not charge a repeated key again, for
                # example a request that was in flight when its process was killed.
                headers = {"Idempotency-Key": request.name.hex()}
                if self._background is not None:
                    meaning = await self._background.send(
                        endpoint, number, request.name, request.body, headers
                    )
                else:
                    meaning = await endpoint.send(request.body, headers)
            except BaseException:
                gate.failed()
                raise
            paid: list[Completion] = []
            if meaning.kind == "answer":
                latency_s = clock() - sent_s
                paid = self.count(
                    meaning.replies, request.attempts, len(request.keys), request.chars, latency_s
                )
                used = sum(c.prompt_tokens + c.completion_tokens for c in paid)
                # A background response waits in the provider's queue: no sign of overload.
                seen_s = 0.0 if self._background is not None else latency_s
                gate.answered(tokens, used, seen_s, meaning.headers)
                self._refusals.answered(endpoint)
            elif meaning.kind == "limit":
                pauses = self._refusals.throttled(request.throttled, clock(), gate.alone_since_s)
                # A pause of days stops the run instead (`_before_retry`).
                pauses &= (meaning.retry_after_s or 0.0) <= self.cfg.max_elapsed_s
                gate.refused(tokens, meaning.headers, meaning.retry_after_s, pauses)
                request.attempts -= 1
                self.usage.refused += 1
            elif meaning.kind == "retry":
                lost = meaning.status is None and not meaning.unreachable
                gate.failed(meaning.unreachable, clock() - sent_s if lost else None)
            else:  # the server did not take the request: its tokens are not used
                gate.refused(tokens, meaning.headers, None, pauses=False)
            if meaning.unknown:
                self.usage.unknown += 1
                self.usage.unknown_usd += usd
            return endpoint, meaning, paid, number
        finally:
            self._funds.done(usd)  # its cost is in `usage`

    async def _before_retry(self, request: Request, endpoint: Endpoint, meaning: Meaning) -> None:
        """Wait until the request may be sent again; raise when it may not be sent again."""
        cfg, kind = self.cfg, meaning.kind
        if kind == "stop":
            raise endpoint.refusal(meaning)
        if kind == "refused":
            raise await self._refusals.judge(
                endpoint, len(request.keys), meaning.message, endpoint.refusal(meaning)
            )
        if kind == "row error" or request.throttled.at_fault:
            raise RowError(meaning.message)
        if (meaning.retry_after_s or 0.0) > cfg.max_elapsed_s:
            raise endpoint.closed_for(meaning.retry_after_s or 0.0)
        late = asyncio.get_running_loop().time() - request.first_s > cfg.max_elapsed_s
        if late or (kind == "retry" and request.attempts >= cfg.max_attempts):
            if meaning.unreachable:
                raise endpoint.down(request.attempts)
            raise RowError(f"{meaning.message}, {request.attempts} attempts")
        self.usage.retries += 1
        if kind == "limit":
            wait_s = 0.0  # the gate waits, and the cluster with it
            if request.throttled.times > 1:  # let other requests go first
                request.ticket = next(self._tickets)
                wait_s = 2.0 ** (request.throttled.times - 2)
        elif meaning.retry_after_s is not None:
            wait_s = meaning.retry_after_s
        else:
            wait_s = backoff_s(request.attempts, cfg.max_wait_s)
        await asyncio.sleep(min(wait_s, cfg.max_wait_s))

    def count(
        self,
        replies: Sequence[Completion],
        attempts: int,
        most: int = 1,
        chars: int | None = None,
        latency_s: float | None = None,
    ) -> list[Completion]:
        """Count one answer as paid. Return its first `most` choices as rows of the ledger."""
        counted = self._estimates.counted(replies, most, chars)
        paid = [
            replace(c, cost_usd=self._price.usd(c.prompt_tokens, c.completion_tokens))
            for c in counted
        ]
        # What belongs to the request stands in the first row, so that sums over rows are right.
        paid[0] = replace(paid[0], attempts=attempts, latency_s=latency_s, prompt_chars=chars or 0)
        self.usage.count(paid)
        self._first = None
        if paid[0].counted != "estimate":
            self._estimates.learn(paid, chars or 0)
        return paid


def backoff_s(attempts: int, most_s: float) -> float:
    """The pause after so many failed attempts: full jitter under a limit that doubles."""
    return random.uniform(0.0, min(most_s, 0.25 * 2.0**attempts))
