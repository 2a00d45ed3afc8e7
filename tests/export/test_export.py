import json

import pytest

from facttune_ray.errors import UserError
from facttune_ray.export import export
from facttune_ray.sources import confidence, entities, tuning
from facttune_ray.storage import tables
from facttune_ray.storage.schema import TABLES, digest
from facttune_ray.storage.tables import Folder

TOPICS = {"Ada": 0, "Bo": 1}  # topic -> its shard


def put(root, name, rows, **recipe):
    """A finished table of two shards."""
    table = name.rsplit("/", 1)[-1]
    for shard in (0, 1):
        some = [r for r in rows if TOPICS[r["topic"]] == shard]
        tables.write_part(root / name, table, shard, some, {})
    tables.write_manifest(root / name, table, recipe, 2, 0.0)


def row(table, **values):
    return dict.fromkeys(TABLES[table].names) | values


def response(topic, sample, text, model="base", split="train"):
    ids = {"prompt_id": digest(topic, "Who?"), "topic": topic, "prompt": "Who?", "split": split}
    ids |= {"response_id": digest(topic, sample, model), "model": model, "sample": sample}
    return row("responses", **ids, text=text)


def of(r, *keys):
    return {k: r[k] for k in ("response_id", "topic", *keys)}


def scored(root, scope, responses, skip=()):
    """Every table of a scope, from one fact a response: its text."""
    facts = [
        row("facts", **of(r, "split"), fact_id=r["response_id"] + "f", fact=r["text"], position=0)
        for r in responses
    ]
    made = {
        "responses": responses,
        "facts": facts,
        "verdicts": [
            row("verdicts", **of(f), fact_id=f["fact_id"], supported="true" in f["fact"])
            for f in facts
        ],
        "questions": [
            row("questions", **of(f), fact_id=f["fact_id"])
            | {"question": f["fact"] + "?", "question_id": digest(f["topic"], f["fact"] + "?")}
            for f in facts
            if f["split"] == "train"
        ],
        "entities": [
            row("entities", **of(r, "split"), entity_id=r["response_id"], text=r["text"][:4])
            | {"start": 0, "end": 4, "answers": ["x", "y"]}
            for r in responses
            if r["split"] == "train"
        ],
        "rewards": [
            row("rewards", **of(r, "split", "prompt_id", "model"))
            | {"factscore": float("true" in r["text"])}
            for r in responses
        ],
        "mixes": [
            row("mixes", **of(r, "split", "prompt_id"), name="both", value=0.5) for r in responses
        ],
    }
    made["answers"] = [
        row("answers", **{k: q[k] for k in ("question_id", "topic", "question")}, answers=["a"])
        for q in made["questions"]
    ]
    recipes = {
        "questions": {"splits": ["train"]},
        "entities": {"splits": ["train"], "snapshot": "base", "entities.samples": 2},
        "answers": {"snapshot": "base"},  # no number, as imported: counted
    }
    for name, rows in made.items():
        if name not in skip:
            put(root, f"{scope}/{name}", rows, **recipes.get(name, {}))
    return made


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


RESPONSES = [
    response("Ada", 0, "Ada true."),
    response("Ada", 1, "Ada false."),
    response("Bo", 0, "Bo true.", split="val"),
]


def test_every_finished_table_is_written_and_comes_back(tmp_path):
    root, out = Folder.of(str(tmp_path / "run")), tmp_path / "out"
    made = scored(root, "base/tune", RESPONSES)
    (tmp_path / "run" / "base" / "latest").write_text("a file without an ending")
    done = export.export(root, str(out), 0.0)
    assert export.show(done).splitlines()[:2] == ["base/tune:", "FActScore = 66.7%"]
    assert export.plain(done)["base/tune"]["score"] == pytest.approx(2 / 3)
    here = out / "base" / "tune"
    assert names(here) == {
        "factscore.jsonl",
        "questions_per_topic_train.json",
        "questions_per_topic_val.json",
        "responses/Ada_generations.json",
        "responses/Bo_generations.json",
        "factscore_outputs/Ada_fs_out.json",
        "factscore_outputs/Bo_fs_out.json",
        "atomic_qs/Ada_aqs.json",  # Bo is of val, which nobody asked about
        "atomic_qs_samples/base_1samples/Ada_samples.json",
        "ne_samples/base_2samples/Ada_ne_samples.json",
        "rewards/rewards_train_1.json",
        "rewards/pairs_count_train_1.txt",
        "rewards/rewards_dpoval_1.json",
        "rewards/pairs_count_dpoval_1.txt",
    }
    ada = RESPONSES[:2]
    where = "atomic_qs_samples/base_1samples"
    ((questions, answers),) = confidence.read_questions(str(here), ada, where)
    assert (questions, answers) == (made["questions"], made["answers"])
    (found,) = entities.read_entities(str(here), ada, "ne_samples/base_2samples")
    assert found == made["entities"]
    assert [v["supported"] for _, v in tuning.read_scores(str(here), RESPONSES)] == [
        True,
        False,
        True,
    ]


def test_a_scope_without_verdicts_is_written_without_scores(tmp_path):
    root, out = Folder.of(str(tmp_path / "run")), tmp_path / "out"
    scored(root, "base/tune", RESPONSES, skip=("verdicts", "mixes", "answers"))
    done = export.export(root, str(out), 10.0)
    assert export.show(done) == "base/tune:\nno verdicts"
    assert export.plain(done) == {"base/tune": None}
    found = {name.split("/")[0] for name in names(out / "base" / "tune")}
    assert "factscore_outputs" not in found and "atomic_qs_samples" not in found
    assert {"atomic_qs", "ne_samples", "rewards", "responses"} <= found


def test_each_model_of_a_table_has_its_own_folder(tmp_path):
    root, out = Folder.of(str(tmp_path / "run")), tmp_path / "out"
    other = [response("Ada", 0, "Ada other true.", model="A"), response("Bo", 0, "Bo", model="B")]
    scored(root, "imported/all", other)
    done = export.export(root, str(out), 0.0)
    assert {k: v.init_score for k, v in done.items()} == {
        "imported/all/A": 1.0,
        "imported/all/B": 0,
    }
    for model, topic, text in (("A", "Ada", "Ada other true."), ("B", "Bo", "Bo")):
        here = out / "imported" / "all" / model
        written = json.loads((here / "rewards" / "rewards_train_1.json").read_text())
        assert list(written) == [topic] and written[topic]["Who?"]["responses"] == [text]
        assert [p.name for p in (here / "atomic_qs").iterdir()] == [f"{topic}_aqs.json"]
        samples = here / "atomic_qs_samples" / "base_1samples" / f"{topic}_samples.json"
        assert json.loads(samples.read_text())["samples"] == [{f"{text}?": ["a"]}]


def test_preferences_of_every_round(tmp_path):
    root, out = Folder.of(str(tmp_path / "run")), tmp_path / "out"
    scored(root, "base/tune", RESPONSES, skip=("questions", "answers", "entities", "mixes"))
    group = {"prompt_id": "p", "topic": "Ada", "split": "train", "prompt": "Who?", "pairs": 1}
    group |= {"response_ids": ["a", "b", "c"], "responses": ["a", "b", "c"]}
    group |= {"rewards": [0.0, 0.25, 1.0]}
    put(root, "tuned/round_1/groups", [group], **{"groups.threshold": 0.5})
    put(root, "tuned/round_2/groups", [group | {"topic": "Bo"}])
    export.export(root, str(out), 0.0)

    def pairs(number):
        path = out / "tuned" / f"round_{number}" / "preferences" / "train.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(r["chosen"], r["rejected"]) for r in rows]

    assert pairs(1) == [("c", "a"), ("c", "b")]  # by the threshold that the groups were made with
    assert pairs(2) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert (out / "tuned" / "round_1" / "grouped" / "train.jsonl").exists()
    export.export(root, str(out), 0.0, chat=True)
    said = [{"role": "assistant", "content": "c"}], [{"role": "assistant", "content": "a"}]
    assert pairs(2)[1] == said


def test_nothing_to_export(tmp_path):
    put(Folder.of(str(tmp_path)), "base/tune/responses", RESPONSES)
    with pytest.raises(UserError, match="no finished facts and verdicts"):
        export.export(Folder.of(str(tmp_path)), str(tmp_path / "out"), 0.0)
