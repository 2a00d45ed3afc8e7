"""The whole loop as a user runs it, on a small world and on real text."""

from __future__ import annotations

import json
import shutil
import time

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.runtime import settings
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import REWARD_COLUMNS, TABLES

FIGURES = ("correct", "incorrect", "error_rate", "no_facts", "repeated", "length")


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster, small_preset, spacy_pipeline):
    """(folder of a finished small quickstart with every reward, its preset and settings)"""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    config = [
        small_preset,
        "questions.answer=true",
        f"entities.spacy_model={spacy_pipeline}",
        "rewards.columns=[factscore_lp, neg_ent, exp_conf, samp_conf, p_true, both]",
        "rewards.mix.both={factscore: 1.0, max_conf: 0.5, ne_max_conf: 0.5}",
    ]
    assert cli.main(["quickstart", "--out", str(out), *config]) == 0
    return out, config


def again(run, *more: str) -> list[str]:
    out, config = run
    return ["quickstart", "--out", str(out), *config, *more]


def test_summary_holds_what_it_promises(run):
    out, _ = run
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "facttune_fs", "facttune_mc"]
    for model in summary["models"].values():
        for figure in FIGURES:
            assert model[figure]["low"] <= model[figure]["value"] <= model[figure]["high"], figure
        assert model["topics"] == 6
    assert set(summary["run"]["splits"].values()) == {"test"}
    assert {t["table"] for t in summary["stages"]} >= {"base/tune/facts", "base/test/verdicts"}


def test_only_test_topics_are_measured(run):
    out, _ = run
    prompts = [r for p in out.glob("prompts/part-*") for r in pq.read_table(p).to_pylist()]
    split = {p["topic"]: p["split"] for p in prompts}
    assert len(split) == len(prompts) == 22
    for part in out.rglob("test/responses/part-*"):
        assert {split[t] for t in pq.read_table(part)["topic"].to_pylist()} <= {"test"}
    for part in out.rglob("groups/part-*"):
        assert {split[t] for t in pq.read_table(part)["topic"].to_pylist()} <= {"train"}


def test_every_table_has_its_schema_and_no_errors(run):
    out, _ = run
    seen = set()
    for path in out.rglob("_MANIFEST.json"):
        manifest = json.loads(path.read_text())
        if manifest["table"] in TABLES:
            seen.add(manifest["table"])
            assert manifest["errors"] == 0
            for part in path.parent.glob("part-*.parquet"):
                assert pq.read_schema(part).names == TABLES[manifest["table"]].names
    assert seen == set(TABLES) - {"topics"}  # which only a topics file brings


def rewards_of(out, scope="base/tune"):
    rows = [r for p in (out / scope).glob("rewards/part-*") for r in pq.read_table(p).to_pylist()]
    return {r["response_id"]: r for r in rows if r["split"] == "train"}


def test_every_reward_is_there_for_every_train_response(run):
    out, _ = run
    rewards = rewards_of(out)
    assert len(rewards) == 12 * 10
    for name in REWARD_COLUMNS:
        known = [r[name] for r in rewards.values() if r[name] is not None]
        assert len(known) >= 0.9 * len(rewards) and len(set(known)) > 3, name
    assert all(r["words"] and r["errors"] == 0 and not r["abstained"] for r in rewards.values())
    mixes = [r for p in out.glob("base/tune/mixes/part-*") for r in pq.read_table(p).to_pylist()]
    values = [r["value"] for r in mixes if r["split"] == "train" and r["value"] is not None]
    assert abs(sum(values) / len(values)) < 0.2  # z-scores: around 0
    found = json.loads((out / "summary.json").read_text())["rewards"]
    assert set(found) == {*REWARD_COLUMNS, "both"}
    assert found["max_conf"]["auroc"] > 0.6 and found["max_conf"]["bins"]
    assert all(r["pairs"] > 0 for r in found.values())
    assert "Reliability of confidence" in (out / "report.html").read_text()


def test_files_of_the_reference_give_the_same_rewards_again(run, tmp_path):
    """Out as its files, in again as tables that are ready: nothing is asked and nothing sampled."""
    out, config = run
    assert cli.main(["export", "quickstart", f"run.out={out}", *config, "--to", str(tmp_path)]) == 0
    folder = tmp_path / "base" / "tune"
    (count,) = (folder / "rewards").glob("pairs_count_train_12.txt")
    assert {line.split(":")[0] for line in count.read_text().splitlines()} >= {
        "factscore_avg",
        "aq_max_conf_avg",
        "aq_samp_conf_avg",
        "ne_max_conf_avg",
    }
    more = [
        f"run.out={tmp_path / 'again'}",
        "data.source=tuning",
        f"data.folder={folder}",
        "data.ready=[facts, questions, entities]",
        "data.samples=atomic_qs_samples/base_20samples",
        "data.entity_samples=ne_samples/base_20samples",
        f"model.path={out / 'base' / 'pretrain' / 'model'}",
        "tune.facttune_fs.rounds=0",
        "tune.facttune_mc.rounds=0",
        "evaluation.tuned=false",
    ]
    assert cli.main(["run", "quickstart", *config, *more]) == 0
    before, after = rewards_of(out), rewards_of(tmp_path / "again", "imported/all")
    assert before.keys() == after.keys()
    for name in REWARD_COLUMNS:
        known = {i: r[name] for i, r in before.items()}
        assert {i: r[name] for i, r in after.items()} == known, name
    manifest = json.loads((tmp_path / "again/imported/all/rewards/_MANIFEST.json").read_text())
    assert manifest["errors"] == 0
    assert not (tmp_path / "again" / "annotator").exists()  # nobody was asked


def test_a_second_run_computes_nothing(run, capsys):
    out, _ = run
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    started = time.monotonic()
    assert cli.main(again(run)) == 0
    assert time.monotonic() - started < 20
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    assert "FactTune-FS" in capsys.readouterr().out


def test_nothing_was_answered_twice(run):
    out, _ = run
    lines = (out / "annotator" / "journal.jsonl").read_text().splitlines()
    requests = [json.loads(line)["request_sha256"] for line in lines]
    assert len(requests) == len(set(requests)) > 200


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("responses.temperature=0.5", "responses.temperature was 1.0, now 0.5"),
        ("tune.facttune_fs.lr=1e-3", "train.lr was 5e-05, now 0.001"),
        ("run.seed=7", "run.seed was 0, now 7"),
        ("rewards.distinct_facts=false", "rewards.distinct_facts was True, now False"),
        ("run.sed=7", 'unknown key "run.sed"'),
    ],
)
def test_a_changed_recipe_is_refused_in_one_line(run, capsys, override, says):
    out, _ = run
    before = sorted(p for p in out.rglob("*"))
    assert cli.main(again(run, override)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert sorted(p for p in out.rglob("*")) == before


def test_status_and_report(run, capsys):
    out, config = run
    assert cli.main(["status", "quickstart", *config, f"run.out={out}", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    summary = json.loads((out / "summary.json").read_text())
    assert [t["name"] for t in tables] == [s["table"] for s in summary["stages"]]
    assert {t["state"] for t in tables} == {"finished"}
    assert cli.main(["status", str(out)]) == 0
    assert "├─ base/tune\n" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert cli.main(["report", "quickstart", *config, f"run.out={out}"]) == 0
    assert "FactTune-FS" in (out / "report.html").read_text()


def test_a_second_opinion_and_a_judge_by_default(run):
    out, _ = run
    summary = json.loads((out / "summary.json").read_text())
    second = summary["second_opinion"]
    assert second["estimator"] == "lexical" and set(second["models"]) == set(summary["models"])
    assert all(m["agree"] > 0.6 for m in second["models"].values())
    judged = summary["judged"]
    assert set(judged) == {"facttune_fs", "facttune_mc"}
    assert all(q["pairs"] == 6 and not q["failed"] for j in judged.values() for q in j.values())
    assert {g["group"] for g in summary["groups"]} <= {
        "fewest documents",
        "more documents",
        "most documents",
    }
    assert {"work as", "born in"} <= {k["kind"] for k in summary["kinds"]}


def test_one_stage_at_a_time(run, tmp_path, capsys):
    _, config = run
    out = f"run.out={tmp_path / 'staged'}"
    assert cli.main(["stage", "prompts", "quickstart", *config, out]) == 2
    assert "run `facttune stage knowledge`" in capsys.readouterr().err
    assert cli.main(["stage", "knowledge", "quickstart", *config, out]) == 0
    assert cli.main(["stage", "prompts", "quickstart", *config, out]) == 0
    assert (tmp_path / "staged" / "prompts" / "_MANIFEST.json").exists()
    assert not (tmp_path / "staged" / "base").exists()
    assert cli.main(["stage", "promts", "quickstart", out]) == 2
    assert 'Did you mean "prompts"?' in capsys.readouterr().err


@pytest.mark.slow
def test_train_trains_from_the_runs_rewards(run, tmp_path, capsys):
    """Groups, log-probabilities and models of the first rounds; what these need stays."""
    out, config = run
    here = tmp_path / "out"
    shutil.copytree(out, here)
    command = ["train", "quickstart", *config, f"run.out={here}"]
    assert cli.main(command) == 0
    found = capsys.readouterr().out.splitlines()
    made = ("fs/round_1", "fs/round_2", "mc/round_1")
    rounds = [f"{here}/facttune_{x}/train/model" for x in made]
    assert found == ["train: nothing to do, every table matches its recipe", *rounds]
    for x in ("fs", "mc"):
        shutil.rmtree(here / f"facttune_{x}")
    (here / settings.FILE).unlink()  # it is written again with train.max_steps=1
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()}
    assert cli.main([*command, "train.max_steps=1"]) == 0
    assert settings.kept(Folder.of(str(here))).train.max_steps == 1
    assert capsys.readouterr().out.splitlines() == [rounds[0], rounds[2]]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    made = sorted(str(p.parent.relative_to(here)) for p in here.rglob("_MANIFEST.json"))
    assert [n for n in made if n.startswith("facttune_fs")] == [
        f"facttune_fs/round_1/{name}" for name in ("groups", "reference", "train")
    ]


def test_an_endpoint_that_is_down_leaves_tables_alone(run, tmp_path, capsys):
    out, config = run
    model = out / "base" / "pretrain" / "model"
    words = [*config, f"run.out={tmp_path / 'o'}", f"model.path={model}"]
    down = ["llm.base_url=http://127.0.0.1:9/v1", "llm.max_attempts=1"]
    assert cli.main(["run", "quickstart", *words, *down]) == 2
    assert "http://127.0.0.1:9/v1 is down" in capsys.readouterr().err.splitlines()[-1]
    done = tmp_path / "o" / "base" / "tune" / "responses" / "_MANIFEST.json"
    made_at = done.stat().st_mtime_ns
    assert cli.main(["stage", "facts", "quickstart", *words]) == 0  # the endpoint is up again
    assert (done.parent.parent / "facts" / "_MANIFEST.json").exists()
    assert done.stat().st_mtime_ns == made_at


def test_tables_do_not_depend_on_the_number_of_workers(run, tmp_path):
    out, config = run
    model = out / "base" / "pretrain" / "model"
    found = {}
    for workers in (1, 2):
        here = tmp_path / str(workers)
        words = [*config, f"run.out={here}", f"model.path={model}", f"run.workers={workers}"]
        for name in ("knowledge", "prompts", "responses", "facts"):
            assert cli.main(["stage", name, "quickstart", *words]) == 0
        parts = sorted(here.glob("base/tune/*/part-*"))
        found[workers] = [pq.read_table(p).to_pylist() for p in parts]
    assert found[1] == found[2] and len(found[1]) == 8


@pytest.mark.slow
def test_real_text_without_any_llm(labelled_data, ray_cluster, tmp_path):
    out = tmp_path / "out"
    words = ["run", "factscore", f"data.folder={labelled_data}", f"run.out={out}"]
    assert cli.main([*words, "tune.facttune_fs.rounds=1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    human = summary["human"]
    assert human["ChatGPT"]["auroc"] >= 0.84 and human["InstructGPT"]["auroc"] >= 0.87
    for found in human.values():
        assert found["accuracy"] >= 0.78
        assert min(found["pearson_score"], found["pearson_supported"]) >= 0.87
    assert human["InstructGPT"]["no_article"] == 26
    assert not (out / "ledger").exists() and not (out / "annotator").exists()
    assert summary["training"]["facttune_fs"][0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert (out / "facttune_fs" / "round_1" / "train" / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["labels", "llm"])
def test_real_text_with_the_annotator(labelled_data, ray_cluster, tmp_path, method):
    words = ["run", "factscore", f"data.folder={labelled_data}", f"run.out={tmp_path / 'out'}"]
    words += ["verdicts.estimator=chat", f"facts.method={method}"]
    assert cli.main(words) == 0
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("_MANIFEST.json")]
    first, second = (m for m in manifests if m["table"] == "verdicts")
    verdicts, other = sorted((first, second), key=lambda m: -m["calls"])
    assert other["recipe"]["verdicts.estimator"] == "lexical" and not other["calls"]
    assert verdicts["errors"] == 0 and verdicts["calls"] > 4000
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    if method == "labels":
        assert min(h["accuracy"] for h in summary["human"].values()) > 0.7
    else:
        assert summary["human"] == {}  # facts of its own carry no labels


def test_another_knowledge_source_is_refused(ray_cluster, tmp_path, capsys):
    fact = {"text": "Ada sings.", "label": "S"}
    line = {"topic": "Ada", "input": "Tell me.", "output": "Ada sings."}
    line["annotations"] = [{"text": "Ada sings.", "human-atomic-facts": [fact]}]
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    source = tmp_path / "k.jsonl"
    words = ["run", "factscore", f"data.folder={tmp_path}", "data.files=[m.jsonl]"]
    words += ["data.knowledge=k.jsonl", f"run.out={tmp_path / 'out'}"]
    source.write_text('{"title": "Ada", "text": "Ada sings well."}\n')
    assert cli.main(words) == 0
    source.write_text('{"title": "Ada", "text": "Ada paints."}\n')
    assert cli.main(words) == 2
    assert "knowledge was made by another recipe" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "knowledge")
    assert cli.main(words) == 2  # and the verdicts, which came from the old one
    assert "verdicts was made by another recipe: input.knowledge" in capsys.readouterr().err


def test_malformed_labelled_line(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text('{"topic": "A", "input": "x"\n')
    (tmp_path / "k.jsonl").write_text('{"title": "A", "text": "A is old."}\n')
    words = ["run", "factscore", f"data.folder={tmp_path}", "data.files=[m.jsonl]"]
    words += ["data.knowledge=k.jsonl", f"run.out={tmp_path / 'out'}"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "m.jsonl:1: not JSON" in error
