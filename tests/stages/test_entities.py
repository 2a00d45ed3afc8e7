"""Entities of hand-made responses, parsed by a real pipeline, sampled by a fake or tiny model."""

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.sampling.protocol import Sample, SampleRequest
from facttune_ray.stages import entities
from facttune_ray.storage.schema import digest, seed_from
from facttune_ray.text.entities import before
from facttune_ray.text.pipelines import load

TEXT = "Mara Veldt was born in Paris. She moved from Lyon to Paris in 1961."


def response(rid, text, **more):
    return {
        "response_id": rid,
        "topic": "Mara Veldt",
        "split": "train",
        "prompt": f"Write {rid}.",
        "text": text,
        "error": None,
    } | more


class FakeSampler:
    """Answers " Rome" and "\\n" to all prompts but those in `failing`. A word is a token."""

    def __init__(self, failing=()):
        self.failing, self.calls = failing, []

    def sample(self, request):
        self.calls.append(request)
        two = [Sample(" Rome", 1, False), Sample("\n", 1, False)]
        failed = [Sample("", 0, False, error="too long")] * 2
        return [failed if p in self.failing else two for p in request.prompts]

    def count_tokens(self, texts):
        return [len(t.split()) for t in texts]


@pytest.fixture
def sample(run_stage, spacy_pipeline):
    """(rows, what the sampler was asked) of a shard of responses."""

    def run(responses, sampler=None, overrides=(), **work):
        sampler = sampler or FakeSampler()
        settings = [f"entities.spacy_model={spacy_pipeline}", "entities.samples=2", *overrides]
        inputs = {"responses": responses}
        rows = run_stage(entities, inputs, settings, {"sampler": sampler}, **work)
        return rows, getattr(sampler, "calls", None)

    return run


def test_each_occurrence_is_sampled_from_the_text_before_it(sample):
    text = TEXT + " He plays the cello in Port Amber."
    rows, calls = sample(
        [response("r1", text)], overrides=["run.seed=5", "entities.top_p=0.8"], snapshot="base"
    )
    assert [(r["text"], r["start"], r["end"]) for r in rows] == [
        ("Paris", 23, 28),
        ("Lyon", 45, 49),
        ("Paris", 53, 58),
        ("the cello", 77, 86),
        ("Port Amber", 90, 100),
    ]
    assert all(text[r["start"] : r["end"]] == r["text"] for r in rows)
    ids = [digest("r1", start) for start in (23, 45, 53, 77, 90)]
    assert [r["entity_id"] for r in rows] == ids
    assert rows[0]["prefix"] == "Mara Veldt was born in"
    assert rows[2]["prefix"] == "Mara Veldt was born in Paris. She moved from Lyon to"
    assert [r["tokens"] for r in rows] == [1, 1, 1, 2, 2]
    assert [r["answers"] for r in rows] == [["Rome", ""]] * 5
    assert {r["error"] for r in rows} == {None}
    assert calls == [
        SampleRequest(
            prompts=["Write r1."] * 5,
            n=2,
            seeds=[seed_from(5, "base", i) for i in ids],
            max_tokens=[1, 1, 1, 2, 2],
            temperature=1.0,
            top_p=0.8,
            beginnings=[text[: start - 1] for start in (23, 45, 53, 77, 90)],
        )
    ]


def test_an_entity_that_opens_the_response_continues_the_bare_prompt(sample):
    rows, calls = sample(
        [response("r1", "New Delft she loved."), response("r2", " Lyon she loved.")]
    )
    assert [(r["text"], r["start"], r["prefix"]) for r in rows] == [
        ("New Delft", 0, ""),
        ("Lyon", 1, ""),
    ]
    assert calls[0].beginnings == ["", ""]


def test_a_shard_is_one_call_and_rows_keep_the_order_of_responses(sample):
    rows, calls = sample([response("r2", TEXT), response("r1", TEXT, abstained=True)])
    assert [r["response_id"] for r in rows] == ["r2"] * 3 + ["r1"] * 3
    assert len(calls) == 1 and calls[0].prompts == ["Write r2."] * 3 + ["Write r1."] * 3
    assert len({r["entity_id"] for r in rows}) == 6


def test_failed_and_empty_responses_have_no_rows(sample):
    given = [
        response("r1", None, error="no samples"),
        response("r2", "Kol Wex was born in Rome.", error="cut"),
        response("r3", None),
        response("r4", ""),
        response("r5", "\n "),
        response("r6", "She plays."),
    ]
    assert sample(given) == ([], [])  # without an entity the model is not even loaded


def test_a_response_that_is_too_long_is_one_row_with_its_error(sample, spacy_pipeline):
    nlp = load("entities.spacy_model", spacy_pipeline)
    old, nlp.max_length = nlp.max_length, 40
    try:
        rows, calls = sample([response("r1", TEXT), response("r2", TEXT[:29])])
    finally:
        nlp.max_length = old
    assert [(r["response_id"], r["text"], r["answers"]) for r in rows] == [
        ("r1", None, None),
        ("r2", "Paris", ["Rome", ""]),
    ]
    assert rows[0]["error"] == "not parsed: 67 characters, more than the spaCy pipeline's 40"
    assert len(calls[0].prompts) == 1


def test_the_error_of_failed_samples_is_the_rows_error(sample):
    rows, _ = sample([response("r1", TEXT), response("r2", TEXT)], FakeSampler({"Write r1."}))
    assert [(r["answers"], r["error"]) for r in rows[:3]] == [(None, "too long")] * 3
    assert [(r["answers"], r["error"]) for r in rows[3:]] == [(["Rome", ""], None)] * 3
    assert rows[0]["text"] == "Paris" and rows[0]["tokens"] == 1


def test_the_prefix_is_cut_at_a_word():
    text = "Mara was born in"
    cuts = {20: text, 16: text, 15: "was born in", 11: "was born in", 10: "born in", 6: "in"}
    assert {most: before(text + " ", len(text) + 1, most) for most in cuts} == cuts
    assert before("\u4e2d" * 30, 30, 20) == "\u4e2d" * 20
    assert before("", 0, 20) == ""


def test_the_recipe_has_the_settings_that_change_the_rows(spacy_pipeline, tmp_path):
    import shutil

    def recipe(*overrides):
        return entities.recipe(config.load([], overrides))

    here = recipe(f"entities.spacy_model={spacy_pipeline}")
    assert set(here) == {
        "entities.spacy_model",
        "entities.samples",
        "entities.temperature",
        "entities.top_p",
        "run.seed",
        "model.chat",
        "model.dtype",
        "sampling.engine",
        "sampling.quantize",
    }
    copied = shutil.copytree(spacy_pipeline, tmp_path / "copy")
    assert recipe(f"entities.spacy_model={copied}") == here  # its place is none of its settings
    other = shutil.copytree(spacy_pipeline, tmp_path / "other")
    with open(other / "parser" / "model", "ab") as f:
        f.write(b"0")
    assert recipe(f"entities.spacy_model={other}") != here


@pytest.mark.parametrize("check", [entities.hints, entities.recipe])
def test_a_missing_pipeline_stops_the_run_before_its_workers(check):
    with pytest.raises(UserError, match="python -m spacy download no_such_pipeline"):
        check(config.load([], ["entities.spacy_model=no_such_pipeline"]))


def test_an_installed_pipeline_gives_no_hint(spacy_pipeline):
    assert entities.hints(config.load([], [f"entities.spacy_model={spacy_pipeline}"])) == []


def test_a_model_continues_its_own_response(sample, tmp_path):
    """It has learnt one city a prompt, so it gives that city again, whatever the response says."""
    from facttune_ray.quickstart.base_model import pretrain
    from facttune_ray.sampling.transformers import TransformersSampler

    cities = {"Kol Wex": "Rome", "Ana Zed": "New Delft"}
    documents = [f"Who is {n}?\n{n} was born in {c}." for n, c in cities.items()]
    size = {"hidden": 32, "layers": 2, "heads": 2, "lr": 1e-2, "max_length": 64}
    pretrain(documents * 8, tmp_path / "base", seed=0, steps=60, threads=1, **size)
    sampler = TransformersSampler(str(tmp_path / "base"))
    given = [
        response("r1", "Kol Wex was born in Paris.", prompt="Who is Kol Wex?"),
        response("r2", "Ana Zed was born in New Delft.", prompt="Who is Ana Zed?"),
        response("r3", "Rome she loved.", prompt="Who is Kol Wex?"),
    ]
    rows, _ = sample(given, sampler, ["entities.temperature=0"])
    assert [r["text"] for r in rows] == ["Paris", "New Delft", "Rome"]
    assert rows[0]["answers"][0].startswith("Rome")
    assert rows[1]["answers"] == ["New Delft"] * 2
    assert rows[1]["tokens"] == 2
    assert rows[2]["answers"] == ["Kol"] * 2 and rows[2]["tokens"] == 1
