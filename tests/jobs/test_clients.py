"""Every client of the benchmark answers, so that the benchmark compares equal work."""

from __future__ import annotations

import pytest
from bench import api, ledger, ours
from bench.clients import CLIENTS

from facttune_ray.llm.limiter import Limits
from facttune_ray.quickstart.annotator import AnnotatorOptions, running


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_answers_every_request_in_order(name, ray_cluster):
    with running(AnnotatorOptions()) as url:
        texts = CLIENTS[name](url, ours.requests(40), Limits(6000, None))
    assert len(texts) == 40
    for i, text in enumerate(texts):
        assert text is not None and f"Ostrava{100_000 + i}" in text


def test_measured_figures_of_this_project(ray_cluster):
    options = AnnotatorOptions(requests_per_minute=12_000, burst_s=1.0)
    figures = api.measure(api.OURS, 900, options, "requests")
    assert figures["answered"] == 900 and figures["repeated"] == 0
    assert 0 < figures["goodput_per_s"] < 1.3 * 200 and figures["cpu_s"] > 0
    assert figures["share_429"] <= 0.005


def test_steady_share_leaves_out_the_start_and_the_stragglers():
    seconds = [{"t": t, "accepted": 200, "tokens": 10} for t in range(10)]
    seconds[0] = {"t": 0, "accepted": 900, "tokens": 10}
    seconds += [{"t": 60, "accepted": 1, "tokens": 1}]
    assert api.steady_share(seconds, "accepted", 200.0) == 1.0
    assert api.steady_share(seconds, "tokens", 20.0) == 0.5
    without = [s for s in seconds if s["t"] != 5]  # a second without traffic counts
    assert api.steady_share(without, "accepted", 200.0) == pytest.approx(1 - 1 / 7, abs=1e-3)
    assert api.steady_share(seconds[:2], "accepted", 200.0) is None


@pytest.mark.parametrize("name", ledger.STORES)
def test_every_store_finds_the_same_rows(name, tmp_path):
    fill, find = ledger.STORES[name]
    fill(tmp_path / "store", 500)
    assert find(tmp_path / "store", ledger.wanted(500, 100)) == 50


def test_the_comparison_has_a_ratio_for_each_client():
    found = {
        api.OURS: {"requests": {"goodput_per_s": 190.0}, "unlimited": {"goodput_per_s": 800.0}},
        "gather": {"requests": {"goodput_per_s": 95.0}},
        "bare_sdk": {"unlimited": {"goodput_per_s": 1000.0}},
    }
    out = api.compare(found)
    assert out["ratios"] == {"gather": 2.0, "bare_sdk": 0.8}
    assert out["results"]["bare_sdk"]["goodput_per_s"] == 1000.0
    assert out["ratios_by_scenario"]["unlimited"]["bare_sdk"] == 0.8
