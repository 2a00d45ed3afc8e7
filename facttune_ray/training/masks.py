"""Which tokens of a response count in a fact-masked preference: right sentences, wrong sentences.

    text = "Mara Veldt was born in Ostrava. She plays the cello."
    spans = sentences(facts, verdicts)      # [(0, 31, False), (32, 52, True)]
    win, lose = masks(spans, offsets(tokenizer, text))
    # tokens   Mara  Veldt was   born  in    Ostrava .     She   plays the   cello .     </s>
    # win      0     0     0     0     0     0       0     1     1     1     1     1     1
    # lose     1     1     1     1     1     1       1     0     0     0     0     0     1

A preference of one whole response over another also pushes up what the winner got wrong and pushes
down what the loser got right. Here a wrong sentence is not pushed up with the response that wins,
and a right one is not pushed down with the response that loses. What is in no sentence, in one
that was not judged, or is the end mark counts in both roles. `losses.sum_tokens` takes the lists.

Characters are counted in the response's text as the table `responses` has it, and that text is what
`sampling.protocol.encode_response` encodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from facttune_ray.errors import UserError

Span = tuple[int, int]  # characters start..end-1
Judged = tuple[int, int, bool | None]  # the same of a sentence, and whether it is right

_PARTIAL = "\ufffd"  # what decoders give for a part of a character's bytes


def sentences(
    facts: Iterable[Mapping[str, Any]], verdicts: Iterable[Mapping[str, Any]]
) -> list[Judged]:
    """Sentences of one response, in order, from its rows of `facts` and `verdicts`.

    True: all facts of the sentence that have a verdict are supported; False: at least one is not;
    None: no fact of it has one (no article, an error, or no fact at all). Left out is a sentence
    without a place in the text: of an abstention, or worded otherwise in a labelled file. A row
    of another response in either table is a bug: ValueError.
    """
    facts, verdicts = list(facts), list(verdicts)
    if len({r["response_id"] for r in (*facts, *verdicts)}) > 1:
        raise ValueError("rows of several responses: give those of one")
    supported = {v["fact_id"]: v["supported"] for v in verdicts}
    found: dict[Span, list[bool]] = {}
    for row in facts:
        if row["start"] is None or row["start"] == row["end"]:
            continue
        judged = found.setdefault((row["start"], row["end"]), [])
        verdict = supported.get(row["fact_id"])
        if verdict is not None:
            judged.append(verdict)
    return [(*span, all(judged) if judged else None) for span, judged in sorted(found.items())]


def masks(sentences: Sequence[Judged], offsets: Sequence[Span]) -> tuple[list[int], list[int]]:
    """(win, lose), 1 on each token that counts in that role and 0 on the others.

    `offsets`: characters of each token of the response. `win` is 0 on tokens of wrong sentences,
    `lose` on tokens of right ones. A token is of every sentence that it has a character of, so one
    that holds the end of a right sentence and the start of a wrong one counts in neither role. An
    empty span is of the sentence that it is inside of; at a sentence's edge, as an end mark's is,
    it is of none. Of a response cut to `train.max_length` give as many offsets as it has
    tokens.
    """
    win, lose = [1] * len(offsets), [1] * len(offsets)
    for start, end, right in sentences:
        if right is None:
            continue
        mask = lose if right else win
        for i, (a, b) in enumerate(offsets):
            # For an empty span the two comparisons say: strictly inside.
            if a < end and b > start:
                mask[i] = 0
    return win, lose


def offsets(tokenizer: Any, response: str) -> list[Span]:
    """Characters of each token of a response; the end mark's are none.

    Each token that holds a part of a character's bytes has that whole character. Fast tokenizers
    tell; of others the text of more and more tokens is decoded. UserError when that does not give
    the response back exactly, so that no token gets a place by guess.
    """
    if getattr(tokenizer, "is_fast", False):
        told = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        found = [(int(a), int(b)) for a, b in told["offset_mapping"]]
    else:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        found = _by_decoding(tokenizer, ids, response)
    return [*found, (len(response), len(response))]


def _by_decoding(tokenizer: Any, ids: Sequence[int], response: str) -> list[Span]:
    found: list[Span] = []
    held, partial = 0, False  # characters that the tokens so far hold; and a part of the next one?
    for k in range(1, len(ids) + 1):
        text = whole = tokenizer.decode(
            ids[:k], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        while whole.endswith(_PARTIAL) and not response.startswith(whole):
            whole = whole[:-1]
        if not response.startswith(whole) or len(whole) < held:
            raise _inexact(tokenizer, response)
        partial = len(whole) < len(text)
        # U+FFFD of the response itself looks whole from its first byte on: the others are of it.
        more = len(text) == held and text.endswith(_PARTIAL)
        found.append((held - more, len(whole) + partial))
        held = len(whole)
    if held < len(response) or partial:
        raise _inexact(tokenizer, response)
    return found


def _inexact(tokenizer: Any, response: str) -> UserError:
    shown = response if len(response) <= 40 else f"{response[:37]}..."
    return UserError(
        f"{type(tokenizer).__name__} tells no character offsets, and the tokens of the response "
        f"{shown!r} do not decode to its text: train.loss=fact_masked needs a fast tokenizer "
        "(one with a tokenizer.json), or choose another loss"
    )
