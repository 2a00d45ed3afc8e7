from __future__ import annotations

import copy
import math

import pytest
from tokenizers.processors import TemplateProcessing

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.protocol import encode_prompt, encode_raw, encode_response
from facttune_ray.training.batches import (
    batch_indices,
    collate,
    epoch_order,
    pairs_from_rewards,
    tokenize_group,
)

PROMPT = "Write a biography of Mara."
TEXTS = ["Mara plays the cello.", "Mara studied physics. She keeps a goat."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{PROMPT}\n{t}" for t in TEXTS], 1000, 128)


def row(**changes):
    return {
        "prompt_id": "8f2c", "prompt": PROMPT, "responses": TEXTS, "rewards": [0.5, 1.0],
    } | changes  # fmt: skip


def test_pairs_drop_ties_and_unknown_rewards():
    assert pairs_from_rewards([0.5, 1.0, None, 0.5]) == [(1, 0), (1, 3)]
    assert pairs_from_rewards([math.nan, 1.0]) == []
    assert pairs_from_rewards([0.0, 0.25, 0.75], threshold=0.25) == [(2, 0), (2, 1)]
    assert len(pairs_from_rewards([i / 10 for i in range(10)])) == 45


def test_a_group_is_prompt_newline_response_end(tokenizer):
    group = tokenize_group(row(), tokenizer, max_length=128)
    end = tokenizer.eos_token_id
    assert [tokenizer.decode(ids[:-1]) for ids in group.tokens] == [f"{PROMPT}\n{t}" for t in TEXTS]
    assert [ids[-1] for ids in group.tokens] == [end, end]
    # Write, a, biography, of, Mara, ".", newline
    assert group.prompt_tokens == [7, 7]
    assert group.pairs == [(1, 0)] and group.cut == 0


def test_prompt_and_response_tokens_are_the_whole_documents_tokens(tokenizer):
    """Pre-training sees documents whole: the cut at the newline must not change the tokens."""
    whole = tokenizer(f"{PROMPT}\n{TEXTS[0]}")["input_ids"]
    parts = encode_prompt(tokenizer, PROMPT) + encode_response(tokenizer, TEXTS[0])
    assert parts == [*whole, tokenizer.eos_token_id]


def test_chat_template_is_used_unless_told_not_to(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"
    assert tokenizer.decode(encode_prompt(chat, "Hi")) == "[Hi]>"
    assert tokenizer.decode(encode_prompt(chat, "Hi", "never")) == "Hi\n"
    assert tokenizer.decode(encode_raw(chat, "Hi")) == "Hi"
    with pytest.raises(UserError, match="auto"):
        encode_prompt(chat, "Hi", "always")


def test_a_bos_token_goes_before_the_prompt_alone(tokenizer):
    with_bos = copy.deepcopy(tokenizer)
    with_bos.add_special_tokens({"bos_token": "<s>"})
    bos = with_bos.bos_token_id
    assert bos not in encode_prompt(with_bos, "Hi")  # known, but not what this tokenizer adds
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert encode_prompt(with_bos, "Hi")[0] == bos
    assert bos not in encode_response(with_bos, "Hi")


def test_long_responses_are_cut_and_counted(tokenizer):
    group = tokenize_group(row(), tokenizer, max_length=13)  # 7 + 5 + end; 7 + 9 + end
    assert [len(ids) for ids in group.tokens] == [13, 13] and group.cut == 1
    assert group.tokens[1][-1] != tokenizer.eos_token_id
    with pytest.raises(UserError, match="8f2c has 7 tokens, max_length is 7"):
        tokenize_group(row(), tokenizer, max_length=7)


def test_collate_pads_masks_and_shifts_pairs(tokenizer):
    first = tokenize_group(row(), tokenizer, max_length=128)
    second = tokenize_group(
        row(responses=[*TEXTS, "Mara."], rewards=[None, 0.0, 1.0]), tokenizer, max_length=128
    )
    batch = collate([first, second], pad_id=0)
    longest = len(first.tokens[1])
    assert batch.tokens_BT.shape == batch.mask_BT.shape == (5, longest)
    assert batch.pairs_P2.tolist() == [[1, 0], [4, 3]] and batch.sizes_G == [2, 3]
    # Words and full stops: 5, 9 and 2, and an end mark each; prompts are masked out.
    assert batch.mask_BT.sum(dim=1).tolist() == [6, 10, 6, 10, 3]
    assert batch.mask_BT[:, :7].sum() == 0
    assert batch.attention_BT.sum(dim=1).tolist() == [13, 17, 13, 17, 10]
    assert batch.tokens_BT[4, 10:].tolist() == [0] * (longest - 10)


def test_collate_without_pairs_has_an_empty_table(tokenizer):
    group = tokenize_group(row(rewards=[0.5, 0.5]), tokenizer, max_length=128)
    assert collate([group], pad_id=0).pairs_P2.shape == (0, 2)


def test_epoch_order_is_a_fixed_permutation():
    order = epoch_order(20, seed=1, epoch=0)
    assert sorted(order) == list(range(20)) and order == epoch_order(20, seed=1, epoch=0)
    assert order != epoch_order(20, seed=1, epoch=1) != epoch_order(20, seed=2, epoch=1)
    assert epoch_order(5, seed=0, epoch=0) == [1, 4, 2, 3, 0]


def test_batches_cover_an_epoch_once():
    assert list(batch_indices([4, 2, 0, 1, 3], 2)) == [[4, 2], [0, 1], [3]]
