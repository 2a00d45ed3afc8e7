"""Training and sampling of one model, each compared with plain whole forward passes of the model.

    training(lm)  ->  Result("fast", "", 3e-7)       path, why not fast, error
    sampling(lm)  ->  Result("no cache", "its cache ignores ...", 0.0)
    training(bert)  ->  Result("refused", "the probability of a token depends on tokens behind it")

The plain forward pass runs one sequence (for sampling: rows of one length) without padding and
without a cache. Its log-probabilities define what is right. `error` of training is the larger of
the largest difference in log p of a token, in nats, and the relative difference of a DPO gradient.
`error` of sampling is how far a uniform number lies outside of the interval of the token that it
drew, or how far the logit of a greedy token lies below the largest logit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn import functional as F

from facttune_ray.errors import UserError
from facttune_ray.sampling.pick import uniforms
from facttune_ray.sampling.protocol import SampleRequest
from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.model import GroupModel
from facttune_ray.training.reference import token_logps_of
from facttune_ray.training.step import Objective, Step, pair_weights
from families import tiny

LONGEST = 40  # of a sequence in training
LENGTHS = ((5, (12, 20, 7)), (9, (25, 4)), (3, (10, 11, 3)))  # prompt, responses
PROMPTS, NEW_TOKENS, SAMPLES = (4, 11), 8, 3
BETA = 0.1
CLOSE = 1e-3  # largest `error` of a model that is right, in float32


class Result(NamedTuple):
    path: str  # "refused", "error" (a traceback), or the path of the code under test
    why: str = ""
    error: float = 0.0

    @property
    def right(self) -> bool:
        return self.path == "refused" or self.path != "error" and self.error <= CLOSE


def result(run: Callable[[Any], Result], lm: Any) -> Result:
    try:
        return run(lm)
    except UserError as e:
        return Result("refused", str(e))
    except Exception as e:
        return Result("error", f"{type(e).__name__}: {' '.join(str(e).split())[:160]}")


def plain(lm: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits [rows, T, V] of sequences of one length."""
    ids = torch.tensor(rows)
    return lm(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :].float()


def restart(lm: Any) -> None:
    """Rotary embeddings that grow with the length start anew."""
    lm(input_ids=torch.tensor([[5]]), use_cache=False)


# -- training ------------------------------------------------------------------------------------


def groups() -> list[TokenGroup]:
    tokens = itertools.count()

    def ids(count: int) -> list[int]:
        return [5 + (37 * next(tokens)) % (tiny.VOCAB - 5) for _ in range(count)]

    out = []
    for n, (prompt, responses) in enumerate(LENGTHS):
        pairs = [(0, r) for r in range(1, len(responses))]
        out.append(
            TokenGroup(str(n), ids(prompt), [ids(r) for r in responses], pairs, [1.0] * len(pairs))
        )
    return out


def logps(lm: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    restart(lm)
    logits_TV = plain(lm, [[*prompt, *response]])[0, len(prompt) - 1 : -1]
    return logits_TV.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def training(lm: Any) -> Result:
    lm.eval()
    some = groups()
    with torch.no_grad():
        expected = [[logps(lm, g.prompt, r) for r in g.responses] for g in some]
    stored = [[(x + 0.1 * n).tolist() for n, x in enumerate(rows)] for rows in expected]
    weights = pair_weights(some, "pair")
    loss = torch.zeros(())
    for g, rows, parts in zip(some, stored, weights, strict=True):
        sums = [logps(lm, g.prompt, r).sum() for r in g.responses]
        old = [sum(x) for x in rows]
        for (w, x), part in zip(g.pairs, parts, strict=True):
            loss = loss - part * F.logsigmoid(BETA * (sums[w] - sums[x] - old[w] + old[x]))
    try:
        loss.backward()
    except Exception:  # not differentiable in evaluation mode: it must be refused
        GroupModel(lm, LONGEST)
        raise
    right = gradient(lm)
    lm.zero_grad()

    model = GroupModel(lm, LONGEST)
    path, why = model.way
    found = token_logps_of(model, some, 1000)
    nats = max(
        (torch.tensor(a) - b).abs().max().item()
        for x, y in zip(found, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    objective = Objective("dpo", BETA, share_prefix=model.shares, one_length=model.one_length)
    step = Step(some, stored, weights, objective)
    for i in range(len(step.first)):
        step.look(model, i)
    for i in range(len(step.passes)):
        step.loss(model, i).backward()
    difference = (gradient(lm) - right).norm() / right.norm()
    return Result(path, why, max(nats, difference.item()))


def gradient(lm: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


# -- sampling ------------------------------------------------------------------------------------


def sampling(lm: Any) -> Result:
    from facttune_ray.sampling.transformers import TransformersSampler

    lm.eval()
    tokenizer = tiny.tokenizer()
    with mock.patch("facttune_ray.sampling.transformers.load", return_value=(tokenizer, lm)):
        sampler = TransformersSampler("tiny")
    texts = ["".join(tiny.character(5 + (31 * k + n) % 90) for k in range(n)) for n in PROMPTS]
    prefix = "".join(tiny.character(5 + (17 * k) % 90) for k in range(8))
    common = {"seeds": [11, 12], "max_tokens": NEW_TOKENS, "top_p": 1.0}
    greedy = SampleRequest(texts, n=1, temperature=0.0, raw=True, **common)
    drawn = SampleRequest(texts, n=SAMPLES, temperature=1.0, prefix=prefix, **common)
    error = max(compare(lm, r, sampler.sample(r)) for r in (greedy, drawn))
    return Result(*sampler.way, error)


@torch.no_grad()
def compare(lm: Any, request: SampleRequest, got: list[list[Any]]) -> float:
    worst = 0.0
    for text, seed, samples in zip(request.prompts, request.seeds, got, strict=True):
        start = [token(c) for c in request.prefix + text]
        rows = [[token(c) for c in s.text] + [2] * s.finished for s in samples]
        assert [len(r) for r in rows] == [s.tokens for s in samples]
        restart(lm)
        u = uniforms(seed, request.n, NEW_TOKENS)[0]
        for t in range(NEW_TOKENS):
            going = [k for k, row in enumerate(rows) if t < len(row)]
            if not going:
                break
            logits_RV = plain(lm, [start + rows[k][:t] for k in going])[:, -1].double()
            for k, logits_V in zip(going, logits_RV, strict=True):
                worst = max(worst, off(logits_V, rows[k][t], u[k, t], request.temperature))
    return worst


def off(logits_V: torch.Tensor, chosen: int, u: float, temperature: float) -> float:
    if not temperature:
        return (logits_V.max() - logits_V[chosen]).item() / max(1.0, logits_V.abs().max().item())
    cdf_V = logits_V.softmax(-1).cumsum(-1)
    low = cdf_V[chosen - 1].item() if chosen else 0.0
    return max(low - u, u - cdf_V[chosen].item(), 0.0)


def token(character: str) -> int:
    return tiny.TOKENS[character]
