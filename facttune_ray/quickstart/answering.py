"""The state of the embedded endpoint: it admits requests and answers each key once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from facttune_ray.quickstart import replay, rules
from facttune_ray.quickstart.chat_api import (
    Limits,
    Request,
    RequestError,
    complete,
    key_reused,
    server_error,
)
from facttune_ray.quickstart.journal import Journal
from facttune_ray.quickstart.options import AnnotatorOptions

FAULTS = ("500", "reset", "hang", "malformed")


class Answers(Protocol):
    """Knows the answers of earlier requests, and makes new ones."""

    async def known(self, asked: Request, key: str | None) -> bytes | None: ...

    async def answer(self, asked: Request, key: str | None, latency_s: float) -> bytes: ...


class Annotator:
    """The server's state: limits, journal, counters."""

    def __init__(self, options: AnnotatorOptions) -> None:
        self.options = options
        self.replay = replay.load(options.replay) if options.replay else None
        self.journal = Journal(options.journal)
        self.limits = Limits(options)
        self.random = random.Random(f"annotator/{options.seed}")
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
        self.tasks: Counter[str] = Counter()
        self.in_progress: dict[str, asyncio.Future[None]] = {}  # keys being answered now
        self.open = self.max_open = 0  # requests without a reply
        self.slots: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
        if options.slots:
            self.slots = asyncio.Semaphore(options.slots)

    async def handle(
        self,
        request: web.Request,
        parse: Callable[[bytes], Request],
        answers: Answers | None = None,
    ) -> web.StreamResponse:
        """Admit and answer a POST. `answers`: knows and makes the answers; None: this server."""
        asked = parse(await request.read())
        self.counts["received"] += 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        try:
            if (wait_s := self.limits.admit(asked.prompt_tokens)) > 0:
                return self._refusal(asked, wait_s)
            # a background response waits for its slot after its id has been sent
            async with contextlib.nullcontext() if asked.background else self.slots:
                made_by: Answers = answers or self
                return await self.reply(
                    request,
                    functools.partial(made_by.known, asked),
                    functools.partial(made_by.answer, asked),
                )
        finally:
            self.open -= 1

    def authorize(self, request: web.Request) -> None:
        if self.options.api_key is not None:
            if request.headers.get("Authorization") != f"Bearer {self.options.api_key}":
                message = "Incorrect API key provided."
                raise RequestError(message, code="invalid_api_key", status=401)

    def _refusal(self, asked: Request, wait_s: float) -> web.Response:
        self.counts["rejected_429"] += 1
        retry = {
            "Retry-After": str(math.ceil(wait_s)),
            "retry-after-ms": str(math.ceil(wait_s * 1000)),
        }
        message = f"Rate limit reached for {asked.model}. Please try again in {wait_s:.3f}s."
        refusal = RequestError(message, code="rate_limit_exceeded", status=429, kind="requests")
        return refusal.response(self.limits.headers() | retry)

    async def reply(
        self,
        request: web.Request,
        known: Callable[[str | None], Awaitable[bytes | None]],
        answer: Callable[[str | None, float], Awaitable[bytes]],
    ) -> web.StreamResponse:
        """Reply with the `known` answer of the request's key, else with a new `answer`, or with a
        fault."""
        if request.transport is None:  # the client gave up in the queue
            return web.Response()
        fault = self._fault()
        if fault == "500":
            return server_error().response(self.limits.headers())
        if fault == "hang":
            await asyncio.sleep(self.options.hang_s)
            if request.transport is None:  # the client gave up: it gets no answer and pays nothing
                return web.Response()
        key = request.headers.get("Idempotency-Key") if self.options.idempotent else None
        replayed: dict[str, str] = {}
        if (body := await known(key)) is not None:
            replayed = {"Idempotent-Replayed": "true"} if key else {}
        elif fault == "malformed":
            half = b'{"id": "chatcmpl-0", "object": "chat.completion", "choices": [{"mess'
            return web.Response(body=half, content_type="application/json")
        else:
            body = await answer(key, self._latency_s())
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        headers = self.limits.headers() | replayed
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _fault(self) -> str | None:
        o = self.options
        draw = self.random.random()
        shares = (o.error_share, o.reset_share, o.hang_share, o.malformed_share)
        for kind, share in zip(FAULTS, shares, strict=True):
            if draw < share:
                self.faults[kind] += 1
                return kind
            draw -= share
        return None

    def _latency_s(self) -> float:
        o = self.options
        if not o.latency_max_ms:
            return 0.0
        return self.random.uniform(o.latency_min_ms, o.latency_max_ms) / 1000

    async def known(self, asked: Request, key: str | None) -> bytes | None:
        """The earlier answer for this key; RequestError if another request had the key."""
        while key is not None and key in self.in_progress:
            await self.in_progress[key]
        if key is None or (known := self.journal.find(key)) is None:
            return None
        if known[0] != asked.sha256:
            raise key_reused()
        self.counts["replayed"] += 1
        return known[1]

    async def answer(
        self,
        asked: Request,
        key: str | None,
        latency_s: float = 0.0,
        written: Callable[[bytes], bytes] = bytes,
        limited: bool = True,
    ) -> bytes:
        """Make an answer and write it to the journal. Call `known` before.

        `written` makes the body from the body of a completion. `limited`: the tokens count for the
        rate limits.
        """
        done = asyncio.get_running_loop().create_future()
        if key is not None:
            self.in_progress[key] = done
        try:
            if latency_s:
                await asyncio.sleep(latency_s)
            answerer = self.replay.answer if self.replay else rules.answer
            body, completion_tokens = complete(asked, answerer)
            body = written(body)
            self.journal.add(key, asked.sha256, body)
        finally:
            done.set_result(None)
            if key is not None:
                del self.in_progress[key]
        self.counts["answered"] += 1
        self.tasks[asked.task] += 1
        if limited:
            self.limits.take_tokens(completion_tokens)
        return body

    def stats(self) -> dict[str, Any]:
        """Counters. `answered`: answers made by this process, of which `batch_lines` in batches.
        `journal`: answers in the journal. `repeated`: answers in the journal beyond the first of
        their request (a replay from the journal is no answer). `received`, `seconds` and the 429s
        count single requests, not batches."""
        total = self.journal.answered.total()
        self.limits.update()
        return {
            "answered": self.counts["answered"],
            "journal": total,
            "repeated": total - len(self.journal.answered),
            "replayed": self.counts["replayed"],
            "received": self.counts["received"],
            "max_running": self.max_open,
            "rejected_429": self.counts["rejected_429"],
            "refused_429": self.limits.refused,
            "limits": {
                "requests_per_minute": self.limits.requests.per_minute,
                "tokens_per_minute": self.limits.tokens.per_minute,
            },
            "seconds": self.limits.traffic(),
            "batch_lines": self.counts["batch_lines"],
            "faults": dict(self.faults),
            "by_task": dict(self.tasks),
        } | {f"replay_{k}": n for k, n in (self.replay.counts if self.replay else {}).items()}
