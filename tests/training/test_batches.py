from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing

from facttune_ray.config import GroupsConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.protocol import (
    encode_prompt,
    encode_raw,
    encode_response,
    end_ids,
    end_mark,
)
from facttune_ray.training.batches import epoch_order, group_of, steps_of, tokenize

PROMPT = "Write a biography of Mara."
TEXTS = ["Mara plays the cello.", "Mara studied physics. She keeps a goat."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{PROMPT}\n{t}" for t in TEXTS], 1000, 128)


def tokens(tokenizer, **settings):
    return tokenize("8f2c", PROMPT, TEXTS, tokenizer, TrainConfig(**settings))


def test_a_group_is_prompt_newline_responses_end(tokenizer):
    found = tokens(tokenizer, max_length=128)
    end = tokenizer.eos_token_id
    assert tokenizer.decode(found.prompt) == f"{PROMPT}\n"
    assert [tokenizer.decode(ids[:-1]) for ids in found.responses] == TEXTS
    assert [ids[-1] for ids in found.responses] == [end, end]
    assert len(found.prompt) == 7  # Write, a, biography, of, Mara, ".", newline
    assert (found.cut_prompt, found.cut_responses) == (False, 0)


def test_prompt_and_response_tokens_are_the_whole_documents_tokens(tokenizer):
    """Pre-training sees documents whole: the cut at the newline must not change the tokens."""
    whole = tokenizer(f"{PROMPT}\n{TEXTS[0]}")["input_ids"]
    parts = encode_prompt(tokenizer, PROMPT) + encode_response(
        tokenizer, TEXTS[0], end_mark(tokenizer)
    )
    assert parts == [*whole, tokenizer.eos_token_id]


def test_the_chat_template_is_used_unless_switched_off(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"
    assert tokenizer.decode(encode_prompt(chat, "Hi")) == "[Hi]>"
    assert tokenizer.decode(encode_prompt(chat, "Hi", "never")) == "Hi\n"
    assert tokenizer.decode(encode_raw(chat, "Hi")) == "Hi"


def test_a_response_ends_as_the_chat_template_ends_a_turn(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    turn, eos = chat.convert_tokens_to_ids("<end_of_turn>"), chat.eos_token_id
    assert end_mark(chat) == eos  # without a template
    chat.chat_template = "{% for m in messages %}[{{ m['content'] }}<end_of_turn>]{% endfor %}"
    assert (end_mark(chat), end_mark(chat, "never")) == (turn, eos)
    found = tokenize("p", "Who?", ["Ada."], chat, TrainConfig())
    assert found.responses[0][-1] == turn
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[eos, 7]))
    assert end_ids(chat, model) == {turn, eos, 7}
    chat.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"
    assert end_mark(chat) == eos  # nothing special there


def test_a_tokenizer_without_an_end_mark_is_refused(tokenizer):
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        tokens(without)


def test_a_bos_token_goes_before_the_prompt_alone(tokenizer):
    with_bos = copy.deepcopy(tokenizer)
    with_bos.add_special_tokens({"bos_token": "<s>"})
    bos = with_bos.bos_token_id
    assert bos not in encode_prompt(with_bos, "Hi")  # known, but not what this tokenizer adds
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert encode_prompt(with_bos, "Hi")[0] == bos
    assert bos not in encode_response(with_bos, "Hi", end_mark(with_bos))


def test_long_responses_are_truncated_and_counted(tokenizer):
    found = tokens(tokenizer, max_length=13)  # 7 + 5 + end; 7 + 9 + end
    assert [len(ids) for ids in found.responses] == [6, 6] and found.cut_responses == 1
    assert found.responses[1][-1] != tokenizer.eos_token_id
    with pytest.raises(UserError, match="8f2c has 7 tokens, train.max_length is 7"):
        tokens(tokenizer, max_length=7)


@pytest.mark.parametrize(("keep", "kept"), [("end", slice(-4, None)), ("start", slice(0, 4))])
def test_a_long_prompt_keeps_its_end_or_its_start(tokenizer, keep, kept):
    whole = tokens(tokenizer, max_length=128).prompt
    found = tokens(tokenizer, max_length=10, max_prompt_length=4, keep_prompt=keep)
    assert found.prompt == whole[kept] and found.cut_prompt
    assert [len(ids) for ids in found.responses] == [6, 6]


def test_pairs_of_a_row_and_their_weights():
    row = {"prompt_id": "p", "prompt_tokens": [1], "response_tokens": [[2], [3], [4]]}
    row |= {"rewards": [0.25, 1.0, 0.75]}
    found = group_of(row, GroupsConfig())
    assert found.pairs == [(1, 0), (2, 0), (1, 2)] and found.weights == [1.0, 1.0, 1.0]
    assert (found.prompt, found.responses) == ([1], [[2], [3], [4]])
    margins = group_of(row, GroupsConfig(weights="margin", max_pairs=2))
    assert margins.pairs == [(1, 0), (2, 0)] and margins.weights == [0.75, 0.5]


def test_given_pairs_take_precedence_over_rewards():
    row = {"prompt_id": "p", "prompt_tokens": [1], "response_tokens": [[2], [3], [4]]}
    row |= {"rewards": [1.0, 0.0, -1.0], "given_pairs": [[0, 2], [1, 2]]}
    found = group_of(row, GroupsConfig(threshold=5.0, weights="margin"))
    assert (found.pairs, found.weights) == ([(0, 2), (1, 2)], [1.0, 1.0])
    assert found.masks is None


def test_masks_of_a_row():
    row = {"prompt_id": "p", "prompt_tokens": [1], "response_tokens": [[2, 3], [4]]}
    row |= {"rewards": [1.0, 0.0], "win_masks": [[0, 1], [1]], "lose_masks": [[1, 0], [0]]}
    assert group_of(row, GroupsConfig()).masks == [([0, 1], [1, 0]), ([1], [0])]


def test_epoch_order_is_a_fixed_permutation():
    order = epoch_order(20, seed=1, epoch=0)
    assert sorted(order) == list(range(20)) and order == epoch_order(20, seed=1, epoch=0)
    assert order != epoch_order(20, seed=1, epoch=1) != epoch_order(20, seed=2, epoch=1)
    assert epoch_order(5, seed=0, epoch=0) == [1, 4, 2, 3, 0]


def test_steps_cover_an_epoch_once():
    order, pairs = [4, 2, 0, 1, 3], [3, 0, 5, 1, 45]
    assert steps_of(order, pairs, TrainConfig(groups_per_step=2)) == [[4, 2], [0, 1], [3]]
    by_pairs = TrainConfig(groups_per_step=2, pairs_per_step=6)
    assert steps_of(order, pairs, by_pairs) == [[4], [2, 0], [1, 3]]
