"""Prices, and a budget that several workers spend together."""

from __future__ import annotations

import random

import pytest

from facttune_ray.config import LLMConfig
from facttune_ray.errors import UserError
from facttune_ray.llm.cost import Ask, Meter, Usage, price_of


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


def ask(worker: str, **values) -> Ask:
    return Ask(worker, "facts", values.pop("used", Usage()), **values)


def test_two_workers_never_get_more_than_the_budget_together():
    meter = Meter(budget_usd=1.0, spent_usd=0.2)
    assert meter.report(ask("a", wants_usd=0.5, one_usd=0.01), 0.0).usd == 0.5
    assert meter.report(ask("b", wants_usd=0.5, one_usd=0.01), 0.1).usd == pytest.approx(0.3)
    # a sent all of it and has 0.2 back; b sent nothing and gives its allowance up
    paid = Usage(calls=20, cost_usd=0.2)
    assert meter.report(ask("a", used=paid, in_flight_usd=0.3, one_usd=0.01), 0.5).usd == 0
    assert meter.report(ask("b"), 0.6).usd == 0
    wants = {"in_flight_usd": 0.3, "wants_usd": 1.0, "one_usd": 0.01}
    left = meter.report(ask("a", before=paid, **wants), 0.7)
    assert left.usd == pytest.approx(0.3) and not left.reached
    assert meter.spent_usd == pytest.approx(0.4)


def test_the_budget_is_reached_when_not_one_request_fits():
    meter = Meter(budget_usd=1.0, spent_usd=0.95)
    assert not meter.report(ask("a", wants_usd=0.04, one_usd=0.04), 0.0).reached
    wants = {"wants_usd": 0.04, "one_usd": 0.04}
    waits = meter.report(ask("a", in_flight_usd=0.04, **wants), 0.1)
    assert waits.usd == 0 and not waits.reached  # it may cost less: then one more fits
    done = meter.report(ask("a", used=Usage(cost_usd=0.03), **wants), 0.2)
    assert done.reached and done.usd == 0


@pytest.mark.parametrize("seed", range(200))
def test_two_workers_never_wait_for_each_other(seed):
    """Each may be given less than one request costs: nobody may hold on to that."""
    chance = random.Random(seed)
    one, sent, before = {"a": 0.1, "b": 0.1}, {"a": 0.0, "b": 0.0}, {"a": Usage(), "b": Usage()}
    meter = Meter(budget_usd=1.0)
    for turn in range(1000):
        if not sent:
            break
        name = chance.choice(list(sent))
        used = Usage(cost_usd=sent[name] * chance.uniform(0.7, 1.0))  # less than estimated
        wants = {"used": used, "wants_usd": 8 * one[name], "one_usd": one[name]}
        found = meter.report(ask(name, before=before[name], **wants), turn / 10)
        before[name] += used
        sent[name] = one[name] * int(found.usd / one[name] + 1e-9)
        if sent[name]:
            one[name] = chance.uniform(0.05, 0.2)
        if found.reached:
            del sent[name]
    assert not sent
    assert 0.8 < meter.spent_usd <= 1.0


def test_a_silent_worker_frees_what_it_had_set_aside():
    meter = Meter(budget_usd=1.0)
    assert meter.report(ask("dead", wants_usd=1.0, one_usd=0.1), 0.0).usd == 1.0
    assert meter.report(ask("a", wants_usd=0.5, one_usd=0.1), 1.0).usd == 0.0
    assert meter.report(ask("a", wants_usd=0.5, one_usd=0.1), 40.0).usd == 0.5


def test_a_report_that_is_made_again_counts_once():
    meter, first, more = Meter(budget_usd=1.0), Usage(calls=3, cost_usd=0.3), Usage(calls=1)
    meter.report(ask("a", used=first))  # its answer is lost on the way
    meter.report(ask("a", used=first + more))
    meter.report(ask("a", used=Usage(calls=2), before=first + more))
    assert meter.spent_usd == 0.3 and meter.totals["facts"].calls == 6
    # a new meter has what was paid from the ledger: only what is new to it counts
    again = Meter(budget_usd=1.0, spent_usd=0.3)
    again.report(ask("a", used=Usage(calls=1, cost_usd=0.1), before=Usage(calls=6, cost_usd=0.3)))
    assert again.spent_usd == pytest.approx(0.4) and again.totals["facts"].calls == 1


def test_usage_is_kept_by_stage():
    meter = Meter()
    meter.report(Ask("a", "facts", Usage(calls=3, refused=1)))
    meter.report(Ask("b", "facts", Usage(calls=2, cached=5)))
    meter.report(Ask("b", "verdicts", Usage(calls=1, cost_usd=0.5)))
    stages = meter.snapshot()["stages"]
    assert stages["facts"]["calls"] == 5 and stages["facts"]["cached"] == 5
    assert stages["verdicts"]["cost_usd"] == 0.5 == meter.snapshot()["spent_usd"]
