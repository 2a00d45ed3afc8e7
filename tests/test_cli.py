"""What the command line sets up for what it runs; its words, JSON and shell completion."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import re
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from facttune_ray import cli
from facttune_ray.commands import completion, demo, parser
from facttune_ray.errors import UserError
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


@pytest.fixture
def no_screen(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


def test_demo_writes_a_page_that_says_what_was_recorded(tmp_path, monkeypatch, no_screen, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    said = capsys.readouterr()
    path = tmp_path / "runs/demo.html"
    assert said.out == f"{path}\n" and said.err == "open this page in a browser\n"
    page = path.read_text()
    note = re.search(r'<p class="note" id="recorded">(.*?)</p>', page)[1]
    made = re.search(r"FactTune report, (\d+)-\d\d-0?(\d+) ", page)
    assert f" {made[2]} " in note and f" {made[1]}, with seed 0" in note
    # Record it again for another version, as commands/demo.py says.
    assert f"facttune_ray {version('facttune_ray')}." in note
    assert "<title>Recorded run: quickstart" in page


def test_the_recorded_page_is_small_safe_and_names_no_folder(tmp_path):
    page = demo.demo(str(tmp_path / "d.html")).read_text()
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.S)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert Path(demo.__file__).with_name("demo.html.gz").stat().st_size < demo.MOST_BYTES
    assert "&#34;out&#34;: &#34;runs/quickstart&#34;" in page and "/home/" not in page


def test_demo_needs_the_standard_library_alone(tmp_path):
    code = "import sys; from facttune_ray import cli; cli.main(sys.argv[1:])\n"
    code += "print([m for m in ('torch', 'ray', 'pyarrow', 'numpy', 'jinja2') if m in sys.modules])"
    words = ["demo", "--no-browser", "--out", str(tmp_path / "d.html")]
    command = [sys.executable, "-c", code, *words]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(tmp_path / "d.html"), "[]"]


@pytest.mark.parametrize(("answer", "opens"), [(True, True), (False, False), (OSError(), False)])
def test_demo_opens_a_browser_where_there_is_a_screen(
    tmp_path, monkeypatch, no_screen, capsys, answer, opens
):
    asked = []

    def browse(address):
        asked.append(address)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("webbrowser.open", browse)
    words = ["demo", "--out", str(tmp_path / "d.html")]
    assert cli.main(words) == 0 and asked == []
    monkeypatch.setenv("DISPLAY", ":0")
    capsys.readouterr()
    assert cli.main(words) == 0 and asked == [(tmp_path / "d.html").as_uri()]
    assert capsys.readouterr().err == ("" if opens else "open this page in a browser\n")
    assert cli.main([*words, "--no-browser"]) == 0 and len(asked) == 1


@pytest.mark.parametrize("out", ["{}/file/d.html", "{}", "s3://bucket/d.html"])
def test_demo_without_a_place_to_write_is_one_line(tmp_path, capsys, out):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", out.format(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("facttune: error: ") and said.count("\n") == 1


def test_a_quickstart_is_recorded_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "demo.py"))
    about = {"created": "2026-03-07T10:00:00+00:00", "seed": 5, "versions": {"facttune_ray": "9.9"}}
    about["config"] = {"data": {"source": "world"}}
    page = "<title>quickstart</title>\n<main>\n<h1>quickstart</h1>"
    (tmp_path / "report.html").write_text(page)
    (tmp_path / "summary.json").write_text(json.dumps({"run": about}))
    packed = demo.record(str(tmp_path)).read_bytes()
    made = gzip.decompress(packed).decode()
    assert "on 7 March 2026, with seed 5 and facttune_ray 9.9." in made
    assert made.startswith("<title>Recorded run: quickstart") and made.endswith(page[-20:])
    assert demo.record(str(tmp_path)).read_bytes() == packed
    (tmp_path / "report.html").write_text(made)
    with pytest.raises(UserError, match="record the report of a finished"):
        demo.record(str(tmp_path))  # a recorded page is no report


def test_without_its_dependencies_the_package_names_the_missing_one(capsys, monkeypatch):
    class OfAWorker(ModuleNotFoundError):  # as RayTaskError(ModuleNotFoundError)
        cause = ModuleNotFoundError("No module named 'peft'", name="peft")

    def absent(args):
        raise OfAWorker() if name == "" else ModuleNotFoundError(name=name)

    monkeypatch.setitem(cli.COMMANDS, "compare", absent)
    name = ""
    assert cli.main(["compare", "a", "b"]) == 2
    assert "the Python package peft is not installed" in capsys.readouterr().err
    name = "pyarrow"
    assert cli.main(["compare", "a", "b"]) == 2
    said = capsys.readouterr().err
    assert "pyarrow is not installed" in said and said.count("\n") == 1
    name = "facttune_ray"
    with pytest.raises(ModuleNotFoundError):  # a bug
        cli.main(["compare", "a", "b"])


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
    assert commands.keys() - PRINTS.keys() == {"demo", "watch", "annotator", "completion"}
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
    _, commands = parser.parser()
    scripts = {s: completion.script(s, commands) for s in ("bash", "zsh", "fish")}
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
