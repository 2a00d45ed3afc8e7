"""A marked key, forced failures of every kind, and no trace of it anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from facttune_ray import cli, config, secrets
from facttune_ray.errors import UserError
from facttune_ray.quickstart.annotator import AnnotatorOptions, running

KEY = "sk-marked-0d9f3b7a5e1c4826"
UNTUNED = ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0", "evaluation.tuned=false"]
QUICKSTART = ["quickstart", "{preset}", *UNTUNED]
SCORE = ["run", "score", "data.folder={data}", "data.files=[M.jsonl]", "run.shards=2"]
BATCH = [*SCORE, "llm.mode=batch", "llm.batch_poll_s=0.2"]


@pytest.fixture
def ray_folder():
    """Where this test's own Ray writes its logs: sockets there need a short path."""
    folder = tempfile.mkdtemp(prefix="ft-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two responses to score."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"topic": t, "output": f"{t} sings in Lyon. {t} paints."} for t in ("Ada", "Bo")]
    (folder / "M.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "knowledge.jsonl").write_text('{"title": "Ada", "text": "Ada sings in Lyon."}\n')
    return folder


def run(url: str, ray_folder: Path, key: str, *words: str):
    command = [sys.executable, "-m", "facttune_ray", *words]
    command += [f"llm.base_url={url}", "llm.api_key_env=MARKED_KEY"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {
        "MARKED_KEY": key,
        "RAY_TMPDIR": str(ray_folder),
        "OPENAI_LOG": "debug",
        "RAY_BACKEND_LOG_LEVEL": "debug",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def files_with_key(*folders: Path) -> list[str]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and KEY.encode() in path.read_bytes():
                found.append(str(path))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "key", "words", "code", "says"),
    [
        ({"api_key": "another"}, KEY, SCORE, 2, "set MARKED_KEY"),
        ({"api_key": KEY, "error_share": 1.0}, KEY, SCORE, 2, "500"),
        ({"api_key": KEY, "malformed_share": 1.0}, KEY, SCORE, 2, "no completion"),
        ({"api_key": KEY, "reset_share": 0.2, "error_share": 0.2}, KEY, QUICKSTART, 0, ""),
        ({"api_key": KEY}, KEY + "\nx", SCORE, 2, "MARKED_KEY: the key"),  # no header takes it
        ({"api_key": "another"}, KEY, BATCH, 2, "set MARKED_KEY"),
        ({"api_key": KEY, "batch_error_share": 0.2}, KEY, BATCH, 0, ""),
    ],
)
def test_a_key_is_nowhere(
    tmp_path, small_preset, data, ray_folder, options, key, words, code, says
):
    out = tmp_path / "out"
    given = [w.format(preset=small_preset, data=data) for w in words] + [f"run.out={out}"]
    given += ["llm.max_wait_s=0.2", f"llm.max_attempts={2 if code else 20}"]
    with running(AnnotatorOptions(**options)) as url:
        done = run(url, ray_folder, key, *given)
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-3000:]
    assert says in said and "Traceback" not in said
    assert KEY not in said
    assert list(ray_folder.rglob("worker-*")), "no Ray logs were searched"
    assert files_with_key(out, ray_folder) == []


def test_a_key_comes_from_its_variable_or_from_a_file(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    monkeypatch.setenv("OTHER_KEY_FILE", str(file))
    assert secrets.key("OTHER_KEY") == KEY
    assert secrets.redact(f"401: {KEY!r} is wrong") == "401: '[key]' is wrong"
    monkeypatch.setenv("OTHER_KEY", "from-the-variable")
    assert secrets.key("OTHER_KEY") == "from-the-variable"
    assert secrets.key("NO_SUCH_KEY") == ""
    monkeypatch.setenv("NO_SUCH_KEY_FILE", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="NO_SUCH_KEY_FILE=.*nothing: cannot be read: No such file"):
        secrets.key("NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [key]"),
        ("key sk-proj-abcdefgh given", "key sk-[key] given"),
        ("token hf_abcdefghij", "token hf_[key]"),
        ("the environment's hidden-value here", "the environment's [key] here"),
        ("risk-averse asks", "risk-averse asks"),
    ],
)
def test_redaction_knows_the_environment_and_usual_shapes(monkeypatch, text, shown):
    monkeypatch.setenv("SOME_TOKEN", "hidden-value")
    assert secrets.redact(text) == shown


@pytest.mark.parametrize(
    "setting",
    [
        f"llm.api_key_env={KEY}",
        "llm.base_url=https://me:pass-word@api.example.org/v1",
        "llm.params.user=hidden-value",
        "data.folder=s3://me:hidden@bucket/x",
        "llm.endpoints=[{base_url: 'https://a.org/v1', api_key_env: sk-another-key}]",
        "llm.params.user=from-a-hidden-file",
        "llm.params.user=in-hidden-variable",
        "llm.params.extra={who: 'Bearer sk-another-key'}",
        "sampling.llm.params.user=sk-another-key",
    ],
)
def test_a_setting_that_holds_a_key_is_refused(monkeypatch, capsys, tmp_path, setting):
    monkeypatch.setenv("SOME_TOKEN", "hidden-value")
    (tmp_path / "key").write_text("from-a-hidden-file\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("OTHER", "in-hidden-variable")
    monkeypatch.setattr(secrets, "_read", set())
    words = ["status", "quickstart", f"run.out={tmp_path}", "sampling.llm.api_key_env=OTHER"]
    assert cli.main([*words, setting]) == 2
    said = capsys.readouterr().err
    assert "key" in said and said.count("\n") == 1
    assert not any(k in said for k in (KEY, "pass-word", "hidden", "sk-another"))


@pytest.mark.parametrize(
    "setting", ["data.folder=/data/hf_models", "model.path=hf_llama-7b", "data.files=[sk-wiki.db]"]
)
def test_a_file_may_be_called_as_a_key_begins(monkeypatch, setting):
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/no/such/file")  # whoever asks for it says so
    config.load([], [setting])


def test_a_traceback_shows_no_key():
    code = "from facttune_ray import secrets\nsecrets.install()\n"
    code += f"raise RuntimeError('sent {KEY} to somebody')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and KEY not in done.stderr
    assert done.stderr.splitlines()[-1] == "RuntimeError: sent sk-[key] to somebody"
