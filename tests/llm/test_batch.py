"""Batch mode against the annotator's Files and Batches API, with kills at every step."""

from __future__ import annotations

import asyncio
import json
import time

import annotator_client
import openai
import pytest
from annotator_client import PRICED, abandon, answers, ask, ledger_folder, messages, run, stats
from openai.resources.batches import AsyncBatches
from openai.resources.files import AsyncFiles

from facttune_ray.errors import EndpointError, RowError, UserError
from facttune_ray.llm.batch import Batches
from facttune_ray.llm.client import Client
from facttune_ray.llm.ledger import Ledger, request_key
from facttune_ray.llm.parameters import parameters
from facttune_ray.quickstart.annotator import AnnotatorOptions, running


def client(tmp_path, url: str, **settings) -> Client:
    return annotator_client.client(
        tmp_path, url, **{"mode": "batch", "batch_poll_s": 0.05} | settings
    )


def records(tmp_path) -> list:
    return sorted((tmp_path / "ledger" / "batches").glob("*.json"))


def noted_id(tmp_path) -> str | None:
    """The batch's id, once it is on record."""
    paths = records(tmp_path)
    return json.loads(paths[0].read_text())["batch_id"] if paths else None


def sent_once(url: str, batches: int, lines: int) -> bool:
    """Nothing was answered twice, or sent again after its answer."""
    seen = stats(url)
    assert (seen["batches"], seen["batch_lines"]) == (batches, lines)
    assert (seen["repeated"], seen["replayed"]) == (0, 0)
    return True


def ledger(tmp_path) -> Ledger:
    return Ledger(ledger_folder(tmp_path))


def test_requests_go_in_one_file_and_come_back_into_the_ledger(tmp_path):
    with running(AnnotatorOptions()) as url:
        first = client(tmp_path, url)
        assert run(first, range(60)) == answers(range(60))
        assert first.usage.calls == 60 and records(tmp_path) == []
        again = client(tmp_path, url)
        assert run(again, range(60)) == answers(range(60))
        assert again.usage.cached == 60
        assert (stats(url)["batches"], stats(url)["batch_lines"]) == (1, 60)


def test_more_requests_than_a_file_holds_are_sent_in_several_files(tmp_path):
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


def test_a_line_that_always_fails_becomes_the_error_of_its_row(tmp_path):
    with running(AnnotatorOptions(batch_error_share=1.0)) as url:
        (error,) = run(client(tmp_path, url, max_attempts=2), range(1))
    assert isinstance(error, RowError) and "2 attempts" in str(error)


def test_a_killed_run_finds_its_batch_again(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=1.0)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(40), lambda: noted_id(tmp_path)))
        assert len(records(tmp_path)) == 1
        assert run(client(tmp_path, url), range(40)) == answers(range(40))
        assert sent_once(url, batches=1, lines=40) and records(tmp_path) == []


class Lines:
    """A result file with `change` applied to each line, and characters that are not escaped."""

    def __init__(self, text: str, change) -> None:
        lines = (json.dumps(change(json.loads(x)), ensure_ascii=False) for x in text.splitlines())
        self.text = "".join(line + "\n" for line in lines)
        self.content = self.text.encode()

    def read(self) -> bytes:
        return self.content


def slowed(monkeypatch, kind, method: str, before: bool = False) -> list[int]:
    """Make the method hang before or after the call; the list grows when it hangs."""
    original, reached = getattr(kind, method), []

    async def call(self, *args, **options):
        made = None if before else await original(self, *args, **options)
        reached.append(1)
        await asyncio.sleep(60)
        return made

    monkeypatch.setattr(kind, method, call)
    return reached


@pytest.mark.parametrize("at", ["upload", "upload done", "create", "create done"])
def test_killed_while_a_batch_is_sent(tmp_path, monkeypatch, at):
    kind = AsyncFiles if at.startswith("upload") else AsyncBatches
    with running(AnnotatorOptions(batch_delay_s=0.3)) as url:
        with monkeypatch.context() as m:
            reached = slowed(m, kind, "create", before=not at.endswith("done"))
            asyncio.run(abandon(client(tmp_path, url), range(10), lambda: reached))
        assert len(records(tmp_path)) == 1 and noted_id(tmp_path) is None
        assert stats(url)["batches"] == (at == "create done")
        killed = records(tmp_path)
        assert run(client(tmp_path, url), range(10)) == answers(range(10))
        assert sent_once(url, batches=1, lines=10)
        # a record without a batch may belong to a worker that is still sending its file
        assert records(tmp_path) == ([] if at == "create done" else killed)


@pytest.mark.parametrize(("age_s", "stays"), [(60.0, True), (3700.0, False)])
def test_a_record_without_a_batch_goes_when_it_is_old(tmp_path, age_s, stays):
    with running(AnnotatorOptions()) as url:
        one = client(tmp_path, url)
        key = request_key(one.cfg.model, messages(0), parameters(one.cfg, 0), 0).hex()
        record = {"model": one.cfg.model, "batch_id": None, "created_s": time.time() - age_s}
        (one.ledger.folder / "batches" / "of_another.json").write_json(record | {"keys": [key]})
        assert run(one, range(3)) == answers(range(3))
    assert [r.name for r in records(tmp_path)] == ["of_another.json"] * stays


def test_a_lost_answer_to_the_creation_of_a_batch_does_not_create_another(tmp_path, monkeypatch):
    create, lost = AsyncBatches.create, []

    async def breaks(self, **options):
        made = await create(self, **options)
        if not lost:
            lost.append(made.id)
            raise openai.APIConnectionError(request=None)  # type: ignore[arg-type]
        return made

    monkeypatch.setattr(AsyncBatches, "create", breaks)
    with running(AnnotatorOptions()) as url:
        assert run(client(tmp_path, url), range(10)) == answers(range(10))
        assert lost and sent_once(url, batches=1, lines=10)


def killed_while_keeping(tmp_path, url: str, monkeypatch) -> None:
    """Half of 20 answers are in the ledger."""
    put, kept = Ledger.put, []

    async def half(self, key, completion):
        if len(kept) == 10:
            await asyncio.sleep(60)
        kept.append(key)
        await put(self, key, completion)

    with monkeypatch.context() as m:
        m.setattr(Ledger, "put", half)
        written = (tmp_path / "ledger").glob
        stopped = abandon(
            client(tmp_path, url, **PRICED), range(20), lambda: list(written("*.arrow"))
        )
        asyncio.run(stopped)
    assert len(records(tmp_path)) == 1 and ledger(tmp_path).find(kept)


def test_killed_before_the_ledger_has_all_answers(tmp_path, monkeypatch):
    with running(AnnotatorOptions()) as url:
        killed_while_keeping(tmp_path, url, monkeypatch)
        assert run(client(tmp_path, url, **PRICED), range(20)) == answers(range(20))
        assert sent_once(url, batches=1, lines=20) and records(tmp_path) == []


def test_a_kill_before_the_ledger_has_all_answers_counts_each_once(tmp_path, monkeypatch):
    with running(AnnotatorOptions()) as url:
        killed_while_keeping(tmp_path, url, monkeypatch)
        had = sum(len(s.prefixes) for s in ledger(tmp_path).segments.values())
        again = client(tmp_path, url, **PRICED)
        assert run(again, range(20)) == answers(range(20))
        assert again.usage.calls == 20 - had
        alone = client(tmp_path / "alone", url, **PRICED)
        run(alone, range(20))
        once = sum(ledger(tmp_path / "alone").paid_usd("r").values())
        assert sum(ledger(tmp_path).paid_usd("r").values()) == pytest.approx(once)


def test_two_clients_wait_for_one_batch_of_a_killed_run(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=1.5)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(20), lambda: noted_id(tmp_path)))

        async def both():
            some = [client(tmp_path, url), client(tmp_path, url)]
            found = await asyncio.gather(ask(some[0], range(10)), ask(some[1], range(5, 20)))
            for one in some:
                await one.close()
            return found

        assert asyncio.run(both()) == [answers(range(10)), answers(range(5, 20))]
        assert sent_once(url, batches=1, lines=20) and records(tmp_path) == []


@pytest.mark.parametrize("wait_s", [1.2, 0.3])  # before the batch is done; just before
def test_later_requests_wait_for_the_adopted_batch_too(tmp_path, wait_s):
    with running(AnnotatorOptions(batch_delay_s=2.5)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(20), lambda: noted_id(tmp_path)))
        done_s = time.monotonic() + 2.5

        async def in_two_goes():
            one = client(tmp_path, url)
            asking = asyncio.create_task(ask(one, range(5)))
            await asyncio.sleep(max(0.0, done_s - wait_s - time.monotonic()))
            found = [await ask(one, range(5, 20)), await asking]
            await asyncio.sleep(1.0)
            found.append(await ask(one, range(20, 22)))  # later requests are answered, too
            await one.close()
            return found

        numbers = [range(5, 20), range(5), range(20, 22)]
        assert asyncio.run(in_two_goes()) == [answers(some) for some in numbers]
        assert sent_once(url, batches=2, lines=22)


def test_answers_that_another_client_has_kept_meanwhile_are_not_sent_again(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=0.5)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(20), lambda: noted_id(tmp_path)))
        late = client(tmp_path, url)  # opened the ledger before the batch was done
        assert run(client(tmp_path, url), range(10)) == answers(range(10))
        assert records(tmp_path) == []  # all 20 are in the ledger
        assert run(late, range(20)) == answers(range(20))
        assert sent_once(url, batches=1, lines=20)


def test_answers_without_a_waiting_request_are_kept(tmp_path):
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


def test_an_endpoint_without_batches_stops_the_run_and_says_what_to_do(tmp_path):
    with running(AnnotatorOptions()) as url:
        nowhere = url.removesuffix("/v1") + "/v9"
        (error,) = run(client(tmp_path, nowhere), range(1))
    assert type(error) is EndpointError and "\n" not in str(error)
    assert f"LLM endpoint {nowhere}, batch: " in str(error) and "llm.mode=online" in str(error)


def test_a_stopped_client_ends_every_request(tmp_path):
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


# -- outcomes of a batch and of a line ------------------------------------------------------------


def test_after_a_rejected_batch_the_run_goes_on_with_better_settings(tmp_path):
    with running(AnnotatorOptions(batch_max_requests=5)) as url:
        found = run(client(tmp_path, url), range(8))
        assert {type(f) for f in found} == {EndpointError}
        assert run(client(tmp_path, url, batch_requests=5), range(8)) == answers(range(8))


def test_a_batch_that_the_server_has_forgotten_is_sent_again(tmp_path):
    with running(AnnotatorOptions(batch_delay_s=30.0)) as url:
        asyncio.run(abandon(client(tmp_path, url), range(5), lambda: noted_id(tmp_path)))
    with running(AnnotatorOptions()) as url:  # the embedded endpoint starts anew with each run
        assert run(client(tmp_path, url), range(5)) == answers(range(5))
        assert records(tmp_path) == []


@pytest.mark.parametrize("good", [5, 0])
def test_a_refused_line_fails_alone_beside_answers_and_else_stops_the_run(tmp_path, good):
    with running(AnnotatorOptions()) as url:

        async def one_is_refused():
            one = client(tmp_path, url)
            bad = one.complete([{"content": "no role"}])
            found = await asyncio.gather(ask(one, range(good)), bad, return_exceptions=True)
            await one.close()
            return found

        found, error = asyncio.run(one_is_refused())
        assert found == answers(range(good)) and "must be an object with a role" in str(error)
        assert type(error) is (RowError if good else EndpointError)


def test_lines_without_quota_are_sent_again_by_the_next_run(tmp_path, monkeypatch):
    content, refused = AsyncFiles.content, []

    def without_quota(line: dict) -> dict:
        quota = {"error": {"code": "insufficient_quota", "message": "You exceeded your quota."}}
        return line | {"response": {"status_code": 429, "body": quota}}

    async def first(self, id, **options):
        file = await content(self, id, **options)
        if '"status_code": 500' in file.text and not refused:
            refused.append(id)
        return Lines(file.text, without_quota) if id in refused else file

    monkeypatch.setattr(AsyncFiles, "content", first)
    with running(AnnotatorOptions(batch_error_share=0.5)) as url:
        found = run(client(tmp_path, url), range(10))
        errors = [f for f in found if isinstance(f, Exception)]
        assert errors and {type(f) for f in errors} == {EndpointError}
        assert "quota is used up" in str(errors[0])
        # the account was topped up
        assert run(client(tmp_path, url, max_attempts=20), range(10)) == answers(range(10))
        assert stats(url)["replayed"] == 0


@pytest.mark.parametrize("adopting", [False, True])
def test_a_server_that_is_down_stops_the_run_with_one_line(tmp_path, monkeypatch, adopting):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    one = client(tmp_path, "http://127.0.0.1:9/v1", max_attempts=2, max_wait_s=0.1)
    if adopting:
        params = parameters(one.cfg, 0)
        keys = [request_key(one.cfg.model, messages(i), params, 0).hex() for i in range(3)]
        record = {"model": one.cfg.model, "batch_id": None, "keys": keys}
        (one.ledger.folder / "batches" / "dead.json").write_json(record)
    found = run(one, range(3))
    assert {type(f) for f in found} == {EndpointError}
    assert "127.0.0.1:9" in str(found[0]) and "\n" not in str(found[0])


def test_a_failed_line_is_sent_again_once_while_the_output_file_is_late(tmp_path, monkeypatch):
    retrieve, content = AsyncBatches.retrieve, AsyncFiles.content

    async def errors_first(self, id, **options):
        batch = await retrieve(self, id, **options)
        batch.output_file_id, batch.error_file_id = batch.error_file_id, batch.output_file_id
        return batch

    async def slow(self, id, **options):
        file = await content(self, id, **options)
        await asyncio.sleep(1.0 if '"status_code": 200' in file.text else 0.0)
        return file

    monkeypatch.setattr(AsyncBatches, "retrieve", errors_first)
    monkeypatch.setattr(AsyncFiles, "content", slow)
    with running(AnnotatorOptions(batch_error_share=0.3, batch_delay_s=1.0)) as url:
        assert run(client(tmp_path, url, max_attempts=20), range(20)) == answers(range(20))
        assert stats(url)["batches"] > 1 and stats(url)["replayed"] == 0


def test_a_full_queue_of_the_account_is_waited_for(tmp_path, monkeypatch):
    retrieve, full = AsyncBatches.retrieve, []

    async def refuses(self, id, **options):
        batch = await retrieve(self, id, **options)
        if len(full) < 4:
            full.append(1)
            batch.status, batch.output_file_id = "failed", None
            problem = openai.types.BatchError(code="token_limit_exceeded", message="Enqueued")
            batch.errors = openai.types.batch.Errors(data=[problem])
        return batch

    monkeypatch.setattr(AsyncBatches, "retrieve", refuses)
    with running(AnnotatorOptions()) as url:
        assert run(client(tmp_path, url, max_attempts=3), range(3)) == answers(range(3))


@pytest.mark.parametrize(
    "text",
    [
        "Zo\u00eb \u6771\u4eac \U0001f3bb",
        pytest.param(
            "one\u2028two\x85three",
        ),
    ],
)
def test_a_result_file_may_hold_any_character_as_it_is(tmp_path, monkeypatch, text):
    content = AsyncFiles.content

    def with_text(line: dict) -> dict:
        line["response"]["body"]["choices"][0]["message"]["content"] = text
        return line

    async def raw(self, id, **options):
        return Lines((await content(self, id, **options)).text, with_text)

    monkeypatch.setattr(AsyncFiles, "content", raw)
    with running(AnnotatorOptions()) as url:

        async def work():
            one = client(tmp_path, url)
            try:
                return await one.complete(messages(1))
            finally:
                await one.close()

        assert asyncio.run(work()).text == text


def test_files_are_no_larger_than_the_server_takes(tmp_path):
    with running(AnnotatorOptions(batch_max_bytes=2**20)) as url:
        one = client(tmp_path, url, batch_mb=1)

        async def work():
            padded = ([{"role": "user", "content": f"{i} " + "x" * 400_000}] for i in range(5))
            found = await asyncio.gather(*map(one.complete, padded))
            await one.close()
            return found

        assert len(asyncio.run(work())) == 5
        assert sent_once(url, batches=3, lines=5)


def test_a_full_disk_stops_the_run_and_the_answers_come_when_there_is_room(tmp_path, monkeypatch):
    async def full(self, key, completion):
        raise UserError("cannot write: no space left")

    with running(AnnotatorOptions()) as url:
        with monkeypatch.context() as m:
            m.setattr(Ledger, "put", full)
            found = run(client(tmp_path, url), range(5))
        assert [str(f) for f in found] == ["cannot write: no space left"] * 5
        assert run(client(tmp_path, url), range(5)) == answers(range(5))
        assert sent_once(url, batches=1, lines=5) and records(tmp_path) == []
