"""The embedded LLM: an HTTP server that speaks OpenAI's chat-completions API, answering by rules.

    with running(AnnotatorOptions(journal="annotator.jsonl")) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")
        client.chat.completions.create(model="rules", messages=prompts.facts.render(...))

    POST /v1/chat/completions   GET /v1/models   GET /stats

It behaves as a paid provider does: rate limits with their headers, usage, error bodies, and on
request latency and faults, so that what calls it is tested against them. A request that carries
an `Idempotency-Key` is answered once: its answer is in the journal before it is sent, and comes
from there when the key comes again, also after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from aiohttp import web

from facttune_ray.errors import UserError
from facttune_ray.quickstart import rules
from facttune_ray.quickstart.chat_api import Request, RequestError, complete, parse_request, problem
from facttune_ray.quickstart.journal import Journal

MODEL = "facttune-rules"
READY = "annotator ready at "
FAULTS = ("500", "reset", "hang", "malformed")


@dataclass(frozen=True)
class AnnotatorOptions:
    """How the server behaves. Shares are of all well-formed requests, in [0, 1], sum at most 1."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    latency_min_ms: float = 0.0  # each answer waits a uniform time between these two
    latency_max_ms: float = 0.0
    requests_per_minute: int = 600_000  # token bucket that starts full
    tokens_per_minute: int = 1_000_000_000  # prompt and completion tokens, as above
    error_share: float = 0.0  # answered with HTTP 500
    reset_share: float = 0.0  # connection broken once the answer is made: paid for, but lost
    hang_share: float = 0.0  # kept waiting for hang_s, then answered
    hang_s: float = 60.0
    malformed_share: float = 0.0  # HTTP 200 with half a body; not counted as answered
    seed: int = 0  # of latencies and faults
    api_key: str | None = None  # if set, every other key gets 401
    journal: str | None = None  # append-only JSONL file of answers; None: kept nowhere

    def check(self) -> None:
        shares = (self.error_share, self.reset_share, self.hang_share, self.malformed_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"Annotator fault shares {shares} must be >= 0 and sum to at most 1.")
        if not 0 <= self.latency_min_ms <= self.latency_max_ms:
            raise UserError(
                f"Annotator latency {self.latency_min_ms:g} to {self.latency_max_ms:g} ms: the "
                "first must not be below 0 or above the second."
            )
        if self.requests_per_minute < 1 or self.tokens_per_minute < 1:
            raise UserError("Annotator limits must be at least 1 per minute.")


class Bucket:
    """Token bucket of `per_minute` units; it may go below zero, and then refills first."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.level, self.filled = per_minute, float(per_minute), time.monotonic()

    def wait_s(self, units: float) -> float:
        """Seconds until `units` are there; 0 when they are."""
        now = time.monotonic()
        refill = (now - self.filled) * self.per_minute / 60
        self.level, self.filled = min(float(self.per_minute), self.level + refill), now
        # more than a full bucket would never be there
        return max(0.0, (min(units, self.per_minute) - self.level) * 60 / self.per_minute)

    def take(self, units: float) -> None:
        self.level -= units

    def headers(self, kind: str) -> dict[str, str]:
        missing_s = max(0.0, self.per_minute - self.level) * 60 / self.per_minute
        return {
            f"x-ratelimit-limit-{kind}": str(self.per_minute),
            f"x-ratelimit-remaining-{kind}": str(max(0, int(self.level))),
            f"x-ratelimit-reset-{kind}": f"{math.ceil(missing_s * 1000)}ms",
        }


class Annotator:
    """The server's state: limits, journal, counters."""

    def __init__(self, options: AnnotatorOptions) -> None:
        self.options = options
        self.journal = Journal(options.journal)
        self.requests = Bucket(options.requests_per_minute)
        self.tokens = Bucket(options.tokens_per_minute)
        self.random = random.Random(f"annotator/{options.seed}")
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
        self.tasks: Counter[str] = Counter()
        self.running: dict[str, asyncio.Future[None]] = {}  # keys being answered now

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        if self.options.api_key is not None:
            if request.headers.get("Authorization") != f"Bearer {self.options.api_key}":
                return problem(401, "Incorrect API key provided.", code="invalid_api_key")
        try:
            asked = parse_request(raw)
        except RequestError as e:
            return problem(400, e.message, param=e.param, code=e.code)
        if (refused := self._limit(asked)) is not None:
            return refused
        fault = self._fault()
        if fault == "500":
            return problem(
                500, "The server had an error.", kind="server_error", add=self._headers()
            )
        if fault == "hang":
            await asyncio.sleep(self.options.hang_s)
            if request.transport is None:  # the client gave up: nothing is answered or paid
                return web.Response()
        key = request.headers.get("Idempotency-Key")
        while key is not None and key in self.running:
            await self.running[key]
        if key is not None and (known := self.journal.find(key)) is not None:
            if known[0] != asked.sha256:
                message = "This Idempotency-Key was used for another request."
                return problem(400, message, code="idempotency_key_reused")
            self.counts["replayed"] += 1
            body, replayed = known[1], {"Idempotent-Replayed": "true"}
        elif fault == "malformed":
            half = b'{"id": "chatcmpl-0", "object": "chat.completion", "choices": [{"mess'
            return web.Response(body=half, content_type="application/json")
        else:
            body, replayed = await self._answer(asked, key), {}
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        headers = self._headers() | replayed
        return web.Response(body=body, content_type="application/json", headers=headers)

    def _limit(self, asked: Request) -> web.Response | None:
        wait_s = max(self.requests.wait_s(1), self.tokens.wait_s(asked.prompt_tokens))
        if wait_s > 0:
            self.counts["rejected_429"] += 1
            retry = {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": f"{wait_s * 1e3:.0f}"}
            return problem(
                429,
                f"Rate limit reached for {asked.model}. Please try again in {wait_s:.3f}s.",
                kind="requests",
                code="rate_limit_exceeded",
                add=self._headers() | retry,
            )
        self.requests.take(1)
        self.tokens.take(asked.prompt_tokens)
        return None

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

    async def _answer(self, asked: Request, key: str | None) -> bytes:
        done = asyncio.get_running_loop().create_future()
        if key is not None:
            self.running[key] = done
        try:
            if self.options.latency_max_ms:
                o = self.options
                wait_ms = self.random.uniform(o.latency_min_ms, o.latency_max_ms)
                await asyncio.sleep(wait_ms / 1000)
            body, completion_tokens = complete(asked)
            self.journal.add(key, asked.sha256, body)
        finally:
            done.set_result(None)
            if key is not None:
                del self.running[key]
        self.tokens.take(completion_tokens)
        self.counts["answered"] += 1
        self.tasks[rules.task_of(asked.messages) or "chat"] += 1
        return body

    def _headers(self) -> dict[str, str]:
        return self.requests.headers("requests") | self.tokens.headers("tokens")

    async def stats(self, request: web.Request) -> web.Response:
        """`answered`: by this process; `journal`: ever; `repeated`: answers beyond a request's
        first, ever (a replay from the journal is no answer)."""
        total = self.journal.answered.total()
        return web.json_response(
            {
                "answered": self.counts["answered"],
                "journal": total,
                "repeated": total - len(self.journal.answered),
                "replayed": self.counts["replayed"],
                "rejected_429": self.counts["rejected_429"],
                "faults": dict(self.faults),
                "by_task": dict(self.tasks),
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "facttune"}
        return web.json_response({"object": "list", "data": [model]})

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_in_api_form], client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/stats", self.stats)
        return app


@web.middleware
async def _in_api_form(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Unknown paths, wrong methods and a full disk answer as the API's errors do."""
    try:
        return await handler(request)
    except web.HTTPException as e:
        message = f"Invalid URL ({request.method} {request.path}): {e.reason}."
        return problem(e.status, message, code="unknown_url" if e.status == 404 else None)
    except OSError as e:
        return problem(500, str(e), kind="server_error")


def serve(options: AnnotatorOptions) -> None:
    """Serve until SIGTERM or SIGINT; prints one line when listening. UserError: port in use."""
    asyncio.run(_serve(options, lifeline=None))


async def _serve(options: AnnotatorOptions, lifeline: int | None) -> None:
    """`lifeline`: file descriptor whose end of file stops the server too."""
    options.check()
    annotator = Annotator(options)
    runner = web.AppRunner(annotator.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port, backlog=1024).start()
    except OSError as e:
        await runner.cleanup()
        where = f"{options.host}:{options.port}"
        if e.errno == errno.EADDRINUSE:
            raise UserError(f"Port {where} is in use: choose another, or 0 for a free one.") from e
        raise UserError(f"The annotator cannot listen at {where}: {e.strerror or e}.") from e
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if lifeline is not None:
        loop.add_reader(lifeline, _watch, lifeline, stopped)
    print(f"{READY}http://{options.host}:{runner.addresses[0][1]}/v1", flush=True)
    await stopped.wait()
    await runner.cleanup()
    annotator.journal.close()


def _watch(lifeline: int, stopped: asyncio.Event) -> None:
    if not os.read(lifeline, 4096):  # end of file: the parent closed it, or is dead
        asyncio.get_running_loop().remove_reader(lifeline)
        stopped.set()


@contextlib.contextmanager
def running(options: AnnotatorOptions, start_s: float = 60.0) -> Iterator[str]:
    """The server in a process of its own; yields its base URL, stops it at the end.

    The child also stops when this process dies, however it dies: its stdin ends then.
    """
    options.check()
    command = [sys.executable, "-m", "facttune_ray.quickstart.annotator"]
    child = subprocess.Popen(  # a session of its own: Ctrl-C is for us to handle
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once: the next lines tell
            child.stdin.write(json.dumps(dataclasses.asdict(options)).encode() + b"\n")
        ready, _, _ = select.select([child.stdout], [], [], start_s)
        line = child.stdout.readline().decode().strip() if ready else ""
        if not line.startswith(READY):
            raise UserError(line or f"The annotator did not start within {start_s:g} s.")
        yield line.removeprefix(READY)
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def _as_child() -> int:
    """Options as a JSON line on stdin, then serve for as long as stdin stays open."""
    options = AnnotatorOptions(**json.loads(sys.stdin.buffer.readline()))
    try:
        asyncio.run(_serve(options, lifeline=sys.stdin.fileno()))
    except UserError as e:
        print(e, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_as_child())
