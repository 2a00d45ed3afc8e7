"""Noun chunks of hand-made parses and of a small pipeline that the tests train."""

import pytest

from facttune_ray.text.entities import Entity, extract, noun_chunks
from facttune_ray.text.pipelines import load

spacy = pytest.importorskip("spacy")


def entity_texts(nlp, text):
    """The entities' texts, after a check of their offsets."""
    (entities,) = extract(nlp, [text])
    assert [text[e.start : e.end] for e in entities] == [e.text for e in entities]
    return [e.text for e in entities]


@pytest.fixture(scope="module")
def nlp(spacy_pipeline):
    return load("entities.spacy_model", spacy_pipeline)


def test_entities_have_their_spans(nlp):
    text = "Mara Veldt was born in Ostrava. She plays the cello in Lyon."
    expected = [Entity("Ostrava", 23, 30), Entity("the cello", 42, 51), Entity("Lyon", 55, 59)]
    assert extract(nlp, [text]) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the name is a subject once and an object once
        ("Mara Veldt was born in New Delft.", ["New Delft"]),
        ("He met Mara Veldt in Rome and loved it.", ["Mara Veldt", "Rome"]),
        (
            "Ivo Marsh studied law at the University of Port Amber.",
            ["law", "the University", "Port Amber"],
        ),
        # ROOT: the head of a sentence without a verb
        ("a chemist from Rome. She is a poet from Lyon.", ["Rome", "a poet", "Lyon"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_subjects_pronouns_and_roots_are_left_out(nlp, text, expected):
    assert entity_texts(nlp, text) == expected


def test_a_repeated_entity_is_found_at_each_place(nlp):
    first, second = extract(nlp, ["She moved from Paris to Paris in 1961."])[0]
    assert (first, second) == (Entity("Paris", 15, 20), Entity("Paris", 24, 29))


def test_only_a_text_that_is_too_long_gives_none(nlp):
    short = "Mara Veldt was born in Oslo."
    old, nlp.max_length = nlp.max_length, 30
    try:
        got = extract(nlp, [short, short + " " + short, " " * 40, short])
    finally:
        nlp.max_length = old
    assert got == [[Entity("Oslo", 23, 27)], None, [], [Entity("Oslo", 23, 27)]]


def parsed(words, pos, heads, deps):
    """A hand-made parse of words (with their following space), POS, heads and dependencies."""
    spaces = [w.endswith(" ") for w in words]
    vocab = spacy.blank("en").vocab
    return spacy.tokens.Doc(
        vocab, [w.rstrip(" ") for w in words], spaces, pos=pos, heads=heads, deps=deps
    )


def objects(*chunks):
    """A parse of "saw" and its objects. Each object is a list of words and ends with its noun."""
    words, pos, heads, deps = ["saw "], ["VERB"], [0], ["ROOT"]
    for chunk in chunks:
        end = len(words) + len(chunk) - 1
        words += chunk
        pos += ["X"] * (len(chunk) - 1) + ["NOUN"]
        heads += [end] * (len(chunk) - 1) + [0]
        deps += ["dep"] * (len(chunk) - 1) + ["dobj"]
    return parsed(words, pos, heads, deps)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (["the ", "cello"], [Entity("the cello", 4, 13)]),
        (["\n", "- ", "the ", "cello"], [Entity("the cello", 7, 16)]),
        (["\n\n", "12. ", "Lyon"], [Entity("Lyon", 10, 14)]),
        (["Lyon", "\n", "*"], [Entity("Lyon", 4, 8)]),
        (["Lyon", "\n"], [Entity("Lyon", 4, 8)]),
        # within a line a mark is part of the name
        (["1. ", "FC ", "Lyon"], [Entity("1. FC Lyon", 4, 14)]),
        (["War ", "2."], [Entity("War 2.", 4, 10)]),
        (["\n"], []),
        (["--"], []),
        (["That"], []),
        (["this"], []),
        (["7"], [Entity("7", 4, 5)]),
        (["\u4e2d\u56fd"], [Entity("\u4e2d\u56fd", 4, 6)]),
    ],
)
def test_spaces_and_list_marks_around_a_chunk_are_stripped(chunk, expected):
    assert noun_chunks(objects(chunk)) == expected


def test_pronouns_are_recognised_by_their_part_of_speech():
    doc = parsed(
        ["saw ", "someone ", "and ", "her ", "cello"],
        ["VERB", "PRON", "CCONJ", "PRON", "NOUN"],
        [0, 0, 1, 4, 1],
        ["ROOT", "dobj", "cc", "poss", "conj"],
    )
    assert noun_chunks(doc) == [Entity("her cello", 16, 25)]


def test_many_blank_lines_take_little_time():
    doc = objects(["\n" * 200_000], ["Lyon", "\n" * 200_000])
    assert [e.text for e in noun_chunks(doc)] == ["Lyon"]
