"""Runs of 36 rows, where one row gets an odd reply and the other 35 are good."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm import refusals
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.journal import unknown
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, Queue, local_renew
from facttune_ray.llm.replies import HTTPReply
from facttune_ray.llm.segments import read_segment
from facttune_ray.storage.tables import Folder

ROWS = 36
PRICE = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0}
GOOD = {
    "model": "m",
    "choices": [{"message": {"content": "True"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
}


@dataclass(frozen=True)
class Case:
    """The server's reply to one row, and the outcome that it must have."""

    body: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    outcome: str = "row error"  # or "True": answered
    sent: int = 1
    tokens: int = 0  # billed for it
    shown: str = ""


def said(message: dict, finish: str = "stop", usage: dict | None = None) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"model": "m", "choices": [choice], "usage": usage}


def used(prompt: int, generated: int, total: int | None = None) -> dict:
    found = {"prompt_tokens": prompt, "completion_tokens": generated}
    return found | {"total_tokens": prompt + generated if total is None else total}


CASES = {
    "thoughts took every token": Case(
        said({"content": None, "reasoning_content": "hm " * 50}, "length", used(50, 300)),
        tokens=350,
        shown="raise llm.max_tokens",
    ),
    "empty and cut": Case(
        said({"content": ""}, "length", used(50, 300)), tokens=350, shown="raise llm.max_tokens"
    ),
    "only a thought, in the text, and cut": Case(
        said({"content": "<think>It may be"}, "length", used(50, 300)), tokens=350
    ),
    "hidden thoughts": Case(
        said({"content": "True"}, usage=used(50, 2, 400)), outcome="True", tokens=400
    ),
    "parts": Case(
        said({"content": [{"type": "text", "text": "True"}]}, usage=used(5, 2)),
        outcome="True",
        tokens=7,
    ),
    "a thought and a text as parts": Case(
        said(
            {
                "content": [
                    {"type": "reasoning", "text": "False?"},
                    {"type": "text", "text": "True"},
                ]
            },
            usage=used(5, 2),
        ),
        outcome="True",
        tokens=7,
    ),
    "filtered without a text": Case(
        said({}, "content_filter", used(60, 0)), tokens=60, shown="content_filter"
    ),
    "filtered in the middle, by another name": Case(
        said({"content": "True, because sh"}, "SAFETY", used(60, 4)), tokens=64, shown="SAFETY"
    ),
    "too long, the message at the top": Case(
        {"object": "error", "message": "8,192 tokens at most, you sent 20,111", "code": 400},
        status=400,
        shown="20,111",
    ),
    "too long, by another code": Case(
        {"error": {"message": "does not fit", "type": "exceed_context_size_error", "n_ctx": 4096}},
        status=400,
        shown="does not fit",
    ),
    "too large for the server": Case("payload too large: 20111", status=413, shown="20111"),
    "not processable": Case({"detail": [{"msg": "bad text 20111"}]}, status=422, shown="20111"),
    "moderated": Case({"error": "flagged as harmful"}, status=403, shown="flagged as harmful"),
    "larger than the minute's limit": Case(
        {"error": {"message": "Limit 30,000 tokens, Requested 45,000"}}, status=429, shown="45,000"
    ),
    "an upstream error inside 200": Case(
        {"error": {"message": "upstream is away", "code": 503}}, sent=3, shown="upstream is away"
    ),
    "half a body": Case(b'{"choices": [{"mess', sent=3, shown="no completion"),
}


def serve(bad: Case, at: int, log: list[int], latency_s: float = 0.0):
    """A transport that answers every row with True, and row `at` as the case says."""

    async def transport(method, path, body, headers) -> HTTPReply:
        row = int(body["messages"][-1]["content"].split()[-1])
        log.append(row)
        await asyncio.sleep(latency_s)
        if row == at:
            content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
            return HTTPReply(bad.status, bad.headers, content)
        return HTTPReply(200, {}, json.dumps(GOOD).encode())

    return transport


def run(tmp_path, transport, rows=ROWS, **settings) -> tuple[list, Client]:
    cfg = LLMConfig(
        base_url="http://x", model="m", max_attempts=3, max_wait_s=0.01, **PRICE | settings
    )
    queue = Queue()
    gate = Gate(local_renew(Limits()), 2, "w", queue)

    async def work():
        endpoint = Endpoint("http://x", "NO_KEY", 5.0, gate, transport)
        ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.005, run="r")
        client = Client(cfg, ledger, [endpoint])
        messages = ([{"role": "user", "content": f"row {i}"}] for i in range(rows))
        asked = (client.ask(m, str) for m in messages)
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
        await client.close()
        return found, client

    return asyncio.run(work())


def billed(tmp_path) -> dict[str, int]:
    """Tokens in the ledger."""
    folder = Folder.of(str(tmp_path / "ledger"))
    names = [n for n in folder.names() if n.endswith(".arrow")]
    rows = [row for n in names for row in read_segment(folder / n).to_pylist()]
    return {r["key"].hex(): r["prompt_tokens"] + r["completion_tokens"] for r in rows}


@pytest.mark.parametrize("at", [0, 35])
@pytest.mark.parametrize("name", CASES)
def test_one_odd_answer_of_36(tmp_path, name, at):
    case, log = CASES[name], []
    found, client = run(tmp_path, serve(case, at, log))
    odd = found.pop(at)
    assert found == ["True"] * (ROWS - 1)
    assert log.count(at) == case.sent and len(log) == ROWS - 1 + case.sent
    if case.outcome == "True":
        assert odd == "True"
    else:
        assert type(odd) is not EndpointError and isinstance(odd, RowError)
        assert case.shown in str(odd) and "\n" not in str(odd)
    assert sum(billed(tmp_path).values()) == 11 * (ROWS - 1) + case.tokens
    total = client.usage.prompt_tokens + client.usage.completion_tokens
    assert total == 11 * (ROWS - 1) + case.tokens
    # half a body may have been billed each time: the attempt is listed
    lost = unknown(Folder.of(str(tmp_path / "ledger")))
    assert len(lost) == client.usage.unknown == (3 if name == "half a body" else 0)


def test_an_answer_without_usage_counts_as_its_estimate(tmp_path):
    case = Case(said({"content": "True"}), outcome="True")
    found, client = run(tmp_path, serve(case, 5, []))
    assert found == ["True"] * ROWS and client.usage.estimated == 1
    assert sum(billed(tmp_path).values()) > 11 * (ROWS - 1)


@pytest.mark.parametrize(
    ("case", "shown"),
    [
        (Case({"error": {"message": "no credit is left", "code": 402}}), "no credit is left"),
        (
            Case({"error": {"message": "unsupported", "param": "max_tokens"}}, status=400),
            "llm.max_tokens",
        ),
        (Case({"message": "model `m` does not exist"}, status=404), "check llm.model"),
        (Case({"error": {"message": "not allowed"}}, status=403), "check the rights of NO_KEY"),
    ],
)
def test_a_refusal_of_every_row_stops_the_run(tmp_path, case, shown):
    log: list[int] = []

    async def always(method, path, body, headers) -> HTTPReply:
        log.append(1)
        return HTTPReply(case.status, {}, json.dumps(case.body).encode())

    found, client = run(tmp_path, always)
    stops = [f for f in found if isinstance(f, EndpointError)]
    assert shown in str(stops[0]) and "\n" not in str(stops[0])
    assert len(log) <= refusals.IN_A_ROW + 2 and not [f for f in found if type(f) is RowError]


def test_a_refusal_of_the_system_role_stops_the_run_and_the_setting_it_names_works(tmp_path):
    async def without_system(method, path, body, headers) -> HTTPReply:
        if any(m["role"] == "system" for m in body["messages"]):
            return HTTPReply(400, {}, b'{"message": "this model has no system role"}')
        said = body["messages"][0]["content"]
        answer = GOOD | {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        return HTTPReply(200, {}, json.dumps(answer).encode())

    async def ask(**settings):
        gate = Gate(local_renew(Limits()), 2, "w")
        endpoint = Endpoint("http://x", "NO_KEY", 5.0, gate, without_system)
        client = Client(
            LLMConfig(**settings), Ledger(Folder.of(str(tmp_path / "ledger"))), [endpoint]
        )
        asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        try:
            return await client.ask(asked, str)
        finally:
            await client.close()

    with pytest.raises(EndpointError, match=r"no system role: set llm\.system=user"):
        asyncio.run(ask())
    assert asyncio.run(ask(system="user")) == "Be brief.\n\nHi"


def test_an_endpoint_that_refuses_everything_in_the_middle_stops_the_run(tmp_path):
    """The refused rows do not become row errors."""
    answered: list[int] = []

    async def half(method, path, body, headers) -> HTTPReply:
        if len(answered) < 10:
            answered.append(1)
            return HTTPReply(200, {}, json.dumps(GOOD).encode())
        return HTTPReply(404, {}, b'{"error": {"message": "the deployment was removed"}}')

    found, _ = run(tmp_path, half)
    assert found.count("True") == 10 and not [f for f in found if type(f) is RowError]
    assert "the deployment was removed" in str([f for f in found if f != "True"][0])


def test_a_last_row_that_is_refused_fails_alone(tmp_path):
    refused = Case({"error": {"message": "not this one"}}, status=400)
    found, _ = run(tmp_path, serve(refused, 0, []), rows=1)
    assert isinstance(found[0], EndpointError)  # nothing was ever answered
    found, _ = run(tmp_path, serve(refused, 1, []), rows=2)
    assert found[0] == "True" and type(found[1]) is RowError
    # A worker that begins anew sees in the ledger that requests were answered.
    found, _ = run(tmp_path, serve(refused, 0, []), rows=1, temperature=0.5)
    assert type(found[0]) is RowError
