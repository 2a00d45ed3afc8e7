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
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from facttune_ray.errors import UserError
from facttune_ray.quickstart.answering import Annotator, Answers
from facttune_ray.quickstart.batch_api import Batches
from facttune_ray.quickstart.chat_api import Request, RequestError, parse_request, server_error
from facttune_ray.quickstart.options import AnnotatorOptions as AnnotatorOptions
from facttune_ray.quickstart.responses_api import Responses, parse_response_request

MODEL = "facttune-rules"
READY = "annotator ready at "
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def app(annotator: Annotator) -> web.Application:
    """The routes of the server."""
    batches, responses = Batches(annotator), Responses(annotator)

    def post(parse: Callable[[bytes], Request], answers: Answers | None = None) -> Handler:
        return lambda request: annotator.handle(request, parse, answers)

    async def models(request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "facttune"}
        return web.json_response({"object": "list", "data": [model]})

    async def stats(request: web.Request) -> web.Response:
        return web.json_response(annotator.stats() | {"batches": len(batches.batches)})

    @web.middleware
    async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and turn all errors into the API's errors."""
        try:
            known = request.match_info.http_exception is None
            if known and request.path not in ("/v1/models", "/stats"):
                annotator.authorize(request)
            return await handler(request)
        except RequestError as e:
            return e.response()
        except web.HTTPException as e:  # an unknown path, a wrong method
            message = f"Invalid URL ({request.method} {request.path}): {e.reason}."
            code = "unknown_url" if e.status == 404 else None
            return RequestError(message, code=code, status=e.status).response()
        except OSError as e:  # a full disk
            return server_error(str(e)).response()

    app = web.Application(middlewares=[checked], client_max_size=64 * 2**20)
    for method, path, handler in (
        ("POST", "/v1/chat/completions", post(parse_request)),
        ("POST", "/v1/completions", post(functools.partial(parse_request, what="prompt"))),
        ("POST", "/v1/responses", post(parse_response_request, responses)),
        ("GET", "/v1/responses/{id}", responses.stored),
        ("POST", "/v1/files", batches.upload),
        ("GET", "/v1/files", batches.list_files),
        ("GET", "/v1/files/{id}", batches.file),
        ("DELETE", "/v1/files/{id}", batches.delete_file),
        ("GET", "/v1/files/{id}/content", batches.content),
        ("POST", "/v1/batches", batches.create),
        ("GET", "/v1/batches", batches.list_batches),
        ("GET", "/v1/batches/{id}", batches.batch),
        ("POST", "/v1/batches/{id}/cancel", batches.cancel),
        ("GET", "/v1/models", models),
        ("GET", "/stats", stats),
    ):
        app.router.add_route(method, path, handler)
    return app


def serve(options: AnnotatorOptions) -> None:
    """Serve until SIGTERM or SIGINT. One line is printed when the server listens. UserError when it
    cannot listen at the port."""
    asyncio.run(_serve(options, lifeline=None))


async def _serve(options: AnnotatorOptions, lifeline: int | None) -> None:
    """`lifeline`: a file descriptor; its end of file stops the server as well."""
    options.check()
    annotator = Annotator(options)
    runner = web.AppRunner(app(annotator), access_log=None, shutdown_timeout=1.0)
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
