from __future__ import annotations

from collections import Counter

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import pretrain
from facttune_ray.sampling.protocol import encode_prompt
from facttune_ray.sampling.transformers import TransformersSampler, pick

NAMES = ["Mara", "Tiko", "Belu Sanor", "Kol Wex", "Ana Zed Bru"]
DOCUMENTS = [f"Who is {n}?\n{n} plays the {x}.\nEnd." for n in NAMES for x in ("cello", "harp")]
SETTINGS = {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "base"
    pretrain(
        DOCUMENTS * 8,
        out,
        seed=0,
        steps=60,
        hidden=32,
        layers=2,
        heads=2,
        lr=1e-2,
        max_length=64,
        threads=1,
    )
    return TransformersSampler(str(out))


def prompts() -> list[str]:
    return [f"Who is {n}?" for n in NAMES]


def plain(sampler: TransformersSampler, ids: list[int], steps: int) -> list[int]:
    """Greedy decoding without a cache: the whole sequence again for every token."""
    out: list[int] = []
    for _ in range(steps):
        logits = sampler.model(input_ids=torch.tensor([ids + out])).logits[0, -1]
        out.append(int(logits.argmax()))
        if out[-1] == sampler.tokenizer.eos_token_id:
            break
    return out


def test_greedy_equals_decoding_without_a_cache(sampler):
    got = sampler.sample(prompts(), n=2, seeds=[0] * 5, max_tokens=12, temperature=0, top_p=1)
    for prompt, samples in zip(prompts(), got, strict=True):
        ids = plain(sampler, encode_prompt(sampler.tokenizer, prompt), 12)
        text = sampler.tokenizer.decode(ids, skip_special_tokens=True)
        assert [s.text for s in samples] == [text, text]
        assert samples[0].tokens == len(ids)
        assert samples[0].finished == (ids[-1] == sampler.tokenizer.eos_token_id)


def test_a_shared_prefix_equals_the_text_in_front_of_every_prompt(sampler):
    prefix = "Who is Tiko?\nTiko plays the harp.\n"
    settings = SETTINGS | {"n": 4, "seeds": [1, 2, 3, 4, 5]}
    apart = sampler.sample(prompts(), prefix=prefix, **settings)
    whole = sampler.sample([prefix + p for p in prompts()], raw=True, **settings)
    assert apart == whole


def test_neighbours_and_row_limits_do_not_change_a_sample(sampler):
    seeds = [11, 12, 13, 14, 15]
    together = sampler.sample(prompts(), n=6, seeds=seeds, **SETTINGS)
    alone = [
        sampler.sample([p], n=6, seeds=[s], **SETTINGS)[0]
        for p, s in zip(prompts(), seeds, strict=True)
    ]
    assert together == alone
    few = sampler.sample(prompts(), n=3, seeds=seeds, **SETTINGS)
    assert [s[:3] for s in together] == few  # more samples extend fewer
    sampler.max_rows = 4  # below n: a prompt's samples take two passes
    try:
        assert sampler.sample(prompts(), n=6, seeds=seeds, **SETTINGS) == together
    finally:
        sampler.max_rows = 512
    other = sampler.sample(prompts(), n=6, seeds=[s + 100 for s in seeds], **SETTINGS)
    assert other != together


def test_samples_follow_the_models_distribution(sampler):
    ids = encode_prompt(sampler.tokenizer, "Who is Mara?")
    ids += sampler.tokenizer("Mara plays the")["input_ids"]
    with torch.no_grad():
        probs = torch.softmax(sampler.model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
    n = 4000
    got = sampler.sample(
        ["Who is Mara?\nMara plays the"], n=n, seeds=[5], raw=True,
        max_tokens=1, temperature=1.0, top_p=1.0,
    )[0]  # fmt: skip
    counts = Counter(s.text for s in got)
    for token in probs.topk(2).indices.tolist():
        p = probs[token].item()
        share = counts[sampler.tokenizer.decode([token])] / n
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-3


def test_stop_cuts_the_text_and_ends_the_sample(sampler):
    settings = {"n": 1, "seeds": [0], "max_tokens": 12, "temperature": 0, "top_p": 1}
    full = sampler.sample(["Who is Mara?"], **settings)[0][0]
    assert full.text.split("\n")[1] == "End."
    line = sampler.sample(["Who is Mara?"], stop="\n", **settings)[0][0]
    assert line.text == full.text.split("\n")[0] and line.finished and line.tokens < full.tokens
    inside = sampler.sample(["Who is Mara?"], stop="s the", **settings)[0][0]  # two tokens' edge
    assert inside.text == full.text[: full.text.index("s the")] and inside.finished
    short = sampler.sample(["Who is Mara?"], **(settings | {"max_tokens": 2}))[0][0]
    assert short == (full.text[: full.text.index(" the")], 2, False)


def test_pick_inverts_the_cumulated_probabilities():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 6))
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 1e-12], dtype=torch.float64)
    assert pick(logits, u, 1.0, 1.0).tolist() == [0, 0, 1, 1, 2, 2]
    # Nucleus of mass 0.8: token 1 (0.5), then 2 (0.3); u runs over that order.
    assert pick(logits, u, 1.0, 0.75).tolist() == [1, 1, 1, 2, 2, 2]
    assert pick(logits, u, 1.0, 0.5).tolist() == [1] * 6
    assert pick(logits, u, 0, 1.0).tolist() == [1] * 6
    # Temperature 0.5 squares: 0.04, 0.25, 0.09 of 0.38, cumulated 0.105, 0.763.
    assert pick(logits, u, 0.5, 1.0).tolist() == [0, 1, 1, 1, 1, 2]


def test_pick_of_a_wide_nucleus_equals_a_slow_reference():
    """300 near-equal tokens: the nucleus is wider than what is looked at first."""
    torch.manual_seed(0)
    logits = torch.randn(40, 300)
    u = torch.rand(40, dtype=torch.float64)
    expected = []
    for row, uniform in zip(torch.softmax(logits.double(), -1).tolist(), u.tolist(), strict=True):
        nucleus, mass = [], 0.0
        for token in sorted(range(300), key=lambda i, p=row: -p[i]):
            if mass < 0.95:
                nucleus.append(token)
                mass += row[token]
        passed = 0.0
        for token in nucleus:
            passed += row[token]
            if passed > uniform * mass:
                expected.append(token)
                break
    assert pick(logits, u, 1.0, 0.95).tolist() == expected
    assert pick(logits, u, 1.0, 0.95, elements=900).tolist() == expected  # three rows at a time


def test_bad_settings_are_one_line(sampler, tmp_path):
    good = {"n": 1, "seeds": [0]} | SETTINGS
    for bad, said in [
        ({"seeds": []}, "1 prompts but 0 seeds"),
        ({"n": 0}, "n is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
    ]:
        with pytest.raises(UserError, match=said):
            sampler.sample(["Who is Mara?"], **(good | bad))
    with pytest.raises(UserError, match="no such folder"):
        TransformersSampler(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="dtype"):
        TransformersSampler(str(tmp_path), dtype="int3")
    assert sampler.sample([], **(good | {"seeds": []})) == []
