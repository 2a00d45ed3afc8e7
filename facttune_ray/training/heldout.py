"""Figures and samples on topics that are held out of training.

train, held = split(["Ada", "Bo", "Ada", "Cy"], count=1, seed=0)    ->  [0, 2, 3], [1]
evaluate(engine, groups, references, objective, rank, world)
->  {"loss": 0.64, "reward_accuracy": 0.71, "margin": 0.12, "kl": 0.002, "groups": 8,
     "pairs": 96}
draw(engine, tokenizer, [[1, 88, 14]], seed=0, max_new_tokens=96)   ->  ["Mara Veldt was ..."]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.probe import ANY_LENGTH, evaluating, positions
from facttune_ray.sampling.protocol import end_ids
from facttune_ray.storage.schema import seed_from
from facttune_ray.training.attention import plain_attention
from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.collectives import maxima, sums
from facttune_ray.training.losses import sft
from facttune_ray.training.passes import Part
from facttune_ray.training.reference import store
from facttune_ray.training.sft import response_weights
from facttune_ray.training.step import FIGURES, Objective, Step, pair_weights, step_of_worker


def split(topics: Sequence[str], count: int, seed: int) -> tuple[list[int], list[int]]:
    """(rows to train on, rows held out). All rows of `count` topics are held out; which topics
    depends on the seed, not on the order of rows. UserError when no topic is left to train on."""
    distinct = sorted(set(topics), key=lambda t: (seed_from("heldout", seed, t), t))
    if count >= len(distinct):
        raise UserError(
            f"train.eval_topics={count}: the table has {len(distinct)} topics with a pair: "
            f"nothing is left to train on: lower it"
        )
    held = set(distinct[:count])
    rows = range(len(topics))
    return [i for i in rows if topics[i] not in held], [i for i in rows if topics[i] in held]


@torch.no_grad()
def evaluate(
    engine: Any,
    groups: Sequence[TokenGroup],
    references: Sequence[Any],
    objective: Objective,
    rank: int,
    world: int,
) -> dict[str, float]:
    """Figures of the policy on these groups; every worker calls it and gets the same figures.

    `loss`, `reward_accuracy` and `margin` as in training, means over pairs. `kl`: nats a token, the
    mean over all tokens of the responses of r - 1 - log r, r = policy / reference. Its expectation
    is KL(reference || policy) if the reference wrote the responses (Schulman 2020, "Approximating
    KL divergence", k3). Supervised tuning has `loss` only, the negative log-likelihood a token.
    """
    supervised = objective.loss == "sft"
    weights = response_weights(groups) if supervised else pair_weights(groups, "pair")
    step, has_group = step_of_worker(groups, references, weights, objective, rank, world)
    logps = _token_logps(engine, step)
    parts = [Part(g, tuple(range(len(x.responses)))) for g, x in enumerate(step.groups)]
    policy = step.sums_of(logps, parts, torch.zeros(1, dtype=torch.float64))
    if supervised:
        flat = torch.tensor([w for group in step.weights for w in group], dtype=torch.float64)
        step.add(sft(policy, flat))
    else:
        reference = step.sums_of(step.references, parts, policy.win_B)
        step.whole_loss(policy, reference, parts)
    kl, count = _kl(logps, step.references) if has_group else (0.0, 0.0)
    device = next(engine.parameters()).device
    *totals, kl, count = sums([*step.figures().values(), kl, count], device)
    figures = {**dict(zip(FIGURES, totals, strict=True)), "kl": kl / max(1, count)}
    figures = {"loss": figures["loss"]} if supervised else figures
    return figures | {"groups": len(groups), "pairs": sum(len(g.pairs) for g in groups)}


def _token_logps(engine: Any, step: Step) -> list[dict[int, list[float]]]:
    """By group, response and token. Every worker runs as many forwards as the busiest worker."""
    device = next(engine.parameters()).device
    (count,) = maxima([len(step.passes)], device)
    out: list[dict[int, list[float]]] = [{} for _ in step.groups]
    for i in range(count):
        parts = step.passes[min(i, len(step.passes) - 1)]
        store(out, parts, step.sizes, engine(step.pass_of(parts).to(device)).cpu())
    return out


def _kl(policies: Sequence[Any], references: Sequence[Any]) -> tuple[float, float]:
    """(sum of r - 1 - log r over tokens, number of tokens)"""
    total, count = 0.0, 0.0
    for policy, reference in zip(policies, references, strict=True):
        for r, stored in enumerate(reference):
            log = torch.tensor(policy[r], dtype=torch.float64) - torch.tensor(stored).double()
            total += (log.exp() - 1 - log).sum().item()
            count += len(log)
    return total, count


def draw(
    engine: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], seed: int, max_new_tokens: int
) -> list[str]:
    """A response to each prompt at temperature 1; every worker calls it and gets the same
    responses. Before the first step they are the reference model's."""
    lm = engine.module.lm
    device = next(lm.parameters()).device
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device
    )
    cuda = [device] if device.type == "cuda" else []
    with (
        evaluating(lm, plain_attention(lm)),
        torch.compiler.set_stance("force_eager"),
        torch.random.fork_rng(devices=cuda),
        torch.no_grad(),
    ):
        torch.manual_seed(seed_from("heldout samples", seed) % 2**63)
        out_BT = lm.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=min(max_new_tokens, (positions(lm) or ANY_LENGTH) - longest),
            pad_token_id=pad,
            eos_token_id=sorted(end_ids(tokenizer, lm)),
        )
    return tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)
