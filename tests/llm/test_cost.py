"""Prices, and a budget that several workers spend together."""

from __future__ import annotations

import random

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import UserError
from facttune_ray.llm.cost import SILENT, Meter, MeterReport, Usage, Wait, price_of


def test_price_by_model_snapshot_and_mode():
    mini = price_of(LLMConfig(model="gpt-4o-mini"))
    assert (mini.input, mini.output) == (0.15, 0.60) and "as of 20" in mini.source
    assert price_of(LLMConfig(model="gpt-4o-mini-2024-07-18")) == mini
    assert price_of(LLMConfig(model="gpt-4o-2024-08-06")).input == 2.50
    assert price_of(LLMConfig(model="gpt-4o-mini", mode="batch")).output == 0.30
    assert mini.usd(2_000_000, 500_000) == pytest.approx(0.60)


def test_a_price_in_the_config_wins_and_an_unknown_model_is_free():
    given = LLMConfig(model="gpt-4o", usd_per_million_input=1.0, usd_per_million_output=2.0)
    assert price_of(given).output == 2.0
    assert price_of(LLMConfig(model="meta-llama/x")).usd(1e6, 1e6) == 0.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "meta-llama/x", "budget_usd": 1.0}, "no price is known"),
        ({"usd_per_million_input": 1.0}, "together"),
    ],
)
def test_prices_that_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        price_of(LLMConfig(**settings))


class Worker:
    """Reports of one worker, numbered, with its totals."""

    def __init__(self, name: str, stage: str = "facts") -> None:
        self.name, self.stage, self.serial, self.used = name, stage, 0, Usage()

    def ask(self, paid: Usage | None = None, **values) -> MeterReport:
        self.serial += 1
        self.used += paid or Usage()
        return MeterReport(self.name, self.stage, self.serial, self.used, **values)


def test_two_workers_never_get_more_than_the_budget_together():
    meter, a, b = Meter(budget_usd=1.0, spent_usd=0.2), Worker("a"), Worker("b")
    assert meter.report(a.ask(wants_usd=0.5, next_usd=0.01), 0.0).usd == 0.5
    assert meter.report(b.ask(wants_usd=0.5, next_usd=0.01), 0.1).usd == pytest.approx(0.3)
    # a has sent for all of it and got answers for 0.2; b has sent nothing and gives its part back
    paid = Usage(calls=20, cost_usd=0.2)
    assert meter.report(a.ask(paid, in_flight_usd=0.3, next_usd=0.01), 0.5).usd == 0
    assert meter.report(b.ask(), 0.6).usd == 0
    left = meter.report(a.ask(in_flight_usd=0.3, wants_usd=1.0, next_usd=0.01), 0.7)
    assert left.usd == pytest.approx(0.3) and not left.reached
    assert meter.spent_usd == pytest.approx(0.4)


def test_the_budget_is_reached_when_no_request_fits():
    meter, a = Meter(budget_usd=1.0, spent_usd=0.95), Worker("a")
    wants = {"wants_usd": 0.04, "next_usd": 0.04}
    assert not meter.report(a.ask(**wants), 0.0).reached
    waits = meter.report(a.ask(in_flight_usd=0.04, **wants), 0.1)
    assert waits.usd == 0 and not waits.reached  # the request in flight may cost less
    done = meter.report(a.ask(Usage(cost_usd=0.03), **wants), 0.2)
    assert done.reached and done.usd == 0


@pytest.mark.parametrize("seed", range(200))
def test_two_workers_never_wait_for_each_other(seed):
    """A worker that gets less than a request costs must not keep it."""
    chance = random.Random(seed)
    workers = {"a": Worker("a"), "b": Worker("b")}
    one, sent = {"a": 0.1, "b": 0.1}, {"a": 0.0, "b": 0.0}
    meter = Meter(budget_usd=1.0)
    for turn in range(1000):
        if not sent:
            break
        name = chance.choice(list(sent))
        paid = Usage(cost_usd=sent[name] * chance.uniform(0.7, 1.0))  # less than estimated
        asked = workers[name].ask(paid, wants_usd=8 * one[name], next_usd=one[name])
        found = meter.report(asked, turn / 10)
        sent[name] = one[name] * int(found.usd / one[name] + 1e-9)
        if sent[name]:
            one[name] = chance.uniform(0.05, 0.2)
        if found.reached:
            del sent[name]
    assert not sent
    assert 0.8 < meter.spent_usd <= 1.0


def test_dollars_of_a_silent_worker_are_free_until_it_reports_again():
    meter, silent, a = Meter(budget_usd=1.0), Worker("silent"), Worker("a")
    wants = {"wants_usd": 0.5, "next_usd": 0.1}
    assert meter.report(silent.ask(wants_usd=1.0, next_usd=0.1), 0.0).usd == 1.0
    assert meter.report(a.ask(**wants), 1.0).usd == 0.0
    assert meter.report(a.ask(**wants), 40.0).usd == 0.5
    meter.report(silent.ask(Usage(cost_usd=0.4), in_flight_usd=0.6), 41.0)
    assert meter.report(a.ask(**wants), 42.0).usd == 0.0
    assert meter.spent_usd == 0.4


def test_reports_that_are_lost_repeated_or_overtaken_count_once():
    meter, a = Meter(budget_usd=1.0), Worker("a")
    wants = {"wants_usd": 0.2, "next_usd": 0.1}
    first = a.ask(Usage(calls=3, cost_usd=0.3), in_flight_usd=0.1, **wants)
    given = meter.report(first, 0.0)  # the answer is lost on the way
    assert given.usd == 0.2
    assert meter.report(first, 0.1) == given  # repeated: no second allowance
    second = a.ask(Usage(calls=1))
    third = a.ask(Usage(calls=2, unknown=1, unknown_usd=0.05), in_flight_usd=0.4)
    meter.report(third, 0.2)
    meter.report(second, 0.3)  # overtaken: it says nothing about requests in flight
    assert meter.report(Worker("b").ask(wants_usd=1.0, next_usd=0.1), 0.4).usd == pytest.approx(
        0.25
    )
    assert meter.spent_usd == pytest.approx(0.35) and meter.totals["facts"].calls == 6


def test_a_restarted_meter_counts_what_the_ledger_lacks_and_waits_for_every_worker():
    a, b = Worker("a"), Worker("b")
    paid = {"a": 0.3, "gone": 0.1}  # the ledger's rows of a's last request are not written yet
    again = Meter(1.0, sum(paid.values()), paid, quiet_until_s=12.0)
    wants = {"wants_usd": 1.0, "next_usd": 0.1}
    first = again.report(a.ask(Usage(calls=4, cost_usd=0.35), **wants), 1.0)
    assert first.usd == 0 and not first.reached
    again.report(b.ask(Usage(calls=1, cost_usd=0.05), in_flight_usd=0.2), 2.0)
    assert again.spent_usd == pytest.approx(0.5)
    assert again.report(a.ask(**wants), 12.0).usd == pytest.approx(0.3)


def test_usage_is_counted_by_stage_and_sent_to_its_workers():
    meter, a, b, c = Meter(), Worker("a"), Worker("b"), Worker("c", "verdicts")
    meter.report(a.ask(Usage(calls=3, refused=1)))
    assert meter.report(b.ask(Usage(calls=2, cached=5))).calls == 5
    assert meter.report(c.ask(Usage(calls=1, cost_usd=0.5, unknown_usd=0.25))).calls == 1
    found = meter.snapshot()
    assert found["stages"]["facts"]["calls"] == 5 and found["stages"]["facts"]["cached"] == 5
    assert found["stages"]["verdicts"]["cost_usd"] == 0.5 and found["spent_usd"] == 0.75


def test_the_snapshot_has_waits_and_silent_workers_until_they_end():
    meter, a, b, rests = Meter(), Worker("a"), Worker("b"), Worker("rests")
    meter.report(a.ask(wait=Wait("permits", 40.0, 100)), 0.0)
    meter.report(b.ask(wait=Wait("permits", 10.0, 28)), 1.0)
    meter.report(rests.ask(busy=False), 1.0)
    found = meter.snapshot(2.0)
    assert found["workers"] == {"facts": 2}
    assert found["waits"] == {"facts": {"permits": [42.0, 128]}}
    meter.report(b.ask(), 30.0)
    assert meter.snapshot(30.0)["waits"] == {"facts": {SILENT: [30.0, 1]}}
    meter.report(b.ask(), 301.0)
    found = meter.snapshot(301.0)
    assert found["waits"] == {} and found["workers"] == {"facts": 1}
