"""Write the numbers and dates among the words of an answer in one form.

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

MONTHS = tuple(
    "january february march april may june july august september october november december".split()
)
SHORT_MONTHS = {name[:3]: name for name in MONTHS} | {"sept": "september"}
_FULL_MONTHS = {name: name for name in MONTHS}
_ANY_MONTHS = _FULL_MONTHS | SHORT_MONTHS
MONTH_WORDS = frozenset(_ANY_MONTHS)

_NUMBER = re.compile(r"(-?)(\d+(?:,\d{3})*)(\.\d+)?(st|nd|rd|th|s)?")
_ISO = re.compile(r"(?<![\w-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\w-])")


def numbers(tokens: list[str]) -> list[str]:
    """Write numbers in digits; "twenty-five" is one number, "19 55" are two."""
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
    """(number that begins at a token, index after its last token). A number is digits or words,
    then scales such as "million"; it is None when no number begins there."""
    value = _value(tokens[at])
    if value is None:
        return None, at
    total, part, end = Decimal(0), value, at + 1
    open_below = _addable_below(tokens[at], value)  # a smaller number may follow: 20 -> 1 to 9
    while end < len(tokens):
        word = tokens[end]
        follows = NUMBERS.get(tokens[end + 1]) if word == "and" and end + 1 < len(tokens) else None
        if word == "hundred" and part < 100:
            part, open_below, end = part * 100, 100, end + 1
        elif word in SCALES:
            total, part = total + part * SCALES[word], Decimal(0)
            open_below, end = 1000, end + 1
        elif open_below >= 100 and follows is not None and follows < open_below:
            part, end = part + follows, end + 2
            open_below = _addable_below(tokens[end - 1], follows)
        elif 0 < NUMBERS.get(word, 0) < open_below:
            part, end = part + NUMBERS[word], end + 1
            open_below = _addable_below(word, NUMBERS[word])
        else:
            break
    return total + part, end


def _addable_below(word: str, value: Decimal | int) -> int:
    """The bound of the next number that adds to this one: 10 after "twenty", 0 after "5"."""
    return 10 if word in NUMBERS and value >= 20 else 0


def _value(word: str) -> Decimal | None:
    if word in NUMBERS:
        return Decimal(NUMBERS[word])
    if word == "hundred" or word in SCALES:  # "a thousand" without its article
        return Decimal(SCALES.get(word, 100))
    found = _NUMBER.fullmatch(word)
    if not found or found[4]:
        return None
    return Decimal(word.replace(",", ""))


def _digits(value: Decimal) -> str:
    """The number without trailing zeros after the point: 3.0 as "3"."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _ordinal_or_decade(word: str) -> str:
    """One ending for all ordinals: "3rd" -> "3th". A decade keeps its s: "1950s"."""
    found = _NUMBER.fullmatch(word)
    if not found:
        return word
    digits = found[2].replace(",", "").lstrip("0") or "0"
    return found[1] + digits + (found[3] or "") + ("s" if found[4] == "s" else "th")


def dates(tokens: list[str]) -> list[str]:
    """Write days as plain numbers beside a month, and months in full beside a number. "Jan Steen"
    does not change."""
    if MONTH_WORDS.isdisjoint(tokens):
        return tokens
    months = _ANY_MONTHS if any(w[0].isdigit() for w in tokens) else _FULL_MONTHS
    if months.keys().isdisjoint(tokens):
        return tokens
    return [months.get(w) or (w[:-2] if w[0].isdigit() and w.endswith("th") else w)
            for w in tokens if w != "of"]  # fmt: skip


def iso_dates(text: str) -> str:
    """Write dates such as 1955-06-03 in words."""
    return _ISO.sub(_in_words, text)


def _in_words(found: re.Match[str]) -> str:
    year, month, day = found.groups()
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return found[0]
    return f"{int(day)} {MONTHS[int(month) - 1]} {year}"
