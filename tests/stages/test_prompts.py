"""Where topics come from: splits, shards, imported files."""

import json

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.stages import prompts


def scripts_folder(tmp_path, **splits):
    """A folder of the scripts: {split: [topics]}, each with one question and one response."""
    (tmp_path / "responses").mkdir()
    for split, topics in splits.items():
        rows = [{"topic": t, "topic_id": i, "questions": ["Who?"]} for i, t in enumerate(topics)]
        (tmp_path / f"questions_per_topic_{split}.json").write_text(json.dumps(rows))
        for t in topics:
            answers = {"Who?": {"responses": [f"{t} was."]}}
            (tmp_path / "responses" / f"{t}_generations.json").write_text(json.dumps(answers))
    return config.load([], ["data.source=tuning", f"data.folder={tmp_path}"])


def test_every_split_of_the_question_files_is_read(tmp_path):
    cfg = scripts_folder(tmp_path, train=["Ada"], dpoval=["Bo"], test=["Cy"])
    splits = {"Ada": "train", "Bo": "val", "Cy": "test"}
    assert {p["topic"]: p["split"] for p in prompts.prompts(cfg)} == splits
    assert {r["topic"]: r["split"] for r in prompts.imported_responses(cfg)} == splits


def test_repeated_prompts_and_responses_are_told_apart():
    row = {"topic": "Ada", "split": "train", "prompt_id": "p", "response_id": None, "sample": None}
    rows = [row | {"model": m, "text": t} for m, t in (("a", "1"), ("b", "2"), ("a", "3"))]
    assert list(prompts.once(rows)) == rows[:1]
    found = list(prompts.numbered(rows))
    assert [(r["model"], r["sample"]) for r in found] == [("a", 0), ("b", 0), ("a", 1)]
    assert len({r["response_id"] for r in found}) == 3
    own = [row | {"model": "a", "sample": 4, "response_id": "kept"}]  # it has its ids
    assert list(prompts.numbered(own)) == own


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_topic_in_two_splits_is_refused(tmp_path, other):
    cfg = scripts_folder(tmp_path, dpoval=["Ada"], **{other: ["Bo", "Ada"]})
    for read in (prompts.prompts, prompts.imported_responses):
        with pytest.raises(UserError) as caught:
            list(read(cfg))
        says = f'topic "Ada" is in questions_per_topic_dpoval.json and questions_per_topic_{other}'
        assert says in str(caught.value)


def test_a_folder_without_question_files_is_refused(tmp_path):
    cfg = config.load([], ["data.source=tuning", f"data.folder={tmp_path}"])
    with pytest.raises(UserError, match="no questions_per_topic_"):
        list(prompts.prompts(cfg))


# ---------------------------------------------------------------- data.source: topics

TOPICS = [
    {"topic": t, "split": "train", "pronoun": "her", "lower_case": None} for t in ("Ada", "Bo")
]


def test_a_template_gives_one_prompt_per_topic(run_stage):
    words = ["data.source=topics", "prompts.domain=bio", "prompts.form=chat"]
    rows = run_stage(prompts, {"topics": TOPICS}, words)
    assert [r["prompt"] for r in rows] == [
        "Write a one-paragraph biography of Ada.",
        "Write a one-paragraph biography of Bo.",
    ]
    assert {r["pronoun"] for r in rows} == {"her"} and len({r["prompt_id"] for r in rows}) == 2


class Writes:
    """An LLM that gives these answers, one per request, and records its prompts."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    async def ask(self, messages, parse):
        self.seen.append(messages[-1]["content"])
        return parse(self.answers.pop(0))


def questions_of(run_stage, *answers, count=3):
    client = Writes(*answers)
    words = ["data.source=topics", "prompts.method=llm", f"prompts.questions={count}"]
    rows = run_stage(prompts, {"topics": TOPICS[:1]}, words, {"client": client})
    return [(r["prompt"], r["error"]) for r in rows], client.seen


def test_the_llm_is_asked_until_there_are_enough_questions(run_stage):
    found, seen = questions_of(
        run_stage,
        "- What did Ada write?\n- What did Ada do?\n- what did  ada write",
        "- What did Ada write?\n- Where did Ada live?\n- Who taught Ada?",
    )
    expected = ["What did Ada write?", "What did Ada do?", "Where did Ada live?"]
    assert found == [(q, None) for q in expected]
    assert "Number of questions: 3" in seen[0] and "before" not in seen[0]
    assert "<<<What did Ada write? What did Ada do?>>>\nNumber of questions: 1" in seen[1]


def test_a_topic_with_too_few_questions_keeps_them_and_has_an_error(run_stage):
    found, seen = questions_of(run_stage, "- What did Ada do?", "- What did Ada do?")
    assert found == [("What did Ada do?", None), (None, "1 of 3 distinct questions")]
    found, _ = questions_of(run_stage, "I cannot do that.")
    assert found[0][0] is None and found[0][1].startswith("0 of 3 distinct questions; no list")


def test_a_prompt_that_failed_has_no_responses(run_stage):
    from facttune_ray.stages import responses

    row = {"prompt_id": "p", "topic": "Ada", "split": "train", "prompt": None, "error": "0 of 3"}
    assert run_stage(responses, {"prompts": [row]}) == []


def test_paths_are_not_in_the_recipe(tmp_path):
    found = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Ada\nBo\n")
        words = ["data.source=topics", f"data.topics={tmp_path / name}"]
        found.append(prompts.driver_recipe(config.load([], words)))
    assert found[0] == found[1]
    other = config.load([], [*words, "run.seed=1"])
    assert prompts.driver_recipe(other) != found[0]
    assert prompts.recipe(other) == prompts.recipe(config.load([], words))  # of the prompts alone
