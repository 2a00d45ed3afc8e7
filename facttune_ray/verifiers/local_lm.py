"""A causal LM as verifier: is "True" or "False" the likelier token after passages and statement?

    lm = LocalLM("models/llama", dtype="bfloat16", device="cuda")
    lm.judge("Mara Veldt", ["She plays the cello.", "She was born in Rome."],
             [["Mara Veldt plays the cello in Lyon."], ["Mara Veldt plays the cello in Lyon."]])
    ->  [0.97, 0.08]

Like FActScore's retrieval+llama (Min et al. 2023, section 4): a fact is supported above 0.5, where
the logit of "True" exceeds the logit of "False". FActScore runs one whole prompt per fact. Here
tokens that begin several prompts run once: the prompts of a topic form a prefix tree, which is
walked depth first with one key-value cache. The short ends of many facts run side by side in one
pass, without padding, with a mask that separates them. The scores equal those of single prompts.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import weights
from facttune_ray.sampling.shared import caches_all
from facttune_ray.verifiers.passes import passes

SHARED_TOKENS = 32  # a pass of its own for fewer shared tokens costs more than it saves
SAVED_TOKENS = 128  # what a branch must save, or its prompts run side by side
PACKED_TOKENS = 512  # side by side: enough to fill a device; more would only mask more attention
RESERVED = 128  # positions kept for a statement, so that its length seldom moves where passages end


class LocalLM:
    """A causal LM and its tokenizer. Calls from several threads run one after another."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int = 8192,
        quantize: weights.Quantize = "none",
    ) -> None:
        """`path`, `quantize`: see `weights.load`. `batch_tokens`: most tokens in one forward pass,
        which bounds memory. UserError for a model that cannot serve."""
        self.tokenizer, self.model = weights.load(path, dtype, device=device, quantize=quantize)
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens
        config = self.model.config.get_text_config(decoder=True)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        self.true, self.false, self.lead = answer_tokens(self._encode, path)
        self.shares = can_share(self.model)
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.tokens_run = 0  # number of computed tokens
        self._lock = threading.Lock()

    def judge(
        self,
        topic: str,
        facts: Sequence[str],
        evidence: Sequence[Sequence[str]],
        article: Sequence[str] = (),
    ) -> list[float | None]:
        """P(True) / (P(True) + P(False)) of each fact; None for a fact that is too long by itself.

        `evidence`: the passages of each fact, best first; [] asks for the model's own knowledge.
        Passages that do not fit the model's positions are dropped, the worst first; a last passage
        is truncated. `article`: the order in which prompts show passages; without it a prompt shows
        its best passage first. In one order facts share more of their prompts (3.9x instead of 2.0x
        fewer tokens on FActScore's ChatGPT biographies, BM25, k = 5).
        """
        if len(facts) != len(evidence):
            raise ValueError(f"{len(facts)} facts but {len(evidence)} lists of passages")
        place = {passage: i for i, passage in reversed(list(enumerate(article)))}
        with self._lock, torch.inference_mode():
            prompts = self.prompts(topic, facts, evidence, place)
            distinct = sorted({ids for ids in prompts if ids is not None})
            run = self._run_shared if self.shares else self._run_padded
            scores = dict(zip(distinct, run(distinct), strict=True))
        return [None if ids is None else scores[ids] for ids in prompts]

    def prompts(
        self,
        topic: str,
        facts: Sequence[str],
        evidence: Sequence[Sequence[str]],
        place: dict[str, int],
    ) -> list[tuple[int, ...] | None]:
        """The token ids of each prompt; None for a statement that does not fit without passages."""
        shown = [list(passages) for passages in evidence]
        texts = [render(topic, f, _placed(p, place)) for f, p in zip(facts, shown, strict=True)]
        out: list[tuple[int, ...] | None] = []
        for fact, passages, ids in zip(facts, shown, self._encode(texts), strict=True):
            out.append(self._fitted(topic, fact, passages, place, [*ids, *self.lead]))
        return out

    def _fitted(
        self, topic: str, fact: str, passages: list[str], place: dict[str, int], ids: list[int]
    ) -> tuple[int, ...] | None:
        """The prompt with as many of its passages as the model's positions allow."""
        if self.positions is None or len(ids) <= self.positions:
            return tuple(ids)

        def length(shown: Sequence[str]) -> int:
            nonlocal ids
            ids = self._encode([render(topic, fact, _placed(shown, place))])[0] + self.lead
            return len(ids)

        bare = length([])
        if bare > self.positions:
            return None
        # With a reserve of fixed size, passages end at one place for facts of different lengths.
        reserve = min(RESERVED, self.positions // 4)
        head = len(self._encode([render(topic, "", [])])[0]) + len(self.lead)
        limit = max(self.positions - max(0, reserve - (bare - head)), bare)
        for n in range(len(passages), 0, -1):
            if length(passages[:n]) <= limit:
                return tuple(ids)
        words = passages[0].split()
        while words and length([" ".join(words)]) > limit:
            over = len(ids) - limit
            words = words[: min(len(words) - 1, len(words) * (len(ids) - over) // len(ids))]
        if not words:
            length([])
        return tuple(ids)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        eos = self.tokenizer.eos_token_id  # drop the end token that some tokenizers append
        return [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in rows]

    def _score(self, logits_RV: torch.Tensor) -> list[float]:
        pair_R2 = logits_RV[:, [self.true, self.false]].float()
        return torch.softmax(pair_R2, dim=-1)[:, 0].tolist()

    def _run_padded(self, prompts: list[tuple[int, ...]]) -> list[float]:
        """P(True) of whole, right-padded prompts, for models whose cache cannot be shortened."""
        scores = [0.0] * len(prompts)
        for batch, inputs in passes(prompts, self.batch_tokens, 0, self.device):
            last_B = inputs["attention_mask"].sum(1) - 1
            kept_K, of_B = last_B.unique(return_inverse=True)
            more = {"logits_to_keep": kept_K} if self.keeps else {}
            logits_BKV = self.model(**inputs, use_cache=False, **more).logits
            each_B = torch.arange(len(batch), device=self.device)
            batch_scores = self._score(logits_BKV[each_B, of_B if self.keeps else last_B])
            for i, score in zip(batch, batch_scores, strict=True):
                scores[i] = score
            self.tokens_run += inputs["input_ids"].numel()
        return scores

    def _run_shared(self, prompts: list[tuple[int, ...]]) -> list[float]:
        """P(True) of sorted, distinct prompts, which share their beginnings."""
        from transformers import DynamicCache

        scores = [0.0] * len(prompts)
        cache: Any = DynamicCache(config=self.model.config)

        def walk(lo: int, hi: int, depth: int) -> None:
            """Score prompts[lo:hi], whose first `depth` tokens are in the cache."""
            start, common = depth, common_length(prompts, lo, hi)
            if hi - lo > 1 and common - depth >= SHARED_TOKENS:
                self._extend(cache, prompts[lo][depth:common], depth)
                depth = common
            side: list[int] = []
            for a, b in branches(prompts, lo, hi, common):
                if b - a > 1 and saving(prompts, a, b, depth) >= SAVED_TOKENS:
                    walk(a, b, depth)
                else:
                    side += range(a, b)
            for batch in packs(side, prompts, depth, self.batch_tokens):
                ends = [prompts[i][depth:] for i in batch]
                for i, score in zip(batch, self._side_by_side(cache, ends, depth), strict=True):
                    scores[i] = score
            _cut(cache, start)

        if prompts:
            walk(0, len(prompts), 0)
        return scores

    def _forward(self, cache: Any, ids: Sequence[int], positions: torch.Tensor, **more: Any) -> Any:
        self.tokens_run += len(ids)
        return self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=positions[None].to(self.device),
            past_key_values=cache,
            use_cache=True,
            **more,
        )

    def _extend(self, cache: Any, ids: Sequence[int], depth: int) -> None:
        """Run tokens that begin several prompts, and keep them in the cache."""
        for at in range(0, len(ids), self.batch_tokens):
            part = ids[at : at + self.batch_tokens]
            positions = torch.arange(depth + at, depth + at + len(part))
            self._forward(cache, part, positions, logits_to_keep=1)

    def _side_by_side(self, cache: Any, ends: list[tuple[int, ...]], depth: int) -> list[float]:
        """P(True) after each end. All ends are in one row; each attends to the cache and itself."""
        lengths = torch.tensor([len(e) for e in ends])
        of_T = torch.repeat_interleave(torch.arange(len(ends)), lengths)
        start_T = (lengths.cumsum(0) - lengths)[of_T]
        at_T = torch.arange(int(lengths.sum()))
        more: dict[str, Any] = {"logits_to_keep": (lengths.cumsum(0) - 1).to(self.device)}
        if len(ends) > 1:
            more["attention_mask"] = self._apart(of_T.to(self.device), depth)
        ids = [token for end in ends for token in end]
        logits_RV = self._forward(cache, ids, depth + at_T - start_T, **more).logits[0]
        _cut(cache, depth)
        return self._score(logits_RV)

    def _apart(self, of_T: torch.Tensor, depth: int) -> torch.Tensor:
        """Additive mask [1, 1, T, depth + T], which both eager and sdpa attention accept."""
        own_TT = (of_T[:, None] == of_T[None, :]).tril()
        dtype = self.model.dtype
        mask_TK = torch.zeros(len(of_T), depth + len(of_T), dtype=dtype, device=self.device)
        mask_TK[:, depth:].masked_fill_(~own_TT, torch.finfo(dtype).min)
        return mask_TK[None, None]


def render(topic: str, fact: str, passages: Sequence[str]) -> str:
    """The prompt: passages first, so that prompts of one topic begin alike. Each text is on one
    line, so it cannot imitate another part of the prompt."""
    name = one_line(topic)
    if passages:
        head = f"Read the passages about {name}, then judge the statement by them alone.\n"
        body = "".join(f"Passage: {one_line(p)}\n" for p in passages)
    else:
        head, body = f"Judge the statement about {name} by what you know.\n", ""
    return f"{head}{body}Statement: {one_line(fact)}\nTrue or False? Answer:"


def one_line(text: str) -> str:
    return " ".join(text.split())


def join(evidence: Sequence[Sequence[str]], most: int) -> list[list[str]]:
    """Give facts each other's passages, up to `most` per fact, so that more prompts begin alike.

    A fact keeps its own passages, best first; passages of its group follow. This is faster and
    less exact: more passages than the fact's own may change its verdict. On FActScore's ChatGPT
    biographies (k = 5), 12 passages need 6.4x fewer tokens than one prompt per fact; exact prompts
    need 3.9x fewer.
    """
    groups: list[dict[str, None]] = []
    of: dict[frozenset[str], dict[str, None]] = {}
    for own in sorted({frozenset(passages) for passages in evidence}, key=sorted):
        room = [g for g in groups if len(g.keys() | own) <= most]
        if not room or len(own) > most:
            room = [{}]
            groups.append(room[0])
        group = min(room, key=lambda g: len(own - g.keys()))
        group.update(dict.fromkeys(sorted(own)))
        of[own] = group
    return [list(dict.fromkeys([*p, *of[frozenset(p)]])) for p in evidence]


def _placed(passages: Sequence[str], place: dict[str, int]) -> list[str]:
    return sorted(passages, key=lambda p: place.get(p, len(place)))


def common_length(prompts: Sequence[tuple[int, ...]], lo: int, hi: int) -> int:
    """Number of common first tokens of sorted prompts[lo:hi], less than each prompt's length."""
    first, last = prompts[lo], prompts[hi - 1]
    most = min(len(first), len(last)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def branches(
    prompts: Sequence[tuple[int, ...]], lo: int, hi: int, depth: int
) -> Iterator[tuple[int, int]]:
    """Runs of sorted prompts with the same token at `depth`."""
    start = lo
    for i in range(lo + 1, hi + 1):
        if i == hi or prompts[i][depth] != prompts[start][depth]:
            yield start, i
            start = i


def saving(prompts: Sequence[tuple[int, ...]], lo: int, hi: int, depth: int) -> int:
    """Number of tokens after `depth` that sharing saves for prompts[lo:hi]."""
    return sum(max(0, common_length(prompts, i, i + 2) - depth) for i in range(lo, hi - 1))


def packs(
    members: Sequence[int], prompts: Sequence[tuple[int, ...]], depth: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Packs of prompts to run side by side. A prompt also computes (and masks) its neighbours'
    attention, so a pack is no longer than the cache, or than enough tokens to fill a device."""
    most = min(batch_tokens, max(PACKED_TOKENS, depth))
    pack: list[int] = []
    size = 0
    for i in members:
        length = len(prompts[i]) - depth
        if pack and size + length > most:
            yield pack
            pack, size = [], 0
        pack.append(i)
        size += length
    if pack:
        yield pack


def _cut(cache: Any, length: int) -> None:
    """Shorten the cache to `length`. DynamicCache.crop differs between releases."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys = layer.keys[..., :length, :]
            layer.values = layer.values[..., :length, :]


def can_share(model: Any) -> bool:
    """Whether the cache holds every position, and the model takes positions and a mask as given."""
    taken = inspect.signature(model.forward).parameters
    return (
        {"position_ids", "logits_to_keep"} <= set(taken)
        and caches_all(model)
        and model.config._attn_implementation in ("sdpa", "eager")
    )


def answer_tokens(
    encode: Callable[[Sequence[str]], list[list[int]]], path: str
) -> tuple[int, int, list[int]]:
    """(token of True, token of False, tokens before both) after a prompt. Raise UserError when the
    tokenizer does not separate them."""
    prompt = render("topic", "A fact.", [])
    asked, true, false = encode([prompt, f"{prompt} True", f"{prompt} False"])
    n = next((i for i, pair in enumerate(zip(true, false, strict=False)) if len(set(pair)) > 1), 0)
    if n < len(asked) or true[: len(asked)] != asked:
        raise UserError(
            f'The tokenizer of {path} does not tell " True" from " False" after a prompt: '
            f"use another model"
        )
    return true[n], false[n], true[len(asked) : n]
