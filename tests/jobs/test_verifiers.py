"""The benchmark of verifiers: its figures by hand, on files of FActScore's form made here."""

import json

import pyarrow as pa
import pytest
from bench import countries, verifiers

from facttune_ray.storage.schema import TABLES

PEOPLE = {
    "Ines Falk": [("Ines Falk was born in Oslo.", "S"), ("Ines Falk was a painter.", "S")],
    "Bo Lind": [("Bo Lind was born in Rome.", "NS"), ("Bo Lind is well liked.", "IR")],
    "No Article": [("No Article was born in Rome.", "S")],
}


@pytest.fixture
def data(tmp_path):
    lines = []
    for topic, facts in PEOPLE.items():
        human = [{"text": text, "label": label} for text, label in facts]
        sentence = {"text": "A sentence.", "human-atomic-facts": human}
        row = {"topic": topic, "input": "?", "output": "A sentence.", "annotations": [sentence]}
        lines.append(json.dumps(row))
    lines.append(json.dumps({"topic": "Bo Lind", "output": "I cannot.", "annotations": None}))
    for name in verifiers.FILES:
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    articles = [
        {"title": "Ines Falk", "text": "Ines Falk was a painter. Ines Falk was born in Oslo."},
        {"title": "Bo Lind", "text": "Bo Lind was born in Lima. Bo Lind was a baker."},
    ]
    (tmp_path / "knowledge.jsonl").write_text("\n".join(map(json.dumps, articles)) + "\n")
    return tmp_path


def test_labelled_facts_of_people_with_an_article_are_judged(data):
    found = verifiers.quality(data, {})
    assert list(found) == ["lexical/ChatGPT", "lexical/InstructGPT"]
    one = found["lexical/ChatGPT"]
    assert one["facts"] == 3 and one["responses"] == 2 and one["majority"] == 0.6667
    assert one["auroc"] == one["accuracy"] == one["f1_not_supported"] == 1.0
    assert one["error_rate_difference"] == 0.0 and one["facts_per_core_s"] > 0
    first = verifiers.quality(data, {}, facts=1)["lexical/ChatGPT"]
    assert first["facts"] == 1 and first["f1_not_supported"] is first["auroc"] is None


def test_figures_by_label_by_hand():
    # response a: humans S NS, judged S S; response b: humans NS NS S, judged NS unknown NS
    labels = [("a", "S", True), ("a", "NS", True)]
    labels += [("b", "NS", False), ("b", "NS", None), ("b", "S", False)]
    ids = [{"fact_id": str(i), "response_id": r} for i, (r, _, _) in enumerate(labels)]
    facts = [i | {"human_label": label} for i, (_, label, _) in zip(ids, labels, strict=True)]
    judged = [i | {"supported": value} for i, (_, _, value) in zip(ids, labels, strict=True)]
    found = verifiers._by_label(
        pa.Table.from_pylist(facts, TABLES["facts"]),
        pa.Table.from_pylist(judged, TABLES["verdicts"]),
    )
    # NS: one hit, two judged NS, two labelled NS among the four with a verdict
    assert found["f1_not_supported"] == 0.5 and found["majority"] == 0.5
    # shares supported: judged 1 and 0, humans 1/2 and 1/2
    assert found["error_rate_difference"] == 0.0


def test_verifiers_run_alone_and_with_lexical():
    assert verifiers.estimators({}) == ["lexical"]
    named = verifiers.estimators({"npm": "a", "nli": "b", "dtype": "float32"})
    assert named == ["lexical", "nli", "npm", "nli+lexical", "npm+lexical"]


COUNTRIES = [
    ("Ulmia", "Karden", "northern Vesta", "Ulmian", "Lirea"),
    ("Lirea", "Sobel", "southern Vesta", "Lirean, Ulmian", "Ulmia"),
]


def test_statements_about_countries_are_true_and_false(tmp_path):
    rows = [
        {
            "title": name,
            "text": [
                f"{name} is officially the Republic of {name}. The capital of {name} is {capital}. "
                f"{name} lies in {region}. The currency of {name} is the {name.lower()} crown. "
                f"The languages of {name} are {languages}. {name} borders {neighbour}."
            ],
        }
        for name, capital, region, languages, neighbour in COUNTRIES
    ]
    made = list(countries.statements(rows))
    assert {relation for _, relation, _, _ in made} == set(countries.FORMS)
    for title, relation, text, true in made:
        own = next(c for c in COUNTRIES if c[0] == title)
        if relation == "capital":
            assert (own[1] in text) is true, text
    file = tmp_path / "countries.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = countries.lexical_figures(file)
    assert found["all"]["statements"] == len(made) and found["capital"]["right"] == 1.0
