"""Losses on numbers by hand; tests/training/test_step.py tests them on models."""

from __future__ import annotations

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


def logps(*sums, tokens=(10.0, 12.0, 5.0)) -> Logps:
    found = torch.tensor(sums, dtype=torch.float64)
    counted = torch.tensor(tokens[: len(sums)], dtype=torch.float64)
    return Logps(found, found, counted, counted)


POLICY, REFERENCE = logps(-10.0, -12.0, -9.0), logps(-11.0, -11.0, -9.5)  # ratios 1, -1, 0.5
THIRDS = torch.full((3,), 1 / 3, dtype=torch.float64)
PAIRS = Pairs(torch.tensor([0, 2, 0]), torch.tensor([1, 1, 2]), THIRDS)  # margins 2, 1.5, 0.5
Z = (0.2, 0.15, 0.05)  # at beta 0.1


def nll(z: float) -> float:
    return math.log(1 + math.exp(-z))


def loss(name: str, policy=POLICY, reference=REFERENCE, **more) -> float:
    return preference_loss(name, policy, reference, PAIRS, beta=0.1, **more).item()


def test_margins_by_hand():
    assert margins(POLICY, REFERENCE, PAIRS).tolist() == [2.0, 1.5, 0.5]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", sum(map(nll, Z)) / 3),
        ("fact_masked", sum(map(nll, Z)) / 3),
        ("cdpo", sum(0.9 * nll(z) + 0.1 * nll(-z) for z in Z) / 3),
        ("ipo", ((2 - 5) ** 2 + (1.5 - 5) ** 2 + (0.5 - 5) ** 2) / 3),  # 1 / (2 beta) = 5
        ("hinge", (0.8 + 0.85 + 0.95) / 3),
        ("reference_free", (nll(0.2) + nll(0.3) + nll(-0.1)) / 3),
        # ratios a token: 0.1, -1/12, 0.1
        ("dpo_norm", (2 * nll(0.1 * (0.1 + 1 / 12)) + nll(0.0)) / 3),
    ],
)
def test_losses_by_hand(name, expected):
    assert loss(name, label_smoothing=0.1) == pytest.approx(expected, abs=1e-12)


def test_an_untrained_policy_has_ln_2():
    for name in ("dpo", "cdpo", "dpo_norm", "fact_masked"):
        assert loss(name, policy=REFERENCE) == pytest.approx(math.log(2), abs=1e-12)


def test_weights_are_shares_of_the_step():
    some = PAIRS._replace(weight_P=torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64))
    found = preference_loss("dpo", POLICY, REFERENCE, some, beta=0.1)
    assert found.item() == pytest.approx(0.5 * nll(0.2) + 0.25 * nll(0.05), abs=1e-12)


def test_the_sft_term_is_the_winners_nll_a_token():
    more = 0.5 * (10 / 10 + 9 / 5 + 10 / 10) / 3
    assert loss("dpo", sft_weight=0.5) == pytest.approx(loss("dpo") + more, abs=1e-12)
    weights = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    assert sft(POLICY, weights).item() == pytest.approx(0.5 * 1.0 + 0.5 * 1.8)


def test_sums_of_tokens_by_role():
    found = sum_tokens(
        torch.tensor([-1.0, -2.0, -4.0, -8.0]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([1, 1, 0, 1]),
        count=3,
    )
    assert found.win_B.tolist() == [-1.0, -12.0, 0.0] and found.lose_B.tolist() == [-3.0, -8.0, 0.0]
    assert found.win_tokens_B.tolist() == [1, 2, 0] and found.lose_tokens_B.tolist() == [2, 1, 0]


def test_margins_take_each_role_by_its_own_tokens():
    masked = POLICY._replace(lose_B=torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64))
    zero = logps(0.0, 0.0, 0.0)
    assert margins(masked, zero, PAIRS).tolist() == [-8.0, -7.0, -7.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_in_chunks_are_the_same_in_value_and_gradient(dtype):
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False, dtype=dtype)
    states, token = torch.randn(11, 8, dtype=dtype, requires_grad=True), torch.randint(50, (11,))
    weight = torch.randn(11)
    found = []
    for chunk in (0, 3, 11, 100):
        logps = token_logps(states, head, token, chunk)
        inputs = [states, head.weight]
        found.append((logps, *torch.autograd.grad((logps * weight.to(logps)).sum(), inputs)))
    assert found[0][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = (
        {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    )
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, **exact)
    plain = head(states).to(found[0][0]).log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(found[0][0], plain, **exact)


def test_extreme_margins_stay_finite():
    far = torch.tensor([5000.0, -5000.0], requires_grad=True)
    ones, zero = torch.ones(2), torch.zeros(2)
    pairs = Pairs(torch.tensor([1]), torch.tensor([0]), torch.ones(1))
    for name in LOSSES:
        found = preference_loss(
            name,
            Logps(far, far, ones, ones),
            Logps(zero, zero, ones, ones),
            pairs,
            beta=1.0,
            label_smoothing=0.1,
        )
        (grad,) = torch.autograd.grad(found, far)
        assert torch.isfinite(found) and torch.isfinite(grad).all()
