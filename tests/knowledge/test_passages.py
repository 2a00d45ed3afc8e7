import pytest

from facttune_ray.knowledge.passages import SEPARATOR, passages, split


def test_a_long_text_is_cut_at_the_last_sentence_end_before_the_limit():
    sentence = "word " * 99 + "end."  # 101 tokens: the full stop is one
    parts = passages(" ".join([sentence] * 5))
    assert [len(p.split()) for p in parts] == [200, 200, 100]


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One. Two.", 4, ["One. Two."]),
        ("One. Two. Six.", 4, ["One. Two.", "Six."]),
        ("a b c d e", 2, ["a b", "c d", "e"]),  # no sentence end: cut at blanks
        ("a" * 20, 2, ["a" * 18, "a" * 2]),  # no blank: a token has at most 9 letters
        ("1234567", 2, ["123456", "7"]),
        ("é" * 5, 2, ["éé", "éé", "é"]),
        ("Yes. J. R. Tolk is here.", 8, ["Yes.", "J. R. Tolk is here."]),
        ('He said "no." She left now.', 8, ['He said "no."', "She left now."]),
        ("今日。元気。", 4, ["今日。", "元気。"]),
        ("", 4, []),
        (" \n ", 4, []),
    ],
)
def test_a_text_without_sentence_ends_is_cut_at_blanks_or_tokens(text, limit, parts):
    assert passages(text, limit) == parts


def test_no_text_is_lost():
    text = " ".join(f"Sentence {i}, of {i % 7} words é." for i in range(2000))
    parts = passages(text, 50)
    assert " ".join(parts) == text and len(parts) > 100


def test_only_items_of_a_list_that_are_too_long_are_cut():
    assert passages(["One. Two.", "a b. c d.", "", "x"], 4) == ["One. Two.", "a b.", "c d.", "x"]


def test_nul_bytes_and_lone_surrogates_are_removed():
    assert passages("a\0b \ud800c") == ["a b \ufffdc"]
    assert passages("\0") == []
    assert passages("\U0001f600") == ["\U0001f600"]


def test_stored_texts_of_factscores_form_are_split():
    assert split(f"<s>A one.</s><s>{SEPARATOR}two{SEPARATOR} </s>") == ["A one.", "two"]


def test_a_list_of_passages_from_another_tokenizer_is_kept():
    """Passages of FActScore's builder have up to 283 of our tokens."""
    assert passages(["word " * 319 + "end"]) == ["word " * 319 + "end"]
    assert [len(p.split()) for p in passages(["word " * 320 + "end"])] == [256, 65]
    assert [len(p.split()) for p in passages("word " * 319 + "end")] == [256, 64]
