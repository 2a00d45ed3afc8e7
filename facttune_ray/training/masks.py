"""The tokens of a response that count in a fact-masked preference.

    text = "Mara Veldt was born in Ostrava. She plays the cello."
    spans = sentences(facts, verdicts)      # [(0, 31, False), (32, 52, True)]
    win, lose = masks(spans, offsets(tokenizer, text))
    # tokens   Mara  Veldt was   born  in    Ostrava .     She   plays the   cello .     </s>
    # win      0     0     0     0     0     0       0     1     1     1     1     1     1
    # lose     1     1     1     1     1     1       1     0     0     0     0     0     1

A preference between whole responses also makes the winner's wrong sentences likelier and the
loser's right sentences less likely. These masks prevent both: tokens of a wrong sentence do not
count in a winner, tokens of a right sentence do not count in a loser. Tokens outside of sentences,
tokens of sentences without a verdict, and the end mark count in both roles. `losses.sum_tokens`
takes the masks.

Offsets count characters of the response's text in the table `responses`, the text that
`sampling.protocol.encode_response` encodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from facttune_ray.errors import UserError

Span = tuple[int, int]  # characters start..end-1
Judged = tuple[int, int, bool | None]  # the span of a sentence, and whether it is right

_PARTIAL = "\ufffd"  # the decoded text of an incomplete character


def sentences(
    facts: Iterable[Mapping[str, Any]], verdicts: Iterable[Mapping[str, Any]]
) -> list[Judged]:
    """Sentences of one response, in order, from its rows of `facts` and `verdicts`.

    True: all facts of the sentence that have a verdict are supported; False: at least one is not
    supported; None: no fact has a verdict (no article, an error, or no fact). A sentence that has
    no position in the text is left out: of an abstention, or worded differently in a labelled
    file. ValueError if the rows belong to several responses.
    """
    facts, verdicts = list(facts), list(verdicts)
    if len({r["response_id"] for r in (*facts, *verdicts)}) > 1:
        raise ValueError("rows of several responses: give those of one")
    supported = {v["fact_id"]: v["supported"] for v in verdicts}
    by_sentence: dict[Span, list[bool]] = {}
    for row in facts:
        if row["start"] is None or row["start"] == row["end"]:
            continue
        judged = by_sentence.setdefault((row["start"], row["end"]), [])
        verdict = supported.get(row["fact_id"])
        if verdict is not None:
            judged.append(verdict)
    return [(*span, all(v) if v else None) for span, v in sorted(by_sentence.items())]


def masks(sentences: Sequence[Judged], offsets: Sequence[Span]) -> tuple[list[int], list[int]]:
    """(win, lose), 1 on each token that counts in that role, else 0.

    `offsets`: characters of each token of the response; for a truncated response, of the tokens
    that are left. `win` is 0 on tokens of wrong sentences, `lose` on tokens of right sentences. A
    token belongs to every sentence that it shares a character with, so a token with the end of a
    right sentence and the start of a wrong sentence counts in neither role. An empty span belongs
    to the sentence around it; at the edge of a sentence, as an end mark's, it belongs to none.
    """
    win, lose = [1] * len(offsets), [1] * len(offsets)
    for start, end, right in sentences:
        if right is None:
            continue
        mask = lose if right else win
        for i, (a, b) in enumerate(offsets):
            # For an empty span, both comparisons hold only strictly inside of the sentence.
            if a < end and b > start:
                mask[i] = 0
    return win, lose


def offsets(tokenizer: Any, response: str) -> list[Span]:
    """Characters of each token of a response; the span of the end mark is empty.

    A token with some bytes of a character gets the whole character. Fast tokenizers return
    offsets. For other tokenizers, growing prefixes of the tokens are decoded; UserError if the text
    is not exactly the response, so that no offset is a guess.
    """
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    else:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        spans = _by_decoding(tokenizer, ids, response)
    return [*spans, (len(response), len(response))]


def _by_decoding(tokenizer: Any, ids: Sequence[int], response: str) -> list[Span]:
    spans: list[Span] = []
    held, partial = (
        0,
        False,
    )  # whole characters so far; whether a part of the next character is held
    for k in range(1, len(ids) + 1):
        text = whole = tokenizer.decode(
            ids[:k], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        while whole.endswith(_PARTIAL) and not response.startswith(whole):
            whole = whole[:-1]
        if not response.startswith(whole) or len(whole) < held:
            raise _inexact(tokenizer, response)
        partial = len(whole) < len(text)
        # A U+FFFD of the response looks whole from its first byte on; its other bytes belong to it.
        more = len(text) == held and text.endswith(_PARTIAL)
        spans.append((held - more, len(whole) + partial))
        held = len(whole)
    if held < len(response) or partial:
        raise _inexact(tokenizer, response)
    return spans


def _inexact(tokenizer: Any, response: str) -> UserError:
    shown = response if len(response) <= 40 else f"{response[:37]}..."
    return UserError(
        f"{type(tokenizer).__name__} returns no character offsets, and the tokens of the response "
        f"{shown!r} do not decode to its text: train.loss=fact_masked needs a fast tokenizer "
        "(one with a tokenizer.json), or choose another loss"
    )
