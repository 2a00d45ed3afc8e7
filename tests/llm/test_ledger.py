"""Durable, found again by anyone, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from facttune_ray.errors import UserError
from facttune_ray.llm import ledger_tools
from facttune_ray.llm.ledger import MERGE, Ledger, request_key
from facttune_ray.llm.replies import Completion, HTTPReply, read
from facttune_ray.llm.segments import ROWS, Segment
from facttune_ray.storage.tables import Folder


def key(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def completion(i: int = 0, **values) -> Completion:
    values = {"text": f"- fact {i}.", "cost_usd": 0.01} | values
    return Completion(
        prompt_tokens=12,
        completion_tokens=3,
        served_model="m-1",
        attempts=1,
        latency_s=0.2,
        **values,
    )


def put(ledger: Ledger, *numbers: int) -> None:
    async def all_of_them():
        await asyncio.gather(*(ledger.put(key(i), completion(i)) for i in numbers))

    asyncio.run(all_of_them())


def found_by(ledger: Ledger, count: int) -> int:
    """How many of the first `count` keys the ledger has, each with its own text."""
    found = ledger.find(map(key, range(count)))
    assert all(found[key(i)].text == f"- fact {i}." for i in range(count) if key(i) in found)
    return len(found)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder.of(str(tmp_path / "ledger"))


def test_a_completion_is_durable_when_put_returns(folder):
    put(Ledger(folder, flush_s=0.01), 1)  # never closed: as after a SIGKILL
    assert Ledger(folder).find([key(1), key(2)]) == {key(1): completion(1)}


def test_completions_that_come_together_are_written_together(folder):
    put(Ledger(folder, flush_s=0.05), *range(50))
    assert len(folder.names()) == 1
    put(Ledger(folder, flush_rows=10, flush_s=60.0), *range(100, 120))  # not after 60 s
    assert len(Ledger(folder).find(map(key, range(200)))) == 70


def test_a_completion_is_found_before_its_write_and_by_other_ledgers_after(folder):
    async def work():
        first, second = Ledger(folder, flush_s=0.05), Ledger(folder)
        putting = asyncio.create_task(first.put(key(1), completion(1)))
        await asyncio.sleep(0)
        assert first.find([key(1)]) and not second.find([key(1)])
        await putting
        second.refresh()
        assert second.find([key(1)]) == first.find([key(1)])

    asyncio.run(work())


def test_small_segments_of_a_writer_are_merged(folder):
    ledger = Ledger(folder, flush_s=0.001)
    for i in range(3 * MERGE + 2):
        put(ledger, i)
    assert len(folder.names()) < MERGE
    assert len(ledger.find(map(key, range(100)))) == 3 * MERGE + 2
    assert len(Ledger(folder).find(map(key, range(100)))) == 3 * MERGE + 2


def test_a_reader_goes_on_while_another_process_merges(folder):
    writer = Ledger(folder, flush_s=0.001)
    put(writer, *range(5))
    reader, found, stop = Ledger(folder), [], threading.Event()

    def read():
        while not stop.is_set():
            found.append(len(reader.find(map(key, range(5)))))

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(10, 10 + 3 * MERGE):
        put(writer, i)
    stop.set()
    thread.join()
    assert found and set(found) == {5}


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_torn_segment_is_left_out_and_the_others_are_kept(folder, tmp_path, left):
    put(Ledger(folder, flush_s=0.01), 1)
    (whole,) = folder.names()
    put(Ledger(folder, flush_s=0.01), 2)
    (torn,) = set(folder.names()) - {whole}
    data = (tmp_path / "ledger" / torn).read_bytes()
    (tmp_path / "ledger" / torn).write_bytes(data[:left])
    again = Ledger(folder)
    assert again.torn == {torn} and list(again.find([key(1), key(2)])) == [key(1)]


def test_the_older_of_two_answers_to_one_request_counts(folder):
    put(Ledger(folder, flush_s=0.01), 1)

    async def late():
        await Ledger(folder, flush_s=0.01).put(key(1), completion(1, text="later"))

    asyncio.run(late())
    assert Ledger(folder).find([key(1)])[key(1)].text == "- fact 1."


def test_texts_of_every_kind_are_read_as_written(folder):
    texts = ["", "Zoë 東京 🎻", "x" * 300_000, "line\nline\x00"]

    async def work():
        ledger = Ledger(folder, flush_s=0.01)
        some = (
            ledger.put(key(i), completion(text=t, refusal=t or None)) for i, t in enumerate(texts)
        )
        await asyncio.gather(*some)

    asyncio.run(work())
    found = Ledger(folder).find(map(key, range(9)))
    assert [found[key(i)].text for i in range(4)] == texts
    assert found[key(0)].refusal is None and found[key(1)].refusal == texts[1]


def test_dollars_are_counted_by_run(folder):
    put(Ledger(folder, flush_s=0.01, run="mine"), *range(10))
    put(Ledger(folder, flush_s=0.01, run="other"), *range(20, 25))
    assert sum(Ledger(folder).paid_usd("mine").values()) == pytest.approx(0.10)
    assert sum(Ledger(folder).paid_usd("nobody").values()) == 0.0


def test_a_failed_write_raises_in_every_put_that_waits_for_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01)
    ledger.folder = Folder.of(str(tmp_path / "file" / "ledger"))

    async def work():
        some = (ledger.put(key(i), completion(i)) for i in range(3))
        return await asyncio.gather(*some, return_exceptions=True)

    errors = asyncio.run(work())
    assert all(isinstance(e, UserError) and "is a file, not a folder" in str(e) for e in errors)


@pytest.mark.parametrize("kind", ["mock", "subtree"])
def test_another_file_system(kind, tmp_path):
    fs = pafs._MockFileSystem()
    if kind == "subtree":  # a folder that is not renamed into, as an object store's
        fs = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    folder = Folder(fs, "bucket/ledger")
    reader = Ledger(folder)
    ledger = Ledger(folder, flush_s=0.001)
    for i in range(MERGE + 3):
        put(ledger, i)
    assert len(folder.names()) == 4
    assert found_by(Ledger(folder), 50) == MERGE + 3
    reader.refresh()
    put(ledger, *range(100, 100 + MERGE), 19)
    for i in range(MERGE):  # merges the segments that the reader knows
        put(ledger, 200 + i)
    assert found_by(reader, 50) >= MERGE + 3


def test_the_key_depends_on_all_that_decides_a_completion():
    messages = [{"role": "user", "content": "hi"}]
    keys = {
        request_key("m", messages, {"temperature": 0.0}, 0),
        request_key("m", messages, {"temperature": 0.0}, 1),
        request_key("m", messages, {"temperature": 1.0}, 0),
        request_key("n", messages, {"temperature": 0.0}, 0),
        request_key("m", [{"role": "user", "content": "ho"}], {"temperature": 0.0}, 0),
    }
    assert len(keys) == 5 and {len(k) for k in keys} == {32}
    assert request_key("m", messages, {"a": 1, "b": 2}, 0) == request_key(
        "m", messages, {"b": 2, "a": 1}, 0
    )


# -- kills ---------------------------------------------------------------------------------------

WRITER = """
import asyncio, hashlib, sys
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.replies import Completion
from facttune_ray.storage.tables import Folder

async def one(ledger, i):
    row = Completion(f"- fact {i}.", 12, 3, "m-1", 1, 0.2, cost_usd=0.01)
    await ledger.put(hashlib.sha256(str(i).encode()).digest(), row)
    print(i, flush=True)

async def work():
    ledger = Ledger(Folder.of(sys.argv[1]), flush_s=0.001)
    for start in range(0, 10**9, 4):
        await asyncio.gather(*(one(ledger, i) for i in range(start, start + 4)))

asyncio.run(work())
"""


def test_sigkill_loses_no_completion_whose_put_had_returned(folder):
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, folder.path], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    kept = [int(child.stdout.readline()) for _ in range(250)]
    os.kill(child.pid, signal.SIGKILL)
    kept += [int(line) for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    again = Ledger(folder)
    assert set(again.find(map(key, kept))) == set(map(key, kept)) and not again.torn
    put(again, 10**6)  # later requests are answered, too
    assert len(Ledger(folder).find([key(10**6), key(kept[-1])])) == 2


def killed_while_merging(folder: Folder, monkeypatch) -> None:
    """MERGE completions of one run, in the merged segment and in the small ones."""
    ledger = Ledger(folder, flush_s=0.001, run="mine")
    with monkeypatch.context() as m:
        m.setattr(Ledger, "remove", lambda self, name: None)
        for i in range(MERGE):
            put(ledger, i)
    assert len(folder.names()) == MERGE + 1


def test_a_kill_after_a_merge_before_the_small_segments_are_removed(folder, monkeypatch):
    killed_while_merging(folder, monkeypatch)
    assert found_by(Ledger(folder), MERGE) == MERGE


def test_after_a_kill_while_merging_each_completion_counts_once(folder, monkeypatch):
    killed_while_merging(folder, monkeypatch)
    assert sum(Ledger(folder).paid_usd("mine").values()) == pytest.approx(MERGE * 0.01)


# -- several processes ---------------------------------------------------------------------------


def test_two_writers_merge_side_by_side_and_all_readers_find_all(folder):
    first, second = Ledger(folder, flush_s=0.001), Ledger(folder, flush_s=0.001)

    async def work():
        for i in range(0, 6 * MERGE, 2):
            await asyncio.gather(
                first.put(key(i), completion(i)), second.put(key(i + 1), completion(i + 1))
            )
        first.refresh()
        second.refresh()

    asyncio.run(work())
    for ledger in (first, second, Ledger(folder)):
        assert found_by(ledger, 6 * MERGE) == 6 * MERGE


def test_look_ups_go_on_while_it_writes_merges_and_refreshes(folder):
    ledger, other = Ledger(folder, flush_s=0.001), Ledger(folder, flush_s=0.001)
    written, stop, problems = [0], threading.Event(), []

    def in_a_thread(work) -> threading.Thread:
        def loop() -> None:
            try:
                while not stop.is_set():
                    work()
            except Exception as e:
                problems.append(e)

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def look_up() -> None:
        count = written[0]
        if (got := found_by(ledger, count)) != count:
            problems.append(f"{got} of {count}")

    threads = [in_a_thread(look_up), in_a_thread(ledger.refresh)]
    try:
        for i in range(4 * MERGE):
            put(ledger, i)
            put(other, 10_000 + i)
            written[0] = i + 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_a_completion_is_found_while_it_moves_from_memory_to_a_segment(folder, monkeypatch):
    put(Ledger(folder, flush_s=0.001), 1)
    find = Segment.find

    async def work():
        ledger, loop = Ledger(folder, flush_s=60.0), asyncio.get_running_loop()

        def found_late(self, keys, raw):
            if ledger._unwritten:  # the flush is done while the look-up is among the segments
                asyncio.run_coroutine_threadsafe(ledger.close(), loop).result()
            return find(self, keys, raw)

        monkeypatch.setattr(Segment, "find", found_late)
        putting = asyncio.create_task(ledger.put(key(2), completion(2)))
        await asyncio.sleep(0)
        found = await asyncio.to_thread(ledger.find, [key(1), key(2)])
        putting.cancel()
        return found

    assert set(asyncio.run(work())) == {key(1), key(2)}


def test_dollars_are_counted_while_a_writer_merges(folder):
    writer = Ledger(folder, flush_s=0.001, run="mine")
    for i in range(MERGE - 1):
        put(writer, i)
    meter = Ledger(folder)  # as a restarted meter has it
    put(writer, MERGE)
    assert sum(meter.paid_usd("mine").values()) == pytest.approx(MERGE * 0.01, abs=0.011)


# -- failing reads and writes --------------------------------------------------------------------


def test_a_segment_that_cannot_be_read_for_now_does_not_count_as_torn(folder, monkeypatch):
    put(Ledger(folder, flush_s=0.001), 1)

    def fails(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as m:
        m.setattr(pa.ipc, "open_file", fails)
        with contextlib.suppress(OSError, UserError):  # it may stop
            ledger = Ledger(folder)
            m.undo()
            ledger.refresh()
            assert not ledger.torn and found_by(ledger, 2) == 1


def test_after_a_full_disk_the_same_rows_are_written_when_there_is_room(folder, monkeypatch):
    ledger = Ledger(folder, flush_s=0.001)

    def full(self, data, durable=False):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Folder, "write_bytes", full)
        with pytest.raises(UserError, match="no space left"):
            put(ledger, 0)
    assert found_by(Ledger(folder), 3) == 0
    put(ledger, 1)
    assert found_by(Ledger(folder), 3) == 2
    asyncio.run(ledger.close())
    assert found_by(Ledger(folder), 3) == 2


def test_a_completion_that_cannot_be_stored_does_not_affect_the_others(folder):
    ledger = Ledger(folder, flush_s=0.001)

    async def bad():
        await ledger.put(key(0), completion(0, text="half a pair: \ud800"))

    with contextlib.suppress(ValueError):  # refused, or repaired
        asyncio.run(bad())
    put(ledger, 1)
    assert key(1) in Ledger(folder).find([key(1)])


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": [{"message": {"content": "Zo\u00eb \ud83c"}}], "model": "m"},
        pytest.param(
            {"model": "m-\ud83c"},
        ),
        pytest.param(
            {"choices": [{"message": {"content": "x"}, "finish_reason": 3}]},
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 2**70}},
        ),
    ],
)
def test_every_accepted_reply_can_be_stored(folder, odd):
    whole = {"choices": [{"message": {"content": "x"}}], "model": "m"}
    (reply,) = read(HTTPReply(200, {}, json.dumps(whole | odd).encode()), {}).replies
    paid = Completion(
        reply.text,
        reply.prompt_tokens,
        reply.completion_tokens,
        reply.served_model,
        1,
        None,
        reply.refusal,
        reply.finish_reason,
    )
    asyncio.run(Ledger(folder, flush_s=0.001).put(key(0), paid))
    assert Ledger(folder).find([key(0)]) == {key(0): paid}


# -- look-ups ------------------------------------------------------------------------------------


def test_keys_with_the_same_first_bytes_are_told_apart(folder):
    same = [b"12345678" + bytes([i]) * 24 for i in range(20)]

    async def work():
        ledger = Ledger(folder, flush_s=0.001)
        for i, one in enumerate(same[:10]):
            await ledger.put(one, completion(i))
            await ledger.put(key(i), completion(i))

    asyncio.run(work())
    found = Ledger(folder).find(same)
    assert [found[k].text for k in same[:10]] == [f"- fact {i}." for i in range(10)]
    assert len(found) == 10


def test_a_segment_of_several_record_batches_is_read_where_the_key_stands(folder):
    rows = ROWS // MERGE + 50
    ledger = Ledger(folder, flush_rows=rows, flush_s=60.0)
    for i in range(MERGE):
        put(ledger, *range(i * rows, (i + 1) * rows))
    (segment,) = ledger.segments.values()
    (loaded,) = Ledger(folder).segments.values()
    assert np.array_equal(segment.starts, loaded.starts) and len(loaded.starts) == 3
    for one in (segment, loaded):  # mapped from a file
        assert isinstance(one.prefixes, np.memmap) and len(one.prefixes) == MERGE * rows
    assert found_by(ledger, MERGE * rows + 5) == MERGE * rows
    assert found_by(Ledger(folder), MERGE * rows + 5) == MERGE * rows


def test_an_empty_ledger_finds_nothing(folder):
    assert Ledger(folder).find([]) == {} and Ledger(folder).find([key(1)]) == {}
    asyncio.run(Ledger(folder).close())
    assert folder.names() == [] and sum(Ledger(folder).paid_usd("").values()) == 0.0


def test_a_cancelled_put_is_written(folder):
    async def work():
        ledger = Ledger(folder, flush_s=0.05)
        putting = asyncio.create_task(ledger.put(key(1), completion(1)))
        await asyncio.sleep(0)
        putting.cancel()
        started = time.monotonic()
        while not Ledger(folder).segments and time.monotonic() - started < 10:
            await asyncio.sleep(0.01)

    asyncio.run(work())
    assert found_by(Ledger(folder), 2) == 1


def test_a_prompt_and_a_message_of_the_same_text_have_different_keys():
    chat = request_key("m", [{"role": "user", "content": "Who?"}], {"seed": 1}, 0)
    assert request_key("m", "Who?", {"seed": 1}, 0) != chat


def test_completions_put_together_stand_in_one_segment(folder):
    some = {key(i): completion(i) for i in range(20)}
    asyncio.run(Ledger(folder, flush_rows=4, flush_s=0.001).put_all(some))
    assert len(folder.names()) == 1 and found_by(Ledger(folder), 20) == 20


def test_a_segment_of_an_older_version_is_read_and_merged(folder):
    ledger = Ledger(folder, flush_s=0.001)
    put(ledger, 0)
    (name,) = ledger.segments
    with pa.ipc.open_file((folder / name).read_bytes()) as reader:
        old = reader.read_all().drop_columns(["top_logprobs"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, old.schema) as writer:
        writer.write_table(old)
    (folder / name).write_bytes(sink.getvalue().to_pybytes())
    again = Ledger(folder, flush_s=0.001)
    assert found_by(again, 1) == 1 and again.find([key(0)])[key(0)].top_logprobs is None
    put(again, 1)
    assert ledger_tools.compact(folder)["rows"] == 2
    assert ledger_tools.verify(folder)["damaged"] == []
    assert found_by(Ledger(folder), 2) == 2
