"""Held-out topics: their choice, their figures by hand, and samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from facttune_ray.errors import UserError
from facttune_ray.sampling.weights import load
from facttune_ray.training import heldout
from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.model import NAME, GroupModel
from facttune_ray.training.reference import token_logps_of
from facttune_ray.training.step import Objective

GROUPS = [
    TokenGroup("a", [5, 6], [[7, 8, 9], [10, 2], [11, 12, 13, 2]], [(0, 1), (0, 2)], [1.0, 1.0]),
    TokenGroup("b", [8], [[9, 10, 2], [5, 2]], [(1, 0)], [1.0]),
    TokenGroup("c", [6, 7, 8], [[9, 2], [9, 9, 9, 2]], [(0, 1)], [1.0]),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of one."""
    started = not dist.is_initialized()
    if started:
        file = tmp_path_factory.mktemp("group") / "store"
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    if started:
        dist.destroy_process_group()


class Engine(torch.nn.Module):
    """The part of a DeepSpeed engine that measurements use."""

    def __init__(self, lm) -> None:
        super().__init__()
        self.module = GroupModel(lm.eval())

    def forward(self, passed):
        return self.module(passed)


@pytest.fixture
def engine(reference, alone):
    return Engine(load(reference[1], "float32")[1])


def moved(engine: Engine) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in engine.parameters():
            p.add_(torch.randn_like(p) * 0.1)


def evaluate(engine, references, objective, groups=GROUPS) -> dict:
    return heldout.evaluate(engine, groups, references, objective, rank=0, world=1)


def test_a_topic_is_held_out_or_trained_for_any_order_of_rows():
    topics = list("abcabdeffe")
    train, held = heldout.split(topics, 2, seed=4)
    chosen = {topics[i] for i in held}
    assert len(chosen) == 2 and not chosen & {topics[i] for i in train}
    assert sorted(train + held) == list(range(10))
    backwards = topics[::-1]
    assert {backwards[i] for i in heldout.split(backwards, 2, seed=4)[1]} == chosen
    drawn = {frozenset(topics[i] for i in heldout.split(topics, 2, seed=s)[1]) for s in range(20)}
    assert len(drawn) > 3
    assert heldout.split(topics, 0, seed=4) == (list(range(10)), [])


def test_holding_out_all_topics_is_refused():
    with pytest.raises(UserError, match="train.eval_topics=3: the table has 3 topics"):
        heldout.split(list("abca"), 3, seed=0)


def test_before_the_first_step(engine):
    references = token_logps_of(engine.module, GROUPS, 8192)
    found = evaluate(engine, references, Objective("dpo", 0.1))
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["reward_accuracy"] == 0.5 and found["margin"] == pytest.approx(0, abs=1e-6)
    assert found["kl"] == pytest.approx(0, abs=1e-10)
    assert (found["groups"], found["pairs"]) == (3, 4)


@pytest.mark.parametrize("pass_tokens", [8192, 7])
def test_figures_by_hand(engine, pass_tokens):
    references = token_logps_of(engine.module, GROUPS, 8192)
    moved(engine)
    policies = token_logps_of(engine.module, GROUPS, 8192)
    found = evaluate(engine, references, Objective("dpo", 0.5, pass_tokens=pass_tokens))
    margins, terms = [], []
    for group, policy, stored in zip(GROUPS, policies, references, strict=True):
        for win, lose in group.pairs:
            ratio = [sum(policy[r]) - sum(stored[r]) for r in (win, lose)]
            margins.append(0.5 * (ratio[0] - ratio[1]))
        for row, base in zip(policy, stored, strict=True):
            terms += [math.exp(p - q) - 1 - (p - q) for p, q in zip(row, base, strict=True)]
    losses = [math.log(1 + math.exp(-m)) for m in margins]
    assert found["loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert found["margin"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert found["reward_accuracy"] == sum(m > 0 for m in margins) / 4
    assert found["kl"] == pytest.approx(sum(terms) / len(terms), rel=1e-4) and found["kl"] > 0


def test_supervised_figures_are_the_mean_of_means(engine):
    nothing = [[[0.0] * len(r) for r in g.responses] for g in GROUPS]
    policies = token_logps_of(engine.module, GROUPS, 8192)
    found = evaluate(engine, nothing, Objective("sft", 0.1, pass_tokens=9))
    each = [-sum(row) / len(row) for policy in policies for row in policy]
    assert found["loss"] == pytest.approx(sum(each) / len(each), abs=1e-5)
    assert "kl" not in found


def test_drawing_is_seeded_and_leaves_the_training_as_it_was(engine, reference):
    tokenizer = load(reference[1], "float32")[0]
    lm = engine.module.lm
    assert engine.module.shares and lm.config._attn_implementation == NAME
    before = torch.random.get_rng_state()
    texts = heldout.draw(engine, tokenizer, [[5, 6], [7]], seed=1, max_new_tokens=6)
    assert len(texts) == 2
    assert torch.equal(before, torch.random.get_rng_state())
    assert lm.config._attn_implementation == NAME and not lm.training
    torch.manual_seed(99)
    assert heldout.draw(engine, tokenizer, [[5, 6], [7]], seed=1, max_new_tokens=6) == texts
    drawn = {tuple(heldout.draw(engine, tokenizer, [[5, 6]], s, 6)) for s in range(5)}
    assert len(drawn) > 1
    lm.train()
    heldout.draw(engine, tokenizer, [[5]], seed=0, max_new_tokens=2)
    assert lm.training


def test_draws_follow_the_model(engine, reference):
    """A model that gives one token all probability draws only this token."""
    tokenizer = load(reference[1], "float32")[0]
    word = tokenizer(" cello", add_special_tokens=False)["input_ids"]
    lm = engine.module.lm
    lm.get_output_embeddings().weight.data.zero_()
    head = lm.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), -100.0))
    head.bias.data[word[0]] = 100.0
    text = heldout.draw(engine, tokenizer, [[5, 6, 7], [8]], seed=0, max_new_tokens=3)
    assert text == [tokenizer.decode(word[:1] * 3)] * 2
