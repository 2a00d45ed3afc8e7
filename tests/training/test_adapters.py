"""LoRA layers in a tiny Llama."""

from __future__ import annotations

import pytest
import torch

from facttune_ray.config import LoraConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.sampling.weights import load
from facttune_ray.training import adapters
from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.model import GroupModel
from facttune_ray.training.reference import token_logps_of
from facttune_ray.training.step import Objective, Step, pair_weights

pytest.importorskip("peft")
GROUP = TokenGroup("a", [5, 6], [[7, 8, 9], [10, 2], [11, 12, 13, 2]], [(0, 1), (0, 2)], [1.0, 1.0])


def lora(**settings) -> TrainConfig:
    return TrainConfig(lora=LoraConfig(**({"rank": 4} | settings)))


def test_an_adapter_starts_without_effect_and_learns(reference):
    plain = token_logps_of(GroupModel(load(reference[1], "float32")[1].eval()), [GROUP], 8192)
    _, lm = adapters.load(reference[1], lora(), "cpu")
    model = GroupModel(lm.eval())
    assert model.shares
    assert token_logps_of(model, [GROUP], 8192) == plain
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_A." in n or ".lora_B." in n for n in trained)
    assert not any("lm_head" in n for n in trained)
    assert {n.split(".")[-4] for n in trained} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        step = Step([GROUP], plain, pair_weights([GROUP], "pair"), Objective("dpo", 0.5))
        step.loss(model, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step.figures()["loss"])
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[2] < losses[0] - 1e-3


def test_targets_are_ends_of_names(reference):
    _, lm = adapters.load(reference[1], lora(targets=["q_proj", "self_attn.v_proj"]), "cpu")
    trained = {n.split(".")[-4] for n, p in lm.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match='train.lora.targets: no linear layer ends with "wq"'):
        adapters.load(reference[1], lora(targets=["q_proj", "wq"]), "cpu")


def test_quantized_weights_need_a_gpu(reference):
    with pytest.raises(UserError, match="train.lora.quantize=4bit needs a GPU: set train.gpus"):
        adapters.load(reference[1], lora(quantize="4bit"), "cpu")


def test_layers_whose_weights_are_transposed_are_refused(tmp_path, reference):
    from transformers import GPT2Config, GPT2LMHeadModel

    load(reference[1], "float32")[0].save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="train.lora.rank: .* is a GPT2LMHeadModel"):
        adapters.load(str(tmp_path), lora(), "cpu")
