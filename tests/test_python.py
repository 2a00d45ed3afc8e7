"""The package as a notebook uses it: the page jobs/python.md, and `facttune_ray.run`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import facttune_ray
from facttune_ray import config
from facttune_ray.commands import from_python
from facttune_ray.commands import run as command
from facttune_ray.errors import BudgetReached, UserError

PAGE = Path(__file__).resolve().parents[1] / "jobs" / "python.md"
HEAVY = ("torch", "ray", "pyarrow", "pandas", "omegaconf", "pydantic")


def test_the_import_loads_nothing_heavy():
    code = f"import sys, facttune_ray; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path, monkeypatch, ray_cluster, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) >= 7
    said = capsys.readouterr().out
    assert "train.lr=-1" in said and re.search(r"^facttune_fs 0\.\d", said, flags=re.M)
    run, judged = names["run"], names["judged"]
    assert not run.unfinished and names["test"]["model"].unique().tolist() == ["base"]
    assert judged["fact_id"].is_unique and set(judged["scope"]) >= {"base/test", "base/tune"}
    rate = run.summary["models"]["base"]["error_rate"]["value"]
    kept = run.facts.filter(scope="base/test", repeated=False).to_pandas(columns=["fact_id"])
    assert rate == pytest.approx(1 - names["test"].merge(kept, on="fact_id")["supported"].mean())


SAME = (  # settings of Python, and the words of the command line
    ({"train": {"lr": 3e-5, "log": ["mlflow"]}}, ["train.lr=3e-05", "train.log=[mlflow]"]),
    ({"run.seed": 7, "run": {"out": Path("runs") / "a=b"}}, ["run.seed=7", "run.out=runs/a=b"]),
    ({"llm": {"budget_usd": None}, "questions.answer": True}, ["questions.answer=true"]),
    (
        {"rewards": {"mix": {"both": {"factscore": 1, "max_conf": 0.5}}}},
        ["rewards.mix.both={factscore: 1, max_conf: 0.5}"],
    ),
)


def test_local_places_are_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = ["run.out=~/runs/x", "llm.ledger=ledger", "data.folder=s3://b/d", "model.path=some/id"]
    cfg = from_python._absolute(config.load(["quickstart"], words))
    assert (cfg.run.out, cfg.llm.ledger) == (f"{tmp_path}/home/runs/x", f"{tmp_path}/ledger")
    assert (cfg.data.folder, cfg.model.path) == ("s3://b/d", "some/id")
    (tmp_path / "some" / "id").mkdir(parents=True)
    assert from_python._absolute(cfg).model.path == f"{tmp_path}/some/id"


@pytest.mark.parametrize(("settings", "words"), SAME)
def test_settings_are_those_of_the_command_line(settings, words):
    given = list(from_python.overrides(settings))
    assert config.load(["quickstart"], given) == config.load(["quickstart"], words)


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    (
        ((), {}, "name a preset"),
        (("nosuch",), {}, 'no preset "nosuch"'),
        (("quickstart",), {"train": {"lrr": 1}}, "train.lrr"),
        (("quickstart",), {"train": {"lr": object()}}, "train.lr: a object is no value"),
    ),
)
def test_bad_input_raises_one_line(words, settings, says):
    with pytest.raises(UserError, match=re.escape(says)) as raised:
        facttune_ray.run(*words, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    (
        (BudgetReached("spent; sk-abcdefgh12 refused"), BudgetReached, "spent; sk-[key] refused"),
        (OSError(28, "No space left on device"), UserError, "storage: no space left: free some"),
    ),
)
def test_errors_of_a_run_are_one_line_without_secrets(monkeypatch, tmp_path, raised, kind, says):
    def fails(cfg):
        raise raised

    monkeypatch.setattr(command, "run", fails)
    with pytest.raises(kind, match=re.escape(says)) as error:
        facttune_ray.run("quickstart", run={"out": tmp_path})
    assert "abcdefgh12" not in str(error.value)
