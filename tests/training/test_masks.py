"""Masks by hand, and character offsets of tokens for several kinds of tokenizers."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.training.masks import masks, offsets, sentences

TEXT = "Mara Veldt was born in Ostrava. She plays the cello."
WORDS = ["Mara Veldt was born in Ostrava. She plays the cello. He plays."]


def fact(i: int, start: int | None, end: int | None, response: str = "r") -> dict:
    return {"fact_id": f"f{i}", "response_id": response, "start": start, "end": end}


def verdict(i: int, supported: bool | None, response: str = "r") -> dict:
    return {"fact_id": f"f{i}", "response_id": response, "supported": supported}


# ---------------------------------------------------------------- sentences


def test_a_sentence_is_right_when_all_its_judged_facts_are():
    facts = [fact(i, *span) for i, span in enumerate([(0, 9)] * 3 + [(10, 19)] * 2 + [(20, 29)])]
    verdicts = [verdict(0, True), verdict(1, None), verdict(2, True)]
    verdicts += [verdict(3, True), verdict(4, False), verdict(5, None)]
    assert sentences(facts, verdicts) == [(0, 9, True), (10, 19, False), (20, 29, None)]


def test_a_fact_without_a_verdict_is_not_judged():
    assert sentences([fact(0, 0, 9)], []) == [(0, 9, None)]
    assert sentences([fact(0, 0, 9), fact(1, 0, 9)], [verdict(1, False)]) == [(0, 9, False)]


def test_sentences_come_in_the_texts_order_whatever_the_rows():
    facts = [fact(1, 10, 19), fact(0, 0, 9)]
    assert sentences(facts, [verdict(0, True)]) == [(0, 9, True), (10, 19, None)]


def test_a_sentence_without_a_place_is_left_out():
    # an abstention has no span; a sentence that a labelled file words otherwise has an empty one
    facts = [fact(0, None, None), fact(1, 0, 0), fact(2, 14, 14)]
    assert sentences(facts, [verdict(1, False), verdict(2, True)]) == []
    assert sentences([], []) == []


def test_rows_of_two_responses_are_a_bug():
    with pytest.raises(ValueError, match="several responses"):
        sentences([fact(0, 0, 9), fact(1, 0, 9, "other")], [])
    with pytest.raises(ValueError, match="several responses"):
        sentences([fact(0, 0, 9)], [verdict(0, True, "other")])


# ---------------------------------------------------------------- masks


def test_masks_by_hand():
    spans = [(0, 4), (4, 9), (9, 14), (14, 20), (20, 26), (26, 26)]
    judged = [(0, 9, False), (10, 14, True), (15, 20, None)]  # nothing about 20..26
    win, lose = masks(judged, spans)
    assert win == [0, 0, 1, 1, 1, 1]
    assert lose == [1, 1, 0, 1, 1, 1]


def test_a_response_without_verdicts_counts_whole():
    assert masks([], [(0, 3), (3, 3)]) == ([1, 1], [1, 1])
    assert masks([(0, 3, None)], [(0, 3), (3, 3)]) == ([1, 1], [1, 1])
    assert masks([(0, 3, True)], []) == ([], [])


def test_a_token_of_two_sentences_is_of_both():
    assert masks([(0, 5, True), (5, 9, False)], [(0, 3), (3, 7), (7, 9)]) == ([1, 0, 0], [0, 0, 1])


def test_a_token_that_only_touches_a_sentence_is_not_of_it():
    win, _ = masks([(5, 9, False)], [(0, 5), (4, 6), (8, 10), (9, 12)])
    assert win == [1, 0, 0, 1]


def test_an_empty_span_is_of_the_sentence_around_it_alone():
    spans = [(0, 0), (5, 5), (7, 7), (9, 9)]
    assert masks([(5, 9, False)], spans) == ([1, 1, 0, 1], [1, 1, 1, 1])


# ---------------------------------------------------------------- tokenizers


class Slow(PreTrainedTokenizer):
    """A token a character, or one for each of its bytes if it is not ASCII."""

    letters = bytes_to_unicode()
    values = {letter: byte for byte, letter in letters.items()}
    extra: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.ids = {x: i for i, x in enumerate([*self.letters.values(), "</s>", *self.extra])}
        super().__init__(eos_token="</s>", unk_token="</s>")

    vocab_size = property(lambda self: len(self.ids))

    def get_vocab(self):
        return self.ids

    def _tokenize(self, text, **_):
        return [self.letters[b] for b in text.encode()]

    def _convert_token_to_id(self, token):
        return self.ids[token]

    def _convert_id_to_token(self, index):
        return list(self.ids)[index]

    def convert_tokens_to_string(self, tokens):
        return bytes(self.values[c] for c in "".join(tokens)).decode(errors="replace")


class Crossing(Slow):
    """Has a token for the last byte of an e acute, a space and the first byte of another."""

    crossing = "".join(Slow.letters[b] for b in (0xA9, 0x20, 0xC3))
    extra = (crossing,)

    def _tokenize(self, text, **_):
        whole = "".join(super()._tokenize(text))
        found = []
        for i, part in enumerate(whole.split(self.crossing)):
            found += [self.crossing] * (i > 0) + list(part)
        return found


class Lower(Slow):
    def _tokenize(self, text, **_):
        return super()._tokenize(text.lower())


class Shrinking(Slow):
    """Two tokens decode to a shorter text than one token; both texts start the response."""

    def convert_tokens_to_string(self, tokens):
        return "" if len(tokens) == 2 else super().convert_tokens_to_string(tokens)


class Dropping(Slow):
    def _tokenize(self, text, **_):
        return super()._tokenize(text.rstrip())


def metaspace() -> PreTrainedTokenizerFast:
    """As in Llama 2, a space belongs to the word behind it."""
    pieces = ["</s>", *"▁abcdefghijklmnopqrstuvwxyzMVOS.", "▁Mara", "▁Veldt", "▁She", "▁plays"]
    made = Tokenizer(models.Unigram([(p, -9.0 if len(p) < 2 else -1.0) for p in pieces], 0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def words() -> PreTrainedTokenizerFast:
    return train_tokenizer(WORDS, 400, 64)


@pytest.mark.parametrize("make", [words, metaspace, Slow, Crossing])
def test_every_token_has_an_offset_and_every_letter_a_token(make):
    tokenizer = make()
    found = offsets(tokenizer, TEXT)
    assert len(found) == len(tokenizer(TEXT)["input_ids"]) + 1
    assert found[-1] == (len(TEXT), len(TEXT))
    assert found[:-1] == sorted(found[:-1])
    covered = {i for a, b in found for i in range(a, b)}
    assert all(i in covered for i, c in enumerate(TEXT) if c != " ")


def test_words_by_hand():
    found = offsets(words(), TEXT)
    # each with its leading space: Mara| Veldt| was| born| in| Ostrava|.| She| plays| the| cello|.
    ends = [4, 10, 14, 19, 22, 30, 31, 35, 41, 45, 51, 52]
    assert found == [*zip([0, *ends], ends, strict=False), (52, 52)]
    win, lose = masks([(0, 31, False), (32, 52, True)], found)
    assert win == [0] * 7 + [1] * 5 + [1]
    assert lose == [1] * 7 + [0] * 5 + [1]


def test_bytes_of_a_character_have_its_place():
    text = "é a 😀."
    places = [(0, 1), (0, 1), (1, 2), (2, 3), (3, 4), *[(4, 5)] * 4, (5, 6), (6, 6)]
    assert offsets(Slow(), text) == places
    assert offsets(train_tokenizer([], 257, 64), text) == places


def test_a_token_that_ends_one_character_and_starts_the_next_has_both():
    # bytes C3 | A9 20 C3 | A9
    assert offsets(Crossing(), "é é") == [(0, 1), (0, 3), (2, 3), (3, 3)]


def test_a_replacement_character_in_the_text_is_no_part_of_another():
    places = [(0, 1), *[(1, 2)] * 3, (2, 3), (2, 3), (3, 4), (4, 4)]
    assert (
        offsets(Slow(), "a\ufffdé.") == offsets(train_tokenizer([], 257, 64), "a\ufffdé.") == places
    )
    assert offsets(Slow(), "a\ufffd") == [(0, 1), *[(1, 2)] * 3, (2, 2)]


def test_slow_and_fast_agree():
    fast, text = train_tokenizer([], 257, 64), "Zoë née 😀 plays. She too."
    slow = offsets(Slow(), text)
    assert offsets(fast, text) == slow and len(slow) == len(text.encode()) + 1


def test_an_empty_response_is_its_end_mark():
    assert offsets(Slow(), "") == offsets(words(), "") == [(0, 0)]


@pytest.mark.parametrize(
    ("make", "text"), [(Lower, "a Bc"), (Dropping, "abc  "), (Shrinking, "abc")]
)
def test_a_slow_tokenizer_that_changes_the_text_is_refused(make, text):
    with pytest.raises(UserError, match=rf"{make.__name__} returns no .* fast tokenizer") as e:
        offsets(make(), text)
    assert "\n" not in str(e.value)


def test_the_refusal_is_one_line():
    with pytest.raises(UserError) as e:
        offsets(Lower(), "a\nB" + "c" * 100)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300
