"""Attention over segments (GPU) and over blocks (CPU) gives equal results."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from facttune_ray.training.attention import NAME, Look, attend, what_is_seen
from facttune_ray.training.model import compile_layers
from facttune_ray.training.passes import Pass, lay_out


def some_pass(rng: random.Random, share: bool, vocab: int = 50) -> Pass:
    def ids(most: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(1, most))]

    groups = [(ids(200), [ids(300) for _ in range(rng.randint(1, 5))]) for _ in range(3)]
    return lay_out(groups, share)


def a_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=500,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def test_segments_are_roots_and_branches():
    passed = lay_out([([1, 2], [[3, 4], [5]]), ([6], [[7]])], share_prefix=True)
    assert passed.queries_S.tolist() == [0, 2, 4, 5, 7]  # a lone response is no branch
    assert passed.keys_S.tolist() == [0, 2, 6, 9, 11]
    assert passed.look_K.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6]


@pytest.mark.parametrize("share", (True, False))
def test_segments_and_blocks_give_equal_attention(share):
    torch.manual_seed(0)
    passed = some_pass(random.Random(share), share)
    query = torch.randn(1, 4, len(passed.ids_N), 16)
    key, value = torch.randn(2, 1, 2, len(passed.ids_N), 16)  # two query heads share one
    seen = what_is_seen(passed, torch.float32)
    blocks, _ = attend(None, query, key, value, None, groups=passed, seen=seen)
    for s in range(len(passed.queries_S) - 1):
        at = slice(*passed.queries_S[s : s + 2].tolist())
        look = passed.look_K[slice(*passed.keys_S[s : s + 2].tolist())]
        count = at.stop - at.start
        assert count <= passed.most_queries and len(look) <= passed.most_keys
        mask = torch.ones(count, len(look), dtype=torch.bool).tril(len(look) - count)
        found = scaled_dot_product_attention(
            query[:, :, at], key[:, :, look], value[:, :, look], mask, enable_gqa=True
        )
        torch.testing.assert_close(found.transpose(1, 2), blocks[:, at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", (False, True))
def test_the_gradient_of_shared_keys_is_that_of_indexing(share):
    passed = some_pass(random.Random(3), share)
    tokens_NHD = torch.randn(len(passed.ids_N), 2, 4, dtype=torch.float64, requires_grad=True)
    plain_KHD = tokens_NHD.index_select(0, passed.look_K)
    keys = (passed.look_K, passed.key_N, passed.shared_T, passed.keys_TJ)
    found_KHD = Look.apply(tokens_NHD, *keys)
    slope_KHD = torch.randn_like(plain_KHD)
    expected, found = (
        torch.autograd.grad(x, tokens_NHD, slope_KHD)[0] for x in (plain_KHD, found_KHD)
    )
    torch.testing.assert_close(found_KHD, plain_KHD)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(passed.shared_T) > 0 if share else len(passed.shared_T) == 0


def test_segments_compile_to_one_graph_whatever_the_sizes():
    # FlashAttention is of GPUs alone: tensors without numbers show what torch makes of its layers
    rng = random.Random(0)
    layers = CompileCounterWithBackend("aot_eager")
    lm = a_model().bfloat16()
    lm.set_attn_implementation(NAME)
    compile_layers(lm, backend=layers, fullgraph=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        for _ in range(8):
            passed = some_pass(rng, share=True, vocab=500)
            tensors = {k: v for k, v in vars(passed).items() if isinstance(v, torch.Tensor)}
            passed = replace(passed, **{k: fakes.from_tensor(v) for k, v in tensors.items()})
            states = lm.model(
                input_ids=passed.ids_N[None],
                position_ids=passed.position_N[None],
                use_cache=False,
                groups=passed,
                seen=None,
            ).last_hidden_state
            states.sum().backward()
    assert layers.frame_count == 2  # the first layer, and one for all behind it; of all sizes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize(("dtype", "near"), ((torch.float32, 1e-3), (torch.bfloat16, 0.1)))
def test_a_gpu_gives_the_log_probabilities_and_gradients_of_float64_on_a_cpu(compiled, dtype, near):
    from facttune_ray.training.model import GroupModel

    exact, fast = GroupModel(a_model().double()), GroupModel(a_model().to("cuda", dtype))
    assert exact.shares and fast.shares
    if compiled:
        compile_layers(fast.lm)
    for number in range(3):  # lengths that differ
        passed = some_pass(random.Random(number), share=True, vocab=500)
        weight_M = torch.randn(len(passed.token_M), dtype=torch.float64)
        for model, device in ((exact, "cpu"), (fast, "cuda")):
            model.zero_grad()
            logps_M = model(replace(passed).to(device))
            (logps_M * weight_M.to(logps_M)).mean().backward()
            model.found = logps_M.detach().double().cpu()
        assert (exact.found - fast.found).abs().max() < near
        for (name, p), (_, q) in zip(
            exact.lm.named_parameters(), fast.lm.named_parameters(), strict=True
        ):
            apart = (p.grad - q.grad.double().cpu()).norm() / p.grad.norm()
            assert apart < near, name
