"""The trainers of jobs/bench_dpo.py have equal losses, and their cost is counted correctly."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from bench import dpo, dpo_meter, dpo_trl, machine
from bench.dpo_trainers import OURS

trl_installed = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install '.[bench]'"
)


def _run(names: list[str]) -> dict:
    *_, found = dpo.run(dpo.settings(quick=True, prompt_tokens=16), names)
    return found


@pytest.mark.slow
def test_a_pairwise_loop_has_our_losses_and_runs_more_tokens():
    made = _run([OURS, "pairwise"])
    ours, theirs = (made["results"][n] for n in (OURS, "pairwise"))
    assert ours["losses"][0] == pytest.approx(math.log(2), abs=1e-3)
    # ours are short, so more of them are timed: the steps that both made are compared
    assert len(theirs["losses"]) == 3 and len(ours["losses"]) == 1 + 2 * dpo.LONGER
    assert ours["losses"][:3] == pytest.approx(theirs["losses"], abs=dpo.SAME["float32"])
    assert ours["losses"][2] < 0.66  # the first prompt comes again: without an update, ln 2
    # 4 responses make 6 pairs: 12 sequences and 12 of the reference, where we run 4 and 4
    assert theirs["tokens_a_pair"] > 3 * ours["tokens_a_pair"]
    assert theirs["padded_tokens_a_pair"] > theirs["tokens_a_pair"]
    assert set(made["ratios"]) == {"pairwise"}


@pytest.mark.slow
@trl_installed
def test_trl_has_our_losses():
    found = _run([OURS, "trl", "trl_precomputed"])["results"]
    for name in ("trl", "trl_precomputed"):
        assert found[name]["losses"] == pytest.approx(
            found[OURS]["losses"][:3], abs=dpo.SAME["float32"]
        )
    both = [found[n]["tokens_a_pair"] for n in ("trl", "trl_precomputed")]
    assert both[0] == pytest.approx(both[1], rel=0.05)  # the reference runs as often


def test_losses_that_differ_are_refused():
    dpo.check({OURS: [0.6931, 0.5], "pairwise": [0.6932, 0.5]}, 5e-4)
    with pytest.raises(RuntimeError, match="pairwise has the losses"):
        dpo.check({OURS: [0.6931, 0.6931], "pairwise": [0.6931, 0.5]}, 5e-4)
    with pytest.raises(RuntimeError, match="not ln 2"):
        dpo.check({OURS: [0.6, 0.5]}, 5e-4)


def test_a_step_has_all_pairs_and_the_prompts_take_turns():
    rows = dpo.data(dpo.settings(quick=False, prompt_tokens=64))
    assert len(rows) == 3 and rows[0] == rows[2] != rows[1]
    assert len(set(rows[0]["rewards"])) == 10
    assert all(120 <= len(r.split()) + 1 <= 180 for row in rows for r in row["responses"])
    assert len(dpo_trl.trl_rows(rows)) == 3 * 45


@pytest.mark.parametrize("device", ("cpu", "cuda"))
@pytest.mark.parametrize("tokens", (64, 400))
def test_pairs_a_forward_divide_a_step_whole_and_with_fewer_responses(device, tokens):
    cfg = dpo.settings(quick=False, prompt_tokens=tokens, device=device)
    tried = [cfg["responses"]]
    if len(cfg["tries"]) > 1:
        tried.append(cfg["try_responses"])
    pairs = [cfg["groups_a_step"] * n * (n - 1) // 2 for n in tried]
    assert all(count % batch == 0 for count in pairs for batch in cfg["tries"])


def test_a_meter_counts_tokens_with_and_without_padding_and_leaves_out_the_first_step():
    meter = dpo_meter.Meter()
    model = meter.count(dpo_meter.tiny())
    meter.mark()
    for real in (9, 3, 5):  # of 2 x 4 places; the first step is not counted
        mask = (torch.arange(8) < min(real, 8)).long().view(2, 4)
        model(input_ids=torch.ones(2, 4, dtype=torch.long), attention_mask=mask)
        meter.mark()
    found = meter.figures(pairs=2)
    assert found["tokens_a_pair"] == 2 and found["padded_tokens_a_pair"] == 4
    later = meter.figures(pairs=2, first=[100.0, 10, 20])
    assert later["tokens_a_pair"] == 7 and later["padded_tokens_a_pair"] == 14
    assert later["pairs_per_s"] == 0.02 < later["training_pairs_per_s"]


def test_peak_memory_begins_with_the_meter():
    if machine.memory("VmHWM") is None:
        pytest.skip("this kernel has no /proc/self/status")
    before = bytearray(200 << 20)
    del before
    meter = dpo_meter.Meter()
    held = bytearray(b"1") * (100 << 20)
    for _ in range(3):
        meter.mark()
    assert 90 <= meter.figures(1, first=[1.0, 0, 0])["peak_mb"] < 150
    del held
