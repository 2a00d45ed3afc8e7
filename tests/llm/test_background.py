"""Background mode against the annotator's Responses API, with kills at every step."""

from __future__ import annotations

import asyncio
import json

import annotator_client
import pytest
from annotator_client import PRICED, abandon, answers, ask, ledger_folder, messages, run, stats

from facttune_ray.errors import EndpointError, RowError, UserError
from facttune_ray.llm import background, journal
from facttune_ray.llm.background import as_response
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.journal import Journal
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.ledger_tools import verify
from facttune_ray.llm.replies import HTTPReply, read
from facttune_ray.quickstart.annotator import AnnotatorOptions, running


@pytest.fixture(autouse=True)
def short_polls(monkeypatch):
    monkeypatch.setattr(background, "POLL_S", 0.05)


def client(tmp_path, url: str, **settings) -> Client:
    defaults = {"mode": "background", "max_wait_s": 0.2} | PRICED
    return annotator_client.client(tmp_path, url, **defaults | settings)


def open_attempts(tmp_path) -> tuple[int, int]:
    """(unknown, stored) attempts in the journals."""
    found = journal.attempts(ledger_folder(tmp_path))
    return sum(not a.id for a in found), sum(bool(a.id) for a in found)


def test_every_fault_is_survived(tmp_path):
    faults = AnnotatorOptions(
        error_share=0.1, reset_share=0.1, malformed_share=0.1, failed_share=0.1, latency_max_ms=50
    )
    with running(faults) as url:
        one = client(tmp_path, url, max_attempts=20)
        assert run(one, range(60)) == answers(range(60))
        seen = stats(url)
        assert (seen["answered"], seen["repeated"], one.usage.calls) == (60, 0, 60)
        again = client(tmp_path, url)
        assert run(again, range(60)) == answers(range(60)) and again.usage.cached == 60


def test_background_costs_as_much_as_online(tmp_path):
    with running(AnnotatorOptions()) as url:
        for mode in ("background", "online"):
            run(client(tmp_path / mode, url, mode=mode), range(5))
    modes = ("background", "online")
    paid = [Ledger(ledger_folder(tmp_path / mode)).paid_usd("r") for mode in modes]
    spent = [sum(usd.values()) for usd in paid]
    assert spent[0] == pytest.approx(spent[1]) and spent[0] > 0


SLOW = AnnotatorOptions(idempotent=False, latency_min_ms=300, latency_max_ms=300)


@pytest.mark.parametrize("step", ["before POST", "before record", "after record", "before ledger"])
def test_only_a_kill_between_the_post_and_the_record_pays_twice(tmp_path, monkeypatch, step):
    reached: list[int] = []

    def hangs(original, before=lambda *_: True):
        async def call(*args):
            if before(*args):
                reached.append(1)
                await asyncio.sleep(60)
            made = await original(*args)
            if step == "after record":
                reached.append(1)
            return made

        return call

    kind, method = {
        "before POST": (Endpoint, "exchange"),
        "before record": (Journal, "store"),
        "after record": (Journal, "store"),
        "before ledger": (Ledger, "put_all"),
    }[step]
    with running(SLOW) as url:
        with monkeypatch.context() as m:
            held = (lambda *_: False) if step == "after record" else (lambda *_: True)
            m.setattr(kind, method, hangs(getattr(kind, method), held))
            asyncio.run(abandon(client(tmp_path, url), range(10), lambda: len(reached) == 10))
        again = client(tmp_path, url)
        assert run(again, range(10)) == answers(range(10))
        seen = stats(url)
    lost = 10 if step == "before record" else 0
    assert (seen["answered"], seen["repeated"]) == (10 + lost, lost)
    assert again.usage.calls == 10
    unknown, _ = open_attempts(tmp_path)
    assert unknown == (10 if step in ("before POST", "before record") else 0)


def stop_after_ids(tmp_path, url: str) -> None:
    """A client is killed when it has the ids of its 5 responses."""
    stopped = abandon(client(tmp_path, url), range(5), lambda: open_attempts(tmp_path) == (0, 5))
    asyncio.run(stopped)


def test_a_stored_answer_counts_when_it_is_fetched(tmp_path):
    with running(SLOW) as url:
        stop_after_ids(tmp_path, url)
        folder = ledger_folder(tmp_path)
        assert [len(verify(folder)[name]) for name in ("unknown", "stored")] == [0, 5]
        assert sum(Ledger(folder).paid_usd("r").values()) == 0.0
        again = client(tmp_path, url)
        run(again, range(5))
        assert [verify(folder)[name] for name in ("unknown", "stored")] == [[], []]
        assert sum(Ledger(folder).paid_usd("r").values()) == pytest.approx(again.usage.cost_usd)


def test_a_worker_takes_over_from_one_that_is_lost_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "JOURNALS_S", 0.0)
    with running(SLOW) as url:

        async def work():
            one = client(tmp_path, url)
            found = await ask(one, range(20, 22))  # it has looked at the journals
            await asyncio.to_thread(stop_after_ids, tmp_path, url)
            found += await ask(one, range(5))
            await one.close()
            return found

        assert asyncio.run(work()) == answers([20, 21, *range(5)])
        assert stats(url)["answered"] == 7


def test_a_response_that_the_server_has_forgotten_is_asked_for_again(tmp_path):
    with running(SLOW) as url:
        stop_after_ids(tmp_path, url)
    with running(AnnotatorOptions()) as url:
        assert run(client(tmp_path, url), range(5)) == answers(range(5))
        assert stats(url)["answered"] == 5
    assert open_attempts(tmp_path)[0] == 5  # they may have been billed


def test_a_response_that_takes_too_long_fails_its_row_and_the_next_run_fetches_it(tmp_path):
    slow = AnnotatorOptions(idempotent=False, latency_min_ms=1500, latency_max_ms=1500)
    with running(slow) as url:
        (error,) = run(client(tmp_path, url, max_elapsed_s=0.5), range(1))
        assert isinstance(error, RowError) and "the next run fetches it" in str(error)
        assert run(client(tmp_path, url), range(1)) == answers(range(1))
        assert stats(url)["answered"] == 1


def test_an_endpoint_without_responses_stops_the_run_with_one_line(tmp_path):
    with running(AnnotatorOptions()) as url:
        (error,) = run(client(tmp_path, url.removesuffix("/v1") + "/v9"), range(1))
    assert type(error) is EndpointError and "\n" not in str(error) and "404" in str(error)


def test_a_text_completion_is_refused(tmp_path):
    async def work():
        one = client(tmp_path, "http://127.0.0.1:9/v1")
        await one.complete_all("Question: ", [{}])

    with pytest.raises(UserError, match=r"sampling.form=completions.*llm.mode=online"):
        asyncio.run(work())


@pytest.mark.parametrize("name", ["seed", "stop", "n", "frequency_penalty"])
def test_a_parameter_that_responses_lack_is_named(tmp_path, name):
    (error,) = run(client(tmp_path, "http://127.0.0.1:9/v1", params={name: 1}), range(1))
    assert type(error) is UserError and f"set llm.params.{name}=null" in str(error)


# -- bodies ------------------------------------------------------------------------------------


def test_a_request_is_translated():
    schema = {"name": "facts", "strict": True, "schema": {"type": "object"}}
    asked = {
        "model": "m",
        "messages": messages(1),
        "temperature": 0.0,
        "max_completion_tokens": 64,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "verbosity": "low",
        "reasoning_effort": "minimal",
        "logprobs": True,
        "top_logprobs": 5,
        "service_tier": "flex",
    }
    assert as_response(asked) == {
        "background": True,
        "store": True,
        "model": "m",
        "input": messages(1),
        "temperature": 0.0,
        "max_output_tokens": 64,
        "text": {"format": {"type": "json_schema", **schema}, "verbosity": "low"},
        "reasoning": {"effort": "minimal"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 5,
        "service_tier": "flex",
    }
    plain = {"model": "m", "messages": messages(1), "max_tokens": 5, "logprobs": False}
    assert as_response(plain).keys() == {
        "background", "store", "model", "input", "max_output_tokens",
    }  # fmt: skip


def meaning(**response):
    whole = {"id": "resp_1", "object": "response", "model": "gpt-9", "status": "completed"}
    reply = HTTPReply(200, {}, json.dumps(whole | response).encode())
    return read(background.as_chat(reply, json.loads(reply.content)), {})


def said(*parts, **fields) -> dict:
    return {"type": "message", "role": "assistant", "content": list(parts)} | fields


TEXT = {"type": "output_text", "text": "True", "annotations": []}
USAGE = {"input_tokens": 7, "output_tokens": 30, "total_tokens": 37}


def test_an_answer_keeps_its_thoughts_apart_and_counts_them():
    token = {"token": "True", "logprob": -0.1, "bytes": []}
    logprobs = [token | {"top_logprobs": [token]}]
    thoughts = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    note = said({"type": "output_text", "text": "I look."}, phase="commentary")
    found = meaning(output=[thoughts, note, said(TEXT | {"logprobs": logprobs})], usage=USAGE)
    (reply,) = found.replies
    assert (reply.text, reply.thoughts, reply.finish_reason) == ("True", "Hm.", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.counted) == (7, 30, "usage")
    assert (reply.served_model, reply.top_logprobs) == ("gpt-9", '{"True": -0.1}')


def test_a_refusal_and_an_empty_answer_are_paid_answers():
    (refused,) = meaning(output=[said({"type": "refusal", "refusal": "No."})]).replies
    assert (refused.text, refused.refusal) == ("", "No.")
    (empty,) = meaning(output=[], usage=USAGE).replies
    assert (empty.text, empty.completion_tokens, empty.finish_reason) == ("", 30, "stop")


@pytest.mark.parametrize(
    ("reason", "finish", "filtered"),
    [("max_output_tokens", "length", False), ("content_filter", "content_filter", True)],
)
def test_an_incomplete_response_says_why(reason, finish, filtered):
    (reply,) = meaning(
        status="incomplete", incomplete_details={"reason": reason}, output=[said(TEXT)]
    ).replies
    assert (reply.finish_reason, bool(reply.refusal)) == (finish, filtered)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        ("failed", {"code": "server_error", "message": "Sorry."}, "retry"),
        ("failed", {"code": "rate_limit_exceeded", "message": "Slowly."}, "limit"),
        ("failed", {"code": "invalid_prompt", "message": "No."}, "row error"),
        ("failed", {"code": "bio_policy", "message": "No."}, "row error"),
        ("failed", None, "retry"),
        ("cancelled", None, "retry"),
    ],
)
def test_a_response_that_failed_is_read_by_its_code(status, error, kind):
    assert meaning(status=status, error=error).kind == kind


@pytest.mark.parametrize("output", ["text", [1], [{"type": "message", "content": [3]}]])
def test_a_body_that_is_no_response_is_requested_again(output):
    assert meaning(output=output).kind == "retry"
