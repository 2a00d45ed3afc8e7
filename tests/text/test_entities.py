"""Noun chunks on hand-made parses, and on what a pipeline trained on the spot finds."""

import subprocess
import sys

import pytest

from facttune_ray.errors import UserError
from facttune_ray.text.entities import Entity, extract, load, noun_chunks

spacy = pytest.importorskip("spacy")


def found(nlp, text):
    """Entities as texts, after a check that each stands where it says."""
    (entities,) = extract(nlp, [text])
    assert [text[e.start : e.end] for e in entities] == [e.text for e in entities]
    return [e.text for e in entities]


@pytest.fixture(scope="module")
def nlp(spacy_pipeline):
    return load(spacy_pipeline)


def test_entities_have_their_spans(nlp):
    text = "Mara Veldt was born in Ostrava. She plays the cello in Lyon."
    expected = [Entity("Ostrava", 23, 30), Entity("the cello", 42, 51), Entity("Lyon", 55, 59)]
    assert extract(nlp, [text]) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the name is a subject here, an object there
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
    assert found(nlp, text) == expected


def test_a_repeated_entity_stands_at_two_places(nlp):
    first, second = extract(nlp, ["She moved from Paris to Paris in 1961."])[0]
    assert (first, second) == (Entity("Paris", 15, 20), Entity("Paris", 24, 29))


def test_a_text_that_is_too_long_is_none_and_its_neighbours_are_not(nlp):
    short = "Mara Veldt was born in Oslo."
    old, nlp.max_length = nlp.max_length, 30
    try:
        got = extract(nlp, [short, short + " " + short, " " * 40, short])
    finally:
        nlp.max_length = old
    assert got == [[Entity("Oslo", 23, 27)], None, [], [Entity("Oslo", 23, 27)]]


def parsed(words, pos, heads, deps):
    """A parse by hand: (word with its following space, POS, head, dependency) each."""
    spaces = [w.endswith(" ") for w in words]
    vocab = spacy.blank("en").vocab
    return spacy.tokens.Doc(
        vocab, [w.rstrip(" ") for w in words], spaces, pos=pos, heads=heads, deps=deps
    )


def objects(*chunks):
    """ "saw" and its objects, each a list of words whose last one is the noun."""
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
        # in the middle of a line it is part of the name
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
def test_the_border_of_a_chunk(chunk, expected):
    assert noun_chunks(objects(chunk)) == expected


def test_pronouns_by_their_part_of_speech():
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


def test_the_pipeline_is_loaded_once_and_without_what_is_not_needed(spacy_pipeline):
    assert load(spacy_pipeline) is load(spacy_pipeline)
    assert "ner" in spacy.load(spacy_pipeline).pipe_names
    assert load(spacy_pipeline).pipe_names == ["morphologizer", "parser"]


def test_a_missing_pipeline_is_one_line_with_its_command(tmp_path):
    with pytest.raises(UserError) as e:
        load("no_such_pipeline")
    assert "python -m spacy download no_such_pipeline" in str(e.value)
    assert "folder" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="entities.spacy_model: no pipeline in") as e:
        load(str(tmp_path / "none"))
    assert "\n" not in str(e.value)


def test_a_pipeline_says_what_it_lacks(spacy_pipeline, tmp_path):
    nlp = spacy.load(spacy_pipeline)
    nlp.remove_pipe("parser")
    nlp.to_disk(tmp_path / "tags")
    with pytest.raises(UserError, match="lacks a dependency parser;"):
        load(str(tmp_path / "tags"))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="lacks a dependency parser and parts of speech"):
        load(str(tmp_path / "blank"))
    spacy.blank("zh").to_disk(tmp_path / "zh")
    with pytest.raises(UserError, match='rules for noun chunks of the language "zh"'):
        load(str(tmp_path / "zh"))


def test_the_module_itself_needs_no_spacy():
    code = "import sys, facttune_ray.text.entities; print('spacy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
