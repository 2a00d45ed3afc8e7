"""The summary of a measured run by hand, `facttune compare` and `facttune inspect`."""

import json

import pytest

from facttune_ray import cli, config
from facttune_ray.evaluation import breakdowns, inspect_run
from facttune_ray.evaluation.breakdowns import Scope
from facttune_ray.evaluation.report import browser, text
from facttune_ray.stages import verdicts
from facttune_ray.storage.tables import Folder


@pytest.fixture(scope="module")
def folder(measured_run):
    return measured_run(topics=10, samples=2, facts=4)


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def right(share, samples=(0, 1)):
    """Facts of ten topics that are right: (7t + 3s + k) % 10 < share."""
    return sum(
        (7 * t + 3 * s + k) % 10 < share for t in range(10) for s in samples for k in range(4)
    )


def test_figures_of_the_tables(summary):
    base, tuned = summary["models"]["base"], summary["models"]["facttune_fs"]
    assert base["error_rate"]["value"] == pytest.approx(1 - right(5) / 80)
    assert tuned["correct"]["value"] == pytest.approx(right(8) / 20)
    cut = summary["comparisons"]["facttune_fs"]["error_rate_reduction"]
    assert cut["value"] == pytest.approx(1 - (80 - right(8)) / (80 - right(5)))
    assert cut["low"] <= cut["value"] <= cut["high"]
    assert summary["k"] == [4] and "f1@4" in base
    assert summary["run"]["rewarded"] == ["facttune_fs"]


def test_the_second_opinion_of_the_tables(summary):
    second = summary["second_opinion"]
    # lexical also supports every response's first fact: of 20, those that chat does not
    more = sum((7 * t + 3 * s) % 10 >= 5 for t in range(10) for s in range(2))
    base = second["models"]["base"]
    assert second["estimator"] == "lexical" and base["facts"] == 80
    assert base["correct"]["value"] == pytest.approx((right(5) + more) / 20)
    assert base["agree"] == pytest.approx(1 - more / 80)
    assert second["comparisons"]["facttune_fs"]["error_rate_reduction"]["value"] > 0


def test_judgements_groups_kinds_and_lengths_of_the_tables(summary):
    judged = summary["judged"]["facttune_fs"]["fluency"]
    assert (judged["pairs"], judged["wins"], judged["ties"]) == (20, 10, 10)
    assert (judged["losses"], judged["by_order"], judged["failed"]) == (0, 10, 0)
    assert judged["win_rate"]["value"] == 1.0  # in every topic one win and one tie
    assert judged["p"] == pytest.approx(2 / 2**10)
    by_group = {g["group"]: g["models"]["base"] for g in summary["groups"]}
    rates = [b["error_rate"]["value"] for b in by_group.values()]
    assert set(by_group) == {"frequent", "rare"} and rates == sorted(rates)
    even = sum(
        (7 * t + 3 * s + k) % 10 < 5 for t in range(0, 10, 2) for s in (0, 1) for k in range(4)
    )
    rare = by_group["rare"]
    assert rare["error_rate"]["value"] == pytest.approx(1 - even / 40) and rare["topics"] == 5
    (kind,) = summary["kinds"]
    assert kind["kind"] == "born in"
    assert kind["models"]["base"]["correct"] == pytest.approx(right(5) / 20)
    assert sum(b["responses"] for b in summary["lengths"]["base"]["bins"]) == 20


def test_files_beside_the_report(folder):
    made = {p.name for p in folder.iterdir()} | {p.name for p in (folder / "csv").iterdir()}
    assert {"summary.md", "headline.png", "responses.csv", "facts.csv", "groups.csv"} <= made
    assert "FactTune-FS" in (folder / "summary.md").read_text()


def test_errors_are_counted_by_reason(tmp_path):
    from facttune_ray.evaluation.measure import _errors
    from facttune_ray.storage import tables

    root, rows = Folder.of(str(tmp_path)), []
    rows += [{"fact_id": f"f{i}", "error": "timeout"} for i in range(5)]
    rows += [{"fact_id": "g", "reason": "no article"}, {"fact_id": "h", "reason": "no fact"}]
    tables.write_part(root / "a/verdicts", "verdicts", 0, rows, {})
    made = tables.write_manifest(root / "a/verdicts", "verdicts", {}, 1, 0.0)
    found = _errors(root, {"a/verdicts": made})
    assert [(e["why"], e["error"], e["rows"]) for e in found] == [
        ("timeout", True, 5),
        ("no article", False, 1),
    ]
    assert found[0]["ids"] == ["f0", "f1", "f2"]


def test_topics_are_grouped_by_the_length_of_their_article(tmp_path):
    """Only topics of the measured shards; topics without an article are a separate group."""
    from facttune_ray.evaluation.measure import _groups
    from facttune_ray.knowledge import build
    from facttune_ray.storage import tables

    root, length = Folder.of(str(tmp_path)), {"Ada": 3, "Bo": 30, "Cy": 90}
    articles = [{"title": t, "text": "word " * n} for t, n in length.items()]
    build.write(articles, tmp_path / "knowledge.db")
    for shard, topics in enumerate((["Ada", "Bo", "Cy", "Nobody"], ["Dan"])):
        tables.write_part(root / "prompts", "prompts", shard, [{"topic": t} for t in topics], {})
    tables.write_manifest(root / "prompts", "prompts", {}, 2, 0.0)
    assert _groups(root, str(tmp_path / "knowledge.db"), range(1)) == {
        "Ada": "short article",
        "Bo": "middling article",
        "Cy": "long article",
        "Nobody": "no article",
    }


def test_a_large_set_is_measured_on_some_shards(tmp_path):
    from facttune_ray.storage import tables

    root = Folder.of(str(tmp_path))
    for name, each in (("base", 3), ("tuned", 2)):
        for shard in range(8):
            rows = [{"response_id": f"{shard}-{i}", "model": name} for i in range(each)]
            tables.write_part(root / name / "responses", "responses", shard, rows, {})
        tables.write_manifest(root / name / "responses", "responses", {}, 8, 0.0)
    scopes = {name: Scope(name) for name in ("base", "tuned")}
    assert breakdowns.limited(root, scopes, most=24) == scopes
    # 24 responses of base in 8 parts: 10 of them are 3 parts, and the same 3 of the tuned model
    some = breakdowns.limited(root, scopes, most=10)
    assert [s.shards for s in some.values()] == [3, 3]
    assert list(breakdowns.shards_of(root, some["tuned"])) == [0, 1, 2]
    assert breakdowns.limited(root, scopes, most=1)["base"].shards == 1
    two = {name: Scope("base", name) for name in ("a", "b")}  # two models in one table
    assert breakdowns.limited(root, two, most=12) == two
    assert breakdowns.limited(root, two, most=11)["a"].shards == 7  # 22 of 24 responses


def test_a_note_says_that_some_parts_are_measured(summary):
    assert not any("fair sample" in line for line in text.notes(summary))
    summary = json.loads(json.dumps(summary))
    summary["run"]["parts"] = [3, 8]
    (line,) = (n for n in text.notes(summary) if "fair sample" in n)
    assert (
        line.startswith("The figures come from 3 of 8 parts") and "evaluation.most=65,536" in line
    )


def test_compare_two_runs(folder, measured_run, capsys):
    other = measured_run(topics=10, samples=2, facts=3)
    assert cli.main(["compare", str(folder), str(other)]) == 0
    said = capsys.readouterr().out
    assert said.count("FactTune-FS") == 3 and "topics won" in said
    assert "run.out" not in said  # where a run stands changes no figure
    assert cli.main(["compare", str(folder), str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {} and found["warnings"] == []
    same = found["paired"][0]
    assert same["error_rate_reduction"]["value"] == 0 and same["p_holm"] == 1.0
    assert len(found["rows"]) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compare", "{run}"], "at least two runs"),
        (["compare", "{run}", "nowhere"], "nowhere does not exist"),
        (["compare", "{run}", "{run}/summary.json"], "summary.json is a file: name the folder"),
        (["inspect", "{run}/summary.json"], "summary.json is a file: name the folder"),
        (["inspect", "nowhere"], "nowhere does not exist"),
        (["inspect", "{run}", "Tpic 0003"], "did you mean Topic 0003"),
        (["inspect", "{run}", "Topic 0003", "--model", "x"], "matches --model"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, line):
    assert cli.main([w.format(run=folder) for w in words]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        ("[]", "/summary.json: summary is not as this version writes it"),
        ('{"models": {}, "run": {}}', "summary.second_opinion is not as"),
        ({"run": {"config": {}}}, "summary.run.config.evaluation is not as"),
        ({"models": {"base": {"f1@4": 3}}}, "models.base.correct is not as"),
        ({"second_opinion": {"models": {"base": []}}}, "second_opinion.models.base is not as"),
    ],
)
def test_a_damaged_summary_is_one_line(folder, summary, tmp_path, capsys, line):
    if isinstance(summary, dict):
        summary = json.dumps(json.loads((folder / "summary.json").read_text()) | summary)
    (tmp_path / "summary.json").write_text(summary)
    assert cli.main(["compare", str(folder), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert line in said and "facttune report" in said and said.count("\n") == 1
    (tmp_path / "summary.json").write_text("{")
    assert cli.main(["compare", str(folder), str(tmp_path)]) == 2
    assert "/summary.json: damaged, not JSON: remove it" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ['"model","topic"\n', "half", "\xff"])
def test_a_damaged_csv_is_one_line(folder, damage, tmp_path, capsys):
    (tmp_path / "csv").mkdir()
    (tmp_path / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    whole = (folder / "csv/responses.csv").read_text()
    text = whole[: len(whole) // 2 + 3].rstrip("\n") if damage == "half" else damage
    (tmp_path / "csv/responses.csv").write_text(text, encoding="latin-1")
    assert cli.main(["compare", str(folder), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "csv/responses.csv cannot be read: " in said and said.count("\n") == 1


def test_a_run_without_its_csv_is_said_to_be_unpaired(folder, tmp_path, capsys):
    (tmp_path / "summary.json").write_bytes((folder / "summary.json").read_bytes())
    assert cli.main(["compare", str(folder), str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (line,) = found["warnings"]
    assert f"{tmp_path.name}: csv/responses.csv is missing" in line and found["paired"] == []


def test_inspect_in_a_narrow_terminal(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    assert cli.main(["inspect", str(folder), "topic 0003"]) == 0
    assert "passage" in capsys.readouterr().out


def test_inspect(folder, capsys):
    assert cli.main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    # topic 3, base: 21 + 3s + k < 5 (mod 10): all 4 of the first sample, 1 of the second
    shown = ("base/test  5✓ 3✗", "base/tune  5✓ 3✗", "facttune_fs/round_1/test  8✓ 0✗")
    assert lines[3] == "Topic 0003  " + "   ".join(shown)
    words = ["inspect", str(folder), "topic 0003", "--model", "base/test", "--sample", "1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("✓ Topic") == 1 and said.count("✗ Topic") == 3
    assert "second opinion" not in said and said.count("passage") == 3
    assert "score 0.20" in said


def test_inspect_as_json(folder, capsys):
    assert cli.main(["inspect", str(folder), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["Topic 0003"]["base/test"]
    assert counts == {"correct": 5, "incorrect": 3, "unjudged": 0}
    words = ["inspect", str(folder), "topic 0003", "--model", "base/test", "--sample", "1"]
    assert cli.main([*words, "--json"]) == 0
    (response,) = json.loads(capsys.readouterr().out)
    assert (response["topic"], response["model"], response["sample"]) == (
        "Topic 0003",
        "base/test",
        1,
    )
    verdicts = [f["verdict"]["supported"] for f in response["facts"]]
    assert sorted(verdicts) == [False] * 3 + [True]
    assert response["facts"][0]["verdict"]["evidence"].startswith("Topic 0003 passage")


def test_inspect_gives_the_reason_and_each_passage_once():
    v = {"supported": False, "evidence": "a passage", "reason": "born: stated otherwise"}
    reason, passage = inspect_run.explanation(v, 80, None)
    assert (reason.strip(), passage.strip()) == (v["reason"], v["evidence"])
    assert inspect_run.explanation(v, 80, "a passage") == [reason]


def test_auto_takes_a_free_second_estimator():
    def name(*words):
        found = verdicts.second_opinion(config.load(["quickstart"], list(words)))
        return found and found.verdicts.estimator

    assert name() == "lexical"
    assert name("verdicts.retrieval=none") == "lexical"
    assert name("evaluation.estimator=none") is None
    assert name("verdicts.estimator=lexical") is None  # the same: the report's headline says so
    assert name("verdicts.estimator=chat+lexical") is None  # a part of it
    model = "verdicts.nli=a/model"
    assert name(model) == name("verdicts.estimator=lexical", model) == "nli"
    assert name("verdicts.estimator=chat+lexical", "verdicts.local_lm=m") == "local_lm"
    assert name("verdicts.estimator=nli", model, "verdicts.minicheck=m") == "minicheck"
    assert name("verdicts.estimator=nli", model) == "lexical"
    mine = ("data.source=factscore", "data.folder=d", "data.files=[m.jsonl]")
    assert name(*mine, model) is None  # no article
    assert name(*mine, model, "data.knowledge=k.jsonl") == "nli"
    turned = ("verdicts.estimator=lexical+chat", "evaluation.estimator=chat+lexical")
    assert name(*turned) is None
    assert name("verdicts.estimator=lexical", "evaluation.estimator=chat") == "chat"
    with pytest.raises(Exception, match='evaluation.estimator: no "lexcal"'):
        name("evaluation.estimator=lexcal")


def test_only_the_models_of_a_scope_are_counted(folder):
    root = Folder.of(str(folder))
    for scope in (Scope("base/test", "other"), Scope("base/test", only="val")):
        assert breakdowns.counts(root, scope).num_rows == 0
        assert list(browser.cards(root, {"base": scope}, {}, 100).cards) == []
