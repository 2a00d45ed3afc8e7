"""Files and batches through the `openai` client."""

import json
import time

import openai
import pytest

from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running

URL = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(i, **other):
    messages = facts.render("Ada", f"She owns {i} boats.")
    body = {"model": "m", "messages": messages}
    return {"custom_id": f"row-{i}", "method": "POST", "url": URL, "body": body} | other


def client(url, key="none"):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)


def submit(api, lines, **other):
    content = "".join(json.dumps(one) + "\n" for one in lines).encode()
    file = api.files.create(file=("in.jsonl", content), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"} | other
    return api.batches.create(**asked)


def wait(api, batch, *until):
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        batch = api.batches.retrieve(batch.id)
        if batch.status in (until or ENDED):
            return batch
        time.sleep(0.02)
    pytest.fail(f"the batch is still {batch.status}")


def run(api, lines, **other):
    return wait(api, submit(api, lines, **other))


def rows(api, file_id):
    return [json.loads(one) for one in api.files.content(file_id).text.splitlines()]


def stats(api):
    return api.get("../stats", cast_to=object)


@pytest.fixture(scope="module")
def plain():
    with running(AnnotatorOptions()) as url, client(url) as api:
        yield api


def test_a_batch_is_answered(plain):
    batch = submit(plain, [line(i) for i in range(40)], metadata={"run": "a"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"run": "a"})
    batch = wait(plain, batch)
    assert (batch.status, batch.model, batch.errors) == ("completed", "m", None)
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert batch.error_file_id is None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.expires_at - batch.created_at == 24 * 3600
    out = rows(plain, batch.output_file_id)
    assert len({row["id"] for row in out}) == 40 and out[0]["id"].startswith("batch_req_")
    order = [row["custom_id"] for row in out]
    assert order != [f"row-{i}" for i in range(40)]
    assert sorted(order) == sorted(f"row-{i}" for i in range(40))
    spent = 0
    for row in out:
        assert (row["error"], row["response"]["status_code"]) == (None, 200)
        assert row["response"]["request_id"]
        reply = openai.types.chat.ChatCompletion.model_validate(row["response"]["body"])
        number = row["custom_id"].removeprefix("row-")
        assert reply.choices[0].message.content == f"- Ada owns {number} boats."
        spent += reply.usage.total_tokens
    assert batch.usage.total_tokens == spent == batch.usage.input_tokens + batch.usage.output_tokens


def test_files(plain):
    content = json.dumps(line(0)).encode()
    file = plain.files.create(file=("named.jsonl", content), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("named.jsonl", len(content), "batch")
    assert plain.files.retrieve(file.id) == file
    assert plain.files.content(file.id).content == content
    assert plain.files.list().data[0] == file  # the newest first
    assert file.id not in [f.id for f in plain.files.list(purpose="batch_output")]
    assert plain.files.delete(file.id).deleted
    for gone in (plain.files.retrieve, plain.files.content, plain.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            gone(file.id)
    with pytest.raises(openai.BadRequestError):
        plain.files.create(file=("a.jsonl", content), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError):
        plain.post("/files", cast_to=object, body={"purpose": "batch"})


def test_unknown_and_bad_batches(plain):
    for gone in (plain.batches.retrieve, plain.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found") as error:
            gone("batch_none")
        assert error.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        plain.batches.create(input_file_id="file-0", endpoint=URL, completion_window="24h")
    for bad in ({"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"metadata": [1]}):
        with pytest.raises(openai.BadRequestError):
            submit(plain, [line(0)], **bad)
    output = run(plain, [line(0)]).output_file_id
    with pytest.raises(openai.BadRequestError, match="purpose"):
        plain.batches.create(input_file_id=output, endpoint=URL, completion_window="24h")


def test_batches_are_listed_newest_first():
    with running(AnnotatorOptions()) as url, client(url) as api:
        made = [run(api, [line(i)]).id for i in range(5)]
        page = api.batches.list(limit=2)
        assert [b.id for b in page.data] == [made[4], made[3]] and page.has_more
        page = api.batches.list(limit=2, after=made[1])
        assert [b.id for b in page.data] == [made[0]] and not page.has_more
        assert [b.id for b in api.batches.list(limit=2)] == made[::-1]  # page by page
        assert stats(api)["batches"] == stats(api)["batch_lines"] == 5
        with pytest.raises(openai.NotFoundError):
            api.batches.list(after="batch_none")
        with pytest.raises(openai.BadRequestError):
            api.batches.list(limit=0)


@pytest.mark.parametrize(
    ("lines", "code", "number", "param"),
    [
        ([], "empty_file", None, None),
        ([line(i) for i in range(4)], "too_many_tasks", None, None),
        ([line(0, body={"model": "m", "pad": "x" * 50_000})], "file_too_large", None, None),
        ([line(0), line(1), line(0)], "duplicate_custom_id", 3, "custom_id"),
        ([line(0), line(1, body={"model": "other"})], "model_mismatch", 2, "body.model"),
        ([line(0, url="/v1/embeddings")], "url_mismatch", 1, "url"),
        ([line(0, method="GET")], "invalid_method", 1, "method"),
        ([line(0), "text"], "invalid_json_line", 2, None),
        ([line(0, custom_id=None)], "missing_required_parameter", 1, "custom_id"),
    ],
)
def test_input_that_fails_a_batch(small, lines, code, number, param):
    batch = run(small, lines)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    (error,) = batch.errors.data
    assert (error.code, error.line, error.param) == (code, number, param)
    assert error.message and batch.errors.object == "list"
    assert stats(small)["answered"] == 0


@pytest.fixture(scope="module")
def small():
    options = AnnotatorOptions(batch_max_requests=3, batch_max_bytes=40_000)
    with running(options) as url, client(url) as api:
        yield api


def test_lines_that_fail(tmp_path):
    options = AnnotatorOptions(batch_error_share=0.3, seed=3, journal=str(tmp_path / "j.jsonl"))
    with running(options) as url, client(url) as api:
        bad = line(200, body={"model": "m", "messages": []})
        batch = run(api, [*(line(i) for i in range(100)), bad])
        failed = rows(api, batch.error_file_id)
        by_id = {row["custom_id"]: row["response"] for row in failed}
        done = {row["custom_id"] for row in rows(api, batch.output_file_id)}
        assert batch.status == "completed" and not done & set(by_id)
        assert len(done | set(by_id)) == 101 and len(failed) > 5
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (101, len(done), len(failed))
        refused = [r for r in by_id.values() if r["status_code"] == 400]
        broken = [r for r in by_id.values() if r["status_code"] == 500]
        assert len(refused) <= 1 and len(refused) + len(broken) == len(failed)
        assert broken[0]["body"]["error"]["type"] == "server_error" and broken[0]["request_id"]
        assert all(row["error"] is None for row in failed)
        assert stats(api)["answered"] == stats(api)["batch_lines"] == len(done)
        # asked again until all are there: nothing is paid twice
        left = set(by_id) - {"row-200"}
        for _ in range(100):
            if not left:
                break
            batch = run(api, [line(i) for i in range(100) if f"row-{i}" in left])
            if batch.output_file_id:
                left -= {row["custom_id"] for row in rows(api, batch.output_file_id)}
        assert not left
        assert (stats(api)["answered"], stats(api)["repeated"]) == (100, 0)


def test_custom_ids_are_idempotency_keys(tmp_path):
    options = AnnotatorOptions(journal=str(tmp_path / "j.jsonl"))
    lines = [line(i) for i in range(10)]
    with running(options) as url, client(url) as api:
        first = {r["custom_id"]: r["response"] for r in rows(api, run(api, lines).output_file_id)}
        batch = run(api, lines)
        again = {r["custom_id"]: r["response"] for r in rows(api, batch.output_file_id)}
        assert {k: r["body"] for k, r in first.items()} == {k: r["body"] for k, r in again.items()}
        counted = stats(api)
        assert (counted["answered"], counted["replayed"], counted["repeated"]) == (10, 10, 0)
        assert (counted["batch_lines"], counted["batches"], counted["received"]) == (10, 2, 0)
        raw = api.chat.completions.with_raw_response.create(
            **lines[0]["body"], extra_headers={"Idempotency-Key": "row-0"}
        )
        assert raw.headers["idempotent-replayed"] == "true"
        other = line(1, custom_id="row-0")
        (row,) = rows(api, run(api, [other]).error_file_id)
        assert row["response"]["body"]["error"]["code"] == "idempotency_key_reused"
    with running(options) as url, client(url) as api:  # also after a restart
        assert run(api, lines).status == "completed"
        assert (stats(api)["answered"], stats(api)["journal"]) == (0, 10)
        run(api, [line(0, custom_id="new")])
        assert stats(api)["repeated"] == 1  # paid twice
    keys = [json.loads(row)["key"] for row in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert keys == [f"row-{i}" for i in range(10)] + ["new"]


def test_expiry():
    with running(AnnotatorOptions(batch_expire_share=1.0)) as url, client(url) as api:
        batch = run(api, [line(i) for i in range(7)])
        assert batch.status == "expired" and batch.expired_at and batch.completed_at is None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (7, 3, 4)
        done = {row["custom_id"] for row in rows(api, batch.output_file_id)}
        assert done == {"row-0", "row-1", "row-2"}
        left = rows(api, batch.error_file_id)
        assert {row["custom_id"] for row in left} == {f"row-{i}" for i in range(3, 7)}
        assert {(row["response"], row["error"]["code"]) for row in left} == {
            (None, "batch_expired")
        }
        assert stats(api)["answered"] == 3


def test_cancelling():
    with running(AnnotatorOptions(batch_delay_s=300)) as url, client(url) as api:
        batch = wait(api, submit(api, [line(i) for i in range(600)]), "in_progress")
        give_up = time.monotonic() + 30
        while api.batches.retrieve(batch.id).request_counts.completed == 0:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert api.batches.cancel(batch.id).status == "cancelling"
        batch = wait(api, batch)
        assert batch.status == "cancelled" and batch.cancelled_at >= batch.cancelling_at
        done, left = rows(api, batch.output_file_id), rows(api, batch.error_file_id)
        assert 0 < len(done) == batch.request_counts.completed == stats(api)["answered"]
        assert len(done) + len(left) == 600
        assert left[0]["error"]["code"] == "batch_cancelled" and left[0]["response"] is None
        with pytest.raises(openai.ConflictError):
            api.batches.cancel(batch.id)


def test_results_come_after_the_delay():
    with running(AnnotatorOptions(batch_delay_s=0.5)) as url, client(url) as api:
        started = time.monotonic()
        batch = run(api, [line(i) for i in range(5)])
        assert time.monotonic() - started >= 0.5 and batch.status == "completed"


def test_lines_are_not_rate_limited_and_the_key_is_checked():
    options = AnnotatorOptions(requests_per_minute=1, tokens_per_minute=1, api_key="right")
    with running(options) as url, client(url, "right") as api:
        batch = run(api, [line(i) for i in range(20)])
        assert batch.request_counts.completed == 20
        assert stats(api)["seconds"] == []
        assert api.chat.completions.create(**line(0)["body"]).choices  # the buckets are full
        with client(url, "wrong") as stranger:
            for call in (
                lambda: submit(stranger, [line(0)]),
                lambda: stranger.batches.retrieve(batch.id),
                lambda: stranger.batches.list(),
                lambda: stranger.files.content(batch.output_file_id),
            ):
                with pytest.raises(openai.AuthenticationError):
                    call()
