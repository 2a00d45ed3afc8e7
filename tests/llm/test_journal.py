"""Attempts on disk: what a killed writer leaves, on a local disk and on an object store."""

from __future__ import annotations

import asyncio

import pytest

from facttune_ray.llm import journal
from facttune_ray.llm.journal import Attempt, Journal, attempts, unknown
from facttune_ray.storage.tables import Folder

KEYS = [bytes([i]) * 32 for i in range(9)]


@pytest.fixture(params=["appended", "put whole"])
def folder(request, tmp_path, monkeypatch) -> Folder:
    if request.param == "put whole":  # as in an object store
        monkeypatch.setattr(journal, "OBJECT_STORES", ("local",))
    return Folder.of(str(tmp_path))


def left(folder: Folder) -> dict[bytes, str]:
    return {a.key: a.id for a in attempts(folder)}


def test_an_attempt_is_listed_until_it_has_ended(folder):
    async def work():
        one = Journal(folder, "r", "w")
        first, second = [await one.begin(key, 0.25) for key in KEYS[:2]]
        assert unknown(folder) == [Attempt(key, 0.25, "", "w") for key in KEYS[:2]]
        assert unknown(folder, "another") == []
        one.end(first)
        await one.begin(KEYS[2], 0.5)
        assert left(folder).keys() == {KEYS[1], KEYS[2]}
        one.end(second)
        await one.close()
        assert left(folder) == {KEYS[2]: ""}

    asyncio.run(work())


def test_an_attempt_with_an_id_is_stored_until_the_server_has_lost_it(folder):
    async def work():
        one = Journal(folder, "r", "w")
        first, second = [await one.begin(key, 0.25) for key in KEYS[:2]]
        await one.store(first, "resp_1")
        assert left(folder) == {KEYS[0]: "resp_1", KEYS[1]: ""}
        assert [a.key for a in unknown(folder)] == [KEYS[1]]
        await one.store(second, "resp_\u00e9")
        assert left(folder)[KEYS[1]] == "resp_\u00e9"
        await one.store(first, "")
        assert [a.key for a in unknown(folder)] == [KEYS[0]]
        one.end(first)
        one.end(second)
        await one.close()
        assert list(folder.names()) == []

    asyncio.run(work())


def test_many_attempts_at_once_are_all_listed(folder):
    async def work():
        one = Journal(folder, "r", "w")
        begun = await asyncio.gather(*(one.begin(key, 0.1) for key in KEYS))
        await asyncio.gather(*(one.store(n, f"resp_{n}") for n in begun))
        assert left(folder) == {k: f"resp_{n}" for k, n in zip(KEYS, begun, strict=True)}
        await one.close()

    asyncio.run(work())


def test_a_rewritten_file_loses_no_open_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "REWRITE_BYTES", 100)
    folder = Folder.of(str(tmp_path))

    async def work():
        one = Journal(folder, "r", "w")
        numbers = [await one.begin(key, 0.1) for key in KEYS[:4]]
        await one.store(numbers[1], "resp_1")
        for number in numbers[::2]:
            one.end(number)  # the last attempt stays open
            assert KEYS[3] in left(folder)
        assert left(folder) == {KEYS[1]: "resp_1", KEYS[3]: ""}
        await one.close()

    asyncio.run(work())
    assert left(folder) == {KEYS[1]: "resp_1", KEYS[3]: ""}


def test_a_torn_end_loses_only_the_last_record(tmp_path):
    folder = Folder.of(str(tmp_path))

    async def work():
        one = Journal(folder, "r", "w")
        await one.store(await one.begin(KEYS[0], 0.1), "resp_1")
        await one.store(await one.begin(KEYS[1], 0.1), "resp_22")
        await one.close()

    asyncio.run(work())
    (file,) = tmp_path.glob("*.sent")
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert left(folder).items() <= {KEYS[0]: "resp_1"}.items()
    file.write_bytes(whole)
    assert left(folder) == {KEYS[0]: "resp_1", KEYS[1]: "resp_22"}
