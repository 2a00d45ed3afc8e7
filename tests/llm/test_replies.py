"""The meaning of replies: kinds, tokens, thoughts, and our settings in refusals."""

from __future__ import annotations

import json

import pytest

from facttune_ray.llm.replies import HTTPReply, divided, read, split_thoughts

ASKED = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 512}
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def meaning(status: int, body: object, asked: dict | None = None, section: str = "llm"):
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return read(HTTPReply(status, {}, content), asked or ASKED, section, "SOME_KEY")


def chat(message: dict | None, finish: str | None = "stop", usage: dict | None = USAGE) -> dict:
    choice = {"message": message, "finish_reason": finish}
    return {"model": "m", "usage": usage, "choices": [choice]}


def reply(*args, **more):
    found = meaning(200, chat(*args, **more))
    assert found.kind == "answer"
    (only,) = found.replies
    return only


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (408, None, "retry"),
        (409, None, "retry"),
        (429, "rate_limit_exceeded", "limit"),
        (500, None, "retry"),
        (503, None, "retry"),
        (599, None, "retry"),
        (429, "insufficient_quota", "stop"),
        (401, "invalid_api_key", "stop"),
        (402, None, "stop"),
        (400, "context_length_exceeded", "row error"),
        (400, "content_filter", "row error"),
        (400, "invalid_value", "refused"),
        (400, 400, "refused"),
        (403, None, "refused"),
        (404, "model_not_found", "refused"),
        (413, None, "refused"),
        (422, None, "refused"),
        (418, None, "refused"),
    ],
)
def test_statuses(status, code, kind):
    assert meaning(status, {"error": {"message": "no", "code": code}}).kind == kind


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": {"message": "too long by 17"}}, "too long by 17"),
        ({"object": "error", "message": "too long by 17", "code": 400}, "too long by 17"),
        ({"error": "too long by 17"}, "too long by 17"),
        ({"detail": "too long by 17"}, "too long by 17"),
        ({"detail": [{"loc": ["body", "stop"], "msg": "too long by 17"}]}, "body.stop: too long"),
        ({"message": "no", "error": {"message": "no", "metadata": {"raw": "by 17"}}}, "no: by 17"),
        ({"error_message": "too long by 17"}, "too long by 17"),
        ({"errors": [{"message": "too long by 17"}]}, "too long by 17"),
        ("<html><h1>too long by 17</h1></html>", "too long by 17"),
        ("too long by 17", "too long by 17"),
        ([], "HTTP 400"),
        ("", "HTTP 400"),
    ],
)
def test_the_text_of_an_error_is_shown_wherever_it_stands(body, shown):
    assert shown in meaning(400, body).message


@pytest.mark.parametrize(
    ("error", "also", "hint"),
    [
        (
            {"message": "no", "param": "max_tokens"},
            {},
            "change llm.max_tokens, or set llm.max_c",
        ),
        ({"message": "unsupported: 'temperature'"}, {"temperature": 0.0}, "llm.temperature=null"),
        ({"message": "no top_k here"}, {"top_k": 4}, "llm.params.top_k=null"),
        ({"message": "logprobs are not available"}, {"logprobs": True}, "verdicts.logprobs=false"),
        ({"message": "n must be 1"}, {"n": 4}, "sampling.choices=1"),
        ({"message": "nothing that we know"}, {"n": 4}, "check llm.model"),
    ],
)
def test_a_refusal_names_our_setting(error, also, hint):
    assert hint in meaning(400, {"error": error}, ASKED | also).hint


def test_a_refusal_of_the_system_role_names_the_setting_where_one_was_sent():
    error = {"message": "System role not supported"}
    asked = ASKED | {"messages": [{"role": "system", "content": "x"}]}
    assert "sampling.llm.system=user" in meaning(400, error, asked, "sampling.llm").hint
    assert "system" not in meaning(400, {"error": {"message": "the system is full"}}).hint


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "Request too large for m on TPM: Limit 10000, Requested 12000.",
            "row error",
        ),
        ("request of 31,538 tokens, the limit a minute is 30,000", "row error"),
        ("Rate limit reached on TPM: Limit 10000, Used 9000, Requested 1500. Try in 3s", "limit"),
        ("Limit 3 / min. Please try again in 20s.", "limit"),
    ],
)
def test_a_429_of_a_request_larger_than_the_limit_is_a_row_error(message, kind):
    assert meaning(429, {"error": {"message": message}}).kind == kind


# -- answers -------------------------------------------------------------------------------------


def test_texts_parts_and_refusals():
    assert (reply({"content": "True"}).text, reply({"content": "True"}).refusal) == ("True", None)
    assert reply({"content": None, "refusal": "I cannot"}).refusal == "I cannot"
    assert reply({"content": "half \ud83d"}).text == "half ?"
    assert reply({"content": ""}).text == "" and reply({"content": None}).text == ""
    parts = [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "Tr"}, "ue"]
    assert (reply({"content": parts}).text, reply({"content": parts}).thoughts) == ("True", "no")
    nested = [{"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}]
    assert reply({"content": nested}, "length").thoughts == "no"
    assert reply({"content": "a", "reasoning_content": "b"}).thoughts == "b"


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "recitation", "whatever"])
def test_every_unknown_finish_reason_counts_as_a_filter(finish):
    assert (
        reply({"content": "half a"}, finish).refusal
        == f"stopped by the provider's filter ({finish})"
    )
    assert reply(None, finish).text == ""


@pytest.mark.parametrize("finish", ["stop", "STOP", "eos", "length", "max_tokens", None])
def test_known_finish_reasons_do_not_count_as_a_filter(finish):
    assert reply({"content": "a"}, finish).refusal is None


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"choices": []}, {"choices": [{}]}, chat({"content": None}, None), "{half", "x"],
)
def test_a_body_without_an_answer_is_a_retry_that_may_have_been_billed(body):
    found = meaning(200, body)
    assert (found.kind, found.unknown) == ("retry", True)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "used up 1", "code": 402}}, "stop"),
        ({"error": {"message": "used up 1", "code": "insufficient_quota"}}, "stop"),
        ({"error": {"message": "used up 1", "code": "503"}}, "retry"),
        ({"error": {"message": "used up 1", "type": "rate_limit_error"}}, "limit"),
        ({"error": {"message": "used up 1"}}, "retry"),
        ({"error": "used up 1", "choices": []}, "retry"),
        ({"object": "error", "message": "used up 1", "code": 400}, "refused"),
        (
            {
                "choices": [
                    {"finish_reason": "error", "error": {"code": 502, "message": "used up 1"}}
                ]
            },
            "retry",
        ),
    ],
)
def test_an_error_inside_http_200_is_read_as_its_code_says(body, kind):
    found = meaning(200, body)
    assert (found.kind, found.unknown) == (kind, False) and "used up 1" in found.message


@pytest.mark.parametrize("status", [408, 502, 504, 524])
def test_a_gateway_timeout_may_have_been_billed(status):
    assert meaning(status, "").unknown and not meaning(500, "").unknown


@pytest.mark.parametrize(
    ("usage", "tokens", "counted"),
    [
        (USAGE, (3, 1), "usage"),
        ({"input_tokens": 3, "output_tokens": 1}, (3, 1), "usage"),
        (USAGE | {"total_tokens": 50}, (3, 47), "total"),
        ({"total_tokens": 50}, (0, 50), "total"),
        ({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 1}, (3, 1), "usage"),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 1,
                "completion_tokens_details": {"reasoning_tokens": 9},
            },
            (3, 10),
            "usage",
        ),
        (None, (0, 0), "estimate"),
        ({}, (0, 0), "estimate"),
        ({"prompt_tokens": 0, "completion_tokens": None}, (0, 0), "estimate"),
        ({"prompt_tokens": -5, "completion_tokens": "7"}, (0, 0), "estimate"),
        ({"prompt_tokens": float("nan"), "completion_tokens": 1e300}, (0, 2**40), "usage"),
        ([7], (0, 0), "estimate"),
    ],
)
def test_tokens_as_they_are_billed(usage, tokens, counted):
    found = reply({"content": "x"}, usage=usage)
    assert (found.prompt_tokens, found.completion_tokens, found.counted) == (*tokens, counted)


def test_choices_of_a_text_completion_share_its_tokens():
    texts = {1: " second", 0: "", 2: None}
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in texts.items()]
    usage = {"prompt_tokens": 9, "completion_tokens": 30}
    found = meaning(200, {"choices": choices, "usage": usage, "model": "m"}).replies
    assert [r.text for r in found] == ["", " second", ""]  # by index
    assert [r.prompt_tokens for r in found] == [9, 0, 0]
    # 4, 4 + 7 and 4 characters of 19
    assert [r.completion_tokens for r in found] == [6, 18, 6]


def test_parts_add_up():
    assert divided(10, [1, 1, 1]) == [3, 4, 3]
    assert divided(1, [5, 5]) in ([0, 1], [1, 0])
    assert divided(0, [3]) == [0]
    assert all(sum(divided(n, [7, 1, 13])) == n for n in range(50))


@pytest.mark.parametrize(
    ("said", "text", "thoughts"),
    [
        ("<think>Is it False?\nNo.</think>\nTrue", "\nTrue", "Is it False?\nNo."),
        ("It may be.</think>True", "True", "It may be."),  # the template opens the thoughts
        ("<think>It is True, or", "", "It is True, or"),
        ("a</think>b</think>True", "True", "a</think>b"),
        ("True", "True", ""),
    ],
)
def test_thoughts_are_not_part_of_a_text(said, text, thoughts):
    assert split_thoughts(said) == (text, thoughts)
