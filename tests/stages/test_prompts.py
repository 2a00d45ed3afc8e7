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


def test_every_split_of_the_scripts_is_read(tmp_path):
    cfg = scripts_folder(tmp_path, train=["Ada"], dpoval=["Bo"], test=["Cy"])
    splits = {"Ada": "train", "Bo": "val", "Cy": "test"}
    assert {p["topic"]: p["split"] for p in prompts.prompts(cfg)} == splits
    assert {r["topic"]: r["split"] for r in prompts.imported_responses(cfg)} == splits


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_topic_in_two_splits_is_refused(tmp_path, other):
    cfg = scripts_folder(tmp_path, dpoval=["Ada"], **{other: ["Bo", "Ada"]})
    for read in (prompts.prompts, prompts.imported_responses):
        with pytest.raises(UserError) as caught:
            list(read(cfg))
        says = (
            f'topic "Ada" stands in questions_per_topic_dpoval.json and questions_per_topic_{other}'
        )
        assert says in str(caught.value)


def test_no_questions_file_is_named(tmp_path):
    cfg = config.load([], ["data.source=tuning", f"data.folder={tmp_path}"])
    with pytest.raises(UserError, match="no questions_per_topic_"):
        list(prompts.prompts(cfg))
