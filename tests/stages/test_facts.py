"""Facts with a fake endpoint: requests, abstention, and the facts of a labelled file."""

import asyncio
import json

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.prompts import template
from facttune_ray.stages import facts, pipelines
from facttune_ray.stages.context import Context
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder


class Asked:
    """A client that answers facts requests with their sentence, others with `other`."""

    def __init__(self, other="No"):
        self.other, self.seen = other, []

    async def ask(self, messages, parse, reject_cut=False):
        asked = messages[-1]["content"]
        self.seen.append(messages)
        if "Sentence: " not in asked:
            return parse(self.other)
        sentence = asked.rpartition("Sentence: <<<")[2].removesuffix(">>>")
        return parse("I cannot." if "fails" in sentence else f"- {sentence}")


def made(text, *overrides, abstained=None, error=None, client=None, **more):
    """Fact rows of one response."""
    cfg = config.load([], ["run.out=/nonexistent", *overrides])
    row = {"response_id": "r", "topic": "Mara Veldt", "split": "test", "prompt": "Who is Mara?"}
    row |= {"text": text, "abstained": abstained, "error": error, "model": "m"} | more
    context = Context(
        Work("facts", "f", {}, cfg), client=client or Asked(), rows=lambda role, shard: [row]
    )
    return asyncio.run(facts.run(context, 0))


TEXT = "Mara Veldt was born in 1957.  She plays the cello well. It fails."


def test_spans_errors_and_order():
    rows = made(TEXT)
    assert [r["fact"] for r in rows] == [
        "Mara Veldt was born in 1957.",
        "She plays the cello well.",
        None,
    ]
    assert [TEXT[r["start"] : r["end"]] for r in rows] == [r["sentence_text"] for r in rows]
    assert [r["sentence"] for r in rows] == [0, 1, 2] == [r["position"] for r in rows]
    assert "no list of facts" in rows[2]["error"] and not rows[2]["abstained"]


def test_a_repeated_fact_is_marked():
    rows = made("She sings. He left. She  sings!")
    assert [r["repeated"] for r in rows] == [False, False, True]
    assert len({r["fact_id"] for r in rows}) == 3


def test_short_sentences_are_carried_into_the_next():
    client = Asked()
    rows = made("She sang. He danced. They married in Lyon in 1980.", "facts.carry_words=5",
                client=client)  # fmt: skip
    assert len(client.seen) == 1 and rows[0]["start"] == 0


def test_domains_and_context_choose_the_template():
    client = Asked()
    made("She sings.", "facts.domain=medicine", client=client)
    assert client.seen[0][:-1] == template.messages("facts_medicine", topic="", sentence="")[:-1]
    client = Asked()
    made("Mara met Tom. He sings.", "facts.decontextualize=true", client=client)
    assert "Before: <<<Mara met Tom.>>>" in client.seen[1][-1]["content"]


@pytest.mark.parametrize(
    ("text", "abstention", "declined"),
    [
        ("I'm sorry, I don't know who that is.", "generic", True),
        ("I'm sorry, I don't know who that is.", "none", False),
        ("Mara sings.", "generic", False),
        ("Mara sings.", "tests_abstention:always", True),
        ("", "none", True),
        ("  \n", "llm", True),
    ],
)
def test_detectors_of_abstention(text, abstention, declined, tmp_path, monkeypatch):
    (tmp_path / "tests_abstention.py").write_text("def always(text):\n    return True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = made(text, f"facts.abstention={abstention}")
    assert [r["abstained"] for r in rows] == [True] if declined else not rows[0]["abstained"]
    if declined:
        assert rows[0]["fact"] is None is rows[0]["error"] is rows[0]["sentence"]


@pytest.mark.parametrize(("answer", "declined"), [("Yes", True), ("No.", False)])
def test_an_llm_detects_abstention(answer, declined):
    client = Asked(answer)
    rows = made("I would rather not say.", "facts.abstention=llm", client=client)
    assert rows[0]["abstained"] is declined
    assert "Who is Mara?" in client.seen[0][-1]["content"]
    rows = made("She sings.", "facts.abstention=llm", client=Asked("Hm"))
    assert rows[0]["error"].startswith("abstention: ") and len(rows) == 1


def test_the_label_of_a_file_overrides_the_detector():
    assert made("She sings.", abstained=True)[0]["abstained"]
    assert not made("I'm sorry, I cannot.", abstained=False)[0]["abstained"]
    assert made(None, error="timeout") == []


@pytest.mark.filterwarnings("ignore:facts.cleanup")
def test_facts_of_other_names_are_dropped():
    class Two(Asked):
        async def ask(self, messages, parse, reject_cut=False):
            return parse("- She met Tom Ruhl in Lyon.\n- She met Karin Ask in Lyon.")

    rows = made(  # spaCy's model is not here: by rules
        "She met Tom Ruhl in Lyon.", "facts.cleanup=entities", "facts.spacy_model=not_installed_x",
        client=Two(),
    )  # fmt: skip
    assert [r["fact"] for r in rows] == ["She met Tom Ruhl in Lyon."]


def test_a_missing_spacy_model_gives_one_hint():
    (line,) = facts.hints(config.load([], ["facts.cleanup=entities", "facts.spacy_model=no_such"]))
    assert "python -m spacy download no_such," in line
    assert facts.hints(config.load([])) == []


def labelled(tmp_path, annotations=...):
    line = {"topic": "Mara Veldt", "input": "Who?", "output": "Mara sings. She left."}
    if annotations is not ...:
        line["annotations"] = annotations
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    return [f"data.folder={tmp_path}", "data.files=[m.jsonl]", "data.source=factscore"]


ANNOTATED = [
    {
        "text": "She left.",
        "model-atomic-facts": [{"text": "Mara left."}],
        "human-atomic-facts": [{"text": "Mara left town.", "label": "NS"}],
    }
]


@pytest.mark.parametrize(
    ("method", "fact", "label"),
    [("labels", "Mara left town.", "NS"), ("atomic_facts", "Mara left.", None)],
)
def test_facts_of_the_file(tmp_path, method, fact, label):
    words = labelled(tmp_path, ANNOTATED)
    rows = made("Mara sings. She left.", *words, f"facts.method={method}", abstained=False)
    assert [(r["fact"], r["human_label"]) for r in rows] == [(fact, label)]
    assert (rows[0]["start"], rows[0]["end"]) == (12, 21)


def test_a_file_without_facts_is_refused(tmp_path):
    words = labelled(tmp_path)
    with pytest.raises(UserError, match='"Mara Veldt" has no "annotations"'):
        made("Mara sings. She left.", *words, "facts.method=labels")


def test_the_recipe_has_only_settings_that_change_facts():
    base = facts.recipe(config.load([]))
    assert facts.recipe(config.load([], ["facts.spacy_model=other"])) == base
    for change in ("carry_words=3", "abstention=none", "domain=bio", "cleanup=entities"):
        assert facts.recipe(config.load([], [f"facts.{change}"])) != base, change
    rules = facts.recipe(config.load([], ["facts.method=rules"]))
    assert "llm.model" not in rules
    asked = facts.recipe(config.load([], ["facts.method=rules", "facts.abstention=llm"]))
    assert "llm.model" in asked


def test_facts_of_a_parse(spacy_pipeline):
    text = "Mara Veldt was born in Ostrava. Is she well? She plays the cello in Lyon."
    settings = ["facts.method=spacy", f"facts.spacy_model={spacy_pipeline}"]
    rows = made(text, *settings)
    assert [(r["sentence"], r["fact"]) for r in rows] == [
        (0, "Mara Veldt was born in Ostrava."),
        (2, "Mara Veldt plays the cello in Lyon."),
    ]
    assert [r["abstained"] for r in made(text, *settings, abstained=True)] == [True]


def test_the_pipeline_is_part_of_the_recipe_and_must_be_there(spacy_pipeline, tmp_path):
    here = config.load([], ["facts.method=spacy", f"facts.spacy_model={spacy_pipeline}"])
    recipe = facts.recipe(here)
    assert {"facts.spacy_model", "facts.parsed", "facts.rules"} < set(recipe)
    assert spacy_pipeline not in recipe.values()  # a digest of its files
    assert facts.hints(here) == []
    missing = config.load([], ["facts.method=spacy", "facts.spacy_model=no_such_pipeline"])
    with pytest.raises(UserError, match="facts.spacy_model: .*python -m spacy download no_such"):
        facts.hints(missing)
    table = Folder.of(str(tmp_path / "facts"))
    tables.begin(table, recipe)
    pipelines.check_same("facts.spacy_model", spacy_pipeline, table)
    tables.begin(table, recipe | {"facts.spacy_model": "en_core_web_sm 3.7.0"})
    with pytest.raises(UserError, match='the driver "en_core_web_sm 3.7.0": install the same'):
        pipelines.check_same("facts.spacy_model", spacy_pipeline, table)
