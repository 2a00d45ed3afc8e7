"""Logits of rows that share a prefix and prompts equal those of whole sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from facttune_ray.sampling import repeated, shared
from facttune_ray.sampling.paths import Paths
from facttune_ray.sampling.probe import Way

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # large, so that a wrong key shows
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
PREFIX = [3, 1, 4, 1, 5, 9, 2, 6]
OF_R = np.array([0, 0, 0, 1, 2, 2])


def llama(kv_heads: int = 2):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=kv_heads, **SIZES)).eval()


@torch.inference_mode()
def whole(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("prefix", [[], PREFIX])
def test_logits_equal_those_of_whole_sequences(kv_heads, prefix):
    model = llama(kv_heads)
    run = shared.SharedRun(model, shared.prefill(model, prefix) if prefix else [])
    rows = [[*prefix, *PROMPTS[i]] for i in OF_R]
    logits = run.start(PROMPTS, OF_R, capacity=4)[torch.from_numpy(OF_R)]
    kept = [list(range(6)), [0, 2, 3, 5], [1, 3], [0]]  # rows 0 2 3 5, then 2 5, then 2
    for t in range(4):
        for row, got in zip(rows, logits, strict=True):
            assert torch.allclose(got, whole(model, row), atol=1e-5)
        if t == 3:
            break
        keep = kept[t]
        if t:
            run.keep(torch.tensor(keep))
        rows = [rows[i] for i in keep]
        tokens = [(7 * i + 3 * t + 20) % 97 for i in keep]
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        logits = run.step(torch.tensor(tokens))


@torch.inference_mode()
def test_prompts_in_several_forward_passes():
    model = llama()
    run = shared.SharedRun(model, shared.prefill(model, PREFIX))
    long = [[(i * k) % 97 for i in range(700)] for k in range(1, 14)]  # 9,100 tokens
    assert shared._prompts_a_pass(model.config, 700, behind=True) < 13
    got = run.start(long, np.arange(13), 2)
    assert torch.allclose(got[12], whole(model, [*PREFIX, *long[12]]), atol=1e-5)
    assert torch.allclose(
        run.step(torch.full((13,), 5))[3], whole(model, [*PREFIX, *long[3], 5]), atol=1e-5
    )


def test_a_model_attends_as_before_afterwards():
    model = llama()
    before = model.config._attn_implementation
    assert Paths(model).at(100) == Way("fast")
    assert model.config._attn_implementation == before != shared.NAME


@pytest.mark.parametrize(
    ("window", "longest"), [(40, 39), (300, 299), (4096, 4095), (None, 1 << 40)]
)
def test_texts_longer_than_an_attention_window_do_not_share(window, longest):
    torch.manual_seed(0)
    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 8192}
    paths = Paths(MistralForCausalLM(MistralConfig(sliding_window=window, **sizes)).eval())
    assert paths.at(longest) == Way("fast")
    if window:
        why = f"its attention window has {window:,} tokens"
        assert paths.at(window + 1) == Way("own cache", why)
        assert paths.at(longest) == Way("fast")  # the next request


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["window", "gpt2"])
def test_the_repeated_cache_equals_whole_sequences(kind):
    torch.manual_seed(0)
    if kind == "window":
        model = MistralForCausalLM(MistralConfig(sliding_window=4, num_key_value_heads=2, **SIZES))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4))
    model.eval()
    prefix = repeated.prefill(model, PREFIX)
    for _ in range(2):  # the prefix is as it was
        run = repeated.RepeatedRun(model, prefix)
        run.start([[5, 6], [7, 8]], np.array([0, 1, 1]), 3)
        run.step(torch.tensor([20, 21, 22]))
        run.keep(torch.tensor([0, 2]))
        logits = run.step(torch.tensor([30, 31]))
    assert torch.allclose(logits[0], whole(model, [*PREFIX, 5, 6, 20, 30]), atol=1e-5)
    assert torch.allclose(logits[1], whole(model, [*PREFIX, 7, 8, 22, 31]), atol=1e-5)
