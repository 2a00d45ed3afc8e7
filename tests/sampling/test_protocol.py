from __future__ import annotations

import pytest

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.protocol import check_settings, encode_all, encode_begun, encode_prompt

TEXTS = ["[user] Who is Mara? [model] Mara was born in Ostrava."]
TEMPLATE = "{% for m in messages %}[user] {{ m['content'] }}{% endfor %} [model]"


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300, 64)


def test_a_beginning_follows_the_prompt_without_the_space_at_its_end(tokenizer):
    lead = tokenizer("Mara was born in")["input_ids"]
    plain = encode_prompt(tokenizer, "Who?")
    assert encode_begun(tokenizer, "Who?", "Mara was born in ") == [*plain, *lead]
    assert encode_begun(tokenizer, "Who?", " ") == plain
    tokenizer.chat_template = TEMPLATE
    chat = encode_begun(tokenizer, "Who?", "Mara was born in")
    assert tokenizer.decode(chat) == "[user] Who? [model]Mara was born in"
    assert encode_begun(tokenizer, "Who?", "Mara was born in", "never") == [*plain, *lead]
    raw = encode_all(tokenizer, ["Who? "], raw=True, begun=["Mara was born in "])
    assert tokenizer.decode(raw[0]) == "Who? Mara was born in"


def test_settings_give_each_prompt_a_limit():
    assert check_settings(3, 1, 3, 7, 1.0, 1.0) == [7, 7, 7]
    assert check_settings(2, 1, 2, [7, 8], 1.0, 1.0) == [7, 8]
    with pytest.raises(UserError, match="max_tokens is 0"):
        check_settings(2, 1, 2, [7, 0], 1.0, 1.0)
    with pytest.raises(UserError, match="max_tokens is 0"):
        check_settings(0, 1, 0, 0, 1.0, 1.0)
