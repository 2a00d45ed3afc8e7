"""Batch mode against the annotator's Files and Batches API, with kills at every step."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import EndpointError, RowError
from facttune_ray.llm.batch import Batches
from facttune_ray.llm.client import Client
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.tables import Folder


def client(tmp_path, url: str, **settings) -> Client:
    cfg = LLMConfig(**{"mode": "batch", "batch_poll_s": 0.05} | settings)
    endpoint = Endpoint(url, cfg.api_key_env, 10.0, Gate(local_renew(Limits()), 8, "w"))
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01, run="r", stage="facts")
    return Client(cfg, ledger, [endpoint])


async def ask(one: Client, numbers) -> list:
    asked = (
        one.ask(facts.render("Mara Veldt", f"She was born in {1000 + i}."), facts.parse)
        for i in numbers
    )
    return await asyncio.gather(*asked, return_exceptions=True)


def answers(numbers) -> list:
    return [[f"Mara Veldt was born in {1000 + i}."] for i in numbers]


def run(one: Client, numbers) -> list:
    async def work():
        try:
            return await ask(one, numbers)
        finally:
            await one.close()

    return asyncio.run(work())


def stats(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


def records(tmp_path) -> list:
    return sorted((tmp_path / "ledger" / "batches").glob("*.json"))


def test_requests_go_in_one_file_and_come_back_into_the_ledger(tmp_path):
    with running(AnnotatorOptions()) as url:
        first = client(tmp_path, url)
        assert run(first, range(60)) == answers(range(60))
        assert first.usage.calls == 60 and records(tmp_path) == []
        again = client(tmp_path, url)
        assert run(again, range(60)) == answers(range(60))
        assert again.usage.cached == 60
        assert (stats(url)["batches"], stats(url)["batch_lines"]) == (1, 60)


def test_more_than_a_file_holds_is_sent_in_several(tmp_path):
    with running(AnnotatorOptions(batch_max_requests=25)) as url:
        assert run(client(tmp_path, url, batch_requests=25), range(60)) == answers(range(60))
        assert stats(url)["batches"] == 3


def test_failed_lines_and_expired_batches_are_sent_again(tmp_path):
    faults = AnnotatorOptions(batch_error_share=0.2, batch_expire_share=0.3, seed=4)
    with running(faults) as url:
        found = run(client(tmp_path, url, max_attempts=20), range(60))
        seen = stats(url)
    assert found == answers(range(60))
    assert seen["batches"] > 1 and seen["batch_lines"] == 60 and seen["repeated"] == 0


def test_a_line_that_always_fails_is_its_rows_error(tmp_path):
    with running(AnnotatorOptions(batch_error_share=1.0)) as url:
        (error,) = run(client(tmp_path, url, max_attempts=2), range(1))
    assert isinstance(error, RowError) and "2 attempts" in str(error)


async def abandon(one: Client, numbers, until) -> None:
    """Ask, and stop dead when `until()` holds: nothing of what was begun goes on."""
    asking = asyncio.create_task(ask(one, numbers))
    while not until():
        await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def test_a_killed_run_finds_its_batch_again(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=1.0)) as url:

        def under_way() -> bool:
            found = records(tmp_path)
            return bool(found) and json.loads(found[0].read_text())["batch_id"] is not None

        asyncio.run(abandon(client(tmp_path, url), range(40), under_way))
        assert len(records(tmp_path)) == 1
        assert run(client(tmp_path, url), range(40)) == answers(range(40))
        assert stats(url)["batches"] == 1 and stats(url)["batch_lines"] == 40
        assert records(tmp_path) == []


def test_killed_between_sending_a_batch_and_noting_its_id(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=0.5)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(10), lambda: stats(url)["batches"] == 1))
        (record,) = records(tmp_path)
        noted = json.loads(record.read_text())
        record.write_text(json.dumps(noted | {"batch_id": None}))  # as it was before
        assert run(client(tmp_path, url), range(10)) == answers(range(10))
        assert stats(url)["batches"] == 1


def test_killed_before_the_batch_was_sent(tmp_path):
    with running(AnnotatorOptions()) as url:
        one = client(tmp_path, url)
        folder = one.ledger.folder / "batches"
        keys = ["00" * 32]
        (folder / "dead.json").write_json({"model": one.cfg.model, "batch_id": None, "keys": keys})
        assert run(one, range(5)) == answers(range(5))
        assert stats(url)["batches"] == 1


def test_answers_that_nobody_waits_for_any_more_are_kept(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=0.5)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(20), lambda: stats(url)["batches"] == 1))
        assert run(client(tmp_path, url), range(5)) == answers(range(5))  # of 20
        third = client(tmp_path, url)
        assert run(third, range(20)) == answers(range(20))
        assert third.usage.cached == 20 and stats(url)["batch_lines"] == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_max_requests": 3}, "was rejected"),
        ({"api_key": "another"}, "set OPENAI_API_KEY"),
    ],
)
def test_a_rejected_batch_stops_the_run_with_one_line(tmp_path, options, says):
    with running(AnnotatorOptions(**options)) as url:
        found = run(client(tmp_path, url), range(8))
    assert {type(f) for f in found} == {EndpointError}
    assert says in str(found[0]) and "\n" not in str(found[0])


def test_a_stopped_client_waits_for_nothing(tmp_path):
    async def work():
        one = client(tmp_path, "http://127.0.0.1:9/v1")
        assert isinstance(one._batches, Batches)
        asking = asyncio.create_task(ask(one, range(3)))
        await asyncio.sleep(0.05)
        await one.drain(EndpointError("over"))
        found = await asking
        await one.close()
        return found

    assert [str(e) for e in asyncio.run(work())] == ["over"] * 3
