"""The loss of one optimizer step, pass by pass.

    step = Step(groups, references, weights, objective)
    for i in range(len(step.first)):
        step.look(model, i)                    log-probabilities of groups larger than a pass
    for i in range(len(step.passes)):
        step.loss(model, i).backward()         the gradients add up to the step's gradient
    step.figures()                             loss, reward accuracy and margin, weighted
    step.tokens                                number of tokens of the second round

The loss of a group needs all log-probabilities of the group. If they come from several passes, the
first round computes them without gradients for all passes but one, and that pass completes them.
Then the derivative of the loss by each log-probability is computed, and the passes run with these
derivatives as weights of their log-probabilities. By the chain rule, the gradient equals that of
the whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from facttune_ray.training.batches import TokenGroup
from facttune_ray.training.losses import Logps, Pairs, margins, preference_loss, sft, sum_tokens
from facttune_ray.training.passes import Part, Pass, Size, pass_of, plan, tokens

FIGURES = ("loss", "reward_accuracy", "margin")
ROUNDING = 1e-5  # margins this close to 0 are ties: passes differ in rounding


@dataclass(frozen=True)
class Objective:
    """The loss, and the size of a pass."""

    loss: str  # a key of losses.LOSSES, or "sft"
    beta: float
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    pass_tokens: int = 8192  # the largest number of tokens of one pass
    share_prefix: bool = True
    one_length: bool = False  # the sequences of a pass must have one length


@dataclass
class Step:
    """Groups of one worker. `references`: log p of each response's tokens, by group; `weights`: of
    the pairs of each group ("sft": of its responses). They add up to 1 over the groups of all
    workers."""

    groups: Sequence[TokenGroup]
    references: Sequence[Sequence[Sequence[float]]]
    weights: Sequence[Sequence[float]]
    objective: Objective
    _figures: list[torch.Tensor] = field(default_factory=list)  # on the device: read once a step
    _differences: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        o = self.objective
        self.sizes = [Size(len(g.prompt), tuple(map(len, g.responses))) for g in self.groups]
        self.passes = plan(self.sizes, o.pass_tokens, o.share_prefix, o.one_length)
        self.first: list[list[Part]] = []
        if o.loss != "sft":  # its loss of a response needs no other response
            self._plan_first_round()
        self.tokens = sum(
            tokens(self.sizes[x.group], x.responses, o.share_prefix) for p in self.passes for x in p
        )
        self._sums: dict[int, dict[int, tuple[float, float]]] = {}  # group -> response -> sums
        self._slopes: dict[int, Logps] = {}  # derivative of the loss by each sum

    def figures(self) -> dict[str, float]:
        """FIGURES, summed so far; supervised tuning has a loss only."""
        if not self._figures:
            return dict.fromkeys(FIGURES, 0.0)
        return dict(zip(FIGURES, torch.stack(self._figures).sum(0).tolist(), strict=True))

    def difference(self) -> float:
        """The largest difference of policy and reference in a response's log-probability a token.
        0 if the policy is the reference, except for rounding."""
        return torch.stack(self._differences).max().item() if self._differences else 0.0

    def _plan_first_round(self) -> None:
        """Set `first` and the order of `passes`. The largest pass of a group that was cut needs no
        first round: it runs before the others, and completes the group with gradients on."""
        cut: dict[int, list[tuple[int, int]]] = {}  # group -> (responses, number) of its passes
        for i, parts in enumerate(self.passes):
            for part in filter(self._is_cut, parts):
                cut.setdefault(part.group, []).append((len(part.responses), i))
        completing = {max(passes)[1] for passes in cut.values()}
        first = {i for passes in cut.values() for _, i in passes} - completing
        self.first = [self.passes[i] for i in sorted(first)]
        order = sorted(range(len(self.passes)), key=lambda i: (i not in completing, i))
        self.passes = [self.passes[i] for i in order]

    def _is_cut(self, part: Part) -> bool:
        return len(part.responses) < len(self.groups[part.group].responses)

    def look(self, model: Any, i: int) -> None:
        """First round: the log-probabilities of one pass."""
        with torch.no_grad():
            policy, _ = self._run(model, self.first[i])
        row = 0
        for part in self.first[i]:
            if self._is_cut(part):
                self._keep_sums(part, policy, row)
            row += len(part.responses)

    def _keep_sums(self, part: Part, policy: Logps, row: int) -> None:
        rows = slice(row, row + len(part.responses))
        sums = zip(policy.win_B[rows].tolist(), policy.lose_B[rows].tolist(), strict=True)
        self._sums.setdefault(part.group, {}).update(zip(part.responses, sums, strict=True))

    def _derive(self, g: int, like: Logps) -> None:
        """Set the derivatives of a cut group's loss by its sums. All of its sums must be known."""
        by_response = self._sums[g]
        everything = Part(g, tuple(range(len(self.groups[g].responses))))
        reference = self.sums_of(self.references, [everything], like.win_B)
        sums = [
            torch.tensor(x, dtype=torch.float64).to(like.win_B)
            for x in zip(*(by_response[r] for r in sorted(by_response)), strict=True)
        ]
        with torch.enable_grad():
            policy = reference._replace(
                win_B=sums[0].requires_grad_(), lose_B=sums[1].requires_grad_()
            )
            loss = self.whole_loss(policy, reference, [everything])
            grads = torch.autograd.grad(loss, [policy.win_B, policy.lose_B], allow_unused=True)
        win_B, lose_B = (torch.zeros_like(sums[0]) if grad is None else grad for grad in grads)
        self._slopes[g] = reference._replace(win_B=win_B, lose_B=lose_B)

    def loss(self, model: Any, i: int) -> torch.Tensor:
        """Second round: a value of one pass whose gradient is the pass's part of the step's
        gradient. If the pass holds parts of groups, the value itself is no loss; see `figures`."""
        parts = self.passes[i]
        policy, reference = self._run(model, parts)
        if self.objective.loss == "sft":
            weights = [self.weights[p.group][r] for p in parts for r in p.responses]
            loss = sft(policy, torch.tensor(weights).to(policy.win_B))
            self.add(loss)
            return loss
        difference_B = (policy.win_B - reference.win_B).detach() / policy.win_tokens_B.clamp(min=1)
        self._differences.append(difference_B.abs().max())
        total = policy.win_B.sum() * 0.0
        row, whole = 0, []
        rows: list[torch.Tensor] = []
        for part in parts:
            here = torch.arange(row, row + len(part.responses), device=policy.win_B.device)
            if self._is_cut(part):
                if part.group not in self._slopes:
                    self._keep_sums(part, policy, row)
                    self._derive(part.group, policy)
                slope, responses = self._slopes[part.group], list(part.responses)
                total = total + (slope.win_B[responses] * policy.win_B[here]).sum()
                total = total + (slope.lose_B[responses] * policy.lose_B[here]).sum()
            else:
                whole.append(part)
                rows.append(here)
            row += len(part.responses)
        if whole:
            row_B = torch.cat(rows)
            policy, reference = (Logps(*(x[row_B] for x in y)) for y in (policy, reference))
            total = total + self.whole_loss(policy, reference, whole)
        return total

    def idle(self, model: Any) -> torch.Tensor:
        """A pass whose gradient is 0, for a worker with fewer passes than another worker."""
        return self._run(model, self.passes[-1])[0].win_B.sum() * 0.0

    def whole_loss(self, policy: Logps, reference: Logps, parts: Sequence[Part]) -> torch.Tensor:
        """The loss of whole groups, whose responses are in order; adds to `figures`."""
        o, row = self.objective, 0
        win: list[int] = []
        lose: list[int] = []
        weight: list[float] = []
        for part in parts:
            group = self.groups[part.group]
            win += [row + w for w, _ in group.pairs]
            lose += [row + x for _, x in group.pairs]
            weight += self.weights[part.group]
            row += len(group.responses)
        device = policy.win_B.device
        pairs = Pairs(
            torch.tensor(win, device=device),
            torch.tensor(lose, device=device),
            torch.tensor(weight, device=device, dtype=policy.win_B.dtype),
        )
        loss = preference_loss(
            o.loss,
            policy,
            reference,
            pairs,
            beta=o.beta,
            label_smoothing=o.label_smoothing,
            sft_weight=o.sft_weight,
        )
        margin_P = o.beta * margins(policy, reference, pairs).detach()
        # A tie counts as half right. A margin within ROUNDING is a tie.
        right_P = (margin_P > ROUNDING).to(margin_P) + 0.5 * (margin_P.abs() <= ROUNDING).to(
            margin_P
        )
        self.add(loss, (pairs.weight_P * right_P).sum(), (pairs.weight_P * margin_P).sum())
        return loss

    def add(self, loss: torch.Tensor, *others: torch.Tensor) -> None:
        """Add to the figures; figures that are not given stay the same."""
        zero = torch.zeros_like(loss)
        values = [loss, *others, *[zero] * (len(FIGURES) - 1 - len(others))]
        self._figures.append(torch.stack([x.detach().double() for x in values]))

    def _run(self, model: Any, parts: Sequence[Part]) -> tuple[Logps, Logps]:
        """(policy, reference) sums of the responses of these parts, in order."""
        passed = self.pass_of(parts)
        logps_M = model(passed.to(next(model.parameters()).device))
        win_M, lose_M = (self._masks(parts, side).to(logps_M) for side in (0, 1))
        count = sum(len(p.responses) for p in parts)
        policy = sum_tokens(logps_M, passed.owner_M.to(logps_M.device), win_M, lose_M, count)
        return policy, self.sums_of(self.references, parts, policy.win_B)

    def pass_of(self, parts: Sequence[Part]) -> Pass:
        """The parts as one pass of the model."""
        return pass_of(self.groups, parts, self.objective.share_prefix)

    def _masks(self, parts: Sequence[Part], side: int) -> torch.Tensor:
        """1 on the tokens that count when their response wins (side 0) or loses (side 1)."""
        if all(self.groups[p.group].masks is None for p in parts):
            return torch.ones(
                sum(len(self.groups[p.group].responses[r]) for p in parts for r in p.responses)
            )
        mask: list[int] = []
        for p in parts:
            group = self.groups[p.group]
            for r in p.responses:
                mask += group.masks[r][side] if group.masks else [1] * len(group.responses[r])
        return torch.tensor(mask)

    def sums_of(self, logps: Sequence[Any], parts: Sequence[Part], like: Any) -> Logps:
        """Sums of stored log-probabilities of tokens (by group, response, token), masked as the
        policy's sums. `like`: a tensor of the wanted type and device."""
        stored = [logps[p.group][r] for p in parts for r in p.responses]
        logps_M = torch.tensor([x for tokens in stored for x in tokens], dtype=torch.float64)
        owner_M = torch.repeat_interleave(
            torch.arange(len(stored)), torch.tensor([len(s) for s in stored])
        )
        win_M, lose_M = (self._masks(parts, side) for side in (0, 1))
        return Logps(
            *(x.to(like) for x in sum_tokens(logps_M, owner_M, win_M, lose_M, len(stored)))
        )


def step_of_worker(
    groups: Sequence[TokenGroup],
    references: Sequence[Sequence[Sequence[float]]],
    weights: Sequence[Sequence[float]],
    objective: Objective,
    rank: int,
    world: int,
) -> tuple[Step, bool]:
    """(the worker's step, whether it has a group). A worker without a group runs the first group
    with weight 0, because all workers must take part in every forward."""
    mine = list(range(rank, len(groups), world))
    step = Step(
        [groups[i] for i in mine or [0]],
        [references[i] for i in mine or [0]],
        [weights[i] for i in mine] or [[0.0] * len(weights[0])],
        objective,
    )
    return step, bool(mine)


def pair_weights(groups: Sequence[TokenGroup], mean: str) -> list[list[float]]:
    """Weights of the pairs of all groups of a step, which add up to 1. "pair": the mean over pairs
    (as the reference trainer); "prompt": the mean over prompts of the mean over their pairs. Each
    pair is weighted by its own weight."""
    sums = [sum(g.weights) for g in groups]
    if mean == "pair":
        total = sum(sums)
        return [[w / total for w in g.weights] for g in groups]
    return [[w / s / len(groups) for w in g.weights] for g, s in zip(groups, sums, strict=True)]
