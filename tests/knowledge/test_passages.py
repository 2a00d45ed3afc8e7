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
        ("a b c d e", 2, ["a b", "c d", "e"]),  # no sentence end: at blanks
        ("a" * 20, 2, ["a" * 18, "a" * 2]),  # no blank: a token has 9 letters at most
        ("1234567", 2, ["123456", "7"]),
        ("é" * 5, 2, ["éé", "éé", "é"]),
        ("Yes. J. R. Tolk is here.", 8, ["Yes.", "J. R. Tolk is here."]),
        ('He said "no." She left now.', 8, ['He said "no."', "She left now."]),
        ("今日。元気。", 4, ["今日。", "元気。"]),
        ("", 4, []),
        (" \n ", 4, []),
    ],
)
def test_cut(text, limit, parts):
    assert passages(text, limit) == parts


def test_nothing_is_lost():
    text = " ".join(f"Sentence {i}, of {i % 7} words é." for i in range(2000))
    parts = passages(text, 50)
    assert " ".join(parts) == text and len(parts) > 100


def test_a_list_stays_as_it_is_but_for_an_item_that_is_too_long():
    assert passages(["One. Two.", "a b. c d.", "", "x"], 4) == ["One. Two.", "a b.", "c d.", "x"]


def test_nul_bytes_and_lone_surrogates():
    assert passages("a\0b \ud800c") == ["a b \ufffdc"]
    assert passages("\0") == []
    assert passages("\U0001f600") == ["\U0001f600"]


def test_split_reads_factscores_form():
    assert split(f"<s>A one.</s><s>{SEPARATOR}two{SEPARATOR} </s>") == ["A one.", "two"]


def test_a_list_of_passages_that_another_tokenizer_cut_stays_as_it_is():
    """Those of FActScore's builder have up to 283 of our tokens."""
    assert passages(["word " * 319 + "end"]) == ["word " * 319 + "end"]
    assert [len(p.split()) for p in passages(["word " * 320 + "end"])] == [256, 65]
    assert [len(p.split()) for p in passages("word " * 319 + "end")] == [256, 64]
