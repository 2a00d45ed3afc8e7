"""`facttune status`: tables that are finished, being made or not begun, in the pipeline's order."""

from __future__ import annotations

import json
import sys

import pytest

from facttune_ray import cli, config
from facttune_ray.commands import look as look_file
from facttune_ray.commands import status
from facttune_ray.commands.look import FINISHED, MAKING, WAITING, Look
from facttune_ray.runtime import settings
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder

SHARDS = 4


def begin(root, name, parts, rows=10, errors=0, cost_usd=0.5, finished=False):
    """A table with `parts` of SHARDS parts."""
    table = name.rsplit("/", 1)[-1]
    tables.begin(root / name, {})
    for shard in range(parts):
        made = [{"error": "refused" if i < errors else None} for i in range(rows)]
        stats = {"calls": 3, "cached": 1, "tokens": 50, "cost_usd": cost_usd}
        tables.write_part(root / name, table, shard, made, stats)
    if finished:
        tables.write_manifest(root / name, table, {}, SHARDS, 2.0)


@pytest.fixture
def cfg(tmp_path):
    words = [f"run.out={tmp_path / 'out'}", f"run.shards={SHARDS}", "tune.facttune_mc.rounds=0"]
    return config.load(["quickstart"], words)


@pytest.fixture
def root(cfg):
    """A run in its first scope: one table of a scope is finished, one is being made."""
    root = Folder.of(cfg.run.out)
    begin(root, "prompts", SHARDS, finished=True)
    begin(root, "base/tune/responses", SHARDS, finished=True)
    begin(root, "base/tune/facts", 3, errors=1)
    begin(root, "base/tune/verdicts", 0)
    (root / "base/tune/facts/part-00003.parquet.0a1b.tmp").write_bytes(b"half")
    return root


def states(look):
    return {t.name: t for t in look.tables()}


def test_a_run_that_is_being_made(cfg, root):
    found = states(Look.of_config(cfg))
    facts = found["base/tune/facts"]
    assert (facts.state, facts.parts, facts.shards, facts.rows) == (MAKING, 3, 4, 30)
    assert (facts.expected_rows, facts.errors, facts.calls, facts.cost_usd) == (40, 3, 9, 1.5)
    assert status.progress(facts) == "30 of about 40 rows, 3/4 parts"
    assert found["base/tune/responses"].state == FINISHED
    verdicts = found["base/tune/verdicts"]
    assert (verdicts.state, verdicts.expected_rows) == (MAKING, None)
    assert status.progress(verdicts) == "0 rows, 0/4 parts"
    waiting = [n for n, t in found.items() if t.state == WAITING]
    assert waiting[:2] == ["knowledge", "base/pretrain"]
    assert "facttune_fs/round_2/test/verdicts" in waiting


def test_the_order_is_that_of_the_loop_with_a_config_and_without_one(cfg, root):
    names, shards = look_file.plan(cfg)
    assert shards == SHARDS and names[:3] == ["knowledge", "prompts", "base/pretrain"]
    for name in names:
        (root / name / tables.MANIFEST).write_json({"rows": 1, "wall_s": 1.0, "fingerprint": "f"})
    assert [t.name for t in Look.of_config(cfg).tables()] == names
    by_folder = [t.name for t in Look.of_folder(cfg.run.out).tables()]
    assert sorted(by_folder) == sorted(names)
    second = [n for n in names if "second_opinion" in n or n.endswith("judgements")]
    assert [n for n in by_folder if n not in second] == [n for n in names if n not in second]
    assert set(by_folder[-len(second) :]) == set(second)


def test_the_tables_of_the_chosen_round_stand_for_those_of_the_last(cfg, root):
    begin(root, "facttune_fs/round_1/test/responses", SHARDS, finished=True)
    names = [t.name for t in Look.of_config(cfg).tables()]
    assert not [n for n in names if n.startswith("facttune_fs/round_2/test")]
    place = names.index("facttune_fs/round_1/test/responses")
    assert names[place - 1] == "base/test/verdicts"
    assert names[place + 1] == "facttune_fs/round_1/test/facts"


def test_steps_of_a_training_whose_last_line_is_half_written(cfg, root):
    train = root / "facttune_fs/round_1/train"
    (train / tables.RECIPE).write_json({})
    assert states(Look.of_config(cfg))[train_name := "facttune_fs/round_1/train"].parts == 0
    lines = [json.dumps({"step": i, "steps": 60, "loss": 0.6}) for i in range(1, 13)]
    (train / "train.jsonl").write_bytes("\n".join([*lines, '{"step": 13, "st']).encode())
    t = states(Look.of_config(cfg))[train_name]
    assert (t.state, t.parts, t.shards) == (MAKING, 12, 60)
    assert status.progress(t) == "step 12 of 60"


def test_a_part_is_read_once_and_a_damaged_one_is_no_part(cfg, root, monkeypatch):
    read = []
    real = tables.part_stats
    monkeypatch.setattr(tables, "part_stats", lambda f, s: read.append((f.path, s)) or real(f, s))
    look = Look.of_config(cfg)
    look.tables()
    look.tables()
    assert len(read) == len(set(read)) == 3
    (root / "base/tune/facts" / tables.part(3)).write_bytes(b"PAR1 half")
    assert states(look)["base/tune/facts"].parts == 3


def test_a_config_whose_files_are_absent_shows_what_is_there(cfg, root, tmp_path):
    words = [f"run.out={cfg.run.out}", f"data.topics={tmp_path / 'none.txt'}", "model.path=m"]
    words += [f"data.knowledge={tmp_path / 'none.db'}", "llm.base_url=http://x", "llm.model=m"]
    names = [t.name for t in status.status(config.load(["bio"], words))]
    assert names == ["prompts", "base/tune/responses", "base/tune/facts", "base/tune/verdicts"]


def test_preferences_from_files_have_no_loop_to_follow(cfg):
    words = [f"run.out={cfg.run.out}", "data.groups=mine.jsonl"]
    assert look_file.plan(config.load(["quickstart"], words)) == ([], 0)


def test_the_tree(cfg, root, capsys, monkeypatch):
    assert cli.main(["status", cfg.run.out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{cfg.run.out}  2 of 4 tables, $5.50, last change ")
    assert lines[1].split()[:3] == ["├─", "✓", "prompts"] and lines[2] == "└─ base/tune"
    assert "▸ facts" in lines[4] and "█████████░░░" in lines[4]
    assert lines[4].endswith("3 errors") and "$1.50" in lines[4]
    assert lines[5].startswith("   └─ ▸ verdicts")
    assert not any("\033" in line for line in lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["status", cfg.run.out]) == 0
    assert "\033[31m3 errors\033[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(["status", cfg.run.out]) == 0
    assert "\033" not in capsys.readouterr().out


def test_json_has_the_same_tables(cfg, root, capsys):
    assert cli.main(["status", cfg.run.out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == cfg.run.out
    facts = next(t for t in found["tables"] if t["name"] == "base/tune/facts")
    assert (facts["rows"], facts["expected_rows"], facts["state"]) == (30, 40, MAKING)


def test_a_folder_takes_no_config_and_must_hold_a_table(cfg, root, tmp_path, capsys):
    assert cli.main(["status", cfg.run.out, "run.seed=1"]) == 2
    assert "is the folder of a run: it takes no config" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path)]) == 0  # the run lies in it, one folder deeper
    (tmp_path / "empty").mkdir()
    assert cli.main(["status", str(tmp_path / "empty")]) == 2
    assert "no table there" in capsys.readouterr().err


def test_no_word_is_no_folder_of_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not status.is_run("") and status.is_run(str(tmp_path))
    for command in ("status", "watch"):
        assert cli.main([command]) == 2
        assert "name a preset" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "no table there: name the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("planned", "there", "shown"),
    [
        ("f/round_2", ["f/round_1"], ["f/round_1"]),  # round 1 was chosen
        ("f/round_2", ["f/round_2", "f/round_1"], ["f/round_2", "f/round_1"]),
        ("f/round_2", ["f/round_1", "f/round_2"], ["f/round_2", "f/round_1"]),
        ("f/round_2", [], ["f/round_2"]),
    ],
)
def test_every_measured_round_is_shown(planned, there, shown):
    names = [f"{scope}/test/responses" for scope in there]
    found = look_file.ordered([f"{planned}/test/responses"], names)
    assert found == [f"{scope}/test/responses" for scope in shown]


def test_a_part_that_was_away_is_read_again_and_old_versions_are_forgotten(cfg, root, monkeypatch):
    look = Look.of_config(cfg)
    with monkeypatch.context() as away:
        away.setattr(look_file, "_part_stats", lambda file: None)
        assert states(look)["base/tune/facts"].rows == 0
    assert states(look)["base/tune/facts"].rows == 30
    for step in range(3):
        (root / "facttune_fs/round_1/train/train.jsonl").write_bytes(b'{"step": 1}\n' * (step + 1))
        states(look)
    assert sum(path.endswith("train.jsonl") for path, *_ in look._read) == 1


def test_the_ledger_of_a_folder_is_that_of_its_settings(cfg, root, tmp_path, capsys):
    tables.write_part(root / "base/tune/facts", "facts", 3, [], {"unknown": 1, "unknown_usd": 0.1})
    tables.write_manifest(root / "base/tune/facts", "facts", {}, SHARDS, 1.0)
    for ledger in (f"{root.path}/ledger", f"{tmp_path}/shared"):
        assert cli.main(["status", root.path]) == 0
        assert f"`facttune ledger verify {ledger}`" in capsys.readouterr().out
        settings.keep(root, config.load(["quickstart"], [f"llm.ledger={tmp_path}/shared"]))
