"""A nonparametric masked LM as verifier: do the passages predict the words of the fact?

    npm = NPM("facebook/npm-single", device="cuda")
    npm.judge("Mara Veldt", ["Mara Veldt plays the cello."], [["She plays the cello in Lyon."]])
    ->  [0.41]

Like FActScore's npm (Min et al. 2023, section 4) with NPM (Min et al., ACL Findings 2023): each
token of the fact, except stopwords, is masked in turn. Its nonparametric probability is the share
of the true token in a softmax over all tokens of the passages, of inner products with the mask's
vector divided by sqrt(width). It is averaged with the masked LM's own softmax. A fact's score is
the mean over its tokens; a fact is supported from 0.3.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import weights
from facttune_ray.verifiers.local_lm import one_line
from facttune_ray.verifiers.passes import passes, row_limit

LEAD = "Fact: "  # precedes every fact, and is never masked
MLM_SHARE = 0.5  # weight of the masked LM's own softmax; the rest is nonparametric
STOP = frozenset(
    "a about above after again all also am an and any are as at be because been before being "
    "below between both but by can could did do does doing down during each few for from "
    "further had has have having he her here hers him his how i if in into is it its itself "
    "just me more most my no nor not now of off on once only or other our out over own same "
    "she should so some such than that the their theirs them then there these they this those "
    "through to too under until up very was we were what when where which while who whom why "
    "will with would you your".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class NPM:
    """A masked LM and its tokenizer. Calls from several threads run one after another."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int = 8192,
        cache_bytes: int = 1 << 30,
        mlm_share: float = MLM_SHARE,
    ) -> None:
        """`path`: HF folder or hub name of any masked LM with safetensors weights.
        `batch_tokens`: most tokens in one forward pass. `cache_bytes`: of passage vectors kept
        between calls. `mlm_share`: weight of the softmax over the vocabulary, 0 to 1."""
        self.tokenizer, self.model = weights.load(
            path, dtype, device=device, auto_class="AutoModelForMaskedLM"
        )
        tok = self.tokenizer
        if tok.mask_token_id is None or not tok.is_fast:
            raise UserError(f"{path} has no fast tokenizer with a mask token: name a masked LM")
        self.device = torch.device(device)
        self.batch_tokens, self.cache_bytes, self.mlm_share = batch_tokens, cache_bytes, mlm_share
        self.positions = row_limit(tok, self.model.config)
        self.pad = tok.pad_token_id or 0
        self.special = torch.tensor(sorted(tok.all_special_ids))
        self._kept: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def judge(
        self, topic: str, facts: Sequence[str], evidence: Sequence[Sequence[str]]
    ) -> list[float | None]:
        """Score in [0, 1] of each fact by its passages; None without passages or tokens to mask."""
        if len(facts) != len(evidence):
            raise ValueError(f"{len(facts)} facts but {len(evidence)} lists of passages")
        with self._lock, torch.inference_mode():
            distinct = list(dict.fromkeys(p for passages in evidence for p in passages))
            vectors = self.vectors(distinct)
            masked = [self._masks(fact) for fact in facts]
            rows = [(ids, at) for ids, places in masked for at in places]
            mask_MH, mlm_M = self._run_masks(rows)
            scores: list[float | None] = []
            start = 0
            for (ids, places), passages in zip(masked, evidence, strict=True):
                part = slice(start, start + len(places))
                start += len(places)
                own = [vectors[p] for p in dict.fromkeys(passages)]
                if not places or not sum(len(ids_P) for ids_P, _ in own):
                    scores.append(None)
                    continue
                ids_P = torch.cat([ids_P for ids_P, _ in own])
                passage_PH = torch.cat([vectors_PH for _, vectors_PH in own])
                true_M = torch.tensor([ids[at] for at in places], device=self.device)
                near_M = nonparametric(mask_MH[part], passage_PH, ids_P, true_M)
                mixed_M = self.mlm_share * mlm_M[part] + (1 - self.mlm_share) * near_M
                scores.append(mixed_M.mean().item())
        return scores

    def _masks(self, fact: str) -> tuple[list[int], list[int]]:
        """(token ids of LEAD and the fact, positions to mask in turn)."""
        text = LEAD + one_line(fact)
        encoded = self.tokenizer(
            text, truncation=True, max_length=self.positions, return_offsets_mapping=True
        )
        words = [m.span() for m in _WORD.finditer(text) if m[0].lower() not in STOP]
        places = [
            at
            for at, (a, b) in enumerate(encoded["offset_mapping"])
            if b > len(LEAD) and any(a < end and b > start for start, end in words)
            and encoded["input_ids"][at] not in self.tokenizer.all_special_ids
        ]  # fmt: skip
        return encoded["input_ids"], places

    def vectors(self, passages: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Passage -> (token ids [P], their vectors [P, H]) without special tokens. A passage longer
        than the model's positions runs in several windows."""
        out = {p: self._kept[p] for p in passages if p in self._kept}
        for p in out:
            self._kept.move_to_end(p)
        new = [p for p in passages if p not in out]
        windows: list[tuple[str, list[int]]] = []
        if new:
            rows = self.tokenizer(
                [one_line(p) for p in new],
                truncation=True,
                max_length=self.positions,
                return_overflowing_tokens=True,
            )
            of = rows["overflow_to_sample_mapping"]
            windows = [(new[i], ids) for i, ids in zip(of, rows["input_ids"], strict=True)]
        parts: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {p: {} for p in new}
        pieces = [ids for _, ids in windows]
        for batch, inputs in passes(pieces, self.batch_tokens, self.pad, self.device):
            ids_BT, real_BT = inputs["input_ids"], inputs["attention_mask"]
            hidden_BTH = self.model.base_model(**inputs).last_hidden_state
            keep_BT = real_BT.bool() & ~torch.isin(ids_BT, self.special.to(self.device))
            for row, i in enumerate(batch):
                keep_T = keep_BT[row]
                parts[windows[i][0]][i] = ids_BT[row][keep_T], hidden_BTH[row][keep_T]
        for p in new:
            ids, hidden = zip(*(parts[p][i] for i in sorted(parts[p])), strict=True)
            out[p] = torch.cat(ids), torch.cat(hidden)
            self._keep(p, out[p])
        return out

    def _keep(self, passage: str, tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._kept[passage] = tensors
        self._kept_bytes += sum(t.nbytes for t in tensors)
        while self._kept_bytes > self.cache_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= sum(t.nbytes for t in dropped)

    def _run_masks(self, rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (ids, position of the mask) -> (the masks' vectors [M, H], the masked LM's
        probability of the true tokens [M]), float32."""
        vectors: list[Any] = [None] * len(rows)
        probabilities = torch.zeros(len(rows), device=self.device)
        texts = [ids for ids, _ in rows]
        for batch, inputs in passes(texts, self.batch_tokens, self.pad, self.device):
            ids_BT = inputs["input_ids"]
            at_B = torch.tensor([rows[i][1] for i in batch], device=self.device)
            each_B = torch.arange(len(batch), device=self.device)
            true_B = ids_BT[each_B, at_B]
            ids_BT[each_B, at_B] = self.tokenizer.mask_token_id
            seen: list[torch.Tensor] = []

            def only_masks(
                module: Any, args: Any, out: Any, each=each_B, at=at_B, seen=seen
            ) -> Any:
                # Keep only the masks, so that logits are computed for them alone.
                seen.append(out.last_hidden_state[each, at])
                out["last_hidden_state"] = seen[-1][:, None]
                return out

            hook = self.model.base_model.register_forward_hook(only_masks)
            try:
                logits_BV = self.model(**inputs).logits[:, 0]
            finally:
                hook.remove()
            log_BV = torch.log_softmax(logits_BV.float(), dim=-1)
            where = torch.tensor(batch, device=self.device)
            probabilities[where] = log_BV[each_B, true_B].exp()
            for row, i in enumerate(batch):
                vectors[i] = seen[0][row]
        width = self.model.config.hidden_size
        stacked = torch.stack(vectors) if vectors else torch.zeros(0, width, device=self.device)
        return stacked.float(), probabilities


def nonparametric(
    mask_MH: torch.Tensor, passage_PH: torch.Tensor, ids_P: torch.Tensor, true_M: torch.Tensor
) -> torch.Tensor:
    """Share of the true token in the passage tokens' softmax, [M], in [0, 1].

    softmax_P(mask . passage / sqrt(H)), summed over the passage tokens that equal the true token;
    0 when no passage holds it.
    """
    scores_MP = mask_MH.float() @ passage_PH.float().T / mask_MH.shape[-1] ** 0.5
    same_MP = ids_P[None, :] == true_M[:, None]
    return (torch.softmax(scores_MP, dim=-1) * same_MP).sum(dim=-1)
