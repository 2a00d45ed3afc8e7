"""The normal form of a sampled answer. Answers of one form mean the same.

    form("the Cellos")                        ->  "cello"
    form("June 3rd, 1955")                    ->  "1955 3 june"
    form("3 June 1955"), form("1955-06-03")   ->  the same
    form("two hundred and fifty")             ->  "250"
    form("...")                               ->  ""

The form is the sorted set of the words in lower case, without accents on Latin letters, articles,
punctuation, hyphens, possessive and plural s and a leading preposition, with numbers and dates
written in one way. Numbers keep their order ("3 to 2" is not "2 to 3"), except in a date. Words
that change the meaning stay: "not married" differs from "married", "955" from "1955", and "player"
from the more specific "basketball player".
"""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.text import quantities
from facttune_ray.text.quantities import NUMBERS as NUMBERS

ARTICLES = frozenset({"a", "an", "the"})
LEADING = frozenset({"in", "on", "at", "as", "by", "from", "to", "of", "with"})
TRAILING = frozenset({"and", "or"})
_SPECIAL = ARTICLES | LEADING | TRAILING | quantities.WORDS | {"yes", "no"}
_DIGITS = frozenset("0123456789")
_AFTER_YES = frozenset("it they he she there this that you we i not".split())
_SIGNS = {"%": " percent ", "$": " dollar ", "€": " euro ", "£": " pound ", "&": " and "}
# letters that Unicode does not decompose
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i",
     "\u2019": "'", "\u2018": "'", "\u2212": "-", "\u2013": "-", "\u2014": " "}
)  # fmt: skip

# combining marks, which belong to words of other scripts than Latin; `\w` does not match them
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_TOKEN = re.compile(
    r"\ba\.(?=\s)"  # an initial, not an article
    r"|(?:(?<![\w-])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th|s)?(?![^\W_])"
    r"|\b(?:ab|[a-f]|o)-(?![\w-])"  # a grade, a blood group
    rf"|[\w{_MARKS}]+[+#]*"
)
_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_ACCENT = re.compile(r"(?<=[a-z\u00df-\u024f])[\u0300-\u036f]+")  # on a Latin letter
_RAISED = re.compile(
    r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u00bc-\u00be\u2150-\u215e])"
)
_POSSESSIVE = re.compile(r"(?<![\d'])'s\b")
_INITIALS = re.compile(r"\b([^\W\d_])\.(?=[^\W\d_]\b)")  # "u.s." as "us"
_YES_NO = re.compile(
    r"\W*(yes|no)\b\s*(?:[,!;:]|\.(?!\s*\d)|$|(?:" + "|".join(_AFTER_YES) + r")\b)"
)
_OUTSIDE = " \t\r\n.,;:!?\"'*()<>[]_`\u201c\u201d\u2018\u2019"
_LEAD = f"^(?i:(?:(?:{'|'.join(sorted(ARTICLES | LEADING))}) +)+)"


def trimmed(texts: pa.Array) -> pa.Array:
    """Strip many texts at once of parts that no form keeps, so that fewer distinct texts remain."""
    right = pc.utf8_rtrim(texts, _OUTSIDE)
    inside = pc.utf8_ltrim(right, _OUTSIDE.replace(".", ""))  # ".5" is not 5
    return pc.replace_substring_regex(inside, _LEAD, "")


def form(answer: str) -> str:
    """The form of a trimmed answer; "" for an answer that says nothing."""
    words = normal_words(answer)
    if len(words) < 2:
        return words[0] if words else ""
    figures = [w for w in words if w[-1] in _DIGITS]
    if len(figures) < 2 or not quantities.MONTH_WORDS.isdisjoint(words):
        return " ".join(sorted(set(words)))
    return " ".join(figures + sorted(set(words).difference(figures)))


def normal_words(answer: str) -> list[str]:
    """The words of the form in the answer's order, with repeats."""
    text = answer.lower()
    if text.isascii() and text.replace(" ", "").isalpha():
        tokens = text.split()
        if not _SPECIAL.isdisjoint(tokens):
            if tokens[0] in ("yes", "no") and (len(tokens) == 1 or tokens[1] in _AFTER_YES):
                return tokens[:1]
            tokens = quantities.dates(quantities.numbers(_content(tokens)))
    else:
        text = fold(text)
        if text[:1] in "yn\"'(" and (match := _YES_NO.match(text)):
            return [match[1]]
        text = quantities.iso_dates(text) if "-" in text else text
        text = _POINT.sub("0.", text) if "." in text else text
        tokens = _TOKEN.findall(_INITIALS.sub(r"\1", text) if "." in text else text)
        tokens = quantities.dates(quantities.numbers(_content(tokens)))
    return [singular(w) if w[-1] == "s" else w for w in tokens]


def _content(tokens: list[str]) -> list[str]:
    """Drop articles, leading prepositions and a trailing "and"; keep at least one word."""
    if not ARTICLES.isdisjoint(tokens):
        tokens = [w for w in tokens[:-1] if w not in ARTICLES] + tokens[-1:]  # "vitamin A"
    while len(tokens) > 1 and tokens[-1] in TRAILING:
        tokens = tokens[:-1]
    while len(tokens) > 1 and tokens[0] in LEADING:
        tokens = tokens[1:]
    return tokens


def fold(text: str) -> str:
    """The text in lower case, without accents on Latin letters, possessive s and apostrophes, and
    with words for signs ("%" -> "percent")."""
    if not text.isascii():
        separated = _RAISED.sub(" ", text.casefold())  # 10 squared is not 102
        split = unicodedata.normalize("NFKD", separated.translate(_LETTERS))
        text = unicodedata.normalize("NFC", _ACCENT.sub("", split).translate(_LETTERS))
    text = text.lower()
    if "'" in text:
        text = _POSSESSIVE.sub("", text).replace("'", "")
    for sign, word in _SIGNS.items():
        if sign in text:
            text = text.replace(sign, word)
    return text


def singular(word: str) -> str:
    """The singular of a plural, by its ending; short words and numbers do not change."""
    if len(word) <= 3 or word[-1] != "s" or word[0].isdigit() or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "xes", "ches", "shes")) or (len(word) > 5 and word.endswith("oes")):
        return word[:-2]
    return word[:-1]
