from __future__ import annotations

import pytest

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.protocol import (
    SampleRequest,
    encode_prompt,
    encode_request,
    encode_started,
    end_mark,
)

TEXTS = ["[user] Who is Mara? [model] Mara was born in Ostrava."]
TEMPLATE = "{% for m in messages %}[user] {{ m['content'] }}{% endfor %} [model]"


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


def test_a_beginning_follows_the_prompt_without_the_space_at_its_end(tokenizer):
    lead = tokenizer("Mara was born in")["input_ids"]
    plain = encode_prompt(tokenizer, "Who?")
    assert encode_started(tokenizer, "Who?", "Mara was born in ") == [*plain, *lead]
    assert encode_started(tokenizer, "Who?", " ") == plain
    tokenizer.chat_template = TEMPLATE
    chat = encode_started(tokenizer, "Who?", "Mara was born in")
    assert tokenizer.decode(chat) == "[user] Who? [model]Mara was born in"
    assert encode_started(tokenizer, "Who?", "Mara was born in", "never") == [*plain, *lead]
    exact = request(["Who? "], 3, raw=True, beginnings=["Mara was born in "])
    _, (raw,) = encode_request(tokenizer, exact)
    assert tokenizer.decode(raw) == "Who? Mara was born in"


def request(prompts, max_tokens, **settings):
    seeds = [1] * len(prompts)
    return SampleRequest(
        prompts, n=1, seeds=seeds, max_tokens=max_tokens, temperature=1.0, top_p=1.0, **settings
    )


def test_a_request_gives_each_prompt_a_limit():
    assert request(["a", "b", "c"], 7).limits == [7, 7, 7]
    assert request(["a", "b"], [7, 8]).limits == [7, 8]
    with pytest.raises(UserError, match="max_tokens is 0"):
        request(["a", "b"], [7, 0])
    with pytest.raises(UserError, match="max_tokens is 0"):
        request([], 0)


def test_the_end_mark_is_the_token_that_ended_the_samples(tokenizer):
    eos = tokenizer.eos_token_id
    (line_end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert end_mark(tokenizer) == end_mark(tokenizer, stops=["Mara was born"]) == eos
    assert end_mark(tokenizer, stops=["Mara was born", "\n"]) == line_end != eos
    tokenizer.chat_template = TEMPLATE  # a chat model ends its own turn
    assert end_mark(tokenizer, stops=["\n"]) == eos
    assert end_mark(tokenizer, "never", ["\n"]) == line_end
