from __future__ import annotations

import pytest
import torch

from facttune_ray.sampling.pick import pick, uniforms


def test_pick_inverts_the_cumulated_probabilities():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 6))
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 1e-12], dtype=torch.float64)
    v = torch.tensor([0.0, 0.62, 0.64, 0.99, 0.99, 0.99], dtype=torch.float64)
    assert pick(logits, u, v, 1.0, 1.0).tolist() == [0, 0, 1, 1, 2, 2]
    # Nucleus of mass 0.75: tokens 1 (0.5), 2 (0.3). u misses it twice, by token 0; v draws again,
    # from 0.625 on token 2.
    assert pick(logits, u, v, 1.0, 0.75).tolist() == [1, 1, 1, 1, 2, 2]
    assert pick(logits, u, 1 - v, 1.0, 0.75).tolist() == [2, 1, 1, 1, 2, 2]
    assert pick(logits, u, v, 1.0, 0.5).tolist() == [1] * 6
    assert pick(logits, u, v, 0, 1.0).tolist() == [1] * 6
    # Temperature 0.5 squares: 0.04, 0.25, 0.09 of 0.38, cumulated 0.105, 0.763.
    assert pick(logits, u, v, 0.5, 1.0).tolist() == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("vocab", [50, 300, 1000])
def test_pick_equals_a_slow_reference(vocab):
    """Tokens of similar probability: several chunks, and a nucleus of more than 128 tokens."""
    torch.manual_seed(0)
    logits = torch.randn(60, vocab)
    u, v = torch.rand(2, 60, dtype=torch.float64)
    expected = []
    missed = 0
    probs = torch.softmax(logits.double(), -1)
    for row, first, second in zip(probs.tolist(), u.tolist(), v.tolist(), strict=True):
        nucleus, mass = [], 0.0
        for token in sorted(range(vocab), key=lambda i, p=row: -p[i]):
            if mass < 0.8:
                nucleus.append(token)
                mass += row[token]
        token = drawn(range(vocab), row, first)
        if token not in nucleus:
            missed += 1
            token = drawn(nucleus, row, second * mass)
        expected.append(token)
    assert 3 <= missed <= 30
    assert pick(logits, u, v, 1.0, 0.8).tolist() == expected
    assert pick(logits, u, v, 1.0, 0.8, elements=3 * vocab).tolist() == expected  # 3 rows at a time


def drawn(tokens, probs, target):
    passed = 0.0
    for token in tokens:
        passed += probs[token]
        if passed > target:
            return token
    raise AssertionError


def test_tokens_as_probable_as_the_last_of_the_nucleus_are_in_it():
    logits = torch.zeros(1000, 4)  # 0.25 each: two reach 0.5, and none is better than another
    u, v = torch.rand(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert set(pick(logits, u, v, 1.0, 0.5).tolist()) == {0, 1, 2, 3}
    wide = torch.zeros(8, 500)
    wide[:, 499] = 1e-3
    ones = torch.full((8,), 1 - 1e-9, dtype=torch.float64)
    assert pick(wide, ones * 0, ones, 1.0, 1e-6).tolist() == [499] * 8


def test_masked_tokens_are_never_drawn():
    logits = torch.full((3, 200), -torch.inf)
    logits[:, [7, 130]] = torch.log(torch.tensor([0.25, 0.75]))
    u = torch.tensor([0.0, 0.26, 1 - 1e-16], dtype=torch.float64)
    assert pick(logits, u, u, 1.0, 1.0).tolist() == [7, 130, 130]
    assert pick(logits, u, u, 1.0, 0.9).tolist() == [7, 130, 130]


def test_uniform_numbers_of_a_sample_do_not_depend_on_n():
    few, many = uniforms(3, 2, 5), uniforms(3, 4, 5)
    assert few.shape == (2, 2, 5) and (many[:, :2] == few).all()
    assert (few[0] != few[1]).all() and ((few >= 0) & (few < 1)).all()
    assert (uniforms(4, 2, 5) != few).all()
