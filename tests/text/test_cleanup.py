import json
import time
import warnings

import pytest

from facttune_ray.errors import UserError
from facttune_ray.text.cleanup import Entities, by_rules, clean, load

TOPIC = "Mara Veldt"
SENTENCE = "She studied at Lyon Conservatory in 1970 and won two Golden Lanterns."


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        ("Mara Veldt studied at Lyon Conservatory.", "Mara Veldt studied at Lyon Conservatory."),
        ("Veldt won 2 Golden Lanterns.", "Veldt won 2 Golden Lanterns."),
        ("She won a Golden Lantern.", "She won a Golden Lantern."),
        ("The LYON conservatory is a school.", "The LYON conservatory is a school."),
        # entities that the sentence lacks
        ("Mara Veldt studied in Paris.", None),
        ("Mara Veldt studied in 1971.", None),
        ("Mara Veldt won three Golden Lanterns.", None),
        ("Mara Veldt met Tomas Rehn at Lyon Conservatory.", None),
        # truncated: between words only at the fact's end, within a word anywhere
        ("Mara Veldt studied at Lyon.", "Mara Veldt studied at Lyon Conservatory."),
        ("She studied at Lyon Conserv in 1970.", "She studied at Lyon Conservatory in 1970."),
        ("Lyon is a city.", "Lyon is a city."),
    ],
)
def test_a_fact_is_kept_completed_or_dropped(fact, expected):
    assert clean(SENTENCE, [fact], by_rules, known=[TOPIC]) == [expected] * (expected is not None)


def test_a_fact_may_mention_the_text_before_its_sentence():
    fact = 'Mara Veldt wrote "The Salt Road".'
    assert clean("She wrote it.", [fact], by_rules, [TOPIC]) == []
    assert clean("She wrote it.", [fact], by_rules, [TOPIC, 'In "The Salt Road" ...']) == [fact]
    assert clean("She wrote it.", [fact], by_rules) == []


@pytest.mark.parametrize(
    ("sentence", "fact"),
    [
        ("She left on Jan. 5, 1950.", "She left on 5 January 1950."),
        ("She left in the 1950s.", "She left in the 1950s."),
        ("She has 3,500 fans.", "She has 3500 fans."),
        ("She was the first of twenty.", "She was the 1st of 20."),
        ("She is Argentine.", "Mara Veldt is Argentinian."),
        ("José wrote it.", "Jose wrote it."),
        ("She starred in TV shows.", "It is a TV show."),
        ("She is a British politician.", "Mara Veldt is British."),
        ("He was Minister of Trade.", "He was Minister."),
        ("She met Ann Lee's Quiet Band.", "She met Ann Lee."),
    ],
)
def test_an_entity_in_another_form_is_supported(sentence, fact):
    assert clean(sentence, [fact], by_rules, [TOPIC]) == [fact]


def test_truncated_facts_are_dropped():
    facts = [
        "She was born.",
        "She was born in Ostrava.",
        "She is a member.",
        "She died.",
        "She was",
    ]
    assert clean("She was born in Ostrava.", facts, by_rules) == [
        "She was born in Ostrava.",
        "She is a member.",  # no fact continues it
        "She died.",
    ]
    assert clean("She sings.", ["She sings.", "She sings."], by_rules) == ["She sings."]
    assert clean("", [], by_rules) == []


def test_entities_by_rules():
    text = "In May 1950 Ludwig van Beethoven's two sons left St. Paul with 12.5% of 3,500 in 1960."
    assert by_rules(text) == Entities(
        text,
        names=("Ludwig van Beethoven", "St. Paul"),
        dates=("May 1950", "1960"),
        numbers=("two", "12.5%", "3,500"),
    )
    assert by_rules("Wheezing is common. élan 他是演员").names == ()


def test_a_long_text_takes_little_time():
    for unit in ("Mara ", "M. ", "Ann's ", "of the ", "May 5 ", "1,", "A of the "):
        start = time.process_time()
        by_rules((unit * 50_000)[:50_000])
        assert time.process_time() - start < 1


@pytest.fixture
def pipeline(tmp_path):
    """Folder of a spaCy pipeline that finds three entities by their words."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(
        [
            {"label": "ORG", "pattern": "Lyon Conservatory"},
            {"label": "GPE", "pattern": "Lyon"},
            {"label": "GPE", "pattern": "Paris"},
            {"label": "DATE", "pattern": "1970"},
            {"label": "CARDINAL", "pattern": "two"},
        ]
    )
    nlp.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_entities_by_spacy(pipeline):
    parse = load(pipeline)
    assert parse(SENTENCE) == Entities(SENTENCE, ("Lyon Conservatory",), ("1970",), ("two",))
    facts = ["She studied at Lyon.", "She studied in Paris.", "She met Ann."]
    # this pipeline does not find Ann
    assert clean(SENTENCE, facts, parse, [TOPIC]) == [
        "She studied at Lyon Conservatory.",
        "She met Ann.",
    ]


def test_a_missing_model_gives_one_warning_with_the_install_command():
    with pytest.warns(UserWarning, match="python -m spacy download no_such_model"):
        assert load("no_such_model") is by_rules
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("no_such_model") is by_rules


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match="facts.spacy_model"):
        load(str(tmp_path / "none"))


def test_few_facts_that_people_wrote_are_changed(labelled_data):
    """People keep to the sentence, so most dropped facts are their mistakes."""
    total = kept = 0
    with open(labelled_data / "ChatGPT.jsonl", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            known = [row["topic"]]
            for part in row["annotations"] or []:
                facts = list(dict.fromkeys(f["text"] for f in part["human-atomic-facts"] or []))
                cleaned = clean(part["text"], facts, by_rules, known)
                total += len(facts)
                kept += len(set(facts) & set(cleaned))
                known = [row["topic"], *known[1:], part["text"]]
    assert total > 5000
    assert 0.99 < kept / total < 1
