"""Figures from finished tables: comparisons, the choice of a round, the shards that are read."""

import json
from types import SimpleNamespace

import pytest

from facttune_ray import config
from facttune_ray.evaluation import breakdowns, measure
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder


def write(root, scope, **made):
    """write(root, "base/test", responses=[rows of shard 0, rows of shard 1], ...)"""
    for name, shards in made.items():
        for shard, rows in enumerate(shards):
            tables.write_part(root / scope / name, name, shard, rows, {})
        tables.write_manifest(root / scope / name, name, {}, len(shards), 0.0)


def test_parts_of_an_earlier_page_are_removed(tmp_path):
    root = Folder.of(str(tmp_path))
    measure.write_files(root, {"report_data/a.js": b"1", "report_data/b.js": b"2"})
    measure.write_files(root, {"report_data/b.js": b"2", "report.html": b"3"})
    assert root.files() == ["report.html", "report_data/b.js"]
    measure.write_files(root, {"report.html": b"3"})
    assert root.files() == ["report.html"]


def response(rid, split="test", **more):
    ids = {"response_id": rid, "prompt_id": rid, "topic": rid, "split": split, "sample": 0}
    return ids | {"model": "base", "text": f"{rid} sings."} | more


def fact(rid, supported, said="sings"):
    ids = {"fact_id": f"{rid}/{said}", "response_id": rid, "topic": rid}
    return ids | {"fact": f"{rid} {said}.", "repeated": False, "supported": supported}


def judged(root, scope, responses, facts):
    """One shard of responses with their facts and verdicts."""
    stated = [{k: v for k, v in f.items() if k != "supported"} for f in facts]
    verdicts = [{k: f[k] for k in ("fact_id", "response_id", "supported")} for f in facts]
    write(root, scope, responses=[responses], facts=[stated], verdicts=[verdicts])


def measured(root, *words, **more):
    settings = {"measured": {"base": "base/test"}, "imported": "", "rewards": "base/tune"} | more
    cfg = config.load(["quickstart"], ["evaluation.resamples=50", *words])
    measure.write(root, cfg, selection={}, manifests={}, fingerprint="f", **settings)
    return json.loads((root / "summary.json").read_bytes())


def test_without_val_topics_the_last_round_is_taken(tmp_path):
    root = Folder.of(str(tmp_path))
    rounds = [SimpleNamespace(name=f"fs/round_{k}") for k in (1, 2)]
    for one in rounds:
        judged(root, f"{one.name}/tune", [response("Ada", "train")], [fact("Ada", True)])
    found = measure.select(root, rounds, "net")
    assert (found["chosen"], found["metric"]) == ("fs/round_2", None)
    judged(root, "fs/round_1/tune", [response("Ada", "val")], [fact("Ada", True)])
    found = measure.select(root, rounds, "net")
    assert (found["chosen"], found["metric"]) == ("fs/round_1", "val correct - incorrect")


def test_rounds_of_a_log_are_in_order_of_their_numbers(tmp_path):
    for number in (1, 2, 10):
        folder = tmp_path / "fs" / f"round_{number}" / "train"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"step": 1}\n')
    found = measure._log(Folder.of(str(tmp_path)), "fs", "train")
    assert [line["round"] for line in found] == [1, 2, 10]


def test_kinds_add_up_to_the_figures(tmp_path):
    """Over responses that did not fail and have a judged fact or no fact."""
    root = Folder.of(str(tmp_path))
    rows = [response("Ada"), response("Bo"), response("Cy", text=None, error="timeout")]
    judged(root, "base/test", rows, [fact("Ada", True), fact("Ada", False, "paints")])
    scopes = {"base": Scope("base/test")}
    counts = {"base": breakdowns.counts(root, scopes["base"])}
    found = [k["models"]["base"] for k in breakdowns.kinds(root, scopes, counts)]
    assert sum(k["correct"] for k in found) == sum(k["incorrect"] for k in found) == 0.5


def test_a_model_without_responses_has_no_figure_of_a_group(counts_of):
    found = {"base": counts_of({"Ada": [(3, 1)]}), "mute": counts_of({})}
    (rare,) = breakdowns.groups(found, {"Ada": "rare"}, resamples=10, seed=0)
    assert rare["models"]["base"]["error_rate"]["value"] == 0.25
    assert rare["models"]["mute"]["error_rate"]["value"] is None


def test_rewards_are_measured_on_as_many_shards_as_hold_evaluation_most(tmp_path):
    root = Folder.of(str(tmp_path))
    judged(root, "base/test", [response("Ada")], [fact("Ada", True)])
    rows = [[response(r, "train")] for r in ("Bo", "Cy")]
    rewards = [[{"factscore": 0.5} | row for row in some] for some in rows]
    kept = ("response_id", "prompt_id", "split", "factscore")
    rewards = [[{k: row[k] for k in kept} for row in some] for some in rewards]
    write(root, "base/tune", responses=rows, rewards=rewards)
    for most, parts in ((2, [2, 2]), (1, [1, 2])):
        summary = measured(root, f"evaluation.most={most}")
        assert summary["run"]["reward_parts"] == parts
        assert summary["rewards"]["factscore"]["responses"] == parts[0]


def test_a_run_without_test_topics_has_a_report(measured_run):
    folder = measured_run(topics=0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["models"]["facttune_fs"]["responses"] == 0
    assert (
        "FactTune-FS states no fact that could be judged." in (folder / "report.html").read_text()
    )


def test_imported_responses_are_measured_beside_the_models(measured_run):
    """A tuned model is compared with base, to the same test topics; what the files bring is to all
    topics, and one of their models may be called base, too."""
    root = Folder.of(str(measured_run(topics=8)))
    for name in ("responses", "facts", "verdicts"):
        rows = list(tables.rows(root / "base/test" / name, 0))
        if name == "responses":
            rows = [r | {"model": "base" if i % 2 else "ChatGPT"} for i, r in enumerate(rows)]
        write(root, "imported/all", **{name: [rows]})
    both = {"base": "base/test", "facttune_fs": "facttune_fs/round_1/test"}
    summary = measured(root, measured=both, imported="imported/all", rewards="imported/all")
    assert summary["run"]["splits"] == {
        "base": "test",
        "facttune_fs": "test",
        "ChatGPT": "all",
        "base (imported)": "all",
    }
    assert set(summary["comparisons"]) == {"facttune_fs"}
    assert summary["models"]["base"]["topics"] == 8 == 2 * summary["models"]["ChatGPT"]["topics"]
    alone = measured(root, measured={}, imported="imported/all", rewards="imported/all")
    assert set(alone["comparisons"]) == {"ChatGPT"}  # with the base model of the same files


def test_second_opinions_and_judgements_are_corrected_for_the_number_of_models(measured_run):
    root = Folder.of(str(measured_run(topics=8)))
    tuned = Scope("facttune_fs/round_1/test")
    models = {"a": tuned, "b": tuned}
    scopes = {"base": Scope("base/test")} | models
    second = breakdowns.second_opinion(root, scopes, resamples=50, seed=0)
    for one in second["comparisons"].values():
        assert one["p"]["error_rate"] < 0.5
        assert one["p_holm"]["error_rate"] == pytest.approx(2 * one["p"]["error_rate"])
    for one in breakdowns.judged(root, models).values():
        assert one["fluency"]["p_holm"] == pytest.approx(2 * one["fluency"]["p"])


def test_the_shared_parts_of_two_estimators_are_listed(measured_run):
    root = Folder.of(str(measured_run(topics=2)))
    scopes = {"base": Scope("base/test")}

    def shared(estimator):
        folder = root / "base/test/verdicts"
        tables.write_manifest(folder, "verdicts", {"verdicts.estimator": estimator}, 1, 0.0)
        return breakdowns.second_opinion(root, scopes, resamples=0, seed=0)["shared"]

    assert shared("chat+lexical") == ["lexical"]
    assert shared("chat") == []
