"""What each failure of an endpoint means, and that no message shows a key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.endpoint import (
    Endpoint,
    Transient,
    read_replies,
    read_reply,
    retry_after_s,
    shared,
)
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew

KEY = "k-0123456789"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    gate = Gate(local_renew(Limits()), LLMConfig().concurrency, "w")
    return Endpoint("http://user:pass@127.0.0.1:9/v1", "SOME_KEY", 1.0, gate)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (408, None, Transient),
        (409, None, Transient),
        (429, "rate_limit_exceeded", Transient),
        (500, None, Transient),
        (503, None, Transient),
        (429, "insufficient_quota", EndpointError),
        (400, "invalid_value", EndpointError),
        (401, "invalid_api_key", EndpointError),
        (403, None, EndpointError),
        (404, "model_not_found", EndpointError),
        (400, "context_length_exceeded", RowError),
        (400, "content_filter", RowError),
    ],
)
def test_statuses(endpoint, status, code, kind):
    message = f"Incorrect API key provided: {KEY}.\nBearer {KEY}"
    made = endpoint.explain(status, {}, {"code": code}, message)
    assert type(made) is kind
    assert KEY not in str(made) and "pass" not in str(made) and "\n" not in str(made)


TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"


@pytest.mark.parametrize(
    ("status", "body", "message", "kind"),
    [
        (400, {"code": 400, "type": "BadRequestError"}, TOO_LONG, RowError),  # vLLM
        (400, {"code": 400, "type": "BadRequestError"}, "top_p must be in (0, 1]", EndpointError),
        (429, {"code": None, "type": "insufficient_quota"}, "You exceeded it", EndpointError),
        (502, "<html>", "Bad gateway", Transient),
    ],
)
def test_statuses_whose_code_says_nothing(endpoint, status, body, message, kind):
    assert type(endpoint.explain(status, {}, body, message)) is kind


@pytest.mark.parametrize("key", ["k-0123\n456789", "k-m\u00e4rked", "k-01 23"])
def test_a_key_that_no_header_can_carry_is_one_line_without_it(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    gate = Gate(local_renew(Limits()), 1, "w")
    with pytest.raises(EndpointError, match="^SOME_KEY: ") as caught:
        Endpoint("http://127.0.0.1:9/v1", "SOME_KEY", 1.0, gate)
    assert "k-" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_break_at_the_end_of_a_file_of_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    made = Endpoint("http://127.0.0.1:9/v1", "SOME_KEY", 1.0, Gate(local_renew(Limits()), 1, "w"))
    assert made.openai.api_key == KEY


def test_the_line_of_a_wrong_key_names_its_variable(endpoint):
    made = endpoint.explain(401, {}, {"code": "invalid_api_key"}, "Incorrect API key provided")
    assert str(made).endswith("set SOME_KEY (or SOME_KEY_FILE)") and "http://127.0.0.1:9/v1" in str(
        made
    )


def test_retry_after_in_either_form():
    assert retry_after_s({"retry-after": "2", "retry-after-ms": "150"}) == 0.15
    assert retry_after_s({"retry-after": "2"}) == 2.0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after_s({"retry-after": in_a_minute}) == pytest.approx(60, abs=5)
    for text in ("soon", "inf", "nan", "1e999"):
        assert retry_after_s({"retry-after": text}) is None
    assert retry_after_s({}) is None


def chat(message: dict, **more) -> dict:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    return {"model": "m", "usage": usage, "choices": [{"message": message} | more]}


def test_replies():
    reply = read_reply(chat({"content": "True"}, finish_reason="stop"), {})
    assert (reply.text, reply.refusal, reply.prompt_tokens) == ("True", None, 3)
    assert read_reply(chat({"content": None, "refusal": "I cannot"}), {}).refusal == "I cannot"
    filtered = read_reply(chat({"content": None}, finish_reason="content_filter"), {})
    assert filtered.refusal and filtered.text == ""
    assert read_reply(chat({"content": "x"}) | {"usage": None}, {}).prompt_tokens == 0
    assert read_reply(chat({"content": "half \ud83d"}), {}).text == "half ?"


@pytest.mark.parametrize(
    "body", [None, [], {}, {"choices": []}, {"choices": [{}]}, chat({"content": None})]
)
def test_a_body_without_an_answer_may_be_asked_again(body):
    with pytest.raises(Transient):
        read_reply(body, {})


def test_choices_of_a_text_completion_share_its_tokens():
    texts = {1: " second", 0: "", 2: None}
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in texts.items()]
    usage = {"prompt_tokens": 9, "completion_tokens": 30}
    first, second = read_replies({"choices": choices, "usage": usage, "model": "m"}, {})
    assert (first.text, second.text) == ("", " second")  # by index; the third says nothing
    assert (first.prompt_tokens, second.prompt_tokens) == (9, 0)
    # 4 and 4 + 7 characters of 15
    assert (first.completion_tokens, second.completion_tokens) == (8, 22)
    with pytest.raises(Transient):
        read_replies({"choices": [{"text": None}]}, {})


def test_shares_add_up():
    assert shared(10, [1, 1, 1]) == [3, 4, 3]
    assert shared(1, [5, 5]) == [0, 1] or shared(1, [5, 5]) == [1, 0]
    assert shared(0, [3]) == [0]
    assert all(sum(shared(n, [7, 1, 13])) == n for n in range(50))
