"""What the command line sets up for what it runs; its words, JSON and shell completion."""

from __future__ import annotations

import logging
import os
import resource
import shlex
import subprocess
import sys

import pytest

from facttune_ray import cli
from facttune_ray.commands import completion, parser
from facttune_ray.stages import STEPS


def test_deepspeed_does_not_warn_of_a_gpu_that_nobody_asked_for(capsys):
    assert cli.main(["status", "quickstart", "run.out=/nowhere"]) == 2
    logger = logging.getLogger("DeepSpeed")
    said = {
        level: bool(logger.filter(logger.makeRecord("x", level, "f", 1, "no GPU", (), None)))
        for level in (logging.WARNING, logging.ERROR)
    }
    assert said == {logging.WARNING: False, logging.ERROR: True}


@pytest.mark.parametrize(("policy", "count"), ((None, "1000"), ("ACTIVE", None)))
def test_threads_do_not_spin_long_unless_the_user_says_how(monkeypatch, capsys, policy, count):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": policy} if policy else {})
    assert cli.main(["status", "quickstart", "run.out=/nowhere"]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == count


def test_stage_help_lists_every_step_with_its_declaration(capsys):
    with pytest.raises(SystemExit):
        cli.main(["stage", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, (reads, runs_on) in STEPS.items():
        assert [name, *runs_on.split(), *reads.split()] in [line.split() for line in lines]


# every command that prints a table, and the words that it needs
PRINTS = {
    **dict.fromkeys(("quickstart", "run", "train", "evaluate", "report"), []),
    **dict.fromkeys(("estimate", "status", "config"), []),
    "stage": ["facts"],
    "compare": ["a", "b"],
    "inspect": ["a"],
    "export": ["--to", "a"],
    "knowledge": ["search", "a.db", "words"],
    "ledger": ["stats", "a"],
}


def test_every_command_that_prints_a_table_prints_json():
    whole, commands = parser.parser()
    for name, words in PRINTS.items():
        assert whole.parse_args([name, *words, "--json"]).json, name
    assert commands.keys() - PRINTS.keys() == {"watch", "annotator", "completion"}
    assert {whole.parse_args([n, *w]).does for n, w in PRINTS.items()} <= cli.COMMANDS.keys()


@pytest.fixture
def complete(tmp_path, monkeypatch, capsys):
    """complete("facttune run bi") -> the words that bash offers"""
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "topics.txt").write_text("Ada\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        named = f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}"
        listed = f"COMP_WORDS=({' '.join(map(shlex.quote, words))})"
        code = f"{script}\n{named} {listed}; _facttune; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        out = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert not out.stderr
        return out.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("line", "words"),
    (
        ("facttune st", ["stage", "status"]),
        ("facttune status --j", ["--json"]),
        ("facttune run gpus/", ["gpus/1", "gpus/8"]),
        ("facttune run bio train.lor", ["train.lora.rank=", "train.lora.alpha=", "train.lora."]),
        ("facttune run bio train.lr=1 llm.budget", ["llm.budget_usd="]),
        ("facttune stage ver", ["verdicts", "verdicts.estimator="]),
        ("facttune config trai", ["train", "train.loss="]),
        ("facttune knowledge s", ["search"]),
        ("facttune knowledge search -", ["-k", "--json"]),
        ("facttune ledger comp", ["compact"]),
        ("facttune inspect ru", ["runs"]),
        ("facttune run data.topics=top", ["topics.txt"]),
        ("facttune completion f", ["fish"]),
    ),
)
def test_bash_completes_commands_options_presets_settings_and_files(complete, line, words):
    found = complete(line)
    assert all(any(f.startswith(w) for f in found) for w in words), found
    last = line.rpartition(" ")[2].rpartition("=")[2]
    assert all(f.startswith(last) for f in found)


def test_the_scripts_of_all_shells_hold_every_command_and_option():
    whole, commands = parser.parser()
    scripts = {s: completion.script(s, whole, commands) for s in ("bash", "zsh", "fish")}
    assert "bashcompinit" in scripts["zsh"] and "complete -F _facttune" in scripts["bash"]
    for script in scripts.values():
        assert all(f"{name}" in script for name in (*commands, "train.lora.rank=", "countries"))
    assert "-l tokens-per-second -d 'that a GPU samples (assumed: 2000)'" in scripts["fish"]
    assert "'finished tables as files of FActScore, FactTune\\'s scripts, TRL'" in scripts["fish"]
    subprocess.run(["bash", "-n"], input=scripts["bash"], text=True, check=True)


def test_help_is_quick():
    """0.2 s on an idle machine: little more than an interpreter that imports argparse."""

    def cpu_s(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    code = "import facttune_ray.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass"
    usual_s = min(cpu_s("import argparse, importlib.metadata") for _ in range(3))
    assert min(cpu_s(code) for _ in range(3)) < usual_s + 0.1
