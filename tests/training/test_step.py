"""Loss and gradient of a step of groups equal those of its pairs one by one, for any passes."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.losses import LOSSES
from facttune_ray.training.model import GroupModel
from facttune_ray.training.reference import token_logps_of
from facttune_ray.training.step import Objective, Step, pair_weights

BETA, SMOOTHING = 0.3, 0.1


def llama(seed: int) -> LlamaForCausalLM:
    """A tiny model in float64 throughout; transformers' norm computes in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for module in [model.model, *model.model.layers]:
        for name, _ in module.named_children():
            if name.endswith("norm"):
                setattr(module, name, nn.RMSNorm(16, eps=config.rms_norm_eps))
    return model.double().eval()


def groups() -> list[TokenGroup]:
    draw = random.Random(0)

    def ids(count):
        return [draw.randrange(40) for _ in range(count)]

    made = []
    for name, prompt, lengths in (("a", 5, (4, 7, 3, 6)), ("b", 3, (8, 2)), ("c", 6, (5, 5, 1))):
        pairs = list(itertools.combinations(range(len(lengths)), 2))
        masks = [([draw.randrange(2) for _ in range(n - 1)] + [1],) * 2 for n in lengths]
        masks = [(win, [1] * len(win)) for win, _ in masks]
        weights = [1.0 + i for i in range(len(pairs))]
        made.append(TokenGroup(name, ids(prompt), [ids(n) for n in lengths], pairs, weights, masks))
    return made


def logps(model, prompt, response) -> torch.Tensor:
    """The log-probabilities of one sequence, run alone."""
    ids = torch.tensor([[*prompt, *response]])
    found = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return found.gather(1, torch.tensor(response)[:, None])[:, 0]


def pairwise(name, model, reference, some, mean, sft_weight=0.0, masked=False) -> torch.Tensor:
    """The loss as every pairwise trainer computes it: two sequences a pair, for both models."""
    total, weight_sum = 0.0, sum(sum(g.weights) for g in some)
    for g in some:
        for (w, x), weight in zip(g.pairs, g.weights, strict=True):
            sums = {}
            for side, r in enumerate((w, x)):
                mask = torch.tensor(
                    g.masks[r][side] if masked else [1] * len(g.responses[r])
                ).double()
                if name == "dpo_norm":
                    mask = mask / mask.sum()
                for who, lm in (("policy", model), ("reference", reference)):
                    sums[who, side] = (logps(lm, g.prompt, g.responses[r]) * mask).sum()
            even = 0.0 if name == "reference_free" else 1.0
            margin = sums["policy", 0] - sums["policy", 1]
            margin = margin - even * (sums["reference", 0] - sums["reference", 1]).detach()
            loss = {
                "cdpo": lambda z: -(1 - SMOOTHING) * F.logsigmoid(z) - SMOOTHING * F.logsigmoid(-z),
                "hinge": lambda z: torch.clamp(1 - z, min=0),
                "ipo": lambda z: (z / BETA - 1 / (2 * BETA)) ** 2,
            }.get(name, lambda z: -F.logsigmoid(z))(BETA * margin)
            loss = loss - sft_weight * logps(model, g.prompt, g.responses[w]).mean()
            part = weight / weight_sum
            if mean == "prompt":
                part = weight / sum(g.weights) / len(some)
            total = total + part * loss
    return total


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def grouped(model, reference, some, mean, objective) -> tuple[float, torch.Tensor, Step]:
    """(loss, gradient, step) of the code under test."""
    model.zero_grad()
    grouping = GroupModel(model)
    references = token_logps_of(GroupModel(reference), some, 1000)
    step = Step(some, references, pair_weights(some, mean), objective)
    for i in range(len(step.first)):
        step.look(grouping, i)
    for i in range(len(step.passes)):
        step.loss(grouping, i).backward()
    model.set_attn_implementation("sdpa")
    reference.set_attn_implementation("sdpa")
    return step.figures()["loss"], gradient(model), step


WAYS = {  # pass_tokens, share_prefix
    "one pass, shared": (1000, True),
    "one pass, packed": (1000, False),
    "a pass a group": (26, True),
    "groups cut, shared": (14, True),
    "groups cut, packed": (14, False),
}


@pytest.fixture(scope="module")
def models():
    return llama(0), llama(1)


def check(models, name, objective, mean="pair", masked=False, some=None):
    """-> the step, after its loss and gradient were found equal to the pairs'."""
    model, reference = models
    some = some or groups()
    if not masked:
        some = [replace(g, masks=None) for g in some]
    loss, found, step = grouped(model, reference, some, mean, objective)
    model.zero_grad()
    expected = pairwise(name, model, reference, some, mean, objective.sft_weight, masked)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-10)
    assert (found - gradient(model)).abs().max() < 1e-10
    return step


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [n for n in LOSSES if n != "fact_masked"])
def test_every_loss_equals_the_pairs_one_by_one(models, name, way):
    tokens, share = WAYS[way]
    step = check(models, name, Objective(name, BETA, SMOOTHING, 0.0, tokens, share))
    assert bool(step.first) is way.startswith("groups cut")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mean", ["pair", "prompt"])
def test_masks_the_sft_term_and_both_means_too(models, way, mean):
    tokens, share = WAYS[way]
    check(models, "dpo", Objective("dpo", BETA, 0.0, 0.2, tokens, share), mean)
    masked = Objective("fact_masked", BETA, 0.0, 0.0, tokens, share)
    check(models, "dpo", masked, mean, masked=True)


def test_an_equal_reference_gives_ln_2(models):
    model, _ = models
    loss, _, step = grouped(model, model, groups(), "pair", Objective("dpo", BETA))
    assert loss == pytest.approx(math.log(2), abs=1e-12)
    assert step.figures()["margin"] == pytest.approx(0.0, abs=1e-12)


def test_idle_passes_have_no_gradient(models):
    model, _ = models
    some = [replace(g, masks=None) for g in groups()]
    references = token_logps_of(GroupModel(model), some, 1000)
    step = Step(some, references, pair_weights(some, "pair"), Objective("dpo", BETA))
    model.zero_grad()
    step.idle(GroupModel(model)).backward()
    assert gradient(model).abs().max() == 0.0 and step.figures()["loss"] == 0.0
    model.set_attn_implementation("sdpa")


def test_the_parts_of_two_workers_add_up(models):
    """Weights are shares of the whole step, so a worker does not need the other worker's groups."""
    model, reference = models
    some = [replace(g, masks=None) for g in groups()]
    objective = Objective("dpo", BETA)
    whole, gradients, _ = grouped(model, reference, some, "prompt", objective)
    weights = pair_weights(some, "prompt")
    references = token_logps_of(GroupModel(reference), some, 1000)
    model.zero_grad()
    total = 0.0
    for mine in ([0, 2], [1]):
        one = [[x[i] for i in mine] for x in (some, references, weights)]
        step = Step(*one, objective)
        step.loss(GroupModel(model), 0).backward()
        total += step.figures()["loss"]
    for lm in models:
        lm.set_attn_implementation("sdpa")
    assert total == pytest.approx(whole, abs=1e-12)
    assert (gradient(model) - gradients).abs().max() < 1e-12


TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


MAMBA = {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "mamba_n_heads": 4}
MAMBA |= {"mamba_d_state": 8, "mamba_d_head": 8, "mamba_expand": 2, "num_local_experts": 0}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize(
    ("kind", "settings", "shares"),
    [
        ("Mistral", {"sliding_window": 16}, True),  # no sequence is longer
        ("Mistral", {"sliding_window": 15}, False),
        ("Qwen3", {}, True),
        ("Gemma2", {"query_pre_attn_scalar": 4}, False),  # softcaps of logits and of attention
        ("Granite", {"logits_scaling": 8.0}, True),  # a scaled head runs as the model's own
        ("Cohere", {}, True),
        ("Lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, False),
        ("GraniteMoeHybrid", MAMBA, False),
    ],
)
def test_unusual_attention_or_heads_are_not_shared(kind, settings, shares, dtype):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**TINY | settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()
    assert GroupModel(model, longest=16).shares is shares


@pytest.mark.parametrize("kind", ("Mistral", "Gemma2"))
def test_a_model_that_cannot_share_gets_the_same_loss(kind):
    """Models with an attention window or softcaps run whole sequences."""
    torch.manual_seed(0)
    more = {"sliding_window": 3} if kind == "Mistral" else {"query_pre_attn_scalar": 4}
    config = getattr(transformers, f"{kind}Config")(**TINY | more)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    assert not GroupModel(model).shares
    (found,) = token_logps_of(GroupModel(model), groups()[:1], 1000)
    g = groups()[0]
    for logps_T, response in zip(found, g.responses, strict=True):
        assert logps_T == pytest.approx(logps(model, g.prompt, response).tolist(), abs=1e-5)


def test_wrong_stored_log_probabilities_show_in_the_difference(models):
    """Errors that cancel out in the loss do not in the largest of them."""
    model, _ = models
    some = [replace(g, masks=None) for g in groups()]
    references = token_logps_of(GroupModel(model), some, 1000)
    for shift, expected in ((0.0, 0.0), (0.5, 0.5)):
        moved = [[[x - shift for x in row] for row in rows] for rows in references]
        step = Step(some, moved, pair_weights(some, "pair"), Objective("dpo_norm", BETA))
        step.loss(GroupModel(model), 0)
        assert step.difference() == pytest.approx(expected, abs=1e-9)
        assert step.figures()["loss"] == pytest.approx(math.log(2), abs=1e-9)
    moved[0][0][0] = math.nan
    step = Step(some, moved, pair_weights(some, "pair"), Objective("dpo_norm", BETA))
    step.loss(GroupModel(model), 0)
    assert math.isnan(step.difference())
    model.set_attn_implementation("sdpa")
