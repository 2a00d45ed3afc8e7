"""An NLI model: does a passage entail a fact, and do two texts mean the same?

    model = Entailment("FacebookAI/roberta-large-mnli", device="cuda")
    model.judge("Mara Veldt", ["She plays the cello."], [["Mara Veldt is a cellist in Lyon."]])
    ->  [(0.97, 0)]
    model.same([("Where was Mara born? In Lyon", "Where was Mara born? Lyon, France"),
                ("Where was Mara born? In Lyon", "Where was Mara born? In Paris")])
    ->  [True, False]

The model is any sequence classifier with a label for entailment. `judge` gives its probability
(softmax over the labels) for the best passage, or the best window of a long passage. Two texts mean
the same if each entails the other (Kuhn et al. 2023, section 3.1); the second direction is run only
when the first text entails the second.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import weights
from facttune_ray.verifiers.passes import padded, passes, row_limit
from facttune_ray.verifiers.windows import Scored, Tokens, Windows, best_windows

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
        label: str = "",
        template: str = "",
        key: str = "classes.nli_model",
    ) -> None:
        """`path`: HF folder or hub name with safetensors weights. `batch_tokens`: most tokens in
        one forward pass, padding included. `cached`: judgements of `same` kept between calls, the
        oldest go first. `label`: the label of a supported claim; "": the label that says
        entailment. `template`: see `Windows`. `key`: the setting that errors name. UserError for a
        model that cannot serve."""
        self.tokenizer, self.model = weights.load(
            path, dtype, device=device, auto_class="AutoModelForSequenceClassification"
        )
        self.device = torch.device(device)
        self.batch_tokens, self.cached = batch_tokens, cached
        self.label = entailment_label(self.model.config.id2label, path, label, key)
        self.windows = Windows(
            self.tokenizer, row_limit(self.tokenizer, self.model.config), path, template
        )
        self.tokenizer.truncation_side = "left"  # `same` keeps the answer, which is at the end
        self.pad: int | None = self.tokenizer.pad_token_id
        if self.model.config.pad_token_id is None:  # then the model reads the last token of a batch
            self.pad = None
        self.pairs_run = 0  # number of judged pairs and windows, each direction counted
        self._known: dict[Pair, bool] = {}
        self._lock = threading.Lock()

    def judge(
        self, topic: str, facts: Sequence[str], evidence: Sequence[Sequence[str]]
    ) -> list[Scored]:
        """(probability of entailment, index of the deciding passage) of each fact by its passages;
        (None, None) without a passage, or for a fact that is too long by itself."""
        with self._lock, torch.inference_mode():
            return best_windows(self.windows, facts, evidence, self._probabilities)

    def _probabilities(self, rows: list[Tokens]) -> list[float]:
        return torch.softmax(self._logits(rows), dim=-1)[:, self.label].tolist()

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
            premises, hypotheses, truncation="longest_first", max_length=self.windows.limit
        )
        ids = encoded["input_ids"]
        types = encoded["token_type_ids"] if self.windows.typed else [[0] * len(i) for i in ids]
        logits_NL = self._logits([Tokens(*row) for row in zip(ids, types, strict=True)])
        return (logits_NL.argmax(-1) == self.label).tolist()

    def _logits(self, rows: list[Tokens]) -> torch.Tensor:
        """Logits [N, labels] of rows, in float32 on the CPU. A single logit x, whose sigmoid is the
        probability, becomes the two logits 0 and x."""
        labels = max(2, self.model.config.num_labels)
        out_NL = torch.zeros(len(rows), labels)
        ids = [row.ids for row in rows]
        for batch, inputs in passes(ids, self.batch_tokens, self.pad, self.device):
            if self.windows.typed:
                inputs["token_type_ids"] = padded([rows[i].types for i in batch], 0, self.device)
            logits_BL = self.model(**inputs).logits.float().cpu()
            out_NL[batch, labels - logits_BL.shape[1] :] = logits_BL
            self.pairs_run += len(batch)
        return out_NL


_NOT = re.compile(r"(not|non|no|un)[^a-z]*entail", re.I)


def entailment_label(
    id2label: dict[int, str], path: str, label: str = "", key: str = "classes.nli_model"
) -> int:
    """Index of the label `label`, or of the label for entailment ("entailment", "ENTAILMENT",
    "entail"; never "not_entailment"); 1 for the only label of a model with one logit. Raise
    UserError unless exactly one label fits."""

    def entails(name: str) -> bool:
        return "entail" in name.lower() and not _NOT.search(name)

    named = [i for i, name in id2label.items() if (name == label if label else entails(name))]
    if len(named) != 1:
        names = ", ".join(map(str, id2label.values()))
        if label:
            raise UserError(f"{key}_label={label}: {path} has the labels {names}")
        asked = "" if key == "classes.nli_model" else f", or name the label in {key}_label"
        raise UserError(
            f"{key}: {path} has the labels {names}: no label or several labels say entailment; use "
            f"a model trained on NLI, such as FacebookAI/roberta-large-mnli{asked}"
        )
    return named[0] if len(id2label) > 1 else 1
