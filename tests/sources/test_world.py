from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from facttune_ray.errors import UserError
from facttune_ray.prompts import facts, questions, verdicts
from facttune_ray.quickstart import rules
from facttune_ray.sources.world import ATTRIBUTES, RELIABILITY, VALUES, make, question, statement

SMALL = {"people": 60, "train": 20, "val": 10, "test": 20, "documents_per_person": 30.0}


@pytest.fixture(scope="module")
def world():
    return make(3, **SMALL)


def test_equal_seeds_give_equal_worlds_in_another_process(world):
    script = (
        "import hashlib; from facttune_ray.sources.world import make;"
        f"w = make(3, **{SMALL!r});"
        "print(hashlib.sha256(repr((w.documents, w.articles, w.splits)).encode()).hexdigest())"
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
    ).stdout.strip()
    mine = repr((world.documents, world.articles, world.splits))
    assert out == hashlib.sha256(mine.encode()).hexdigest()
    assert make(4, **SMALL).documents != world.documents


def test_splits_are_disjoint_and_have_the_requested_sizes(world):
    names = [name for split in world.splits.values() for name in split]
    assert [len(world.splits[s]) for s in ("train", "val", "test")] == [20, 10, 20]
    assert len(set(names)) == 50
    assert set(names) <= {p.name for p in world.people}
    with pytest.raises(UserError, match="60 people"):
        make(0, people=60, train=50, val=10, test=1)


def test_no_word_of_a_name_is_shared_with_another_name_or_a_value():
    words = Counter(w for p in make(0).people for w in p.name.lower().split())
    assert len(words) == 800 and set(words.values()) == {1}
    values = [v for group in VALUES.values() for v in group]
    assert len(set(values)) == 6 * 20
    bare = Counter(v.lower().removeprefix("a ") for v in values)
    assert set(bare.values()) == {1} and not set(bare) & set(words)


def test_documents_have_one_of_two_forms(world):
    people = {p.name: p for p in world.people}
    biographies = Counter()
    for text in world.documents:
        first, rest = text.split("\n")
        if first.startswith("Question: "):
            assert rest.startswith("Answer: ")
            continue
        name = re.fullmatch(r"Write a biography of (.+)\.", first)[1]
        sentences = re.findall(r"[^.]+\.", rest)
        assert len(sentences) == 3 and rest.startswith(name)
        biographies[name] += 1
    assert biographies == {p.name: p.biographies for p in people.values()}


def test_articles_state_every_true_fact_and_nothing_else(world):
    people = {p.name: p for p in world.people}
    for article in world.articles:
        person = people[article["title"]]
        sentences = re.findall(r"[^.]+\.", " ".join(article["text"]))
        expected = {statement(person.name, a, v) for a, v in person.facts.items()}
        assert {s.strip() for s in sentences} == expected and len(sentences) == 6
    json.dumps(world.articles)  # a line of the knowledge source each


def test_right_attributes_are_always_right_and_noisy_ones_as_noisy_as_stated():
    world = make(0, people=60, train=20, val=10, test=20, documents_per_person=200.0)
    truth = {(p.name, a): v for p in world.people for a, v in p.facts.items()}
    asked = {question(p.name, a): (p.name, a) for p in world.people for a in ATTRIBUTES}
    right, seen = Counter(), Counter()
    for text in world.documents:
        match = re.fullmatch(r"Question: (.+)\nAnswer: (.+)", text)
        if match:
            name, attribute = asked[match[1]]
            seen[attribute] += 1
            right[attribute] += truth[name, attribute] == match[2]
    shares = {a: right[a] / seen[a] for a in ATTRIBUTES}
    for attribute, (low, high) in RELIABILITY.items():
        assert low - 0.05 <= shares[attribute] <= high + 1e-9
    assert shares["born"] == shares["works"] == shares["studied"] == 1.0
    assert max(shares["lives"], shares["plays"], shares["keeps"]) < 0.7


def test_popularity_is_skewed_and_every_person_has_documents():
    counts = sorted((p.biographies + p.questions for p in make(0).people), reverse=True)
    assert counts[-1] >= 12 and counts[0] > 5 * counts[len(counts) // 2]
    assert abs(sum(counts) / len(counts) - 40) < 0.1


def test_the_annotator_reads_every_kind_of_sentence(world):
    """Facts, questions and verdicts come back in the world's own words."""
    for person, article in zip(world.people, world.articles, strict=True):
        for attribute, true in person.facts.items():
            wrong = next(v for v in VALUES[attribute] if v != true)
            fact = statement(person.name, attribute, true)
            said = statement(person.pronoun, attribute, true)
            assert facts.parse(rules.answer(facts.render(person.name, said))) == [fact]
            asked = questions.parse(rules.answer(questions.render(person.name, fact))).question
            assert asked == question(person.name, attribute)
            for value, supported in ((true, True), (wrong, False)):
                claim = statement(person.name, attribute, value)
                reply = rules.answer(verdicts.render(person.name, claim, article["text"]))
                assert verdicts.parse(reply) is supported
