"""Cut an article's text into passages of at most 256 tokens, and read stored passages.

passages("One. Two.")                      ->  ["One. Two."]
split("One.####SPECIAL####SEPARATOR####Two.")  ->  ["One.", "Two."]

A token is a run of up to 9 Latin letters, a run of up to 3 digits, or any other character that is
not a space. This is close to RoBERTa's word pieces, in which FActScore counts, and much faster:
FActScore's own passages of up to 256 pieces (1,405 passages of real articles) have about 244 such
tokens, at most 283.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

SEPARATOR = "####SPECIAL####SEPARATOR####"  # FActScore's mark between passages of an article
PASSAGE_TOKENS = 256
_SLACK = 1.25  # items of a list were cut by other tokenizers, so they may be a quarter longer

# excludes the full stop of an initial ("J. R. Smith")
_SENTENCE_END = re.compile(r"[.!?。！？](?<!\b[A-Z]\.)[\"')\]”’]*(?: |(?<=[。！？]))")
_MARKS = re.compile(r"</?s>")


def passages(text: str | Sequence[str], limit: int = PASSAGE_TOKENS) -> list[str]:
    """Cut a string at sentence ends. Keep the items of a list, and cut only items that are at least
    a quarter too long.

    White space becomes one blank. NUL bytes, lone surrogates, sentence marks (`<s>`) and empty
    items are dropped. No other text is lost.
    """
    if isinstance(text, str):
        return [p for part in split(text) for p in _cut(sound(part), limit)]
    kept = []
    for part in (sound(part) for item in text for part in split(item)):
        if _end(part, int(limit * _SLACK)) < len(part):
            kept += _cut(part, limit)
        elif part:
            kept.append(part)
    return kept


def split(stored: str) -> list[str]:
    """The passages of a stored text, without the sentence marks of FActScore's own databases."""
    if "s>" in stored:
        stored = _MARKS.sub(" ", stored)
    return [p for part in stored.split(SEPARATOR) if (p := " ".join(part.split()))]


def sound(text: str) -> str:
    """The text without NUL bytes, with a replacement character for each lone surrogate."""
    if "\0" in text:
        text = " ".join(text.replace("\0", " ").split())
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut(text: str, limit: int) -> list[str]:
    """Cut at the last sentence end before the limit, else at the last blank, else after a token."""
    out = []
    start = 0
    # A token has at least one character, so a text shorter than the limit fits.
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
    """The offset after the first `limit` tokens from `start` and the blank after them."""
    match = _first(limit).match(text, start)
    return match.end() if match else len(text)


@functools.cache
def _first(limit: int) -> re.Pattern[str]:
    """A pattern of exactly `limit` tokens; possessive, so it never splits a run or backtracks."""
    return re.compile(rf"(?:[A-Za-z]{{1,9}}+ ?+|\d{{1,3}}+ ?+|[^ A-Za-z\d] ?+){{{limit}}}+")
