"""Decide by an NLI model whether two texts mean the same: each must entail the other (Kuhn et al.
2023, section 3.1).

    model = Entailment("microsoft/deberta-large-mnli", device="cuda")
    model.same([("Where was Mara born? In Lyon", "Where was Mara born? Lyon, France"),
                ("Where was Mara born? In Lyon", "Where was Mara born? In Paris")])
    ->  [True, False]

The model is any sequence classifier of premise and hypothesis with a label for entailment. The
second direction is run only when the first text entails the second.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import weights

Pair = tuple[str, str]  # premise, hypothesis


class Entailment:
    """A sequence classifier and its tokenizer. Calls from several threads run one after another."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int = 8192,
        cached: int = 200_000,
    ) -> None:
        """`path`: HF folder or hub name with safetensors weights. `batch_tokens`: most tokens in
        one forward pass, padding included. `cached`: judgements kept between calls, the oldest go
        first. UserError for a model that cannot serve."""
        self.tokenizer, self.model = weights.load(
            path, dtype, device=device, auto_class="AutoModelForSequenceClassification"
        )
        self.device = torch.device(device)
        self.batch_tokens, self.cached = batch_tokens, cached
        self.label = entailment_label(self.model.config.id2label, path)
        self.positions = positions(self.tokenizer, self.model.config)
        self.tokenizer.truncation_side = "left"  # keep the answer, which is at the end
        self.pads = None not in (self.tokenizer.pad_token_id, self.model.config.pad_token_id)
        self.pairs_run = 0  # number of judged pairs, each direction counted
        self._known: dict[Pair, bool] = {}
        self._lock = threading.Lock()

    def same(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the two texts of each pair entail each other. Equal texts mean the same.

        The result for a pair depends neither on the order of its texts nor on other pairs. A pair
        longer than the model's positions loses words at the beginning of the longer text.
        """
        ordered = [(min(p), max(p)) for p in pairs]
        distinct = {p for p in ordered if p[0] != p[1]}
        with self._lock, torch.inference_mode():
            one_way = self._entails(distinct)
            back = self._entails((b, a) for (a, b), yes in one_way.items() if yes)
        return [a == b or (one_way[a, b] and back[b, a]) for a, b in ordered]

    def _entails(self, pairs: Iterable[Pair]) -> dict[Pair, bool]:
        cached = {pair: self._known.get(pair) for pair in pairs}
        new = sorted(pair for pair, known in cached.items() if known is None)
        judged = dict(zip(new, self._judge(new), strict=True))
        self._known |= judged
        while len(self._known) > self.cached:
            del self._known[next(iter(self._known))]
        return {pair: judged[pair] if yes is None else yes for pair, yes in cached.items()}

    def _judge(self, pairs: list[Pair]) -> list[bool]:
        """Whether entailment is the likeliest label of each pair."""
        if not pairs:
            return []
        premises, hypotheses = (list(side) for side in zip(*pairs, strict=True))
        encoded = self.tokenizer(
            premises, hypotheses, truncation="longest_first", max_length=self.positions
        )
        lengths = [len(ids) for ids in encoded["input_ids"]]
        out = [False] * len(pairs)
        for batch in batches(lengths, self.batch_tokens if self.pads else 0):
            columns = {name: [rows[i] for i in batch] for name, rows in encoded.items()}
            if self.pads:
                columns = self.tokenizer.pad(columns)
            inputs = {name: torch.tensor(rows).to(self.device) for name, rows in columns.items()}
            labels_B = self.model(**inputs).logits.argmax(-1)
            for i, label in zip(batch, labels_B.tolist(), strict=True):
                out[i] = label == self.label
            self.pairs_run += len(batch)
        return out


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of indices, longest first. A padded batch has at most `batch_tokens` tokens, or one
    row."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        n = max(1, batch_tokens // max(1, lengths[order[at]]))
        yield order[at : at + n]
        at += n


_NOT = re.compile(r"(not|non|no|un)[^a-z]*entail", re.I)


def entailment_label(id2label: dict[int, str], path: str) -> int:
    """Index of the label for entailment ("entailment", "ENTAILMENT", "entail"; never
    "not_entailment"). Raise UserError unless exactly one label says so."""
    named = [i for i, n in id2label.items() if "entail" in n.lower() and not _NOT.search(n)]
    if len(named) != 1:
        raise UserError(
            f"classes.nli_model: {path} has the labels {', '.join(map(str, id2label.values()))}: "
            f"no label or several labels say entailment; use a model trained on NLI, "
            f"such as microsoft/deberta-large-mnli"
        )
    return named[0]


def positions(tokenizer: Any, config: Any) -> int:
    """Largest number of tokens of a pair. RoBERTa models count positions after the padding token's
    id."""
    limit = getattr(config, "max_position_embeddings", None) or 512
    if "roberta" in config.model_type and config.pad_token_id is not None:
        limit -= config.pad_token_id + 1
    return min(limit, tokenizer.model_max_length)
