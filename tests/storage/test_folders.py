"""Folders on an object store whose server refuses, stalls and records (tests/object_store.py)."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli
from facttune_ray.errors import UserError
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.ledger_tools import stats
from facttune_ray.storage import folders, tables
from facttune_ray.storage.tables import Folder

ARTICLES = ["Ada Finch sings in Lyon. She was born in 1920.", "Bo Reed paints boats in Oslo."]
TOPICS = ["Ada Finch", "Bo Reed"]
FACTS = [[("Ada Finch sings.", "S"), ("Ada Finch paints.", "NS")], [("Bo Reed paints.", "S")]]


def facttune(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "facttune_ray", *words]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def parquet(folder: Folder) -> dict[str, dict]:
    """File name -> columns, for every table of a run."""
    names = [n for n in folder.files() if n.endswith(".parquet")]
    return {
        n: pq.read_table((folder / n).path, filesystem=folder.fs, partitioning=None).to_pydict()
        for n in names
    }


def test_files_are_written_listed_staged_and_deleted(object_store, tmp_path):
    root = Folder.of(object_store.uri("files"))
    (root / "a" / "x.json").write_json({"n": 1})
    (root / "a" / "big.bin").write_bytes(bytes(12 * 2**20))  # more than one part of an upload
    assert (root / "a" / "x.json").read_json() == {"n": 1}
    assert root.names() == ["a"] and root.files() == ["a/big.bin", "a/x.json"]
    assert len((root / "a" / "big.bin").read_bytes()) == 12 * 2**20
    assert (root / "b").read_json() is None and (root / "b").names() == []
    assert Folder.of((root / "a" / "x.json").uri).read_json() == {"n": 1}
    assert str(root / "a") == "s3://tests/files/a"
    with folders.staged(root / "model") as here:
        (here / "sub").mkdir()
        (here / "sub" / "w.bin").write_bytes(b"w")
        assert (root / "model").files() == []
    assert (root / "model").files() == ["sub/w.bin"] and not here.exists()
    root.delete()
    assert not root.exists()


def test_writing_a_file_takes_one_request(object_store):
    root = Folder.of(object_store.uri("one"))
    before = len(object_store.requests)
    (root / "x").write_bytes(b"x")
    assert object_store.requests[before:] == [("PUT", "/tests/one/x")]


@pytest.mark.slow
def test_requests_to_a_store_that_refuses_or_stalls_are_retried(object_store):
    file = Folder.of(object_store.uri("weather/x"))
    file = pickle.loads(pickle.dumps(file))  # workers receive a pickled folder
    object_store.fail(3)
    file.write_bytes(b"once")
    object_store.fail(3)
    assert file.read_bytes() == b"once"
    object_store.delay_s = 4.0  # longer than Arrow's default time-out of 3 s
    try:
        file.write_bytes(b"twice")
    finally:
        object_store.delay_s = 0.0
    assert file.read_bytes() == b"twice"


def test_a_store_that_never_answers_gives_one_line(object_store):
    object_store.refuses = lambda number, method, path: "/tests/away" in path
    try:
        words = ["status", "quickstart", f"run.out={object_store.uri('away')}"]
        done = facttune(*words, FACTTUNE_STORAGE_ATTEMPTS="2")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "storage: the store does not answer" in done.stderr
        words = ["stage", "knowledge", "quickstart", f"run.out={object_store.uri('away')}"]
        done = facttune(*words, FACTTUNE_STORAGE_ATTEMPTS="2")
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    finally:
        object_store.refuses = lambda number, method, path: False


@pytest.mark.parametrize("given", ["many", "0", "-1"])
def test_an_invalid_number_of_attempts_gives_one_line(tmp_path, given):
    words = ["status", "quickstart", f"run.out={tmp_path}"]
    done = facttune(*words, FACTTUNE_STORAGE_ATTEMPTS=given)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"FACTTUNE_STORAGE_ATTEMPTS={given}: must be a whole number" in done.stderr


def test_a_missing_bucket_and_a_key_in_the_uri_are_refused(object_store):
    uri = object_store.uri("x").replace("s3://tests", "s3://nobody")
    with pytest.raises(UserError, match="cannot write s3://nobody/x: no such bucket"):
        Folder.of(uri).write_bytes(b"x")
    with pytest.raises(UserError, match="a key in a URI") as error:
        Folder.of("s3://AKID:hidden0@bucket/x")
    assert "hidden0" not in str(error.value) and "AKID" not in str(error.value)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_reader_sees_complete_files_only(object_store, tmp_path, where):
    """Two writers write one file, like a worker and its replacement."""
    file = Folder.of(object_store.uri("whole") if where == "s3" else str(tmp_path)) / "part"
    contents = [bytes([n]) * (6 * 2**20) for n in (1, 2)]  # two parts of an upload
    file.write_bytes(contents[0])
    done = threading.Event()

    def write(data: bytes) -> None:
        while not done.is_set():
            file.write_bytes(data)

    writers = [threading.Thread(target=write, args=(c,)) for c in contents]
    for thread in writers:
        thread.start()
    seen = [file.read_bytes() for _ in range(8)]
    done.set()
    for thread in writers:
        thread.join()
    assert all(data in contents for data in seen)
    assert [n for n in Folder.of(str(tmp_path)).names() if n.endswith(".tmp")] == []


def test_a_table_is_finished_when_its_manifest_exists(object_store):
    folder, recipe = Folder.of(object_store.uri("table/rewards")), {"key": 1}
    tables.begin(folder, recipe)
    for shard in (0, 1):
        tables.write_part(folder, "rewards", shard, [], {"calls": 2})
        assert tables.matching_manifest(folder, recipe) is None
    assert tables.write_manifest(folder, "rewards", recipe, 2, 1.0)["calls"] == 4
    assert tables.matching_manifest(folder, recipe)["rows"] == 0
    tables.begin(folder, {"key": 2})  # another recipe: removes the old parts
    assert tables.present(folder, 2) == set()


class Refusing:
    """A file system of which every request is refused twice, as when Arrow has no retries left."""

    def __init__(self, fs):
        self._fs, self._refused = fs, {}

    def __getattr__(self, name):
        found = getattr(self._fs, name)
        if not callable(found):
            return found

        def request(*args):
            self._refused[name] = self._refused.get(name, 0) + 1
            if self._refused[name] <= 2:
                raise OSError("AWS Error SLOW_DOWN during an operation: reduce your request rate")
            return found(*args)

        return request


@pytest.mark.parametrize(
    "work",
    [
        lambda f: f.exists() and f.is_file(),
        lambda f: dataclasses.replace(f, path=f.path.rpartition("/")[0]).names() == ["file"],
        lambda f: f.write_bytes(b"new") or f.read_bytes() == b"new",
        lambda f: f.delete_file() or not f.exists(),
    ],
    ids=["exists", "names", "write", "delete"],
)
def test_each_request_goes_on_when_arrow_has_no_retries_left(object_store, work):
    file = Folder.of(object_store.uri("refusing/file"))
    file.write_bytes(b"kept")
    assert work(dataclasses.replace(file, fs=Refusing(file.fs)))


def test_a_store_that_stays_away_is_asked_for_a_minute(object_store, monkeypatch):
    monkeypatch.setattr("facttune_ray.storage.folders.AGAIN_S", 0.0)
    file = Folder.of(object_store.uri("file"))
    with pytest.raises(UserError, match="cannot write .*file: the store does not answer"):
        dataclasses.replace(file, fs=Refusing(file.fs)).write_bytes(b"kept")


async def put(ledger: Ledger, count: int) -> None:
    from facttune_ray.llm.replies import Completion

    for n in range(count):
        await ledger.put(bytes([n]) * 32, Completion(f"text {n}", 10, 5, "m", 1, 0.1))


@pytest.mark.slow
def test_a_ledger_on_a_faulty_store_loses_nothing(object_store):
    import asyncio

    folder = Folder.of(object_store.uri("ledger"))
    ledger = Ledger(folder, flush_s=0.01, run="r", stage="facts")
    chance = random.Random(0)
    object_store.refuses = lambda number, method, path: chance.random() < 0.2
    try:
        asyncio.run(put(ledger, 20))  # one segment each, merged meanwhile
        completions = Ledger(folder).find(bytes([n]) * 32 for n in range(20))
    finally:
        object_store.refuses = lambda number, method, path: False
    assert sorted(c.text for c in completions.values()) == sorted(f"text {n}" for n in range(20))
    assert len([n for n in folder.names() if n.endswith(".arrow")]) < 10
    assert stats(folder)[0]["completions"] == 20


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A folder with two topics in FActScore's format."""
    import json

    folder = tmp_path_factory.mktemp("labelled")
    articles = [{"title": t, "text": a} for t, a in zip(TOPICS, ARTICLES, strict=True)]
    responses = [
        {
            "topic": topic,
            "input": f"Tell me a bio of {topic}.",
            "output": " ".join(fact for fact, _ in facts),
            "annotations": [
                {
                    "text": fact,
                    "is-relevant": True,
                    "model-atomic-facts": [{"text": fact}],
                    "human-atomic-facts": [{"text": fact, "label": label}],
                }
                for fact, label in facts
            ],
        }
        for topic, facts in zip(TOPICS, FACTS, strict=True)
    ]
    for name, rows in (("knowledge.jsonl", articles), ("M.jsonl", responses)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text("run: {shards: 2}\nverdicts: {estimator: lexical}\n")
    return folder


def test_data_preset_and_tables_on_s3_give_the_tables_of_a_local_run(
    object_store, labelled, tmp_path, ray_cluster, capsys
):
    there = Folder.of(object_store.uri("scored"))
    (there / "data").upload(labelled)
    same = ["data.files=[M.jsonl]", "facts.method=labels", "run.name=scored"]
    here = [str(labelled / "mine.yaml"), f"data.folder={labelled}", f"run.out={tmp_path}"]
    assert cli.main(["run", "score", *here, *same]) == 0
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{object_store.port}"
    try:  # a preset's URI cannot hold "=", so the environment names the store's address
        remote = ["s3://tests/scored/data/mine.yaml", f"data.folder={(there / 'data').uri}"]
        out = (there / "out").uri
        assert cli.main(["run", "score", *remote, f"run.out={out}", *same]) == 0
        capsys.readouterr()
        before = len(object_store.requests)
        assert cli.main(["run", "score", *remote, f"run.out={out}", *same]) == 0
        written = [m for m, _ in object_store.requests[before:] if m != "GET" and m != "HEAD"]
        assert written == []  # a second run writes nothing
        assert cli.main(["status", "score", f"run.out={out}"]) == 0
    finally:
        del os.environ["AWS_ENDPOINT_URL"]
    shown = capsys.readouterr().out
    assert "imported/all\n" in shown and "✓ verdicts" in shown
    remote_tables = parquet(there / "out")
    assert remote_tables == parquet(Folder.of(str(tmp_path))) and len(remote_tables) > 8
    assert {"summary.json", "report.html"} <= set((there / "out").names())
    assert (there / "out" / "summary.json").read_json()["models"]["M"]["correct"]["value"] == 1.0
