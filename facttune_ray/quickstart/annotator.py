"""The embedded LLM: an HTTP server with OpenAI's API that answers by rules.

    with running(AnnotatorOptions(journal="annotator.jsonl")) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")
        client.chat.completions.create(model="rules", messages=prompts.facts.render(...))

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /stats
    batch_api.py: files and batches       responses_api.py: stored and background responses

It behaves as a paid provider does: it has rate limits with their headers, usage, error bodies, and
optional latency and faults, so that its callers are tested against them. A request with an
`Idempotency-Key` is answered once: its answer is in the journal before it is sent, and a repeated
key gets the answer of the journal, also after a crash.
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
from facttune_ray.quickstart import replay, rules
from facttune_ray.quickstart.batch_api import Batches
from facttune_ray.quickstart.chat_api import (
    Limits,
    Request,
    RequestError,
    complete,
    key_reused,
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
        self.in_progress: dict[str, asyncio.Future[None]] = {}  # keys being answered now
        self.open = self.max_open = 0  # requests without a reply
        self.slots: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
        if options.slots:
            self.slots = asyncio.Semaphore(options.slots)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, parse_request)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, lambda raw: parse_request(raw, "prompt"))

    async def response(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, parse_response_request)

    async def _handle(
        self, request: web.Request, parse: Callable[[bytes], Request]
    ) -> web.StreamResponse:
        raw = await request.read()
        self.authorize(request)
        asked = parse(raw)
        self.counts["received"] += 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        try:
            if (wait_s := self.limits.admit(asked.prompt_tokens)) > 0:
                return self._refusal(asked, wait_s)
            # a background response waits for its slot after its id has been sent
            async with contextlib.nullcontext() if asked.background else self.slots:
                answering = self.responses if asked.response else self
                return await self.reply(
                    request,
                    functools.partial(answering.known, asked),
                    functools.partial(answering.answer, asked),
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
        """Reply with the `known` answer of the request's key, else with a new `answer`, or with a
        fault."""
        if request.transport is None:  # the client gave up in the queue
            return web.Response()
        fault = self._fault()
        if fault == "500":
            headers = self.limits.headers()
            return problem(500, "The server had an error.", kind="server_error", add=headers)
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

    async def stats(self, request: web.Request) -> web.Response:
        """Counters. `answered`: answers made by this process, of which `batch_lines` in batches.
        `journal`: answers in the journal. `repeated`: answers in the journal beyond the first of
        their request (a replay from the journal is no answer). `received`, `seconds` and the 429s
        count single requests, not batches."""
        total = self.journal.answered.total()
        self.limits.update()
        return web.json_response(
            {
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
    """Turn bad requests, unknown paths, wrong methods and a full disk into the API's errors."""
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
    """Serve until SIGTERM or SIGINT. One line is printed when the server listens. UserError when it
    cannot listen at the port."""
    asyncio.run(_serve(options, lifeline=None))


async def _serve(options: AnnotatorOptions, lifeline: int | None) -> None:
    """`lifeline`: a file descriptor; its end of file stops the server as well."""
    options.check()
    annotator = Annotator(options)
    runner = web.AppRunner(annotator.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port, backlog=1024).start()
    except (OSError, OverflowError) as e:  # OverflowError: the port is beyond 65535
        await runner.cleanup()
        where = f"{options.host}:{options.port}"
        if isinstance(e, OverflowError):
            raise UserError(
                f"Port {where} is above 65535: choose a lower port, or 0 for a free port."
            ) from e
        if e.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {where} is in use: choose another port, or 0 for a free port."
            ) from e
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
    if not os.read(lifeline, 4096):  # end of file: the parent closed it or died
        asyncio.get_running_loop().remove_reader(lifeline)
        stopped.set()


@contextlib.contextmanager
def running(options: AnnotatorOptions, start_s: float = 60.0) -> Iterator[str]:
    """Run the server in its own process; yield its base URL, and stop the server at the end.

    The server also stops when this process dies in any way, because its stdin then ends.
    """
    options.check()
    command = [sys.executable, "-m", "facttune_ray.quickstart.annotator"]
    child = subprocess.Popen(  # in its own session, so that this process handles Ctrl-C
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # the child died: the next lines raise
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
    """The endpoint of llm.base_url=embedded: `running`, with its answers kept in a file."""
    return running(AnnotatorOptions(host=host, journal=journal))


def _as_child() -> int:
    """Read options as a JSON line from stdin, then serve for as long as stdin stays open."""
    options = AnnotatorOptions(**json.loads(sys.stdin.buffer.readline()))
    try:
        asyncio.run(_serve(options, lifeline=sys.stdin.fileno()))
    except UserError as e:
        print(e, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_as_child())
