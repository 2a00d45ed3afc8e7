"""MiniCheck in its Flan-T5 form: a document and a claim in, 1 (supported) or 0 out.

    model = MiniCheck("lytang/MiniCheck-Flan-T5-Large", device="cuda")
    model.judge("Mara Veldt", ["She plays the cello."], [["Mara Veldt is a cellist in Lyon."]])
    ->  [(0.97, 0)]

The score is the probability of "1" against "0" as the first token of the answer (Tang, Laban and
Durrett, EMNLP 2024). This is the project's own code for the published input format; the package
`minicheck` on PyPI has nothing to do with it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import weights
from facttune_ray.verifiers.passes import passes, row_limit
from facttune_ray.verifiers.windows import (
    CLAIM,
    PASSAGE,
    Scored,
    Tokens,
    Windows,
    best_windows,
)

TASK = "predict: "  # the prefix that the model was trained with


class MiniCheck:
    """A sequence-to-sequence model and its tokenizer. Calls from several threads run one after
    another."""

    def __init__(
        self, path: str, *, dtype: str = "float32", device: str = "cpu", batch_tokens: int = 8192
    ) -> None:
        """`path`: HF folder or hub name with safetensors weights. `batch_tokens`: most tokens in
        one forward pass, padding included. UserError for a model that cannot serve."""
        self.tokenizer, self.model = weights.load(
            path, dtype, device=device, auto_class="AutoModelForSeq2SeqLM"
        )
        tok, config = self.tokenizer, self.model.config
        start = config.decoder_start_token_id
        if None in (tok.pad_token_id, tok.eos_token, start):
            raise UserError(f"{path} has no padding, end or start token: use MiniCheck's Flan-T5")
        self.device, self.batch_tokens = torch.device(device), batch_tokens
        self.start: int = start
        self.no, self.yes = answers(tok, path)
        template = f"{TASK}{PASSAGE}{tok.eos_token}{CLAIM}"
        self.windows = Windows(tok, row_limit(tok, config), path, template)
        self.rows_run = 0  # number of judged windows
        self._lock = threading.Lock()

    def judge(
        self, topic: str, facts: Sequence[str], evidence: Sequence[Sequence[str]]
    ) -> list[Scored]:
        """(probability of support, index of the deciding passage) of each fact by its passages;
        (None, None) without a passage, or for a fact that is too long by itself."""
        with self._lock, torch.inference_mode():
            return best_windows(self.windows, facts, evidence, self._probabilities)

    def _probabilities(self, rows: list[Tokens]) -> list[float]:
        out, pad = [0.0] * len(rows), self.tokenizer.pad_token_id
        ids = [row.ids for row in rows]
        for batch, inputs in passes(ids, self.batch_tokens, pad, self.device):
            start_B1 = torch.full((len(batch), 1), self.start, device=self.device)
            logits_BV = self.model(**inputs, decoder_input_ids=start_B1).logits[:, 0]
            pair_B2 = logits_BV[:, [self.no, self.yes]].float()
            scores = torch.softmax(pair_B2, dim=-1)[:, 1].tolist()
            for i, score in zip(batch, scores, strict=True):
                out[i] = score
            self.rows_run += len(batch)
        return out


def answers(tokenizer: Any, path: str) -> tuple[int, int]:
    """(first token of "0", first token of "1"). UserError if the tokenizer does not tell them
    apart."""
    no, yes = (tokenizer(text, add_special_tokens=False)["input_ids"][:1] for text in "01")
    unknown = tokenizer.unk_token_id
    if no == yes or unknown in (*no, *yes) or not no or not yes:
        raise UserError(
            f"verdicts.minicheck: the tokenizer of {path} does not tell 0 from 1, which are "
            f"MiniCheck's answers: use lytang/MiniCheck-Flan-T5-Large or a model trained like it"
        )
    return no[0], yes[0]
