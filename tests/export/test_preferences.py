import json

import pytest

from facttune_ray.export import preferences


def group(topic, rewards, split="train"):
    texts = [f"{topic} {i}é" for i in range(len(rewards))]
    ids = {"prompt_id": topic, "topic": topic, "split": split, "prompt": f"Who is {topic}?"}
    return ids | {"response_ids": texts, "responses": texts, "rewards": rewards, "pairs": 0}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_by_hand():
    found = list(preferences.preferences(group("Ada", [0.5, 1.0, 0.5])))
    assert found == [
        {
            "prompt": "Who is Ada?",
            "chosen": "Ada 1é",
            "rejected": "Ada 0é",
            "chosen_reward": 1.0,
            "rejected_reward": 0.5,
            "topic": "Ada",
        },
        {
            "prompt": "Who is Ada?",
            "chosen": "Ada 1é",
            "rejected": "Ada 2é",
            "chosen_reward": 1.0,
            "rejected_reward": 0.5,
            "topic": "Ada",
        },
    ]


@pytest.mark.parametrize(("margin", "count"), [(0.0, 3), (0.25, 2), (0.5, 1), (0.75, 0)])
def test_the_threshold(margin, count):
    assert len(list(preferences.preferences(group("Ada", [0.0, 0.25, 0.75]), margin))) == count


def test_one_file_per_split(tmp_path):
    groups = [
        group("Ada", [0.0, 1.0]),
        group("Bo", [0.0, 1.0, 2.0], "val"),
        group("Cy", [1.0, 1.0]),
    ]
    assert preferences.write(str(tmp_path), iter(groups)) == {"train": 1, "val": 3}
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "grouped/train.jsonl",
        "grouped/val.jsonl",
        "preferences/train.jsonl",
        "preferences/val.jsonl",
    ]
    assert [r["chosen"] for r in lines(tmp_path / "preferences" / "train.jsonl")] == ["Ada 1é"]
    assert lines(tmp_path / "grouped" / "val.jsonl") == [
        {
            "prompt": "Who is Bo?\n",
            "responses": ["Bo 0é", "Bo 1é", "Bo 2é"],
            "rewards": [0.0, 1.0, 2.0],
            "topic": "Bo",
        }
    ]
    asked = groups[1] | {"prompt": "Who is Bo?\n"}
    assert lines(tmp_path / "preferences" / "val.jsonl") == list(preferences.preferences(asked))


def test_the_plain_and_the_conversational_form(tmp_path):
    preferences.write(str(tmp_path), [group("Ada", [0.0, 1.0])], chat=True)
    (row,) = lines(tmp_path / "preferences" / "train.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "Who is Ada?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Ada 1é"}]
    assert row["rejected"] == [{"role": "assistant", "content": "Ada 0é"}]
    assert (row["chosen_reward"], row["topic"]) == (1.0, "Ada")
    preferences.write(str(tmp_path), [group("Ada", [0.0, 1.0])])
    (row,) = lines(tmp_path / "preferences" / "train.jsonl")
    assert row["prompt"] == "Who is Ada?\n"
    assert lines(tmp_path / "grouped" / "train.jsonl")[0]["prompt"] == "Who is Ada?\n"


def test_datasets_reads_the_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    groups = [group("Ada", [0.0, 1.0]), group("Bo", [0.0, 1.0, 2.0], "val")]
    preferences.write(str(tmp_path), groups)
    for kind in ("preferences", "grouped"):
        files = {s: str(tmp_path / kind / f"{s}.jsonl") for s in ("train", "val")}
        cache = str(tmp_path / "cache")
        found = datasets.load_dataset("json", data_files=files, cache_dir=cache)
        assert {s: list(found[s]) for s in files} == {
            s: lines(tmp_path / kind / f"{s}.jsonl") for s in files
        }
