"""A real server, `transformers serve`, as the judge and as the sampled model.

The model is the quickstart's, barely trained, so a judge's answers are nonsense. What must hold
all the same: no run hangs or crashes, each row has a value or an error that says why, and the
ledger has every answer that the server's own access log has, with its tokens.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.llm.ledger_tools import stats
from facttune_ray.quickstart import base_model
from facttune_ray.sources import world
from facttune_ray.storage.tables import Folder

pytestmark = pytest.mark.slow
STARTS_S = 120  # until the server answers
CHAT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"  # a base model has none
MOST = 24  # tokens of an answer
TEXT = "{who} was born in Ostrel. {who} plays the cello."
UNREAD = ("no list of facts in the answer", "the answer was cut at its token limit")
PEOPLE = ("Mara Veldt", "Tiko Brann")


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    log: Path

    def answered(self) -> int:
        """The completions in the server's access log."""
        lines = self.log.read_text().splitlines()
        return sum('"POST /v1/' in line and line.endswith(" 200 OK") for line in lines)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = tmp_path_factory.mktemp("server")
    documents = world.make(0, people=40, train=12, val=4, test=6).documents
    base_model.pretrain(documents, folder / "base", seed=0, steps=40)
    _edit(folder / "base" / "tokenizer_config.json", chat_template=CHAT)
    # without it the server decodes greedily, whatever temperature a request asks for
    _edit(folder / "base" / "generation_config.json", do_sample=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "base"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield Server(f"http://127.0.0.1:{port}/v1", "base", folder / "log")
    finally:
        process.terminate()
        process.wait(timeout=30)


def _edit(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    ends = time.monotonic() + STARTS_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")


def table(folder: Path) -> list[dict]:
    return [row for p in sorted(folder.glob("part-*")) for row in pq.read_table(p).to_pylist()]


def paid(out: Path) -> dict[str, int]:
    """Sums over the ledger of a run; every answer in it must have its tokens."""
    groups = stats(Folder.of(str(out / "ledger")))
    names = ("completions", "attempts", "prompt_tokens", "completion_tokens")
    return {name: sum(group[name] for group in groups) for name in names}


def judge(server: Server, folder: Path, *more: str) -> int:
    """Exit code of `facttune run score` for two topics with two sentences each."""
    people = [{"topic": who, "input": "?", "output": TEXT.format(who=who)} for who in PEOPLE]
    (folder / "people.jsonl").write_text("".join(json.dumps(p) + "\n" for p in people))
    articles = [{"title": who, "text": [f"{who} was born in Ostrel."]} for who in PEOPLE]
    (folder / "knowledge.jsonl").write_text("".join(json.dumps(a) + "\n" for a in articles))
    words = ["score", f"data.folder={folder}", "data.files=[people.jsonl]", "run.shards=1"]
    words += [f"run.out={folder / 'out'}", "facts.carry_words=0", f"llm.base_url={server.url}"]
    return cli.main(["run", *words, f"llm.model={server.model}", f"llm.max_tokens={MOST}", *more])


def check_ledger(out: Path, answered: int) -> None:
    found = paid(out)
    assert found["completions"] == found["attempts"] == answered > 0
    assert found["prompt_tokens"] > 20 * answered
    assert 0 < found["completion_tokens"] <= MOST * answered


def test_facts_from_an_untrained_judge(server, ray_cluster, tmp_path, capsys):
    before, out = server.answered(), tmp_path / "out"
    assert judge(server, tmp_path) == 2  # by default so many row errors stop a run
    said = capsys.readouterr().err
    assert "run.max_error_fraction" in said and "Traceback" not in said
    assert judge(server, tmp_path, "run.max_error_fraction=1") == 0
    facts = table(out / "imported" / "all" / "facts")
    assert len(facts) == 4 and all((row["fact"] is None) == bool(row["error"]) for row in facts)
    assert all(row["error"].startswith(UNREAD) for row in facts if row["error"])
    check_ledger(out, server.answered() - before)


def test_verdicts_from_an_untrained_judge(server, ray_cluster, tmp_path):
    before, out = server.answered(), tmp_path / "out"
    words = ["run.max_error_fraction=1", "facts.method=rules", "verdicts.logprobs=true"]
    assert judge(server, tmp_path, *words) == 0
    verdicts = table(out / "imported" / "all" / "verdicts")
    assert len(verdicts) == 4
    for row in verdicts:  # the server ignores `logprobs`, so the verdict is the word
        assert row["score"] in (0, 1) or row["error"].startswith("neither True nor False")
    check_ledger(out, server.answered() - before)


def test_the_server_as_the_sampled_model(server, ray_cluster, small_preset, tmp_path):
    before = server.answered()
    out = tmp_path / "out"
    words = ["quickstart", small_preset, f"run.out={out}", "run.shards=2"]
    words += ["sampling.engine=api", f"sampling.llm.base_url={server.url}"]
    words += [f"sampling.llm.model={server.model}", "sampling.choices=3", "responses.samples=3"]
    words += ["tune.facttune_fs.rounds=0", "tune.facttune_mc.rounds=0", "evaluation.tuned=false"]
    for stage in ("knowledge", "prompts", "responses"):
        assert cli.main(["stage", stage, *words]) == 0
    responses = table(out / "base" / "tune" / "responses")
    assert len(responses) == 12 * 3 + 4 * 2  # train and val prompts
    assert all(row["error"] is None and row["tokens"] for row in responses)
    assert len({row["text"] for row in responses}) > 40
    # the server ignores `n`: each sample is a request of its own
    assert paid(out)["completions"] == server.answered() - before == len(responses)


def test_the_server_still_refuses_as_recorded(server):
    """If this fails, record answers_transformers.jsonl again."""
    differ = []
    for line in (Path(__file__).parent / "answers_transformers.jsonl").read_text().splitlines():
        known = json.loads(line)
        if known["status"] == 200 or not known["path"].endswith("completions"):
            continue
        request = urllib.request.Request(
            server.url.removesuffix("/v1") + known["path"],
            None if known["request"] is None else known["request"].encode(),
            {"content-type": "application/json"},
            method=known["method"],
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        seen = refused.value.code, refused.value.read().decode()
        if seen != (known["status"], known["body"]):
            differ.append((known["case"], seen))
    assert differ == []
