"""FActScore through the whole pipeline: a labelled file replayed must give the humans' scores."""

import json
from pathlib import Path

import pytest

from facttune_ray import cli
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.sources import factscore

CLOSED = ["verdicts.retrieval=none", "facts.carry_words=0", "run.shards=4"]


def topic_scores(folder: Path) -> dict[str, tuple[float | None, dict]]:
    """{topic: (score without penalty, entry)} of the fs_out.json files below."""
    found = {}
    for path in folder.rglob("*_fs_out.json"):
        (entry,) = json.loads(path.read_text())
        found[entry["topic"]] = (entry["init_score"], entry)
    return found


ALL = 1_000_000


@pytest.mark.parametrize(
    ("file", "most"),
    [
        ("ChatGPT.jsonl", 24),
        pytest.param("ChatGPT.jsonl", ALL, marks=pytest.mark.slow),
        pytest.param("InstructGPT.jsonl", ALL, marks=pytest.mark.slow),
    ],
)
def test_replay_gives_the_human_scores(
    labelled_data, human_score, ray_cluster, tmp_path, capsys, file, most
):
    out, exported, labelled = tmp_path / "out", tmp_path / "exported", tmp_path / file
    lines = (labelled_data / file).read_text().splitlines(keepends=True)
    labelled.write_text("".join(lines[:most]))
    human = {r.topic: human_score(r) for r in factscore.read(labelled)}
    with running(AnnotatorOptions(replay=str(labelled))) as url:
        words = ["score", f"data.folder={tmp_path}", f"data.files=[{file}]", *CLOSED]
        words += [f"data.knowledge={labelled_data / 'knowledge.jsonl'}"]
        words += [f"run.out={out}", f"llm.base_url={url}"]
        assert cli.main(["run", *words]) == 0
        assert cli.main(["export", *words, "--to", str(exported)]) == 0
        said = capsys.readouterr().out
        found = topic_scores(exported)
        assert found.keys() == human.keys()
        for topic, score in human.items():
            assert found[topic][0] == (score and pytest.approx(score, abs=1e-9, rel=0)), topic
        # the exported questions and responses go in again, and the same scores come out
        again = ["score", "data.source=tuning", f"data.folder={exported / 'imported' / 'all'}"]
        again += [f"data.knowledge={labelled_data / 'knowledge.jsonl'}", *CLOSED]
        again += [f"run.out={tmp_path / 'again'}", f"llm.base_url={url}"]
        assert cli.main(["run", *again]) == 0
        assert cli.main(["export", *again, "--to", str(tmp_path / "twice")]) == 0
    twice = topic_scores(tmp_path / "twice")
    assert {t: e["decisions"] for t, (_, e) in twice.items()} == {
        t: e["decisions"] for t, (_, e) in found.items()
    }
    known = [s for s in human.values() if s is not None]
    lines = dict(line.split(" = ") for line in said.splitlines() if " = " in line)
    assert lines["FActScore w/o length penalty"] == f"{100 * sum(known) / len(known):.1f}%"
    assert lines["Respond ratio"] == f"{100 * len(known) / len(human):.1f}%"
    summary = json.loads((out / "summary.json").read_text())["models"][Path(file).stem]
    printed = float(lines["FActScore"].rstrip("%"))
    assert 100 * summary["factscore"]["factscore_lp"]["value"] == pytest.approx(printed, abs=0.051)


def test_export_before_anything_was_scored(tmp_path, capsys):
    words = ["score", f"run.out={tmp_path}", "--to", str(tmp_path / "x")]
    assert cli.main(["export", *words]) == 2
    assert "no finished facts and verdicts" in capsys.readouterr().err


def test_knowledge_from_the_command_line(tmp_path, capsys):
    source, database = tmp_path / "k.jsonl", tmp_path / "k.db"
    source.write_text('{"title": "Mara Veldt", "text": "Mara Veldt plays the cello in Lyon."}\n')
    assert cli.main(["knowledge", "build", str(source), str(database)]) == 0
    assert "1 titles" in capsys.readouterr().out
    assert cli.main(["knowledge", "search", str(database), 'cello "AND (', "-k", "2"]) == 0
    assert "Mara Veldt" in capsys.readouterr().out
    source.write_text('{"title": "Mara Veldt"}\n')
    assert cli.main(["knowledge", "build", str(source), str(tmp_path / "other.db")]) == 2
    assert f'{source}:1: needs "text"' in capsys.readouterr().err
    assert not (tmp_path / "other.db").exists()


def test_a_build_overwrites_nothing_but_a_database(tmp_path, capsys):
    source, database = tmp_path / "k.jsonl", tmp_path / "k.db"
    source.write_text('{"title": "Mara Veldt", "text": "Mara Veldt plays the cello."}\n')
    before = source.read_bytes()
    for words, says in (
        ([source, source], "k.jsonl: it exists and is no database"),
        ([source, tmp_path], "a folder"),
        ([source, database, "--workers", "-2"], "--workers -2: must be at least 0"),
    ):
        assert cli.main(["knowledge", "build", *map(str, words)]) == 2
        assert says in capsys.readouterr().err
    assert source.read_bytes() == before and not database.exists()
    for _ in range(2):  # a database gives way to a new one
        assert cli.main(["knowledge", "build", str(source), str(database)]) == 0
    assert cli.main(["knowledge", "search", str(database), "cello", "-k", "0"]) == 2
    assert "-k 0: must be at least 1" in capsys.readouterr().err


def test_a_finished_database_is_read_where_it_is(tmp_path, ray_cluster, capsys):
    source, database = tmp_path / "k.jsonl", tmp_path / "k.db"
    source.write_text('{"title": "Ada", "text": "Ada sings in Lyon."}\n')
    assert cli.main(["knowledge", "build", str(source), str(database)]) == 0
    (tmp_path / "m.jsonl").write_text('{"topic": "ada", "output": "Ada sings in Lyon."}\n')
    words = ["score", f"data.folder={tmp_path}", "data.files=[m.jsonl]", "data.knowledge=k.db"]
    words += [f"run.out={tmp_path / 'out'}", "facts.method=rules", "verdicts.estimator=lexical"]
    assert cli.main(["run", *words]) == 0
    assert not (tmp_path / "out" / "knowledge" / "knowledge.db").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"]["m"]["correct"]["value"] == 1.0
    assert cli.main(["run", *words, "data.knowledge=other.db"]) == 2
    assert "other.db: no such file" in capsys.readouterr().err
