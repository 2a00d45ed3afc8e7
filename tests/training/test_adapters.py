"""LoRA layers in a tiny Llama."""

from __future__ import annotations

import pytest
import torch

from facttune_ray.config import LoraConfig, TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.sampling.weights import load
from facttune_ray.training import adapters, export
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


# ---------------------------------------------------------------- models of many kinds

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "num_experts_per_tok": 2,
}  # fmt: skip
HEADS = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
# model type -> (its sizes, ends of the layers that get an adapter)
KINDS: dict[str, tuple[dict, set[str]]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, {"c_attn", "c_fc", "c_proj"}),
    "falcon": ({}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "phi3": ({}, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "gemma3_text": ({"head_dim": 8}, HEADS | MLP),
    "mixtral": ({"num_local_experts": 4}, HEADS),
    "qwen2_moe": (
        {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
        HEADS | MLP,  # of the shared expert; its gate is a router
    ),
    "qwen3_moe": ({"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}, HEADS),
    "olmoe": ({"num_experts": 4}, HEADS),
    "deepseek_v3": (
        LATENT | ROUTED | {"first_k_dense_replace": 1},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    ),
    "glm4_moe": (ROUTED | {"first_k_dense_replace": 1, "head_dim": 8}, HEADS),
    "minimax_m2": ({"num_local_experts": 4, "head_dim": 8}, HEADS),
    "phimoe": ({"num_local_experts": 4}, HEADS),
    "llama4_text": (
        {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8},
        HEADS | MLP,
    ),
    "granitemoe": ({"num_local_experts": 4}, HEADS),
    "jetmoe": ({"num_local_experts": 4, "kv_channels": 8}, {"kv_proj"}),
    "falcon_h1": (MAMBA | {"mamba_d_ssm": 32, "head_dim": 8}, HEADS | MLP | {"in_proj"}),
    "mamba": ({"state_size": 8, "time_step_rank": 4}, {"in_proj", "x_proj"}),
    "nemotron_h": (
        {
            "hybrid_override_pattern": "M*-E", "num_hidden_layers": 4, "mamba_num_heads": 4,
            "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "head_dim": 8,
            "moe_shared_expert_intermediate_size": 16,
        } | ROUTED,
        HEADS | {"in_proj", "up_proj", "down_proj"},
    ),
}  # fmt: skip


def tiny(kind: str, folder, tokenizer):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | KINDS[kind][0]))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def logps(lm) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [12, 3, 9, 5, 5, 80, 70, 60]])
    return lm.eval()(input_ids=ids, use_cache=False).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_kind_trains_and_merges(kind, reference, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    path = tiny(kind, tmp_path / "start", load(reference[1], "float32")[0])
    train = lora()
    _, lm = adapters.load(path, train, "cpu")
    assert {n.rsplit(".", 1)[-1] for n in adapters.adapted(lm)} == KINDS[kind][1]
    factors = {n: p for n, p in lm.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(factors.values(), lr=1e-2)
    before = logps(lm).detach()
    for _ in range(2):
        logps(lm)[..., 3].sum().backward()
        assert not [n for n, p in factors.items() if p.grad is None]  # every adapter has an effect
        optimizer.step()
        optimizer.zero_grad()
    trained = logps(lm).detach()
    assert (trained - before).abs().max() > 1e-3
    (tmp_path / "adapter").mkdir()
    targets = adapters.targets(lm)
    export._write_adapter(tmp_path / "adapter", factors, train, path, targets)
    plain = export._merged(factors, train, path, tmp_path / "adapter")
    plain.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (logps(again) - trained).abs().max() < 1e-5
    base = AutoModelForCausalLM.from_pretrained(path)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert (logps(adapted) - trained).abs().max() < 1e-5


def test_adapters_of_half_precision(reference, tmp_path):
    path = tiny("falcon", tmp_path, load(reference[1], "float32")[0])
    train = TrainConfig(lora=LoraConfig(rank=4), dtype="bfloat16")
    _, lm = adapters.load(path, train, "cpu")
    assert {n.rsplit(".", 1)[-1] for n in adapters.adapted(lm)} == KINDS["falcon"][1]


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("phimoe", "router", "peft: "),
        ("mamba", "out_proj", "incompatible with Mamba-based models"),
        ("mamba", "dt_proj", "the model reads its weight without running the layer"),
        ("glm4_moe", "gate_proj", "peft: "),
    ],
)
def test_a_target_without_a_right_adapter_is_one_line(kind, target, why, reference, tmp_path):
    path = tiny(kind, tmp_path, load(reference[1], "float32")[0])
    with pytest.raises(UserError, match=f"train.lora.targets: {target} cannot have an") as e:
        adapters.load(path, lora(targets=[target]), "cpu")
    assert why in str(e.value) and "\n" not in str(e.value)


class Squared(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 2  # peft adds behind the square, a merge adds before it


def test_a_layer_whose_adapter_cannot_be_merged_is_found_before_training(reference):
    lm = load(reference[1], "float32")[1].requires_grad_(False)
    for layer in lm.model.layers:
        layer.mlp.up_proj.__class__ = Squared
    chosen = {n.rsplit(".", 1)[-1] for n in adapters._layers(LoraConfig(rank=4), lm, "m")}
    assert chosen == HEADS | MLP - {"up_proj"}
    with pytest.raises(UserError, match="up_proj cannot .*: its adapter does not give what"):
        adapters._layers(LoraConfig(rank=4, targets=["up_proj"]), lm, "m")


def test_the_adapter_stays_when_it_cannot_be_merged(reference, tmp_path, monkeypatch):
    train = lora()
    _, lm = adapters.load(reference[1], train, "cpu")
    factors = {n: p for n, p in lm.named_parameters() if p.requires_grad}
    monkeypatch.setattr(adapters, "merge", lambda *_: {}["experts.weight"])
    with pytest.raises(UserError, match="this is the trained adapter; it cannot be merged") as e:
        export._merged(factors, train, reference[1], tmp_path / "adapter")
    assert "KeyError" in str(e.value) and "\n" not in str(e.value)
