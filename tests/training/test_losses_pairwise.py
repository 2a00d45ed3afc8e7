"""Every loss on a tiny model equals the pairs one by one, each as two sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from facttune_ray.training.losses import (
    LOSSES,
    Logps,
    Pairs,
    margins,
    preference_loss,
    sft,
    sum_tokens,
    token_logps,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BETA, SMOOTHING, VOCABULARY = 0.3, 0.2, 23
LENGTHS = (4, 7, 1, 6)
PAIRS = list(itertools.combinations(range(4), 2))
WEIGHTS = [0.25, 0.05, 0.3, 0.1, 0.2, 0.1]  # of a step's 1
PROMPT = [3, 1, 4]


class Tiny(nn.Module):
    """States that depend on all tokens so far, and logits of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.mixing = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)
        self.double()

    def states(self, response: list[int]) -> torch.Tensor:
        """[T, C] of a response behind the prompt: one for each of its tokens."""
        ids = torch.tensor([[*PROMPT, *response]])
        return self.mixing(self.embedding(ids))[0][0, len(PROMPT) - 1 : -1]


@pytest.fixture(scope="module")
def models():
    return Tiny(1), Tiny(2).requires_grad_(False)


def responses() -> list[list[int]]:
    torch.manual_seed(3)
    return [torch.randint(VOCABULARY, (n,)).tolist() for n in LENGTHS]


def all_ones() -> list[tuple[list[int], list[int]]]:
    return [([1] * n, [1] * n) for n in LENGTHS]


# one response counts in no role but for its end mark, one only when it wins
SOME = [
    ([1, 0, 0, 1], [0, 1, 1, 1]),
    ([0, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 1]),
    ([1], [1]),
    ([1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1]),
]


def summed(model: Tiny, masks, chunk: int = 0) -> Logps:
    """The loss as training computes it: each response runs once."""
    texts = responses()
    logps_N = token_logps(
        torch.cat([model.states(r) for r in texts]),
        model.head,
        torch.tensor([i for r in texts for i in r]),
        chunk,
    )
    owner_N = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(LENGTHS))
    win_N, lose_N = (torch.tensor([x for m in masks for x in m[side]]) for side in (0, 1))
    return sum_tokens(logps_N, owner_N, win_N, lose_N, len(texts))


def by_itself(model: Tiny, response: list[int], mask: list[int], mean: bool) -> torch.Tensor:
    """The log-probabilities of one sequence, without code of the module under test."""
    total = torch.zeros((), dtype=torch.float64)
    for state, token, counts in zip(model.states(response), response, mask, strict=True):
        if counts:
            odds = torch.exp(model.head(state))
            total = total + torch.log(odds[token] / odds.sum())
    return total / sum(mask) if mean else total


def pair_loss(name: str, winner, loser, r_winner, r_loser) -> torch.Tensor:
    """The papers' formulas on four log-probabilities, not on margins."""
    ratio, r_ratio = winner - loser, r_winner - r_loser
    if name == "reference_free":
        return torch.log(1 + torch.exp(-BETA * ratio))
    if name == "ipo":
        return (ratio - r_ratio - 1 / (2 * BETA)) ** 2
    if name == "hinge":
        gap = 1 - BETA * (ratio - r_ratio)
        return gap if gap > 0 else gap * 0
    right = 1 / (1 + torch.exp(-BETA * (ratio - r_ratio)))
    if name == "cdpo":
        return -(1 - SMOOTHING) * torch.log(right) - SMOOTHING * torch.log(1 - right)
    return -torch.log(right)


def pairwise(name: str, models, masks, sft_weight: float) -> torch.Tensor:
    total, texts = torch.zeros((), dtype=torch.float64), responses()
    for (w, x), weight in zip(PAIRS, WEIGHTS, strict=True):
        sums = [
            by_itself(model, texts[r], masks[r][side], name == "dpo_norm")
            for model in models
            for side, r in ((0, w), (1, x))
        ]
        nll = -by_itself(models[0], texts[w], masks[w][0], True)
        total = total + weight * (pair_loss(name, *sums) + sft_weight * nll)
    return total


def gradient(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def the_pairs(weights: list[float]) -> Pairs:
    win_P, lose_P = torch.tensor(PAIRS).T
    return Pairs(win_P, lose_P, torch.tensor(weights, dtype=torch.float64))


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("masks", [SOME, all_ones()], ids=["masked", "whole"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_pairs_one_by_one(models, name, masks, sft_weight, chunk):
    policy, reference = (summed(m, masks, chunk) for m in models)
    found = preference_loss(
        name,
        policy,
        reference,
        the_pairs(WEIGHTS),
        beta=BETA,
        label_smoothing=SMOOTHING,
        sft_weight=sft_weight,
    )
    expected = pairwise(name, models, masks, sft_weight)
    assert found.dtype == torch.float64
    assert abs(found.item() - expected.item()) < 1e-10
    got, wanted = gradient(found, models[0]), gradient(expected, models[0])
    assert wanted.abs().max() > 1e-3
    assert (got - wanted).abs().max() < 1e-10


def test_each_pair_has_its_own_loss(models):
    policy, reference = (summed(m, all_ones()) for m in models)
    for name, fn in LOSSES.items():
        loss_P = fn(policy, reference, the_pairs(WEIGHTS), beta=BETA, label_smoothing=SMOOTHING)
        assert loss_P.shape == (len(PAIRS),)
        for p in range(len(PAIRS)):
            one = [float(i == p) for i in range(len(PAIRS))]
            kept = preference_loss(
                name, policy, reference, the_pairs(one), beta=BETA, label_smoothing=SMOOTHING
            )
            assert kept.item() == pytest.approx(loss_P[p].item(), abs=1e-12)


def test_a_masked_token_has_no_gradient_in_that_role():
    logps_N = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    owner_N = torch.tensor([0, 0, 0, 1, 1])
    win_N, lose_N = torch.tensor([1, 0, 1, 1, 1]), torch.tensor([1, 1, 1, 0, 1])
    policy = sum_tokens(logps_N, owner_N, win_N, lose_N, 2)
    reference = Logps(*(x.detach() for x in policy))
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.ones(1, dtype=torch.float64))
    loss = preference_loss("fact_masked", policy, reference, pairs, beta=0.5)
    loss.backward()
    # d -log sigmoid(z) / dz = -1/2 at 0, times beta
    assert logps_N.grad is not None
    assert logps_N.grad.tolist() == [-0.25, 0.0, -0.25, 0.0, 0.25]


def test_numbers_by_hand_at_equality(models):
    same = summed(models[1], all_ones())
    expected = dict.fromkeys(LOSSES, math.log(2)) | {"ipo": (1 / 0.6) ** 2, "hinge": 1.0}
    del expected["reference_free"]  # it does not know the reference
    for name, value in expected.items():
        found = preference_loss(
            name, same, same, the_pairs(WEIGHTS), beta=BETA, label_smoothing=SMOOTHING
        )
        assert found.item() == pytest.approx(value, abs=1e-12), name
    even = Logps(torch.zeros(4), torch.zeros(4), torch.ones(4), torch.ones(4))
    free = preference_loss("reference_free", even, same, the_pairs(WEIGHTS), beta=BETA)
    assert free.item() == pytest.approx(math.log(2), abs=1e-7)


def test_parts_of_a_step_add_up(models):
    policy, reference = (summed(m, all_ones()) for m in models)
    whole = preference_loss("dpo", policy, reference, the_pairs(WEIGHTS), beta=BETA)
    parts = [
        preference_loss(
            "dpo", policy, reference, Pairs(*(x[at] for x in the_pairs(WEIGHTS))), beta=BETA
        )
        for at in (slice(0, 2), slice(2, 6))
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), abs=1e-12)


def test_margins_do_not_depend_on_beta():
    policy = Logps(*(torch.tensor(x) for x in ([-3.0, -5.0], [-2.0, -4.0], [3.0, 3.0], [2.0, 2.0])))
    reference = Logps(*(torch.zeros(2) for _ in range(4)))
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert margins(policy, reference, pairs).tolist() == [1.0]  # -3 as a winner, -4 as a loser


def test_sft_is_a_weighted_mean_of_means(models):
    weights = [0.4, 0.1, 0.2, 0.3]
    found = sft(summed(models[0], all_ones()), torch.tensor(weights, dtype=torch.float64))
    expected = sum(
        -w * by_itself(models[0], r, [1] * len(r), True)
        for w, r in zip(weights, responses(), strict=True)
    )
    assert found.item() == pytest.approx(expected.item(), abs=1e-10)
    difference = gradient(found, models[0]) - gradient(expected, models[0])
    assert difference.abs().max() < 1e-10


def test_a_response_without_a_counted_token_has_no_loss_a_token():
    nothing = sum_tokens(
        torch.tensor([-2.0, -3.0], requires_grad=True),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        torch.tensor([1, 1]),
        2,
    )
    assert nothing.win_B.tolist() == [0.0, -3.0] and nothing.win_tokens_B.tolist() == [0.0, 1.0]
    assert sft(nothing, torch.tensor([0.5, 0.5])).item() == 1.5


# float64 to rounding; in bf16 a head's gradient is rounded once a chunk (2^-8 of it each time)
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("chunk", [1, 4, 12, 13, 100])
@pytest.mark.parametrize("dtype", EXACT)
def test_chunks_equal_the_whole(dtype, chunk):
    torch.manual_seed(0)
    head = nn.Linear(8, 50, dtype=dtype)
    states_NC = torch.randn(13, 8, dtype=dtype, requires_grad=True)
    token_N, slope_N = torch.randint(50, (13,)), torch.rand(13)
    inputs = [states_NC, *head.parameters()]

    def both(logps_N):
        grads = torch.autograd.grad((logps_N * slope_N.to(logps_N)).sum(), inputs)
        return logps_N.detach(), grads

    whole, whole_grads = both(token_logps(states_NC, head, token_N))
    parts, part_grads = both(token_logps(states_NC, head, token_N, chunk))
    assert whole.dtype == parts.dtype == (torch.float64 if dtype == torch.float64 else torch.float)
    torch.testing.assert_close(parts, whole, rtol=0, atol=min(EXACT[dtype], 1e-5))
    for a, b in zip(part_grads, whole_grads, strict=True):
        assert a.dtype == dtype
        assert (a - b).abs().max() <= EXACT[dtype] * b.abs().max()


def test_half_precision_logits_have_a_wide_softmax():
    """log p of one of 3,000 equal logits is -8.00637; bf16 has nothing between -8 and -8.06."""
    head = nn.Linear(2, 3000, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(head.weight)
    found = token_logps(torch.ones(3, 2, dtype=torch.bfloat16), head, torch.tensor([0, 7, 2999]), 2)
    assert found.tolist() == pytest.approx([-math.log(3000)] * 3, abs=1e-5)


def test_chunks_hold_few_logits_at_a_time():
    """Autograd keeps all logits without chunks, and only states with chunks."""
    head, token_N = nn.Linear(4, 1000), torch.zeros(40, dtype=torch.int64)

    def largest(chunk):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            token_logps(torch.randn(40, 4, requires_grad=True), head, token_N, chunk)
        return max(kept)

    assert largest(0) == 40 * 1000
    assert largest(10) == 10 * 4
