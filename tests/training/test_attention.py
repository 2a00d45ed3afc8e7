"""On a GPU attention runs tiles of one matrix; on a CPU, blocks. Both see the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from facttune_ray.training.attention import attend, block_mask, block_seen, rule_of
from facttune_ray.training.passes import TILE, Pass, lay_out


def some_pass(rng: random.Random, share: bool, vocab: int = 50) -> Pass:
    def ids(most: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(1, most))]

    groups = [(ids(200), [ids(300) for _ in range(rng.randint(1, 5))]) for _ in range(3)]
    return lay_out(groups, share)


def test_a_response_sees_its_prompt_and_itself():
    passed = lay_out([([1, 2], [[3, 4], [5]]), ([6], [[7]])], share_prefix=True)
    assert passed.root_N.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert passed.branch_N.tolist() == [-1, -1, 0, 0, 1, -1, -1]  # a lone response is no branch
    place = torch.arange(7)
    rule = rule_of(passed.root_N, passed.branch_N)
    assert rule(0, 0, place[:, None], place).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("share", (True, False))
def test_tiles_are_those_in_which_something_is_seen(share):
    rng = random.Random(share)
    for _ in range(10):
        passed = some_pass(rng, share)
        place, side = torch.arange(len(passed.ids_N)), len(passed.tile_QK)
        dense = torch.zeros(side * TILE, side * TILE, dtype=torch.bool)
        dense[: len(place), : len(place)] = rule_of(passed.root_N, passed.branch_N)(
            0, 0, place[:, None], place
        )
        assert torch.equal(passed.tile_QK, dense.view(side, TILE, side, TILE).any(3).any(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("share", (True, False))
def test_tiles_and_blocks_give_the_same(share):
    torch.manual_seed(0)
    passed = some_pass(random.Random(share), share)
    query = torch.randn(1, 4, len(passed.ids_N), 16)
    key, value = torch.randn(2, 1, 2, len(passed.ids_N), 16)  # two query heads share one
    given = (None, query, key, value, None)
    blocks, _ = attend(*given, groups=passed, seen=block_seen(passed))
    with torch.no_grad():  # the kernels have no gradient on a CPU
        tiles, _ = attend(*given, groups=passed, seen=block_mask(passed))
    torch.testing.assert_close(tiles, blocks, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize(("dtype", "near"), ((torch.float32, 1e-3), (torch.bfloat16, 0.1)))
def test_a_gpu_gives_the_log_probabilities_and_gradients_of_float64_on_a_cpu(compiled, dtype, near):
    from transformers import LlamaConfig, LlamaForCausalLM

    from facttune_ray.training.model import GroupModel, compile_layers

    def made() -> LlamaForCausalLM:
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

    exact, fast = GroupModel(made().double()), GroupModel(made().to("cuda", dtype))
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
