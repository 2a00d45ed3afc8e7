"""Durable, found again by anyone, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import pyarrow.fs as pafs
import pytest

from facttune_ray.errors import UserError
from facttune_ray.llm.ledger import MERGE, Completion, Ledger, request_key
from facttune_ray.tables import Folder


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


def test_it_is_found_before_it_is_written_and_by_every_other_ledger_after(folder):
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


def test_a_reader_goes_on_while_another_merges(folder):
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


def test_of_two_answers_to_one_request_the_older_is_taken(folder):
    put(Ledger(folder, flush_s=0.01), 1)

    async def late():
        await Ledger(folder, flush_s=0.01).put(key(1), completion(1, text="later"))

    asyncio.run(late())
    assert Ledger(folder).find([key(1)])[key(1)].text == "- fact 1."


def test_texts_of_every_kind_come_back(folder):
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


def test_what_a_run_has_paid_is_counted_by_run(folder):
    put(Ledger(folder, flush_s=0.01, run="mine"), *range(10))
    put(Ledger(folder, flush_s=0.01, run="other"), *range(20, 25))
    assert Ledger(folder).spent_usd("mine") == pytest.approx(0.10)
    assert Ledger(folder).spent_usd("nobody") == 0.0


def test_a_failed_write_reaches_everyone_who_waits_for_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01)
    ledger.folder = Folder.of(str(tmp_path / "file" / "ledger"))

    async def work():
        some = (ledger.put(key(i), completion(i)) for i in range(3))
        return await asyncio.gather(*some, return_exceptions=True)

    errors = asyncio.run(work())
    assert all(isinstance(e, UserError) and "is a file, not a folder" in str(e) for e in errors)


def test_another_file_system():
    folder = Folder(pafs._MockFileSystem(), "bucket/ledger")
    ledger = Ledger(folder, flush_s=0.001)
    for i in range(MERGE + 3):
        put(ledger, i)
    assert len(Ledger(folder).find(map(key, range(50)))) == MERGE + 3


def test_key_depends_on_all_that_decides_a_completion():
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
