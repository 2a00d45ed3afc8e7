"""The embedded LLM: an HTTP server that speaks OpenAI's completions API, answering by rules.

    with running(AnnotatorOptions(journal="annotator.jsonl")) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")
        client.chat.completions.create(model="rules", messages=prompts.facts.render(...))

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /stats
    and files and batches: batch_api.py; stored and background responses: responses_api.py

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
import functools
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from facttune_ray.errors import UserError
from facttune_ray.quickstart import replay
from facttune_ray.quickstart.batch_api import Batches
from facttune_ray.quickstart.chat_api import (
    Limits,
    Request,
    RequestError,
    complete,
    parse_request,
    problem,
)
from facttune_ray.quickstart.journal import Journal
from facttune_ray.quickstart.options import AnnotatorOptions as AnnotatorOptions
from facttune_ray.quickstart.responses_api import Responses, parse_response_request

MODEL = "facttune-rules"
READY = "annotator ready at "
FAULTS = ("500", "reset", "hang", "malformed")


class Annotator:
    """The server's state: limits, journal, counters."""

    def __init__(self, options: AnnotatorOptions) -> None:
        self.options = options
        self.replay = replay.load(options.replay) if options.replay else None
        self.journal = Journal(options.journal)
        self.limits = Limits(options)
        self.batches = Batches(self)
        self.responses = Responses(self)
        self.random = random.Random(f"annotator/{options.seed}")
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
        self.tasks: Counter[str] = Counter()
        self.running: dict[str, asyncio.Future[None]] = {}  # keys being answered now
        self.inside = self.most_inside = 0  # requests that came and have no reply yet
        self.slots: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
        if options.slots:
            self.slots = asyncio.Semaphore(options.slots)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._asked(request, parse_request)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._asked(request, lambda raw: parse_request(raw, "prompt"))

    async def response(self, request: web.Request) -> web.StreamResponse:
        return await self._asked(request, parse_response_request)

    async def _asked(
        self, request: web.Request, parse: Callable[[bytes], Request]
    ) -> web.StreamResponse:
        raw = await request.read()
        self.authorize(request)
        asked = parse(raw)
        self.counts["received"] += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            if (wait_s := self.limits.admit(asked.prompt_tokens)) > 0:
                return self._refusal(asked, wait_s)
            # a background response waits for its slot after its id is sent
            async with contextlib.nullcontext() if asked.background else self.slots:
                answering = self.responses if asked.response else self
                return await self.reply(
                    request,
                    functools.partial(answering.known, asked),
                    functools.partial(answering.answer, asked),
                )
        finally:
            self.inside -= 1

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
        return problem(
            429,
            f"Rate limit reached for {asked.model}. Please try again in {wait_s:.3f}s.",
            kind="requests",
            code="rate_limit_exceeded",
            add=self.limits.headers() | retry,
        )

    async def reply(
        self,
        request: web.Request,
        known: Callable[[str | None], Awaitable[bytes | None]],
        answer: Callable[[str | None, float], Awaitable[bytes]],
    ) -> web.StreamResponse:
        """What is `known` of this request's key, else an `answer` to it; or a fault."""
        if request.transport is None:  # the client gave up in the queue
            return web.Response()
        fault = self._fault()
        if fault == "500":
            headers = self.limits.headers()
            return problem(500, "The server had an error.", kind="server_error", add=headers)
        if fault == "hang":
            await asyncio.sleep(self.options.hang_s)
            if request.transport is None:  # the client gave up: nothing is answered or paid
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
        """The answer that this key's request has had; RequestError: it was another request."""
        while key is not None and key in self.running:
            await self.running[key]
        if key is None or (known := self.journal.find(key)) is None:
            return None
        if known[0] != asked.sha256:
            message = "This Idempotency-Key was used for another request."
            raise RequestError(message, code="idempotency_key_reused")
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
        """An answer that is in the journal; call `known` before. `written` gives its body from
        that of a completion. `limited`: its tokens count for the limits."""
        done = asyncio.get_running_loop().create_future()
        if key is not None:
            self.running[key] = done
        try:
            if latency_s:
                await asyncio.sleep(latency_s)
            who = (self.replay.answer,) if self.replay else ()  # else the rules
            body, completion_tokens = complete(asked, *who)
            body = written(body)
            self.journal.add(key, asked.sha256, body)
        finally:
            done.set_result(None)
            if key is not None:
                del self.running[key]
        self.counts["answered"] += 1
        self.tasks[asked.task] += 1
        if limited:
            self.limits.take_tokens(completion_tokens)
        return body

    async def stats(self, request: web.Request) -> web.Response:
        """`answered`: by this process, `batch_lines` of them in batches; `journal`: ever;
        `repeated`: answers beyond a request's first, ever (a replay from the journal is none).
        `received`, `seconds` and the 429s are of single requests, not of batches."""
        total = self.journal.answered.total()
        self.limits.update()
        return web.json_response(
            {
                "answered": self.counts["answered"],
                "journal": total,
                "repeated": total - len(self.journal.answered),
                "replayed": self.counts["replayed"],
                "received": self.counts["received"],
                "max_running": self.most_inside,
                "rejected_429": self.counts["rejected_429"],
                "refused_429": self.limits.refused,
                "limits": {
                    "requests_per_minute": self.limits.requests.per_minute,
                    "tokens_per_minute": self.limits.tokens.per_minute,
                },
                "seconds": self.limits.traffic(),
                "batches": len(self.batches.batches),
                "batch_lines": self.counts["batch_lines"],
                "faults": dict(self.faults),
                "by_task": dict(self.tasks),
            }
            | {f"replay_{k}": n for k, n in (self.replay.counts if self.replay else {}).items()}
        )

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "facttune"}
        return web.json_response({"object": "list", "data": [model]})

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_in_api_form], client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/v1/responses", self.response)
        app.router.add_get("/v1/responses/{id}", self.responses.stored)
        self.batches.add_to(app.router)
        return app


@web.middleware
async def _in_api_form(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Bad requests, unknown paths, wrong methods and a full disk answer as the API's errors do."""
    try:
        return await handler(request)
    except RequestError as e:
        return problem(e.status, e.message, param=e.param, code=e.code)
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
    except (OSError, OverflowError) as e:  # OverflowError: of a port beyond 65535
        await runner.cleanup()
        where = f"{options.host}:{options.port}"
        if isinstance(e, OverflowError):
            raise UserError(f"Port {where} is none: at most 65535, or 0 for a free one.") from e
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


def embedded(host: str, journal: str) -> contextlib.AbstractContextManager[str]:
    """The endpoint of llm.base_url=embedded: `running`, with every answer kept in a file."""
    return running(AnnotatorOptions(host=host, journal=journal))


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
