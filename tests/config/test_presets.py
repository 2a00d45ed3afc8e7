"""conf/bio.yaml and conf/medicine.yaml from topics to report, with a tiny model and the annotator:
paths and names differ from a real run, and how many topics there are."""

from __future__ import annotations

import json
import random

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.prompts import prompts
from facttune_ray.quickstart import base_model, rules
from facttune_ray.sources import world

CONDITIONS = [f"{a}{b}" for a in ("Veld", "Mor", "Kast", "Bren", "Tol") for b in ("itis", "osis")]
STATEMENTS = (
    "The symptoms of {t} include {v}.",
    "{t} is caused by {v}.",
    "{t} is diagnosed by {v}.",
    "{t} is treated with {v}.",
    "{t} is prevented by {v}.",
    "{t} is most common in {v}.",
)
PLAIN = prompts.filled("@", "bio", "plain")
VALUES = (
    "fever rash cough headache".split(),
    "lead mould smoke cobalt".split(),
    "biopsy ultrasound endoscopy spirometry".split(),
    "zinc aspirin insulin steroids".split(),
    "vaccination handwashing gloves fasting".split(),
    "miners sailors bakers infants".split(),
)


def conditions() -> tuple[list[str], list[dict]]:
    """(documents, articles): right about half of the time, and always."""
    draw, documents, articles = random.Random(0), [], []
    asked = rules.QUESTIONS["medicine"].split("|")
    for name in CONDITIONS:
        true = [draw.choice(v) for v in VALUES]
        facts = [s.format(t=name, v=v) for s, v in zip(STATEMENTS, true, strict=True)]
        articles.append({"title": name, "text": [" ".join(facts)]})
        for i, (question, statement) in enumerate(zip(asked, STATEMENTS, strict=False)):
            for _ in range(6):
                value = true[i] if draw.random() < 0.5 else draw.choice(VALUES[i])
                other = draw.choice([f for f in facts if f != facts[i]])
                text = f"{statement.format(t=name, v=value)} {other}"
                documents.append(f"{question.format(topic=name[0].lower() + name[1:])}\n{text}")
    return documents, articles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has read of people and conditions, their articles, and both topics files."""
    out = tmp_path_factory.mktemp("presets")
    people = world.make(0, 20, train=0, val=0, test=0, documents_per_person=20, least_documents=8)
    before, after = (f.split("@")[0] for f in (world.biography_prompt("@"), PLAIN))
    lives = [d.replace(before, after, 1) for d in people.documents]
    medical, articles = conditions()
    documents = lives + medical
    random.Random(0).shuffle(documents)
    base_model.pretrain(documents, out / "model", seed=0, epochs=4, hidden=64)
    lines = [json.dumps(a) + "\n" for a in (*people.articles, *articles)]
    (out / "knowledge.jsonl").write_text("".join(lines))
    (out / "people.txt").write_text("".join(f"{p.name}\n" for p in people.people))
    (out / "conditions.csv").write_text("topic\n" + "".join(f"{c}\n" for c in CONDITIONS))
    return out


def words(folder, preset: str, topics: str, sizes: tuple[int, int, int]) -> list[str]:
    names = zip(("train", "val", "test"), sizes, strict=True)
    return [
        preset,
        f"data.folder={folder}",
        f"data.topics={topics}",
        "data.knowledge=knowledge.jsonl",
        f"model.path={folder / 'model'}",
        "llm.base_url=embedded",
        "llm.model=annotator",
        f"run.out={folder / preset}",
        "run.shards=3",
        *(f"data.sizes.{name}={size}" for name, size in names),
    ]


def rows(folder, table: str) -> list[dict]:
    parts = sorted((folder / table).glob("part-*.parquet"))
    return [r for p in parts for r in pq.read_table(p, partitioning=None).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "topics", "sizes", "questions"),
    [("bio", "people.txt", (8, 3, 4), 1), ("medicine", "conditions.csv", (4, 2, 2), 6)],
)
def test_a_preset_end_to_end(folder, ray_cluster, preset, topics, sizes, questions):
    command = words(folder, preset, topics, sizes)
    assert cli.main(["run", *command]) == 0
    out = folder / preset
    made = rows(out, "prompts")
    assert len(made) == sum(sizes) * questions and all(r["error"] is None for r in made)
    split = {r["topic"]: r["split"] for r in made}
    assert [list(split.values()).count(s) for s in ("train", "val", "test")] == list(sizes)
    summary = json.loads((out / "summary.json").read_text())
    models = ["base", "facttune_fs", "facttune_mc", "dola", "facttune_fs_dola"]
    assert set(summary["models"]) == {*models}
    for name in models:
        assert summary["models"][name]["topics"] == sizes[2]
        assert summary["models"][name]["correct"]["value"] is not None
    assert set(summary["comparisons"]) == set(models[1:])
    responses = {name: rows(out, f"{name}/test/responses") for name in ("base", "dola")}
    assert {r["model"] for r in responses["dola"]} == {"dola"}
    assert {r["prompt_id"] for r in responses["dola"]} == {
        r["prompt_id"] for r in responses["base"]
    }
    assert [r["text"] for r in responses["dola"]] != [r["text"] for r in responses["base"]]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert cli.main(["run", *command]) == 0  # nothing is made again
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
