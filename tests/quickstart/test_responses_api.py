"""Stored and background responses through the `openai` client."""

import json
import time
import urllib.request

import openai
import pytest

from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running

MESSAGES = facts.render("Mara Veldt", "She plays the cello.")
REPLY = "- Mara Veldt plays the cello."
QUIET = {"max_retries": 0, "timeout": 20, "api_key": "none"}


def create(url, key=None, **params):
    headers = {"Idempotency-Key": key} if key else {}
    body = {"model": "m", "input": MESSAGES, "background": True, "store": True} | params
    with openai.OpenAI(base_url=url, **QUIET) as client:
        return client.responses.create(extra_headers=headers, **body)


def get(url, id):
    with openai.OpenAI(base_url=url, **QUIET) as client:
        return client.responses.retrieve(id)


def ended(url, id):
    """The response when it is over, and the statuses on the way."""
    seen = []
    for _ in range(400):
        response = get(url, id)
        if response.status not in seen:
            seen.append(response.status)
        if response.status not in ("queued", "in_progress"):
            return response, seen
        time.sleep(0.02)
    raise AssertionError(f"not over after 8 s: {seen}")


def stats(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def plain():
    with running(AnnotatorOptions()) as url:
        yield url


def test_a_background_response_is_made_after_its_id_is_sent():
    with running(AnnotatorOptions(latency_min_ms=2000, latency_max_ms=2000)) as url:
        queued = create(url)
        assert (queued.status, queued.output, queued.usage) == ("queued", [], None)
        assert stats(url)["answered"] == 0
        response, seen = ended(url, queued.id)
        assert seen == ["in_progress", "completed"] and response.output_text == REPLY
        used = response.usage
        assert used.total_tokens == used.input_tokens + used.output_tokens > used.output_tokens > 0
        assert stats(url)["answered"] == 1


def test_the_same_text_and_tokens_as_a_chat_completion(plain):
    with openai.OpenAI(base_url=plain, **QUIET) as client:
        chat = client.chat.completions.create(model="m", messages=MESSAGES)
    response, _ = ended(plain, create(plain).id)
    assert response.output_text == chat.choices[0].message.content
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens


def test_a_response_outside_of_the_background_is_complete_at_once(plain):
    now = create(plain, background=False)
    assert (now.status, now.output_text) == ("completed", REPLY)
    assert get(plain, now.id).output_text == REPLY
    gone = create(plain, background=False, store=False)
    with pytest.raises(openai.NotFoundError, match=gone.id):
        get(plain, gone.id)


def test_a_plain_text_input_is_a_user_message(plain):
    assert create(plain, input="Hello there.", background=False).status == "completed"


def test_a_cut_answer_is_incomplete(plain):
    response, _ = ended(plain, create(plain, max_output_tokens=3).id)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert REPLY.startswith(response.output_text) and response.output_text != REPLY


def test_log_probabilities_are_included_when_asked_for(plain):
    include = ["message.output_text.logprobs"]
    response, _ = ended(plain, create(plain, include=include, top_logprobs=2).id)
    assert response.output[0].content[0].logprobs[0].top_logprobs
    assert not create(plain, background=False).output[0].content[0].logprobs


def test_a_new_server_with_the_journal_has_the_finished_responses(tmp_path):
    options = AnnotatorOptions(journal=str(tmp_path / "journal.jsonl"))
    with running(options) as url:
        id = create(url).id
        first, _ = ended(url, id)
    with running(options) as url:
        assert get(url, id) == first and stats(url)["journal"] == 1


def test_an_unfinished_response_is_lost_with_its_server(tmp_path):
    journal = str(tmp_path / "journal.jsonl")
    slow = AnnotatorOptions(journal=journal, latency_min_ms=5000, latency_max_ms=5000)
    with running(slow) as url:
        id = create(url).id
        assert get(url, id).status == "in_progress"
    with running(AnnotatorOptions(journal=journal)) as url:
        with pytest.raises(openai.NotFoundError):
            get(url, id)
        assert stats(url)["journal"] == 0


def test_a_repeated_key_gets_the_same_response():
    with running(AnnotatorOptions(latency_min_ms=300, latency_max_ms=300)) as url:
        id = create(url, key="k").id
        assert create(url, key="k").id == id
        ended(url, id)
        again = create(url, key="k")
        assert (again.id, again.output_text) == (id, REPLY)
        assert (stats(url)["answered"], stats(url)["replayed"]) == (1, 2)
        with pytest.raises(openai.BadRequestError, match="another request"):
            create(url, key="k", temperature=0.5)


@pytest.mark.parametrize("background", [True, False])
def test_a_server_that_ignores_keys_makes_each_answer_anew(background):
    with running(AnnotatorOptions(idempotent=False)) as url:
        ids = [create(url, key="k", background=background).id for _ in range(2)]
        for id in ids:
            ended(url, id)
        assert len(set(ids)) == 2
        with openai.OpenAI(base_url=url, **QUIET) as client:
            for _ in range(2):
                ask = client.chat.completions.create
                ask(model="m", messages=MESSAGES, extra_headers={"Idempotency-Key": "k"})
        seen = stats(url)
        assert (seen["answered"], seen["repeated"], seen["replayed"]) == (4, 2, 0)


def test_a_failed_response_is_not_paid_and_made_again_for_its_key():
    with running(AnnotatorOptions(failed_share=1.0)) as url:
        response, _ = ended(url, create(url, key="k").id)
        assert (response.status, response.error.code) == ("failed", "server_error")
        assert create(url, key="k").status == "queued"
        assert stats(url)["answered"] == 0


def test_a_response_is_paid_even_if_its_id_was_lost():
    with running(AnnotatorOptions(reset_share=1.0)) as url:
        with pytest.raises(openai.APIConnectionError):
            create(url)
        for _ in range(100):
            if stats(url)["answered"]:
                break
            time.sleep(0.02)
        assert stats(url)["answered"] == 1


def test_only_requests_that_make_a_response_count_for_the_limits():
    with running(AnnotatorOptions(requests_per_minute=2)) as url:
        ids = [create(url).id for _ in range(2)]
        for _ in range(20):
            get(url, ids[0])
        with pytest.raises(openai.RateLimitError):
            create(url)
        assert stats(url)["received"] == 3


def test_slots_limit_the_responses_made_at_once():
    slow = AnnotatorOptions(slots=1, latency_min_ms=10_000, latency_max_ms=10_000)
    with running(slow) as url:
        ids = [create(url).id for _ in range(3)]  # which wait for no slot
        assert [get(url, id).status for id in ids] == ["in_progress", "queued", "queued"]


@pytest.mark.parametrize("method", ["create", "get"])
def test_a_key_of_another_account_is_refused(method):
    with running(AnnotatorOptions(api_key="right")) as url:
        with pytest.raises(openai.AuthenticationError):
            create(url) if method == "create" else get(url, "resp_1")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"extra_body": {"max_tokens": 5}}, "has moved to 'max_output_tokens'"),
        ({"extra_body": {"n": 2}}, "Unknown parameter: 'n'"),
        ({"extra_body": {"stop": ["."]}}, "Unknown parameter: 'stop'"),
        ({"input": []}, "Invalid value for 'input'"),
        ({"input": [{"content": "no role"}]}, r"'input\[0\]' must be an object with a role"),
        ({"max_output_tokens": 0.5}, "'max_output_tokens' must be an integer"),
        ({"store": False}, "send store=true"),
        ({"temperature": 3}, "'temperature' must be a number"),
    ],
)
def test_a_wrong_request_is_refused(plain, params, says):
    with pytest.raises(openai.BadRequestError, match=says):
        create(plain, **params)
