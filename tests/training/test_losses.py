from __future__ import annotations

import math

import pytest
import torch

from facttune_ray.training.losses import LOSSES, margins, response_logps

LOGPS = torch.tensor([-10.0, -12.0, -9.0], dtype=torch.float64)
REF = torch.tensor([-11.0, -11.0, -9.5], dtype=torch.float64)  # ratios 1, -1, 0.5
PAIRS = torch.tensor([[0, 1], [2, 1], [0, 2]])  # margins 2, 1.5, 0.5


def nll(z: float) -> float:
    return math.log(1 + math.exp(-z))


def test_response_logps_sums_masked_tokens_only():
    """Vocabulary of 2; a logit difference of ln 3 gives probabilities 3/4 and 1/4."""
    likes_1 = [0.0, math.log(3)]
    logits = torch.tensor([[likes_1] * 4, [likes_1] * 4], dtype=torch.float64)
    tokens = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.float64)
    expected = [math.log(3 / 4) + math.log(1 / 4), math.log(1 / 4)]
    assert response_logps(logits, tokens, mask).tolist() == pytest.approx(expected, abs=1e-12)


def test_margins_by_hand():
    assert margins(LOGPS, REF, PAIRS).tolist() == [2.0, 1.5, 0.5]


def test_dpo_by_hand():
    expected = (nll(0.2) + nll(0.15) + nll(0.05)) / 3
    assert LOSSES["dpo"](LOGPS, REF, PAIRS, beta=0.1).item() == pytest.approx(expected, abs=1e-12)


def test_dpo_of_an_untrained_policy_is_ln_2():
    assert LOSSES["dpo"](REF, REF, PAIRS, beta=0.3).item() == pytest.approx(math.log(2), abs=1e-12)


def test_cdpo_by_hand_and_without_smoothing_it_is_dpo():
    expected = sum(0.9 * nll(z) + 0.1 * nll(-z) for z in (0.2, 0.15, 0.05)) / 3
    got = LOSSES["cdpo"](LOGPS, REF, PAIRS, beta=0.1, label_smoothing=0.1)
    assert got.item() == pytest.approx(expected, abs=1e-12)
    plain = LOSSES["cdpo"](LOGPS, REF, PAIRS, beta=0.1)
    assert plain.item() == pytest.approx(LOSSES["dpo"](LOGPS, REF, PAIRS, beta=0.1).item())


def test_ipo_by_hand():
    expected = ((2 - 5) ** 2 + (1.5 - 5) ** 2 + (0.5 - 5) ** 2) / 3  # 1 / (2 beta) = 5
    assert LOSSES["ipo"](LOGPS, REF, PAIRS, beta=0.1).item() == pytest.approx(expected)


def test_sft_by_hand():
    assert LOSSES["sft"](LOGPS, REF, PAIRS, beta=0.1).item() == pytest.approx(31 / 3)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo"])
def test_grouped_equals_pairwise_in_value_and_gradient(name):
    """The reference: every pair runs its two sequences through the model, as DPO trainers do."""
    torch.manual_seed(0)
    kwargs = {"beta": 0.1, "label_smoothing": 0.1 if name == "cdpo" else 0.0}
    vocab, width, rows = 11, 7, 6
    table = torch.randn(vocab, vocab, dtype=torch.float64, requires_grad=True)  # bigram model
    tokens = torch.randint(vocab, (rows, width))
    mask = torch.ones(rows, width, dtype=torch.float64)
    mask[:, :2] = 0
    mask[1, 5:] = 0
    ref = torch.randn(rows, dtype=torch.float64) - 12
    pairs = [(i, j) if (i * 7 + j) % 3 else (j, i) for i in range(rows) for j in range(i)]

    def logps(chosen: list[int]) -> torch.Tensor:
        return response_logps(table[tokens[chosen]], tokens[chosen], mask[chosen])

    grouped = LOSSES[name](logps(list(range(rows))), ref, torch.tensor(pairs), **kwargs)
    (grouped_grad,) = torch.autograd.grad(grouped, table)

    def one(z: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        if name == "ipo":
            return (m - 1 / (2 * kwargs["beta"])) ** 2
        e = kwargs["label_smoothing"]
        return -(1 - e) * torch.log(torch.sigmoid(z)) - e * torch.log(1 - torch.sigmoid(z))

    losses = []
    for win, lose in pairs:
        two = logps([win, lose])  # 2 passes a pair
        margin = (two[0] - ref[win]) - (two[1] - ref[lose])
        losses.append(one(kwargs["beta"] * margin, margin))
    pairwise = torch.stack(losses).mean()
    (pairwise_grad,) = torch.autograd.grad(pairwise, table)
    assert abs(grouped.item() - pairwise.item()) < 1e-10
    assert (grouped_grad - pairwise_grad).abs().max().item() < 1e-10


def test_extreme_margins_stay_finite():
    far = torch.tensor([5000.0, -5000.0], requires_grad=True)
    for name in ("dpo", "cdpo"):
        loss = LOSSES[name](
            far, torch.zeros(2), torch.tensor([[1, 0]]), beta=1.0, label_smoothing=0.1
        )
        (grad,) = torch.autograd.grad(loss, far)
        assert torch.isfinite(loss) and torch.isfinite(grad).all()
