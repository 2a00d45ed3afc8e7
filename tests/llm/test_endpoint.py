"""An endpoint: keys that no message shows, addresses with a query, proxies."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from facttune_ray.errors import EndpointError
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.llm.replies import HTTPReply

KEY = "k-0123456789"
ANSWER = {"choices": [{"message": {"content": "True"}, "finish_reason": "stop"}], "model": "m"}


def gate() -> Gate:
    return Gate(local_renew(Limits()), 8, "w")


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    return Endpoint("http://user:pass@127.0.0.1:9/v1", "SOME_KEY", 1.0, gate())


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_message_shows_a_key(endpoint, status):
    said = {"error": {"message": f"Incorrect API key provided: {KEY}.\nBearer {KEY}"}}
    meaning = endpoint.meaning(HTTPReply(status, {}, json.dumps(said).encode()), {})
    line = str(endpoint.refusal(meaning))
    assert "Incorrect API key provided: [key]" in line
    assert KEY not in line and "pass" not in line and "\n" not in line


@pytest.mark.parametrize("key", ["k-0123\n456789", "k-m\u00e4rked", "k-01 23"])
def test_a_key_that_no_header_can_carry_gives_one_line_without_the_key(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(EndpointError, match="^SOME_KEY: ") as caught:
        Endpoint("http://127.0.0.1:9/v1", "SOME_KEY", 1.0, gate())
    assert "k-" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_break_at_the_end_of_a_key_file_is_not_part_of_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    made = Endpoint("http://127.0.0.1:9/v1", "SOME_KEY", 1.0, gate())
    assert made.openai.api_key == KEY


def test_the_error_of_a_wrong_key_names_its_variable(endpoint):
    said = b'{"error": {"code": "invalid_api_key", "message": "Incorrect API key provided"}}'
    line = str(endpoint.refusal(endpoint.meaning(HTTPReply(401, {}, said), {})))
    assert line.endswith("set SOME_KEY (or SOME_KEY_FILE)") and "http://127.0.0.1:9/v1" in line


def ask(url: str, **settings) -> tuple[list[web.Request], object]:
    """Send one request to a server that records it. {port} in `url` is replaced."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        seen.append(request)
        return web.json_response(ANSWER)

    async def work():
        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made = Endpoint(
            url.format(port=runner.addresses[0][1]), "SOME_KEY", 5.0, gate(), **settings
        )
        meaning = await made.send({"model": "m", "messages": []}, {"Idempotency-Key": "a"})
        await made.close()
        await runner.cleanup()
        return meaning

    return seen, asyncio.run(work())


def test_a_query_string_goes_with_every_request_and_azure_gets_its_own_header(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    address = "http://127.0.0.1:{port}/openai/deployments/judge?api-version=2024-10-21"
    (asked,), meaning = ask(address)
    assert meaning.kind == "answer"
    assert asked.path == "/openai/deployments/judge/chat/completions"
    assert dict(asked.query) == {"api-version": "2024-10-21"}
    assert asked.headers["api-key"] == KEY and asked.headers["Idempotency-Key"] == "a"


def test_without_a_query_string_no_second_header_carries_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    (asked,), _ = ask("http://127.0.0.1:{port}/v1")
    assert "api-key" not in asked.headers and asked.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("host", "settings"),
    [("127.0.0.1", {}), ("localhost", {}), ("0.0.0.0", {"direct": True})],
)
def test_requests_to_loopback_use_no_proxy(monkeypatch, host, settings):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    seen, meaning = ask(f"http://{host}:{{port}}/v1", **settings)
    assert meaning.kind == "answer" and len(seen) == 1


def test_requests_to_another_host_use_the_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    seen, meaning = ask("http://0.0.0.0:{port}/v1")  # this host, but no loopback address
    assert (meaning.kind, meaning.unreachable, seen) == ("retry", True, [])


def test_an_unreachable_server_has_billed_nothing():
    async def work():
        made = Endpoint("http://127.0.0.1:9/v1", "NO_KEY", 1.0, gate())
        meaning = await made.send({"model": "m", "messages": []}, {})
        await made.close()
        return meaning

    meaning = asyncio.run(work())
    assert (meaning.kind, meaning.unreachable, meaning.unknown) == ("retry", True, False)
