"""The server through the `openai` client and plain HTTP."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
import pytest

from facttune_ray.errors import UserError
from facttune_ray.prompts import facts, questions
from facttune_ray.quickstart.annotator import AnnotatorOptions, running, serve
from facttune_ray.quickstart.journal import Journal

MESSAGES = facts.render("Mara Veldt", "She plays the cello.")
REPLY = "- Mara Veldt plays the cello."


def call(url, messages=MESSAGES, key=None, api_key="none", **params):
    """One request through the official client, without its retries."""
    client = openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=20)
    headers = {"Idempotency-Key": key} if key else {}
    with client:
        return client.chat.completions.with_raw_response.create(
            model="m", messages=messages, extra_headers=headers, **params
        )


def text(raw):
    return raw.parse().choices[0].message.content


def http(url, body=None):
    """(status, parsed body) of a plain request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def stats(url):
    return http(url.removesuffix("/v1") + "/stats")[1]


@contextlib.contextmanager
def serving(**options):
    """(base URL, process) of a server that `serve` blocks in."""
    program = (
        "from facttune_ray.quickstart.annotator import AnnotatorOptions, serve\n"
        f"serve(AnnotatorOptions(**{options!r}))\n"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith("annotator ready at http://127.0.0.1:") and line.endswith("/v1\n")
        yield line.split()[-1], server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def plain():
    with running(AnnotatorOptions()) as url:
        yield url


def test_a_completion(plain):
    raw = call(plain, n=2, temperature=1.0)
    reply = raw.parse()
    assert [c.message.content for c in reply.choices] == [REPLY, REPLY]
    assert [c.finish_reason for c in reply.choices] == ["stop", "stop"]
    assert reply.model == "m" and reply.object == "chat.completion"
    # two choices of 6 words, 4 tokens for 3 words
    assert reply.usage.completion_tokens == 16
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 16
    for kind in ("requests", "tokens"):
        limit = int(raw.headers[f"x-ratelimit-limit-{kind}"])
        assert 0 < int(raw.headers[f"x-ratelimit-remaining-{kind}"]) < limit
        assert raw.headers[f"x-ratelimit-reset-{kind}"].endswith("ms")


def test_the_async_client(plain):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=plain, api_key="none", http_client=openai.DefaultAioHttpClient(), max_retries=0
        ) as client:
            prompts = [facts.render("Ada", f"She owns {i} boats.") for i in range(50)]
            calls = [client.chat.completions.create(model="m", messages=p) for p in prompts]
            return [r.choices[0].message.content for r in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [f"- Ada owns {i} boats." for i in range(50)]


def test_max_tokens_cuts_the_reply(plain):
    choice = call(plain, max_tokens=4).parse().choices[0]
    assert (choice.message.content, choice.finish_reason) == ("- Mara Veldt", "length")


def test_models(plain):
    assert [m.id for m in openai.OpenAI(base_url=plain, api_key="x").models.list()] == [
        "facttune-rules"
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{not json", None),
        (b"[]", None),
        (b'{"model": "m"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": [{"role": "user"}]}', "messages[0].content"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "n": 0}', "n"),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": true}',
            "stream",
        ),
    ],
)
def test_bad_requests(plain, body, param):
    status, reply = http(plain + "/chat/completions", body)
    assert status == 400
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert reply["error"]["param"] == param and reply["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods(plain):
    assert http(plain + "/embeddings", b"{}")[0] == 404
    status, reply = http(plain + "/chat/completions")
    assert status == 405 and "error" in reply


def test_api_key():
    with running(AnnotatorOptions(api_key="right")) as url:
        assert text(call(url, api_key="right")) == REPLY
        with pytest.raises(openai.AuthenticationError):
            call(url, api_key="wrong")


def test_request_limit():
    with running(AnnotatorOptions(requests_per_minute=2)) as url:
        assert call(url).headers["x-ratelimit-remaining-requests"] == "1"
        call(url)
        with pytest.raises(openai.RateLimitError) as refused:
            call(url)
        headers = refused.value.response.headers
        assert 25 <= int(headers["retry-after"]) <= 30  # two a minute: one every 30 s
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert stats(url)["rejected_429"] == 1 and stats(url)["answered"] == 2


def test_token_limit():
    with running(AnnotatorOptions(tokens_per_minute=520)) as url:
        call_tokens = call(url).parse().usage.total_tokens
        tokens = int(call(url).headers["x-ratelimit-remaining-tokens"])
        assert 520 - 2 * call_tokens <= tokens <= 530 - 2 * call_tokens
        with pytest.raises(openai.RateLimitError):
            call(url)


def test_faults_and_their_seed():
    options = AnnotatorOptions(error_share=0.2, reset_share=0.2, malformed_share=0.2, seed=7)

    def outcomes() -> tuple[list[str], dict]:
        seen = []
        with running(options) as url:
            for i in range(40):
                try:
                    seen.append(text(call(url, key=str(i))))
                except (openai.APIError, json.JSONDecodeError) as e:
                    seen.append(type(e).__name__)
            return seen, stats(url)

    seen, counted = outcomes()
    again, _ = outcomes()
    assert seen == again
    assert seen.count("InternalServerError") == counted["faults"]["500"] > 0
    assert seen.count("APIConnectionError") == counted["faults"]["reset"] > 0
    assert counted["faults"]["malformed"] > 0
    # a broken connection comes after the answer: it was paid for
    assert counted["answered"] == seen.count(REPLY) + counted["faults"]["reset"]


def test_hang_and_latency():
    with running(AnnotatorOptions(hang_share=1.0, hang_s=0.5)) as url:
        started = time.monotonic()
        assert text(call(url)) == REPLY
        assert time.monotonic() - started >= 0.5
        with pytest.raises(openai.APITimeoutError):
            openai.OpenAI(
                base_url=url, api_key="x", max_retries=0, timeout=0.2
            ).chat.completions.create(model="m", messages=MESSAGES)
        time.sleep(0.6)
        assert stats(url)["answered"] == 1  # who gave up waiting has not paid
    with running(AnnotatorOptions(latency_min_ms=200, latency_max_ms=250)) as url:
        started = time.monotonic()
        call(url)
        assert time.monotonic() - started >= 0.2


def test_a_key_is_answered_once_even_after_sigkill(tmp_path):
    journal = tmp_path / "journal.jsonl"
    with serving(journal=str(journal)) as (url, server):
        first = call(url, key="k1")
        again = call(url, key="k1")
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        with pytest.raises(openai.BadRequestError):
            call(url, questions.render("Mara Veldt", "Mara Veldt sings."), key="k1")
        expected = {"answered": 1, "journal": 1, "repeated": 0, "replayed": 1, "rejected_429": 0}
        assert stats(url).items() >= expected.items()
        assert stats(url)["by_task"] == {"facts": 1}
        server.kill()
    with open(journal, "ab") as torn:
        torn.write(b'{"key": "k2", "request_sha')
    with running(AnnotatorOptions(journal=str(journal))) as url:
        replayed = call(url, key="k1")
        assert replayed.content == first.content
        call(url, key="k2")  # torn: was never sent, so it is answered now
        assert (stats(url)["answered"], stats(url)["replayed"]) == (1, 1)
        assert stats(url)["repeated"] == 1  # k2 asked what k1 had asked
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [r["key"] for r in rows] == ["k1", "k2"]
    assert rows[0]["response"]["choices"][0]["message"]["content"] == REPLY


def test_equal_keys_at_the_same_time_are_answered_once():
    async def both(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            create = client.chat.completions.create
            headers = {"Idempotency-Key": "k"}
            calls = [create(model="m", messages=MESSAGES, extra_headers=headers) for _ in range(5)]
            return [r.id for r in await asyncio.gather(*calls)]

    with running(AnnotatorOptions(latency_min_ms=200, latency_max_ms=200)) as url:
        assert len(set(asyncio.run(both(url)))) == 1
        assert (stats(url)["answered"], stats(url)["replayed"]) == (1, 4)


def test_a_killed_parent_leaves_no_server(tmp_path):
    program = (
        "import time\n"
        "from facttune_ray.quickstart.annotator import AnnotatorOptions, running\n"
        "with running(AnnotatorOptions()) as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    url = parent.stdout.readline().decode().strip()
    assert text(call(url)) == REPLY
    parent.kill()
    parent.wait()
    parent.stdout.close()
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            http(url + "/models")
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its parent by 10 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_one_line_and_stops_on_signals(number):
    with serving() as (url, server):
        assert text(call(url)) == REPLY
        server.send_signal(number)
        assert server.communicate(timeout=10)[0] == ""
        assert server.returncode == 0


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for start in (serve, lambda o: running(o).__enter__()):
            with pytest.raises(UserError, match=f"Port 127.0.0.1:{port} is in use"):
                start(AnnotatorOptions(port=port))


@pytest.mark.parametrize(
    "options",
    [
        AnnotatorOptions(error_share=0.7, hang_share=0.7),
        AnnotatorOptions(latency_min_ms=5),
        AnnotatorOptions(requests_per_minute=0),
        AnnotatorOptions(port=99_999),
    ],
)
def test_bad_options(options):
    with pytest.raises(UserError):
        serve(options)


def test_a_broken_journal(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"some": "thing"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl, line 1"):
        Journal(str(other))
    with pytest.raises(UserError, match="cannot be opened"):
        Journal(str(tmp_path))
    held = Journal(str(tmp_path / "held.jsonl"))
    with pytest.raises(UserError, match="in use"):
        Journal(str(tmp_path / "held.jsonl"), lock_wait_s=0.1)
    held.close()
