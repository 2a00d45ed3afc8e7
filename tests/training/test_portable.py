"""Exported folders: what transformers 4 needs in them, and what reading back finds."""

from __future__ import annotations

import copy
import json
import os
import subprocess

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.weights import load
from facttune_ray.training.portable import both_versions, read_back

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
SCALED = {"factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0} | SCALED
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LONG = {"short_factor": [1.1] * 4, "long_factor": [2.0] * 4, "type": "longrope"}
MOE = {"num_experts_per_tok": 2}
# name -> model type, sizes, some keys that transformers 4 reads
KINDS: dict[str, tuple[str, dict, dict]] = {
    "theta": (
        "llama",
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float32"},
    ),
    "llama3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3}),
    "yarn": (
        "qwen3",
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn"} | SCALED},
        {"rope_theta": 1e6},
    ),
    "two bases": (
        "gemma3_text",
        {"head_dim": 8, "rope_theta": 2e6, "rope_local_base_freq": 5e3} | LAYERS,
        {"rope_theta": 2e6, "rope_local_base_freq": 5e3},
    ),
    "part of a head": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 5000},
        {"rotary_pct": 0.5, "rotary_emb_base": 5000},
    ),
    "longrope": (
        "phi3",
        {"original_max_position_embeddings": 64, "rope_scaling": LONG},
        {"rope_scaling": LONG},
    ),
    "experts": (
        "qwen3_moe",
        {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8} | MOE,
        {"num_experts": 4},
    ),
    "stacked experts": ("mixtral", {"num_local_experts": 4, "rope_theta": 3e5} | MOE, {}),
    "infinity": (
        "mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
        {"time_step_limit": [0.0, float("inf")]},
    ),
    "layer types": (
        "granitemoehybrid",
        {
            "num_local_experts": 4, "shared_intermediate_size": 16, "mamba_n_heads": 8,
            "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
            "layer_types": ["mamba", "attention"],
        } | MOE,
        {"layer_types": ["mamba", "attention"]},
    ),
    "older names": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, {"hidden_size": 32}),
}  # fmt: skip
IDS = [[5, 6, 7, 8, 9, 10, 11, 12, 33, 44, 55, 66], [12, 3, 9, 5, 5, 80, 70, 60, 50, 40, 30, 20]]


def tiny(kind: str, folder, tokenizer):
    """(model, folder) of an export."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    name, sizes, _ = copy.deepcopy(KINDS[kind])  # transformers adds keys to what it is given
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(SIZES | sizes))).eval()
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    both_versions(folder, lm.config)
    return lm


@pytest.fixture(scope="module")
def tokenizer(reference):
    found = load(reference[1], "float32")[0]
    found.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_the_keys_of_both_versions(kind, tokenizer, tmp_path):
    lm = tiny(kind, tmp_path, tokenizer)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {k: written.get(k) for k in KINDS[kind][2]} == KINDS[kind][2]
    told = read_back(tmp_path, lm, tokenizer, lm.state_dict())
    assert told.startswith("settings, tokenizer and every weight, read back in transformers 5.")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(settings.get("extra_special_tokens"), list)


def test_reading_back_finds_what_differs(tokenizer, tmp_path):
    lm = tiny("theta", tmp_path, tokenizer)
    weights = lm.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UserError, match=f"1 weights differ and 0 are missing, such as {name}"):
        read_back(tmp_path, lm, tokenizer, weights | {name: weights[name] + 1e-6})
    with pytest.raises(UserError, match="0 weights differ and 1 are missing, such as more"):
        read_back(tmp_path, lm, tokenizer, weights | {"more": weights[name]})
    lm.config.rope_parameters["rope_theta"] = 1e4
    with pytest.raises(UserError, match="config.json differs in rope_parameters"):
        read_back(tmp_path, lm, tokenizer, weights)


PROGRAM = """
import json, sys, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
folder, text, ids, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
lm = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    logps = lm(input_ids=torch.tensor(ids), use_cache=False).logits.log_softmax(-1)
torch.save((tokenizer(text)["input_ids"], logps), out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_4_gives_the_same_log_probabilities(kind, tokenizer, tmp_path):
    """FACTTUNE_PYTHON_TRANSFORMERS_4: the Python of an environment with transformers 4.57 and
    torch."""
    python = os.environ.get("FACTTUNE_PYTHON_TRANSFORMERS_4")
    if not python:
        pytest.skip("FACTTUNE_PYTHON_TRANSFORMERS_4 names no Python")
    lm = tiny(kind, tmp_path, tokenizer)
    text, out = "She plays<|turn|> the cello.", tmp_path / "out.pt"
    command = [python, "-c", PROGRAM, str(tmp_path), text, json.dumps(IDS), str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert not done.returncode, done.stderr[-2000:]
    ids, logps = torch.load(out)
    assert ids == tokenizer(text)["input_ids"]
    with torch.no_grad():
        here = lm(input_ids=torch.tensor(IDS), use_cache=False).logits.log_softmax(-1)
    assert (logps - here).abs().max() < 1e-4
