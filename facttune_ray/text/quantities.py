"""Numbers and dates among the words of an answer, in one form.

numbers(["two", "hundred", "and", "fifty"])    ->  ["250"]
numbers(["1,955.50", "3rd", "1950s"])          ->  ["1955.5", "3th", "1950s"]
dates(["3th", "of", "jun", "1955"])            ->  ["3", "june", "1955"]
iso_dates("1955-06-03")                        ->  "3 june 1955"
"""

from __future__ import annotations

import re
from decimal import Decimal

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_ONES += " fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh"
_ORDINALS += " twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
NUMBERS = {word: n for n, word in enumerate(_ONES.split())}
NUMBERS |= {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
ORDINALS = {word: f"{n}th" for n, word in enumerate(_ORDINALS.split())}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLIERS = frozenset(SCALES.keys() | {"hundred"})
WORDS = frozenset(NUMBERS.keys() | ORDINALS.keys() | _MULTIPLIERS)

MONTHS = "january february march april may june july august september october november december"
_MONTH = {name: name for name in MONTHS.split()}
_SHORT_MONTH = {name[:3]: name for name in _MONTH} | {"sept": "september"}
_MONTHS = _MONTH | _SHORT_MONTH
MONTH_WORDS = frozenset(_MONTHS)

_NUMBER = re.compile(r"(-?)(\d+(?:,\d{3})*)(\.\d+)?(st|nd|rd|th|s)?")
_ISO = re.compile(r"(?<![\w-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\w-])")


def numbers(tokens: list[str]) -> list[str]:
    """Numbers in digits; "twenty-five" is one number, "19 55" are two."""
    out: list[str] = []
    at = 0
    while at < len(tokens):
        word = tokens[at]
        if word not in WORDS and not word[0].isdecimal() and word[0] != "-":
            out.append(word)
            at += 1
            continue
        if word.isdecimal() and word.isascii() and word[0] != "0":
            if at + 1 == len(tokens) or tokens[at + 1] not in _MULTIPLIERS:
                out.append(word)
                at += 1
                continue
        value, end = _written(tokens, at)
        if value is not None:
            out.append(_digits(value))
            at = end
            continue
        out.append(ORDINALS.get(word) or _ordinal_or_decade(word))
        at += 1
    return out


def _written(tokens: list[str], at: int) -> tuple[Decimal | None, int]:
    """The number that begins at a token, and where it ends: digits or words, then scales."""
    value = _value(tokens[at])
    if value is None:
        return None, at
    total, part, end = Decimal(0), value, at + 1
    open_below = _room(tokens[at], value)  # what may follow is smaller: 20 -> 1 to 9
    while end < len(tokens):
        word = tokens[end]
        follows = NUMBERS.get(tokens[end + 1]) if word == "and" and end + 1 < len(tokens) else None
        if word == "hundred" and part < 100:
            part, open_below, end = part * 100, 100, end + 1
        elif word in SCALES:
            total, part = total + part * SCALES[word], Decimal(0)
            open_below, end = 1000, end + 1
        elif open_below >= 100 and follows is not None and follows < open_below:
            part, open_below, end = part + follows, _room(tokens[end + 1], follows), end + 2
        elif 0 < NUMBERS.get(word, 0) < open_below:
            part, open_below, end = part + NUMBERS[word], _room(word, NUMBERS[word]), end + 1
        else:
            break
    return total + part, end


def _room(word: str, value: Decimal | int) -> int:
    """Below what a word must stand to add to the one before: "twenty" to "five", "5" to none."""
    return 10 if word in NUMBERS and value >= 20 else 0


def _value(word: str) -> Decimal | None:
    if word in NUMBERS:
        return Decimal(NUMBERS[word])
    if word == "hundred" or word in SCALES:  # "a thousand", its article gone
        return Decimal(SCALES.get(word, 100))
    found = _NUMBER.fullmatch(word)
    if not found or found[4]:
        return None
    return Decimal(word.replace(",", ""))


def _digits(value: Decimal) -> str:
    """Without closing zeros behind the point: 3.0 as 3."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _ordinal_or_decade(word: str) -> str:
    """A decade keeps its s; all ordinals end alike."""
    found = _NUMBER.fullmatch(word)
    if not found:
        return word
    digits = found[2].replace(",", "").lstrip("0") or "0"
    return found[1] + digits + (found[3] or "") + ("s" if found[4] == "s" else "th")


def dates(tokens: list[str]) -> list[str]:
    """Beside a month, days as plain numbers; beside a number, months in full. "Jan Steen" stays."""
    if MONTH_WORDS.isdisjoint(tokens):
        return tokens
    months = _MONTHS if any(w[0].isdigit() for w in tokens) else _MONTH
    if months.keys().isdisjoint(tokens):
        return tokens
    return [months.get(w) or (w[:-2] if w[0].isdigit() and w.endswith("th") else w)
            for w in tokens if w != "of"]  # fmt: skip


def iso_dates(text: str) -> str:
    """Dates such as 1955-06-03 in words."""
    return _ISO.sub(_in_words, text)


def _in_words(found: re.Match[str]) -> str:
    year, month, day = found.groups()
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return found[0]
    return f"{int(day)} {MONTHS.split()[int(month) - 1]} {year}"
