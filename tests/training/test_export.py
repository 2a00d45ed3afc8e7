"""Exported models give the held-out loss that training measured last."""

from __future__ import annotations

import pytest
import torch

from facttune_ray.config import GroupsConfig, LoraConfig, SFTConfig, TrainConfig
from facttune_ray.training import heldout
from facttune_ray.training.batches import group_of
from facttune_ray.training.card import card
from facttune_ray.training.losses import Logps, Pairs, preference_loss
from facttune_ray.training.rows import Rows, write

MEASURED = {"lr": 1e-3, "eval_every": 8, "eval_topics": 3, "beta": 0.5}


def held_out_loss(lm, rows: Rows) -> float:
    """DPO's loss of a plain transformers model, sequence by sequence."""
    _, held = heldout.split(rows.table["topic"].to_pylist(), 3, seed=0)
    losses = []
    for row in rows.at(held):
        group = group_of(row, GroupsConfig())
        sums = []
        for response in group.responses:
            ids = torch.tensor([group.prompt + response])
            with torch.no_grad():
                logps = lm(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            at = range(len(group.prompt) - 1, ids.shape[1] - 1)
            sums.append(sum(logps[i, ids[0, i + 1]].item() for i in at))
        policy, stored = torch.tensor(sums), torch.tensor([sum(x) for x in row["logps"]])
        ones = torch.ones(len(sums))
        win, lose = zip(*group.pairs, strict=True)
        pairs = Pairs(torch.tensor(win), torch.tensor(lose), torch.ones(len(win)))
        some = (Logps(x, x, ones, ones) for x in (policy, stored))
        losses.append((preference_loss("dpo", *some, pairs, beta=0.5).item(), len(win)))
    return sum(x for x, _ in losses) / sum(n for _, n in losses)


@pytest.fixture
def rows(reference, tmp_path) -> Rows:
    write([reference[0]], tmp_path / "rows.arrow")
    return Rows(tmp_path / "rows.arrow")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 2, "deepspeed": "zero3"},
        {"lora": LoraConfig(rank=4), "lr": 1e-2, "recompute": True},
        {"lora": LoraConfig(rank=4), "lr": 1e-2, "workers": 2, "deepspeed": "zero3"},
    ],
    ids=["zero3", "lora", "lora-zero3"],
)
def test_exported_models_have_the_loss_of_training(
    reference, run, lines, rows, tmp_path, ray_cluster, settings
):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    run(reference, out, **(MEASURED | settings))
    first, last = (lines(out, "heldout")[i]["loss"] for i in (0, -1))
    assert abs(first - last) > 1e-3
    lm = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    assert held_out_loss(lm, rows) == pytest.approx(last, abs=1e-5)
    text = (out / "model" / "README.md").read_text()
    assert "| heldout_loss |" in text and str(tmp_path) not in text
    if "lora" not in settings:
        assert not (out / "adapter").exists()
        return
    import peft

    base = AutoModelForCausalLM.from_pretrained(reference[1])
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    assert held_out_loss(adapted, rows) == pytest.approx(last, abs=1e-5)
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size < 100_000


def test_the_model_card_lists_settings_and_figures():
    train = TrainConfig(lora=LoraConfig(rank=8), pairs_per_step=90, lr=2e-5)
    text = card(train, "org/model-7b", {"steps": 12.0, "loss": 0.61234567})
    assert text.startswith("---\nbase_model: org/model-7b\n")
    for part in ("| pairs a step | 90 |", "| LoRA | rank 8, alpha 32 |", "| loss | 0.612346 |"):
        assert part in text
    assert "prompts a step" not in text and "learning rate 2e-05" in text
    tuned = card(TrainConfig(), "org/model-7b", {}, SFTConfig(epochs=1))
    assert "- sft" in tuned and "beta" not in tuned
