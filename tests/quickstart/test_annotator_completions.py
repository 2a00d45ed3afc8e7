"""Text completions and sampled texts through the `openai` client."""

import json
import urllib.error
import urllib.request

import openai
import pytest

from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.sources.world import VALUES


def http(url, body=None):
    """(status, parsed body) of a plain request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def stats(url):
    return http(url.removesuffix("/v1") + "/stats")[1]


@pytest.fixture(scope="module")
def plain():
    with running(AnnotatorOptions()) as url:
        yield url


def complete(url, prompt, key=None, **params):
    """One text completion through the official client."""
    headers = {"Idempotency-Key": key} if key else {}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        create = client.completions.with_raw_response.create
        return create(model="m", prompt=prompt, extra_headers=headers, **params)


BORN = (
    "Question: Where was Ada Lovelace born?\nAnswer: London\n"
    "Question: Where was Mara born?\nAnswer:"
)


def test_a_text_completion(plain):
    raw = complete(plain, BORN, n=8, seed=7, stop="\n", max_tokens=15)
    reply = raw.parse()
    assert reply.object == "text_completion" and [c.index for c in reply.choices] == [*range(8)]
    texts = [c.text for c in reply.choices]
    assert {t.strip() for t in texts} <= set(VALUES["born"]) and len(set(texts)) > 1
    assert all(t.startswith(" ") for t in texts)
    assert {c.finish_reason for c in reply.choices} == {"stop"}
    # eight answers of one word, 4 tokens for 3 words; 14 words of prompt
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (19, 16)
    assert "x-ratelimit-remaining-tokens" in raw.headers

    def again(**params):
        settings = {"n": 8, "seed": 7, "stop": "\n", "max_tokens": 15} | params
        return [c.text for c in complete(plain, BORN, **settings).parse().choices]

    assert again() == texts and again(n=3) == texts[:3]
    assert again(seed=8) != texts
    assert len(set(again(temperature=0))) == 1 and again(temperature=0) == again(
        temperature=0, seed=8
    )
    assert stats(plain)["by_task"]["completions"] >= 5


def test_a_completion_without_a_stop_is_cut_at_max_tokens(plain):
    (choice,) = complete(plain, BORN).parse().choices
    assert "\nQuestion: " in choice.text and choice.finish_reason == "stop"
    (cut,) = complete(plain, BORN, max_tokens=4).parse().choices
    assert (cut.text, cut.finish_reason) == (choice.text[: len(cut.text)], "length")
    assert len(cut.text.split()) == 3


def test_a_biography_is_sampled_from_its_start_or_continued(plain):
    asked = "Write a biography of Mara Veldt."
    (whole,) = complete(plain, asked + "\n", seed=1).parse().choices
    assert whole.text.startswith("Mara Veldt ") and whole.text.count(".") == 3
    begun = asked + "\nMara Veldt keeps a goat. Mara Veldt plays the"
    (rest,) = complete(plain, begun, seed=1, stop=".").parse().choices
    assert rest.text.strip() in VALUES["plays"] and rest.text.startswith(" ")


def test_a_chat_message_can_ask_for_a_sample(plain):
    def said(**params):
        chat = [{"role": "user", "content": "Write a biography of Mara Veldt."}]
        with openai.OpenAI(base_url=plain, api_key="none", max_retries=0, timeout=20) as client:
            reply = client.chat.completions.create(model="m", messages=chat, **params)
        return [c.message.content for c in reply.choices]

    firsts = {said(seed=s)[0] for s in range(6)}
    assert len(firsts) > 1 and all(s.startswith("Mara Veldt ") for s in firsts)
    two = said(seed=1, n=2)
    assert two[0] != two[1] and said(seed=1) == two[:1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "m"}', "prompt"),
        (b'{"model": "m", "prompt": ["a", "b"]}', "prompt"),
        (b'{"model": "m", "prompt": "a", "n": 1000}', "n"),
        (b'{"model": "m", "prompt": "a", "temperature": 3}', "temperature"),
        (b'{"model": "m", "prompt": "a", "seed": "x"}', "seed"),
        (b'{"model": "m", "prompt": "a", "stop": 3}', "stop"),
    ],
)
def test_bad_text_completions(plain, body, param):
    status, reply = http(plain + "/completions", body)
    assert status == 400 and reply["error"]["param"] == param


def test_text_completions_have_the_limits_keys_and_faults_of_chat(tmp_path):
    journal = str(tmp_path / "j.jsonl")
    with running(AnnotatorOptions(requests_per_minute=3, journal=journal)) as url:
        first = complete(url, BORN, key="k", n=2)
        again = complete(url, BORN, key="k", n=2)
        assert again.headers["idempotent-replayed"] == "true" and again.content == first.content
        with pytest.raises(openai.BadRequestError):
            complete(url, BORN, key="k", n=3)
        with pytest.raises(openai.RateLimitError):
            complete(url, BORN)
        assert stats(url)["answered"] == 1
    with running(AnnotatorOptions(error_share=1.0)) as url:
        with pytest.raises(openai.InternalServerError):
            complete(url, BORN)
