"""The client against a running annotator with faults."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
import time
from contextlib import contextmanager

import pytest
from annotator_client import answers, stats
from annotator_client import run as ask

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, EndpointError, RowError, Stopped, UserError
from facttune_ray.llm import funds
from facttune_ray.llm.client import Client
from facttune_ray.llm.cost import Allowance, Meter, MeterReport, Usage
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.parameters import parameters
from facttune_ray.llm.permits import ActorLost, Gate, Queue, local_renew
from facttune_ray.prompts import facts
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.storage.tables import Folder

FAST = {"timeout_s": 2.0, "max_attempts": 8, "max_wait_s": 0.2}


@contextmanager
def client(tmp_path, url, meter: Meter | None = None, urls=(), **settings):
    """A client with its own limiter, for one endpoint or for each of `urls`."""
    cfg = LLMConfig(**FAST | settings)
    limits = Limits(cfg.requests_per_minute, cfg.tokens_per_minute)
    queue = Queue()
    endpoints = [
        Endpoint(u, cfg.api_key_env, cfg.timeout_s, Gate(local_renew(limits), 64, "w", queue))
        for u in urls or [url]
    ]

    async def report(ask) -> Allowance:
        assert meter is not None
        return meter.report(ask)

    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.01, run="r", stage="facts")
    yield Client(cfg, ledger, endpoints, report if meter else None)


def test_every_fault_is_survived_and_nothing_is_answered_twice(tmp_path):
    faults = AnnotatorOptions(
        error_share=0.1, reset_share=0.1, malformed_share=0.1, journal=str(tmp_path / "j.jsonl")
    )
    with running(faults) as url:
        with client(tmp_path, url) as one:
            found = ask(one, range(150))
        assert found == answers(range(150))
        assert one.usage.calls == 150 and one.usage.retries > 20
        with client(tmp_path, url) as again:  # everything comes from the ledger
            assert ask(again, range(150)) == found
        assert (again.usage.calls, again.usage.cached) == (0, 150)
        assert stats(url)["repeated"] == 0


def test_identical_requests_in_flight_are_sent_once(tmp_path):
    with running(AnnotatorOptions(latency_min_ms=50, latency_max_ms=50)) as url:
        with client(tmp_path, url) as one:

            async def same():
                messages = facts.render("Mara", "She sings.")
                out = await asyncio.gather(*(one.ask(messages, facts.parse) for _ in range(20)))
                await one.close()
                return out

            assert asyncio.run(same()) == [["Mara sings."]] * 20
        assert one.usage.calls == 1


def test_429_pauses_and_no_attempt_is_lost(tmp_path):
    limited = AnnotatorOptions(requests_per_minute=6000, burst_s=0.5, headers=False)
    with running(limited) as url:
        # the config has twice the limit of the server, whose headers do not state it
        with client(tmp_path, url, max_attempts=1, requests_per_minute=12_000) as one:
            found = ask(one, range(400))
        assert not [f for f in found if isinstance(f, Exception)]
        assert stats(url)["rejected_429"] == one.usage.refused > 0


def test_a_hanging_request_fails_its_row_alone(tmp_path):
    with running(AnnotatorOptions(hang_share=1.0, hang_s=30)) as url:
        with client(tmp_path, url, timeout_s=0.2, max_attempts=2) as one:
            (error,) = ask(one, range(1))
    assert isinstance(error, RowError) and "no answer within 0.2 s" in str(error)


def test_an_endpoint_that_is_down_stops_the_run_with_one_line(tmp_path):
    with client(tmp_path, "http://127.0.0.1:9/v1", max_attempts=2) as one:
        (error,) = ask(one, range(1))
    assert isinstance(error, EndpointError)
    assert "127.0.0.1:9/v1 is down" in str(error) and "\n" not in str(error)


def test_a_wrong_key_stops_the_run_and_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKED_KEY", "sk-marked-secret")
    with running(AnnotatorOptions(api_key="right")) as url:
        with client(tmp_path, url, api_key_env="MARKED_KEY") as one:
            (error,) = ask(one, range(1))
    assert isinstance(error, EndpointError)
    assert "set MARKED_KEY" in str(error) and "sk-marked" not in str(error)


@contextmanager
def says(*answers: bytes):
    """A server that answers with these bytes in turn, repeats the last, and closes connections."""
    left = list(answers)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while line := self.rfile.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def http(status: str, body: dict, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status}", *headers, "Connection: close", f"Content-Length: {len(content)}")
    return "\r\n".join((*lines, "", "")).encode() + content


def chat(text: str, finish: str = "stop") -> bytes:
    message = {"message": {"content": text}, "finish_reason": finish}
    return http("200 OK", {"model": "m", "choices": [message]})


def test_an_answer_that_is_not_http_is_requested_again(tmp_path):
    with says(b"NOT HTTP AT ALL\r\n\r\n", chat("- She sings.")) as url:
        with client(tmp_path, url) as one:
            assert ask(one, range(1)) == [["She sings."]]
    assert one.usage.retries == 1


def test_a_long_retry_after_stops_the_run_with_one_line(tmp_path):
    full = http("429 Too Many", {"error": {"message": "daily limit"}}, "Retry-After: 86400")
    with says(full) as url:
        with client(tmp_path, url) as one:
            (error,) = ask(one, range(1))
    assert isinstance(error, EndpointError) and one.usage.refused == 1
    assert "asks to wait 86,400 s" in str(error) and "\n" not in str(error)


def test_a_request_ends_after_max_elapsed_s(tmp_path):
    with running(AnnotatorOptions(error_share=1.0)) as url:
        with client(tmp_path, url, max_elapsed_s=0.5, max_attempts=100_000) as one:
            (error,) = ask(one, range(1))
    assert isinstance(error, RowError) and 2 < one.usage.retries < 1000


def test_a_cut_answer_fails_its_row_and_is_not_requested_again(tmp_path):
    messages = facts.render("Mara", "She sings.")
    with says(chat("- She sings.\n- She was born in", "length")) as url:

        async def both():
            cut = (one.ask(messages, facts.parse, reject_cut=whole) for whole in (True, False))
            found = await asyncio.gather(*cut, return_exceptions=True)
            await one.close()
            return found

        with client(tmp_path, url, reasks=2) as one:
            error, taken = asyncio.run(both())
    assert isinstance(error, RowError) and "raise llm.max_tokens" in str(error)
    assert taken == ["She sings.", "She was born in"] and one.usage.calls == 1


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<think>Is it False?\nNo.</think>\nTrue", "\nTrue"),
        ("It may be.</think>True", "True"),  # the chat template opens the thoughts
        ("<think>It is True, or", ""),
        ("True", "True"),
    ],
)
def test_thoughts_are_not_part_of_an_answer(tmp_path, said, answer):
    with says(chat(said)) as url, client(tmp_path, url) as one:

        async def both():
            found = await one.ask([{"role": "user", "content": "?"}], str)
            whole = await one.ask([{"role": "user", "content": "?"}], str, reject_cut=True)
            await one.close()
            return found, whole

        assert asyncio.run(both()) == (answer, answer)


def test_two_endpoints_share_the_load_by_their_limits(tmp_path):
    limits = {"latency_min_ms": 5, "latency_max_ms": 20, "burst_s": 1.0}
    small = AnnotatorOptions(requests_per_minute=1_800, **limits)  # far below what a CPU can serve
    large = AnnotatorOptions(requests_per_minute=5_400, **limits)
    with running(small) as first, running(large) as second:
        with client(tmp_path, "", urls=[first, second]) as one:
            found = ask(one, range(500))
        counts = [stats(url)["answered"] for url in (first, second)]
    assert not [f for f in found if isinstance(f, Exception)]
    assert sum(counts) == 500 and 2 < counts[1] / counts[0] < 4.5


def test_one_of_two_endpoints_that_is_down_costs_attempts_but_no_rows(tmp_path):
    with running(AnnotatorOptions()) as url:
        with client(tmp_path, "", urls=["http://127.0.0.1:9/v1", url], max_attempts=20) as one:
            found = ask(one, range(60))
    assert not [f for f in found if isinstance(f, Exception)]


def test_parameters_are_sent_and_a_seed_grows_with_the_sample():
    cfg = LLMConfig(
        temperature=None, params={"seed": 7, "response_format": {"type": "json_object"}}
    )
    first = {"max_tokens": 512, "seed": 7, "response_format": {"type": "json_object"}}
    assert parameters(cfg, 0) == first
    assert parameters(cfg, 2) == first | {"seed": 9}


def test_a_run_stops_at_its_budget_and_continues_with_a_higher_one(tmp_path):
    price = {"usd_per_million_input": 10.0, "usd_per_million_output": 30.0}
    with running(AnnotatorOptions(latency_min_ms=5, latency_max_ms=30)) as url:
        meter = Meter(budget_usd=0.5)
        with client(tmp_path, url, meter, budget_usd=0.5, **price) as one:
            found = ask(one, range(400))
        stopped = [f for f in found if isinstance(f, BudgetReached)]
        assert stopped and "llm.budget_usd=0.5 is reached" in str(stopped[0])
        paid = one.usage.cost_usd
        assert 0.49 < paid < 0.505  # a request costs 0.0026
        kept = Ledger(Folder.of(str(tmp_path / "ledger"))).paid_usd("r")
        assert sum(kept.values()) == pytest.approx(paid)
        more = Meter(budget_usd=5.0, spent_usd=paid)
        with client(tmp_path, url, more, budget_usd=5.0, **price) as one:
            found = ask(one, range(400))
        assert not [f for f in found if isinstance(f, Exception)]
        assert one.usage.cached + one.usage.calls == 400
        assert stats(url)["answered"] == 400


def test_with_a_budget_only_the_first_request_is_sent_alone(tmp_path):
    """The others waited for its answer; then they leave together, not one after the other."""
    price = {"usd_per_million_input": 10.0, "usd_per_million_output": 30.0}
    with running(AnnotatorOptions(latency_min_ms=1000, latency_max_ms=1000)) as url:
        with client(tmp_path, url, Meter(budget_usd=5.0), budget_usd=5.0, **price) as one:
            began = time.monotonic()
            found = ask(one, range(40))
    assert not [f for f in found if isinstance(f, Exception)]
    assert time.monotonic() - began < 20  # one after the other they take 40 s


def test_requests_that_wait_for_a_dead_meter_end_with_one_line(monkeypatch):
    monkeypatch.setattr(funds, "LOST_S", 0.2)

    async def gone(_: MeterReport) -> Allowance:
        raise ActorLost("the actor died")

    async def wait() -> None:
        cfg = LLMConfig(budget_usd=1.0)
        one = funds.Funds(cfg, Usage(), gone, "a", "facts", [1], [], lambda _: None)
        try:
            await asyncio.wait_for(one.take(lambda: 0.1), 10)
        finally:
            await one.pause()

    with pytest.raises(UserError, match="meter has not answered .*the actor died"):
        asyncio.run(wait())


def test_a_stopped_run_sends_nothing_more_and_keeps_answers_in_flight(tmp_path):
    meter = Meter()

    def stop(url: str) -> None:
        while not stats(url)["received"]:  # a timer may be faster than the first request
            time.sleep(0.02)
        meter.stopped = True

    with running(AnnotatorOptions(latency_min_ms=700, latency_max_ms=900)) as url:
        with client(tmp_path, url, meter, concurrency=8) as one:
            threading.Thread(target=stop, args=(url,)).start()
            found = ask(one, range(300))
        answered = stats(url)["answered"]
    stopped = [f for f in found if isinstance(f, Stopped)]
    assert 0 < answered < 300 == len(stopped) + answered
    segments = Ledger(Folder.of(str(tmp_path / "ledger"))).segments
    assert sum(len(s.prefixes) for s in segments.values()) == answered == one.usage.calls


def test_waiting_requests_are_bounded_at_any_limit(tmp_path):
    """A high limit is no reason to hold thousands of requests in memory."""

    async def feed(one: Client) -> int:
        messages = facts.render("Mara Veldt", "She was born in 1000.")
        await one.ask(messages, facts.parse)  # now the gate has a lease
        tasks = []
        while one.hungry() and len(tasks) < 2000:
            sentence = f"She was born in {1001 + len(tasks)}."
            tasks.append(
                asyncio.create_task(one.ask(facts.render("Mara Veldt", sentence), facts.parse))
            )
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        await one.close()
        return len(tasks)

    with running(AnnotatorOptions(latency_min_ms=300, latency_max_ms=400)) as url:
        with client(tmp_path, url, requests_per_minute=600_000, concurrency=16) as one:
            waited = asyncio.run(feed(one))
    assert 2 * 16 < waited <= 8 * 16 + 64  # 64: requests that the gate admits meanwhile


@pytest.mark.slow
def test_a_slow_server_without_429s_gets_fewer_requests_at_once(tmp_path):
    queueing = AnnotatorOptions(slots=4, latency_min_ms=150, latency_max_ms=160, headers=False)
    with running(queueing) as url:
        with client(tmp_path, url, timeout_s=30.0) as one:
            found = ask(one, range(300))
        gate = one.endpoints[0].gate
        assert not [f for f in found if isinstance(f, Exception)]
        assert stats(url)["max_running"] > 30  # the client tried a larger window
        assert gate.lease.in_flight < 30  # 4 slots, and a queue of about half a second


def test_an_unparseable_answer_is_requested_again_then_fails_the_row(tmp_path):
    def never(text: str) -> str:
        raise RowError("unreadable")

    with running(AnnotatorOptions()) as url:
        with client(tmp_path, url, reasks=2) as one:

            async def once():
                try:
                    return await one.ask(facts.render("Mara", "She sings."), never)
                except RowError as e:
                    return str(e)
                finally:
                    await one.close()

            assert asyncio.run(once()) == "unreadable"
        assert one.usage.calls == 3


def test_log_probabilities_of_the_first_token_are_kept(tmp_path):
    from facttune_ray.prompts import verdicts

    asked = verdicts.render("Mara", "Mara sings.", ["Mara sings."])
    params = {"logprobs": True, "top_logprobs": 5}

    def told(url) -> tuple[float | None, float | None]:
        async def both(one: Client):
            with_them = await one.ask_completion(asked, lambda c: c.top_logprobs, params)
            without = await one.ask_completion(asked, lambda c: c.top_logprobs)
            await one.close()
            return verdicts.probability(with_them), verdicts.probability(without)

        with client(tmp_path, url) as one:
            return asyncio.run(both(one))

    with running(AnnotatorOptions()) as url:
        assert told(url) == (pytest.approx(0.9), None)
        assert told(url) == (pytest.approx(0.9), None)  # from the ledger
        assert stats(url)["answered"] == 2
