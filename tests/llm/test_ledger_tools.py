"""stats, compact, verify, gc."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from facttune_ray import cli
from facttune_ray.errors import UserError
from facttune_ray.llm import ledger_tools
from facttune_ray.llm.ledger import MERGE, Ledger, request_key
from facttune_ray.llm.replies import Completion
from facttune_ray.llm.segments import read_segment
from facttune_ray.storage.tables import Folder


def key(i: int) -> bytes:
    return request_key("m", [{"content": str(i)}], {}, 0)


def write(folder: Folder, numbers: range, stage: str = "facts", model: str = "m-1") -> Ledger:
    ledger = Ledger(folder, flush_s=0.001, run="r", stage=stage)
    put(ledger, numbers, model)
    return ledger


def put(ledger: Ledger, numbers: range, model: str = "m-1") -> None:
    """Write a segment per completion; MERGE of them are merged."""

    async def work():
        for i in numbers:
            paid = Completion(f"- {i}.", 100, 10, model, 2, 0.5, cost_usd=0.25, prompt_chars=400)
            await ledger.put(key(i), paid)

    asyncio.run(work())


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def test_stats_by_stage_and_model(folder):
    write(folder, range(3))
    write(folder, range(10, 12), "verdicts")
    write(folder, range(20, 21), "verdicts", "m-2")
    rows = ledger_tools.stats(folder)
    assert [(r["stage"], r["model"], r["completions"]) for r in rows] == [
        ("facts", "m-1", 3),
        ("verdicts", "m-1", 2),
        ("verdicts", "m-2", 1),
    ]
    first = rows[0]
    assert (first["prompt_tokens"], first["completion_tokens"], first["attempts"]) == (300, 30, 6)
    assert first["cost_usd"] == 0.75 and first["latency_s"] == 0.5
    assert first["measured_tokens"] / first["prompt_chars"] == 0.25
    assert first["first_s"] <= first["last_s"] <= time.time()


def test_compact_keeps_each_key_once_and_running_readers_find_all(folder, monkeypatch):
    for start in (0, 10, 20, 5):  # 5 to 14 twice
        write(folder, range(start, start + 10))
    reader = Ledger(folder)
    monkeypatch.setattr(ledger_tools, "COMPACTED_ROWS", 12)  # several key ranges
    done = ledger_tools.compact(folder)
    assert (done["rows_before"], done["rows"], done["segments"]) == (40, 30, 4)
    for ledger in (reader, Ledger(folder)):
        assert len(ledger.find(map(key, range(40)))) == 30
    assert ledger_tools.verify(folder)["repeated"] == 0
    again = ledger_tools.compact(folder)
    assert again["rows"] == 30


def test_verify_finds_repeats_torn_and_damaged_segments(folder, tmp_path):
    write(folder, range(0, 3))
    whole = set(folder.names())
    write(folder, range(0, 2))
    other = set(folder.names()) - whole
    found = ledger_tools.verify(folder)
    assert (found["rows"], found["repeated"], found["torn"], found["damaged"]) == (5, 2, [], [])
    torn = tmp_path / "ledger" / other.pop()
    torn.write_bytes(torn.read_bytes()[:-20])
    # a row whose text was changed after it was paid for
    ledger = Ledger(folder)
    name = next(iter(ledger.segments))
    table = ledger_tools.read_segment(folder / name)
    column = table.schema.get_field_index("text")
    changed = ["- another."] * table.num_rows
    ledger.add(table.set_column(column, "text", [changed]))
    found = ledger_tools.verify(folder)
    assert found["torn"] == [torn.name] and len(found["damaged"]) == 1
    with pytest.raises(UserError, match="damaged: .*: remove them"):
        ledger_tools.main("verify", folder, None, None)


def test_gc_removes_only_old_rows_and_files(folder, tmp_path):
    write(folder, range(5))
    write(folder, range(5, 8), model="m-2")
    assert ledger_tools.gc(folder) == {"files": 0, "rows": 0}
    assert ledger_tools.gc(folder, days=1.0) == {"files": 0, "rows": 0}
    left = tmp_path / "ledger" / "x.arrow.tmp"
    left.write_bytes(b"half")
    assert ledger_tools.gc(folder)["files"] == 0  # a writer may still be at it
    os.utime(left, (1.0, 1.0))
    assert ledger_tools.gc(folder)["files"] == 1
    assert ledger_tools.gc(folder, days=0.0, model="m-2") == {"files": 0, "rows": 3}
    assert len(Ledger(folder).find(map(key, range(10)))) == 5


# -- while runs write ----------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["compact", "gc"])
def test_a_writer_goes_on_after_its_segments_were_rewritten(folder, tool):
    write(folder, range(100, 102), model="m-2")
    writer = write(folder, range(MERGE - 2))
    if tool == "compact":
        ledger_tools.compact(folder)
    else:
        ledger_tools.gc(folder, days=0.0)  # every segment loses a row
    put(writer, range(50, 50 + MERGE))
    found = Ledger(folder).find(map(key, range(50, 50 + MERGE)))
    assert len(found) == MERGE


@pytest.mark.parametrize("tool", ["stats", "compact", "verify", "gc"])
def test_a_writer_merges_while_a_tool_reads(folder, monkeypatch, tool):
    writer = write(folder, range(MERGE - 1))
    begin = ledger_tools.open_ledger

    def then_merged(folder: Folder) -> Ledger:
        ledger = begin(folder)
        put(writer, range(50, 51))
        return ledger

    with monkeypatch.context() as m:
        m.setattr(ledger_tools, "open_ledger", then_merged)
        done = getattr(ledger_tools, tool)(folder, *([1.0] if tool == "gc" else []))
    assert len(Ledger(folder).find(map(key, range(60)))) == MERGE
    assert tool != "verify" or done["damaged"] == []


def test_nothing_is_lost_when_a_writer_and_two_compactions_run_at_once(folder):
    """A tool may stop at a file that another has removed, but no completion may be lost."""
    put(Ledger(folder, flush_s=0.001), range(40))
    writer = Ledger(folder, flush_s=0.001)
    stop = threading.Event()

    def compact() -> None:
        while not stop.is_set():
            try:
                ledger_tools.compact(folder)
            except FileNotFoundError:  # see above
                continue

    threads = [threading.Thread(target=compact) for _ in range(2)]
    for thread in threads:
        thread.start()
    kept = list(range(40))
    for i in range(100, 100 + 3 * MERGE):
        try:
            put(writer, range(i, i + 1))
        except FileNotFoundError:  # see above
            continue
        kept.append(i)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(Ledger(folder).find(map(key, kept))) == set(map(key, kept))


def test_a_compaction_that_was_killed_is_made_again(folder, monkeypatch):
    for start in (0, 10):
        write(folder, range(start, start + 10))
    with monkeypatch.context() as m:
        m.setattr(Ledger, "remove", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger_tools.compact(folder)
    assert ledger_tools.verify(folder)["repeated"] == 20
    assert ledger_tools.compact(folder)["rows"] == 20
    assert len(Ledger(folder).find(map(key, range(20)))) == 20 and len(folder.names()) == 1


# -- what gc must not remove ---------------------------------------------------------------------


def test_gc_does_not_remove_what_it_could_not_read(folder, tmp_path, monkeypatch):
    write(folder, range(1))
    (name,) = folder.names()
    os.utime(tmp_path / "ledger" / name, (1.0, 1.0))

    def fails(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as m:
        m.setattr(pa.ipc, "open_file", fails)
        try:
            ledger_tools.gc(folder)
        except (OSError, UserError):
            pass  # it may stop
    assert folder.names() == [name]


def test_gc_removes_torn_segments_after_an_hour_and_no_record_of_a_batch(folder, tmp_path):
    write(folder, range(2))
    record = folder / "batches" / "a.json"
    record.write_json({"keys": []})
    torn = tmp_path / "ledger" / "x.arrow"
    torn.write_bytes(b"ARROW1 and no end")
    assert ledger_tools.gc(folder)["files"] == 0
    os.utime(torn, (1.0, 1.0))
    assert ledger_tools.gc(folder)["files"] == 1
    assert not torn.exists() and record.exists()
    assert len(Ledger(folder).find(map(key, range(2)))) == 2


def test_compact_leaves_torn_segments_and_keeps_every_column(folder, tmp_path):
    write(folder, range(7), "verdicts")
    (tmp_path / "ledger" / "x.arrow").write_bytes(b"")

    def rows() -> list[dict]:
        tables = [read_segment(folder / n) for n in Ledger(folder).segments]
        return pa.concat_tables(tables).sort_by("key").to_pylist()

    before = rows()
    done = ledger_tools.compact(folder)
    assert (done["segments"], done["torn"]) == (1, 1)
    assert rows() == before and (tmp_path / "ledger" / "x.arrow").exists()


# -- empty, and other file systems ---------------------------------------------------------------


def test_a_ledger_with_nothing_in_it(folder):
    for tool in (ledger_tools.stats, ledger_tools.compact, ledger_tools.verify, ledger_tools.gc):
        with pytest.raises(UserError, match="no ledger there"):
            tool(folder)
    folder.fs.create_dir(folder.path)
    assert ledger_tools.stats(folder) == []
    assert ledger_tools.compact(folder)["rows"] == 0 and folder.names() == []
    assert ledger_tools.verify(folder)["rows"] == 0
    assert ledger_tools.gc(folder, days=0.0) == {"files": 0, "rows": 0}


def test_on_another_file_system():
    folder = Folder(pafs._MockFileSystem(), "bucket/ledger")
    write(folder, range(20))
    write(folder, range(15, 25))
    assert ledger_tools.compact(folder)["rows"] == 25 and len(folder.names()) == 1
    assert ledger_tools.stats(folder)[0]["completions"] == 25
    assert ledger_tools.verify(folder)["damaged"] == []
    assert ledger_tools.gc(folder, days=0.0) == {"files": 0, "rows": 25}
    assert folder.names() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gc", "--days", "-1"], "--days -1: must be above 0"),
        (["gc", "--days", "nan"], "--days nan: must be above 0"),
        (["gc", "--model", "m-1"], "--model: give --days, too"),
        (["stats", "--days", "3"], "ledger stats: --days and --model are options of gc"),
    ],
)
def test_options_that_would_remove_everything_are_refused(tmp_path, capsys, words, says):
    assert cli.main(["ledger", words[0], str(tmp_path), *words[1:]]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("action", ["stats", "compact", "verify", "gc"])
def test_the_commands_print_a_line(folder, capsys, action):
    write(folder, range(3))
    assert ledger_tools.main(action, folder, None, None) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert ledger_tools.main(action, folder, None, None, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown[0] if action == "stats" else shown).keys() >= {
        "stats": {"stage", "model", "completions", "cost_usd"},
        "compact": {"rows", "segments"},
        "verify": {"rows", "damaged", "unknown"},
        "gc": {"files", "rows"},
    }[action]
