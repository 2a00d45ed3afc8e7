"""Which way a model trains: shared prompts, if they give the log-probabilities of plain passes.

    way = choose(lm, longest=8192)
    Way("fast")
    Way("padded", "its attention window has 4,096 tokens")
    Way("one length", "log p of a sequence depends on the lengths of others in its pass")

    fast          the tokens of a pass in one row, each prompt once (`attention.py`)
    padded        whole, padded sequences
    one length    whole sequences, in passes of one length, without padding

Each way is tested on the real weights against passes of single sequences. Half precision hides
small differences, so gradients are tested, too: a log-probability has no gradient by tokens that it
must not see. `sampling/probe.py` tests windows and positions up to the largest length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling.probe import (
    MOST,
    Way,
    Windows,
    alone,
    depends_on_length,
    differs,
    evaluating,
    ids_of,
    line,
    positions,
    why_not,
)
from facttune_ray.training.attention import NAME
from facttune_ray.training.forward import Head, plain_logps, shared_logps
from facttune_ray.training.passes import Pass, lay_out

PROMPT, FIRST, SECOND = 3, 3, 5  # tokens of the tests
Groups = list[tuple[list[int], list[list[int]]]]


@torch.no_grad()
def choose(lm: Any, head: Head, longest: int) -> Way:
    """The fastest right way for sequences of up to `longest` tokens. UserError if none is right."""
    if lm.config._attn_implementation == NAME:  # chosen before
        return Way("fast")
    groups = _groups(lm)
    try:
        expected_M = _logps_alone(lm, groups)
        if expected_M.isnan().any():
            raise UserError(
                f"train: log-probabilities of {type(lm).__name__} are nan: its weights are "
                f"damaged, or too large for train.dtype: use another copy, or float32"
            )
        _check_causal(lm)
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as e:
        raise _refused(lm, line(e)) from e
    why = why_not(lambda: _shared(lm, head, groups, expected_M, longest))
    if why is None:
        return Way("fast")
    wrong = why_not(lambda: _padded(lm, head, groups, expected_M, longest))
    if wrong is None:
        return Way("padded", why)
    last = why_not(lambda: _one_length(lm, head, groups, expected_M))
    if last is None:
        return Way("one length", f"{why}; padded: {wrong}")
    raise _refused(lm, last)


def _refused(lm: Any, why: str) -> UserError:
    return UserError(
        f"train: {type(lm).__name__} cannot be trained here ({why}): use another model"
    )


def _groups(lm: Any) -> Groups:
    """A prompt with two responses, and another prompt with one: a pass holds two groups of
    different length."""
    ids = ids_of(lm, PROMPT + FIRST + SECOND)
    prompt, rest = ids[:PROMPT], ids[PROMPT:]
    return [(prompt, [rest[:FIRST], rest[FIRST:]]), (rest[:2], [rest[3:6]])]


def _logps_alone(lm: Any, groups: Groups) -> torch.Tensor:
    """Log-probabilities of all responses, by passes of single sequences."""
    pairs = [(prompt, response) for prompt, responses in groups for response in responses]
    with evaluating(lm):
        whole = alone(lm, [[*prompt, *response] for prompt, response in pairs])
    out = []
    for prompt, response in pairs:
        logits_TV = whole[tuple([*prompt, *response])][len(prompt) - 1 : -1]
        wide_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        token_T1 = torch.tensor(response, device=lm.device)[:, None]
        out.append(wide_TV.log_softmax(-1).gather(1, token_T1)[:, 0].to(logits_TV.dtype))
    return torch.cat(out)


def _shared(
    lm: Any, head: Head, groups: Groups, expected_M: torch.Tensor, longest: int
) -> str | None:
    if head.logits is None:
        return f"its logits cannot be computed from its states {head.why}".rstrip()
    windows = Windows(lm)
    if windows.reach < min(longest, MOST):
        return windows.why
    passed = lay_out(groups, share_prefix=True).to(lm.device)
    passed = replace(passed, longest=longest)
    with evaluating(lm, NAME):
        second = slice(FIRST, FIRST + SECOND)  # the second response of the first prompt
        found_M, grad_1NC = _gradient(lm, lambda: shared_logps(lm, passed, head), second)
        if off := differs(found_M, expected_M):
            return f"with shared prompts, log-probabilities differ by {off}"
        if grad_1NC[0, PROMPT : PROMPT + FIRST].any():  # as by a convolution or a recurrent layer
            return "a response depends on other responses of its prompt"
        if _depends_on_neighbours(lm, passed, head, longest, found_M):
            return _by_length(longest)
    return None


def _padded(
    lm: Any, head: Head, groups: Groups, expected_M: torch.Tensor, longest: int
) -> str | None:
    passed = lay_out(groups, share_prefix=False).to(lm.device)
    with evaluating(lm):
        if off := differs(plain_logps(lm, passed, head), expected_M):
            return f"log-probabilities differ by {off}"
    if depends_on_length(lm, longest):
        return _by_length(longest)
    return None


def _one_length(lm: Any, head: Head, groups: Groups, expected_M: torch.Tensor) -> str | None:
    start = 0
    for prompt, responses in groups:
        for response in responses:
            passed = lay_out([(prompt, [response])] * 2, share_prefix=False).to(lm.device)
            with evaluating(lm):
                found_M = plain_logps(lm, passed, head)
            end = start + len(response)
            if off := differs(found_M, expected_M[start:end].repeat(2)):
                return f"log-probabilities of two equal sequences differ by {off} from one"
            start = end
    return None


def _by_length(longest: int) -> str:
    return (
        f"its position embeddings depend on the longest sequence, in passes of up to {longest:,} "
        f"tokens"
    )


@torch.enable_grad()
def _gradient(
    lm: Any, run: Callable[[], torch.Tensor], part: slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values of `run`, the gradient of the sum of a part of them by the embeddings of the tokens,
    [rows, tokens, C])."""
    inputs: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, states: torch.Tensor) -> torch.Tensor:
        # A copy, because some models change their embeddings in place.
        inputs.append(states.detach().requires_grad_())
        return inputs[0].clone()

    hook = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        values = run()
        (grad,) = torch.autograd.grad(values[part].sum(), inputs[:1])
    finally:
        hook.remove()
    return values.detach(), grad


def _check_causal(lm: Any) -> None:
    """UserError if the logits of a token depend on tokens behind it."""
    ids = ids_of(lm, PROMPT + FIRST)
    ids_1T = torch.tensor([ids], device=lm.device)

    def early() -> torch.Tensor:
        logits_TV = lm(input_ids=ids_1T, use_cache=False).logits[0, -len(ids) :]
        return logits_TV[:PROMPT].float().log_softmax(-1)[:, 0]

    with evaluating(lm):
        _, grad_1TC = _gradient(lm, early)
    if grad_1TC[0, -FIRST:].any():
        raise _refused(lm, "the probability of a token depends on tokens behind it")


def _depends_on_neighbours(
    lm: Any, passed: Pass, head: Head, longest: int, near_M: torch.Tensor
) -> bool:
    """Whether log p of the first group changes if the second group stands at the last positions.
    `near_M`: the log-probabilities with it at its own positions."""
    last = min(longest, positions(lm) or MOST, MOST)
    ends = passed.position_N.clone()
    tokens = len(passed.sequences[-1])  # the last group, one sequence
    ends[-tokens:] += max(0, last - tokens)
    far_M = shared_logps(lm, replace(passed, position_N=ends), head)
    first = FIRST + SECOND
    return differs(far_M[:first], near_M[:first]) is not None
