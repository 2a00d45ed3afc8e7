"""The Ray Train + DeepSpeed loop on a tiny Llama."""

from __future__ import annotations

import math
import re
import time
from importlib.util import find_spec

import pytest

from facttune_ray.config import SFTConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.training.engine import learning_rate
from facttune_ray.training.worker import check_first


def test_one_worker_learns_and_its_model_loads_in_transformers(reference, one):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, lines = one
    assert len(lines) == 8  # two epochs of 3 + 3 + 3 + 1 groups
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["reward_accuracy"] == 0.5  # nothing has an order yet
    assert lines[0]["pairs"] == 18 and 3 * 4 * 9 < lines[0]["tokens"] < 3 * 4 * 12
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    before = AutoModelForCausalLM.from_pretrained(reference[1])
    assert (
        tokenizer.decode(tokenizer("She plays the cello.")["input_ids"]) == "She plays the cello."
    )
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_workers_and_zero_stages_give_the_same_curve(reference, run, one, tmp_path, zero):
    # 3 and more passes a step, of groups that are cut, unlike the one worker
    two = run(reference, tmp_path / "two", workers=2, deepspeed=f"zero{zero}", pass_tokens=30)
    for a, b in zip(one[1], two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["margin"] == pytest.approx(a["margin"], abs=1e-3)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_no_pair_is_one_clear_line(reference, run, tmp_path):
    tables.write_part(tables.Folder.of(str(tmp_path)), "reference", 0, [{"pairs": 0}], {})
    with pytest.raises(UserError, match="no pair of responses whose rewards differ"):
        run((str(tmp_path / "part-00000.parquet"), reference[1]), tmp_path / "out")


def test_workers_without_room_are_one_clear_line(reference, run, tmp_path, ray_cluster):
    with pytest.raises(UserError, match="train.workers=64: 64 workers need 64 CPUs, there are "):
        run(reference, tmp_path / "out", workers=64)


@pytest.mark.slow
def test_a_model_of_nan_is_one_clear_line(reference, run, tmp_path, ray_cluster, monkeypatch):
    from facttune_ray.sampling.weights import load

    tokenizer, model = load(reference[1], "float32")
    model.lm_head.weight.data[5] = math.nan
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match="LlamaForCausalLM are nan: its weights are") as caught:
        run((reference[0], str(tmp_path / "nan")), tmp_path / "out", loss="ipo")
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_a_loss_of_nan_is_one_clear_line(reference, run, tmp_path, ray_cluster):
    with pytest.raises(UserError, match=r"step \d: the loss is nan: lower train.lr") as caught:
        run(reference, tmp_path / "out", loss="ipo", lr=1e30, clip=0)
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_clear_line(reference, run, tmp_path, ray_cluster):
    with pytest.raises(UserError, match="Cannot load a model from") as caught:
        run((reference[0], str(tmp_path / "gone")), tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_an_error_of_one_worker_ends_all_workers(reference, run, tmp_path, ray_cluster):
    """Only the first worker opens trackers; the second must not wait for it."""
    with pytest.raises(UserError, match="train.log=wandb: pip install wandb"):
        run(reference, tmp_path / "out", workers=2, log=["wandb"])


def test_the_first_step_must_equal_the_reference():
    check_first(TrainConfig(), math.log(2), False)
    check_first(TrainConfig(loss="ipo"), 25.0, False)
    with pytest.raises(UserError, match="first loss is 0.7500, not ln 2"):
        check_first(TrainConfig(), 0.75, False)
    with pytest.raises(UserError, match="first loss is nan, not ln 2"):
        check_first(TrainConfig(), math.nan, False)
    for loss in ("dpo", "ipo"):  # errors that cancel out
        with pytest.raises(UserError, match="are not the starting model's"):
            check_first(TrainConfig(loss=loss), math.log(2), True)


def test_learning_rate_warms_up_and_decays():
    constant = TrainConfig(warmup_steps=4)
    assert [learning_rate(constant, s, 10) for s in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    linear = TrainConfig(warmup_steps=1, schedule="linear")
    assert [learning_rate(linear, s, 4) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = TrainConfig(warmup_steps=1, schedule="cosine")
    half = 0.5 + 0.5 * math.cos(math.pi / 4)
    assert [learning_rate(cosine, s, 4) for s in (0, 1, 2)] == pytest.approx([1, half, 0.5])


@pytest.mark.slow
def test_held_out_topics_choose_the_model_and_end_the_run(
    reference, run, lines, tmp_path, ray_cluster
):
    """With a learning rate far too high, an early model is the best; it is exported."""
    out = tmp_path / "out"
    found = run(
        reference,
        out,
        lr=3e-2,
        epochs=6,
        eval_every=2,
        eval_topics=3,
        eval_samples=2,
        best="loss",
        patience=2,
        log=["tensorboard"],
    )
    held = lines(out, "heldout")
    assert [x["step"] for x in held][:3] == [0, 2, 4]
    assert held[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert held[0]["kl"] == pytest.approx(0, abs=1e-6) and held[-1]["kl"] > 0
    best = min(held[1:], key=lambda x: x["loss"])
    assert held[-1]["step"] == found[-1]["step"] == best["step"] + 4 < found[0]["steps"]
    card = (out / "model" / "README.md").read_text()  # of that step, not of the last
    assert f"| heldout_loss | {best['loss']:.6g} |" in card
    assert f"| steps | {best['step']} |" in card
    samples = lines(out, "samples")
    assert {x["step"] for x in samples} == {x["step"] for x in held}
    again = run((reference[0], reference[1]), tmp_path / "again", lr=3e-2, epochs=6,
                eval_every=2, eval_topics=3, max_steps=best["step"])  # fmt: skip
    assert len(again) == best["step"]
    assert weights(out) == pytest.approx(weights(tmp_path / "again"), abs=1e-5)


def weights(out):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out / "model")
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all", "best"])
def test_supervised_tuning_lowers_the_loss(reference, run, tmp_path, ray_cluster, targets):
    sft = SFTConfig(epochs=4, targets=targets, lr=1e-3)
    found = run(reference, tmp_path / "one", sft=sft)
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    if targets == "all":
        two = run(
            reference, tmp_path / "two", sft=sft, workers=2, deepspeed="zero2", pass_tokens=30
        )
        assert [x["loss"] for x in two] == pytest.approx([x["loss"] for x in found], abs=1e-4)


def test_training_without_a_terminal_logs_its_wait_and_its_steps(
    tmp_path, ray_cluster, capsys, monkeypatch
):
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from facttune_ray.runtime import progress, training

    monkeypatch.setattr(progress, "LOG_S", 0.2)
    out = tmp_path / "facttune_fs" / "round_1" / "train"
    out.mkdir(parents=True)
    more = int(ray.cluster_resources()["CPU"]) + 1
    group = placement_group([{"CPU": 1}] * more)
    until = time.monotonic() + 20
    while not progress.lacks_group() and time.monotonic() < until:
        time.sleep(0.1)
    with training._progress(str(out)):
        time.sleep(1.0)
        remove_placement_group(group)
        waited = capsys.readouterr().err.splitlines()[-1]
        (out / "train.jsonl").write_text('{"step": 1, "steps": 60, "loss": 0.6123}\n' * 12)
        time.sleep(1.0)
    assert waited.startswith("facttune_fs/round_1/train ")
    assert waited.endswith(" s  waits for room for its workers")
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r" s  12/60 steps, about \d+ s left  loss 0\.612$", said)
