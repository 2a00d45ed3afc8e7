"""Pairs of passage and claim as rows of tokens, for models that read both at once.

    windows = Windows(tokenizer, limit=512, path="FacebookAI/roberta-large-mnli")
    best_windows(windows, ["She plays the cello."], [["Mara Veldt is a cellist."]], score)
    ->  [(0.97, 0)]        the score, and which of the fact's passages gave it

A passage and a claim are each tokenised once, however many pairs they are in; a row is put together
from their tokens. A passage longer than the model's window is cut into overlapping windows, and a
fact has the score of its best window (Laban et al. 2022, SummaC, section 4; the same in MiniCheck,
Tang et al. 2024).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from facttune_ray.errors import UserError

PASSAGE, CLAIM = "{passage}", "{claim}"
LEAST_TOKENS = 16  # of a passage in a row: a claim that leaves less is too long to be judged
OVERLAP = 4  # 1 / share of a window that the next window repeats
_PROBE = ("The cat sat on the mat.", "A cat was there.")  # fills the other place of a pair
_CHECK = ("She left early", "Both were late")


class Tokens(NamedTuple):
    """A part of a row."""

    ids: list[int]
    types: list[int]  # token_type_ids: 0 for the first text of a pair, 1 for the second

    def part(self, start: int, end: int | None = None) -> Tokens:
        return Tokens(self.ids[start:end], self.types[start:end])


def join(*parts: Tokens) -> Tokens:
    """Put the parts of a row together."""
    return Tokens([i for p in parts for i in p.ids], [t for p in parts for t in p.types])


Scored = tuple[float | None, int | None]  # score in [0, 1], index of the deciding passage


class Windows:
    """A tokenizer, the form in which a model reads a passage and a claim, and the window's size."""

    def __init__(self, tokenizer: Any, limit: int, path: str, template: str = "") -> None:
        """`limit`: most tokens of a row. `template`: one text with {passage} and, after it,
        {claim}; "": a pair of texts. UserError when rows cannot be put together from parts."""
        if not tokenizer.is_fast:
            raise UserError(f"{path} has no fast tokenizer (tokenizer.json): save it as one")
        self.tokenizer, self.limit, self.template = tokenizer, limit, template
        self.before, _, rest = template.partition(PASSAGE)
        self.between, _, self.after = rest.partition(CLAIM)
        self._marks = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)")
        self.typed = "token_type_ids" in tokenizer.model_input_names  # as the model reads them
        passage, claim = _CHECK
        ((head, body),), (tail,) = self.passages([passage]), self.claims([claim])
        whole = self._encoded([passage], [claim])[0][0]
        if join(head, body, tail) != whole or self._runs_together():
            raise UserError(
                f"{path}: its tokenizer joins the passage with the text after it, so this form "
                f"does not fit: put a space or a mark between {PASSAGE} and {CLAIM}"
            )

    def _runs_together(self) -> bool:
        """Whether one token holds the end of a passage and the start of what follows it."""
        if not self.template:
            return False
        passage, claim = _CHECK
        end = len(self.before) + len(passage)
        text = self._filled(passage, claim)
        spans = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return any(s < end < e for s, e in spans)

    def _filled(self, passage: str, claim: str) -> str:
        return f"{self.before}{passage}{self.between}{claim}{self.after}"

    def plain(self, text: str) -> str:
        """The text in one line, without the model's own marks: text that a model wrote must not
        end the passage or begin another one."""
        return " ".join(self._marks.sub(" ", text).split())

    def passages(self, texts: Sequence[str]) -> list[tuple[Tokens, Tokens]]:
        """(what stands before the passage, the passage) of each text."""
        encoded = self._encoded(texts, [_PROBE[1]] * len(texts))
        return [(row.part(0, start), row.part(start, end)) for row, start, end in encoded]

    def claims(self, texts: Sequence[str]) -> list[Tokens]:
        """What follows the passage, for each claim."""
        encoded = self._encoded([_PROBE[0]] * len(texts), texts)
        return [row.part(end) for row, _, end in encoded]

    def _encoded(
        self, passages: Sequence[str], claims: Sequence[str]
    ) -> list[tuple[Tokens, int, int]]:
        """(whole row, first token of the passage, end of the passage) of each pair."""
        if not passages:
            return []
        if self.template:
            texts = [self._filled(p, c) for p, c in zip(passages, claims, strict=True)]
            encoded = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        else:
            encoded = self.tokenizer(list(passages), list(claims), verbose=False)
        out = []
        for i, passage in enumerate(passages):
            ids = encoded["input_ids"][i]
            types = encoded["token_type_ids"][i] if self.typed else [0] * len(ids)
            if self.template:
                a, b = len(self.before), len(self.before) + len(passage)
                spans = encoded["offset_mapping"][i]
                inside = [k for k, (s, e) in enumerate(spans) if s < e and s < b and e > a]
            else:
                inside = [k for k, text in enumerate(encoded.sequence_ids(i)) if text == 0]
            start = inside[0] if inside else 0
            out.append((Tokens(ids, types), start, inside[-1] + 1 if inside else start))
        return out

    def rows(self, passage: tuple[Tokens, Tokens], claim: Tokens) -> list[Tokens]:
        """The rows of a pair, one a window; [] for a claim that leaves no room for a passage."""
        head, body = passage
        room = self.limit - len(head.ids) - len(claim.ids)
        if len(body.ids) <= room:
            return [join(head, body, claim)]
        if room < LEAST_TOKENS:
            return []
        step = room - room // OVERLAP
        starts = range(0, len(body.ids) - room + step, step)
        return [join(head, body.part(at, at + room), claim) for at in starts]


def best_windows(
    windows: Windows,
    facts: Sequence[str],
    evidence: Sequence[Sequence[str]],
    score: Callable[[list[Tokens]], list[float]],
) -> list[Scored]:
    """The best score of each fact over its passages and their windows, with the index of that
    passage in the fact's list; (None, None) without a passage, or for a claim that is too long.

    `score`: probabilities of rows. Equal rows are scored once.
    """
    if len(facts) != len(evidence):
        raise ValueError(f"{len(facts)} facts but {len(evidence)} lists of passages")
    shown = {p: windows.plain(p) for passages in evidence for p in passages}
    texts = list(dict.fromkeys(filter(None, shown.values())))
    tokens = dict(zip(texts, windows.passages(texts), strict=True))
    rows: dict[tuple[int, ...], Tokens] = {}
    used: list[list[tuple[tuple[int, ...], int]]] = []  # fact -> (row, its passage)
    claims = windows.claims([windows.plain(fact) for fact in facts])
    for claim, passages in zip(claims, evidence, strict=True):
        used.append([])
        for at, passage in enumerate(passages):
            text = shown[passage]
            for row in windows.rows(tokens[text], claim) if text else ():
                rows[tuple(row.ids)] = row
                used[-1].append((tuple(row.ids), at))
    known = dict(zip(rows, score(list(rows.values())), strict=True))
    out: list[Scored] = []
    for pairs in used:
        best = max(((known[row], -at) for row, at in pairs), default=None)
        out.append((None, None) if best is None else (best[0], -best[1]))
    return out
