"""An article's text -> passages of at most 256 tokens, cut at sentence ends; and back.

passages("One. Two.")                      ->  ["One. Two."]
split("One.####SPECIAL####SEPARATOR####Two.")  ->  ["One.", "Two."]

A token is a run of up to 9 Latin letters, a run of up to 3 digits, or any other character that is
no space: close to RoBERTa's word pieces, in which FActScore counts, at a fraction of the time. Its
own passages of up to 256 pieces (1,405 of real articles) have 244 such tokens, at most 283.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

SEPARATOR = "####SPECIAL####SEPARATOR####"  # FActScore's, between the passages of an article
PASSAGE_TOKENS = 256
_SLACK = 1.25  # for the items of a list, which others have cut with other tokenizers

# not the full stop of an initial ("J. R. Smith")
_SENTENCE_END = re.compile(r"[.!?。！？](?<!\b[A-Z]\.)[\"')\]”’]*(?: |(?<=[。！？]))")
_MARKS = re.compile(r"</?s>")


def passages(text: str | Sequence[str], limit: int = PASSAGE_TOKENS) -> list[str]:
    """A string is cut at sentence ends; of a list, only items that are a quarter too long or more.

    White space becomes one blank; NUL bytes, lone surrogates and sentence marks (`<s>`) go, and so
    does an item that is empty then. No text is lost otherwise.
    """
    if isinstance(text, str):
        return [p for part in split(text) for p in _cut(sound(part), limit)]
    found = []
    for part in (sound(part) for item in text for part in split(item)):
        if _end(part, int(limit * _SLACK)) < len(part):
            found += _cut(part, limit)
        elif part:
            found.append(part)
    return found


def split(stored: str) -> list[str]:
    """Stored text -> passages, without the sentence marks of FActScore's own databases."""
    if "s>" in stored:
        stored = _MARKS.sub(" ", stored)
    return [p for part in stored.split(SEPARATOR) if (p := " ".join(part.split()))]


def sound(text: str) -> str:
    """Without NUL bytes, and with a replacement character for each lone surrogate."""
    if "\0" in text:
        text = " ".join(text.replace("\0", " ").split())
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut(text: str, limit: int) -> list[str]:
    """At the last sentence end before the limit; else at the last blank; else between tokens."""
    out = []
    start = 0
    # a token has a character at least: what is shorter than the limit fits
    while len(text) - start > limit:
        stop = _end(text, limit, start)
        if stop == len(text):
            break
        ends = [m.end() for m in _SENTENCE_END.finditer(text, start, stop)]
        end = ends[-1] if ends else text.rfind(" ", start, stop) + 1 or stop
        out.append(text[start:end].rstrip())
        start = end
    return [*out, text[start:]] if text else []


def _end(text: str, limit: int, start: int = 0) -> int:
    """Where the first `limit` tokens from `start` end, with the blank after them."""
    found = _first(limit).match(text, start)
    return found.end() if found else len(text)


@functools.cache
def _first(limit: int) -> re.Pattern[str]:
    """Exactly `limit` tokens. Possessive, so that it neither splits a run nor goes back."""
    return re.compile(rf"(?:[A-Za-z]{{1,9}}+ ?+|\d{{1,3}}+ ?+|[^ A-Za-z\d] ?+){{{limit}}}+")
