"""Split a response into sentences, each with its offsets in the text.

    split("J. R. Smith was born in 1950. He acts.")
        ->  [Sentence("J. R. Smith was born in 1950.", 0, 29), Sentence("He acts.", 30, 38)]

The end of a line ends a sentence, unless the next line clearly continues it. Initials,
abbreviations, decimals and full stops inside quotations or brackets do not end a sentence. A part
that starts in lower case or is a single word joins the sentence before it, as in FActScore. Each
heading, list item, table row and block of code is a sentence. `split` accepts every text, in time
proportional to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from facttune_ray.text.quantities import SHORT_MONTHS


@dataclass(frozen=True)
class Sentence:
    """`text[start:end]` of the response with single spaces, without marks of lists and headings."""

    text: str
    start: int  # characters
    end: int


def split(text: str) -> list[Sentence]:
    """Sentences in order, with disjoint spans. A part without letter or digit is in no sentence."""
    result: list[Sentence] = []
    for start, end, whole in _blocks(text):
        spans = [(start, end)] if whole else _spans(text, start, end)
        result += _merged([s for span in spans if (s := _sentence(text, *span))])
    return result


def sentences(text: str) -> list[str]:
    """The texts of the sentences, without offsets."""
    return [s.text for s in split(text)]


def carry(split_text: list[Sentence], words: int = 11) -> list[Sentence]:
    """Join short sentences: while a sentence has at most `words` words, add the next sentence.

    A short last sentence joins the sentence before it. 0 joins nothing. FActScore's chat mode
    uses 11: it needs fewer requests, and a short sentence is shown with its continuation.
    """
    out: list[Sentence] = []
    rest: Sentence | None = None
    for s in split_text:
        rest = _joined(rest, s) if rest else s
        if word_count(rest.text) > words:
            out.append(rest)
            rest = None
    if rest:
        out.append(_joined(out.pop(), rest) if out else rest)
    return out


# Scripts without spaces between words: Thai, Lao, Khmer, Burmese, Japanese, Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def word_count(text: str) -> int:
    """The number of words between spaces; two characters of a script without spaces are a word."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub("", text).split()) + -(-unspaced // 2)


def _joined(a: Sentence, b: Sentence) -> Sentence:
    return Sentence(f"{a.text} {b.text}", a.start, b.end)


# ---------------------------------------------------------------- lines -> blocks

_BULLET = re.compile(
    r"\s*+(?:[-*+\u2022\u2023\u25e6\u25aa\u25cf\u25cb\u2013\u2014\u00b7>]|\(?\d{1,3}[.)]"
    r"|\(?[a-z][.)]|\(?[ivx]{2,5}[.)]|\([A-Z]\)|#{1,6}|\[[ xX]\])\s++"
)
_FENCE = re.compile(r"\s*+(```++|~~~++)\s*+([^\s`]*+)[^`]*+$")
_PROSE = {"", "text", "txt", "markdown", "md", "plaintext", "plain"}
_TABLE = re.compile(r"\s*+\|.*\|")
_CLOSED = re.compile(r"[.!?:;\u2026\u3002\uff01\uff1f\u0964\u061f\u06d4][\"'\u201d\u2019)\]*_]*$")
# A line with one of these ends was wrapped at a column; its sentence continues.
_OPEN_END = re.compile(
    r"(?:,|\b(?:a|an|the|of|in|on|at|to|by|for|from|with|and|or|but|as|is|was|were|has|had|his|"
    r"her|their|its|that|which|who))$"
)


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whole) of paragraphs, table rows and blocks of code; `whole`: do not split."""
    position = 0
    held: tuple[int, int] | None = None  # a paragraph that may continue in the next line
    fence, code = "", -1  # the mark that closes the fence; the offset at which its code starts
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        opened = _FENCE.match(line)
        if fence:
            if opened and opened[1].startswith(fence) and not opened[2]:
                if code >= 0:
                    yield code, start, True
                if held:
                    yield *held, False
                fence, code, held = "", -1, None
                continue
            if code >= 0:
                continue
        elif opened:
            if held:
                yield *held, False
            held, fence = None, opened[1]
            code = position if opened[2].lower() not in _PROSE else -1
            continue
        marks = 0
        while match := _BULLET.match(line, marks):
            marks = match.end()
        body = line[marks:].strip()
        if held and not marks and _continues(text[max(held[0], held[1] - 80) : held[1]], body):
            held = held[0], position
            continue
        if held:
            yield *held, False
        held = None
        if _TABLE.match(line):
            yield start, position, True
        elif body:
            held = start + marks, position
    if held:
        yield *held, False
    if code >= 0:
        yield code, len(text), True


def _continues(before: str, line: str) -> bool:
    """Whether a line without a list mark continues the paragraph's last line."""
    if not line or line[0] in "|#" or before.rstrip().endswith("|"):
        return False
    if _CLOSED.search(before.rstrip()):
        return False
    return line[0].islower() or bool(_OPEN_END.search(before.rstrip()))


# ---------------------------------------------------------------- block -> spans

_SOFT = ".!?\u2026\u203d"
_HARD = (  # no space needed after these marks: CJK, Indic, Arabic, Urdu, Armenian, ...
    "\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u0589\u1362\u17d4\u104b"
)
_CLOSERS = "\"'\u201c\u201d\u2019)\\]*_\u00bb\u300d\u300f\uff09\u300b\u3011"
_END = re.compile(
    rf"(?<![{_SOFT}{_HARD}])([{_SOFT}{_HARD}]++(?:[{_CLOSERS}]|\[[\w, ]{{1,12}}\])*+)(\s*+)"
)
_HARD_MARK = re.compile(f"[{_HARD}]")

_ABBREVIATIONS = (SHORT_MONTHS.keys() - {"may"}) | set(
    "mr mrs ms dr prof sr jr st mt ft lt col gen capt sgt cmdr adm maj rev hon gov sen rep pres "
    "pvt no vol vs etc inc ltd co corp bros dept univ assn est fig ed eds trans feat ca cf al "
    "e.g i.e a.m p.m b.c a.d ph.d m.d u.s u.k u.n d.c b.a m.a b.sc m.sc ll.b ll.m approx ave blvd "
    "nos op pp messrs mme mlle sra srta nr bzw z.b d.h u.a usw".split()
)
# Titles never end a sentence; another abbreviation does when an opener of a sentence follows.
_TITLES = set("mr mrs ms dr prof st rev messrs mme mlle sra srta z.b nr".split())
_OPENERS = set(
    "He She They It His Her Their Its The This These Those In On At After Before During As When "
    "While However Since Born A An Despite Following Throughout Although I We".split()
)
_AFTER_GERMAN_ORDINAL = set(  # "am 3. Mai"
    "Januar Februar M\u00e4rz April Mai Juni Juli August September Oktober November Dezember "
    "Jahrhundert Jahrhunderts".split()
)
_LAST_WORD = re.compile(r"\S*$")
_INITIALS = re.compile(r"(?:[A-Z]\.-?)+[A-Z]")


def _spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    inside = _protected(text, start, end)
    at = 0  # index of the first protected range that ends later
    for match in _END.finditer(text, start, end):
        mark, stop = match[1], match.end(1)
        while at < len(inside) and inside[at][1] <= stop:
            at += 1
        if match.end() >= end or (at < len(inside) and inside[at][0] < match.start()):
            continue
        hard = _HARD_MARK.search(mark)
        if not hard and not match[2]:
            continue
        if hard or _ends(text, start, match.start(), mark, match.end(), end):
            yield start, match.end()
            start = match.end()
    yield start, end


def _ends(text: str, start: int, mark_at: int, mark: str, after_at: int, end: int) -> bool:
    """Whether a sentence from `start` ends with the mark at `mark_at`; a word is at `after_at`."""
    if mark_at == start or text[after_at].islower() or text[after_at] in ",;:)":
        return False
    if mark[0] != ".":
        return True
    before = text[max(start, mark_at - 60) : mark_at]
    last = _LAST_WORD.search(before)[0].lstrip("(\"'\u201c*_")  # type: ignore[index]
    if not last or len(last) > 10:
        return True
    after = text[after_at : min(end, after_at + 40)].split(None, 1)[0].strip("\"'\u201c,*_")
    short = last.lower()
    if (len(last) == 1 and last.isupper()) or _INITIALS.fullmatch(last):
        # "J. R. Smith", but "... in Washington D.C. He ..."; "vitamin C. It"
        return after in _OPENERS and len(before.split()) > 2
    if short == "no":
        return not after[:1].isdigit()
    if short in _ABBREVIATIONS:
        return after in _OPENERS and short not in _TITLES
    if last.isdecimal() and len(last) <= 2:  # "1. Wash" inside a line; "am 3. Mai"
        lead = before[: -len(last)].rstrip()
        numbered = not lead and mark_at - start <= 60 or lead.endswith((":", ";"))
        return not numbered and after not in _AFTER_GERMAN_ORDINAL
    return True


# ---------------------------------------------------------------- quotations and brackets

_LONGEST = 400  # characters; a longer quotation or bracket counts as never closed
_PAIRS = {
    "(": ")",
    "[": "]",
    "\u201c": "\u201d",
    "\u00ab": "\u00bb",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
    "\u300a": "\u300b",
    "\u3010": "\u3011",
    "\uff08": "\uff09",
}
_OPENS = {close: opened for opened, close in _PAIRS.items()}
_QUOTES = re.compile(f'["\u201e{"".join(map(re.escape, [*_PAIRS, *_OPENS]))}]')
_FEET = re.compile(r"\d'\d+$")


def _protected(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of the outermost quotations and brackets, marks included, in order."""
    opened: dict[str, int] = {}  # opening mark -> its offset; one of a kind is open at a time
    ranges: list[tuple[int, int]] = []
    low = False  # German: \u201e opens, \u201c closes
    for match in _QUOTES.finditer(text, start, end):
        at, mark = match.start(), match[0]
        if mark == '"':
            mark = _straight(text, start, end, at, opened.get('"'))
            kind = '"'
        elif mark == "\u201e":
            mark, kind, low = "open", "\u201e", True
        elif mark == "\u201c" and low:
            mark, kind, low = "close", "\u201e", False
        elif mark in _PAIRS:
            mark, kind = "open", mark
        else:
            mark, kind = "close", _OPENS[mark]
        if mark == "open":
            opened[kind] = at
        elif mark == "close" and (since := opened.pop(kind, None)) is not None:
            if at - since <= _LONGEST:
                while ranges and ranges[-1][0] > since:
                    ranges.pop()
                ranges.append((since, at + 1))
    return ranges


def _straight(text: str, start: int, end: int, at: int, since: int | None) -> str:
    """The role of a straight quotation mark: "open", "close", or "" for inches, as in 6'7\"."""
    if _FEET.search(text[max(start, at - 6) : at]):
        return ""
    before = text[at - 1] if at > start else " "
    after = text[at + 1] if at + 1 < end else " "
    opens = not before.isalnum() and before not in ".,!?" and not after.isspace()
    closes = not before.isspace() and not after.isalnum()
    if opens == closes:
        return "open" if since is None else "close"
    return "open" if opens else "close"


# ---------------------------------------------------------------- span -> sentence

_LETTER = re.compile(r"\w")
_HASHES = re.compile(r"(?<=\s)#++$")
_EMPHASIS = re.compile(r"(\*\*|__)([^*_]+)\1(:?)$")


def _sentence(text: str, start: int, end: int) -> Sentence | None:
    while match := _BULLET.match(text, start, end):  # "... 2. Dry it." inside a line
        start = match.end()
    raw = text[start:end]
    body = raw.strip()
    start += len(raw) - len(raw.lstrip())
    end = start + len(body)
    if body.startswith("|"):
        body = body.strip("| \t")
    if heading := _EMPHASIS.match(body):
        body = heading[2] + heading[3]
    plain = " ".join(_HASHES.sub("", body).split())
    return Sentence(plain, start, end) if _LETTER.search(plain) else None


def _merged(parts: list[Sentence]) -> list[Sentence]:
    """Join a single word to the sentence before it; join the first to the sentence after it."""
    groups: list[list[Sentence]] = []
    begun = True  # the last group has a sentence of several words
    for s in parts:
        if groups and (not begun or _single(s.text)):
            groups[-1].append(s)
        else:
            groups.append([s])
        begun = not _single(s.text) or (begun and len(groups[-1]) > 1)
    return [Sentence(" ".join(s.text for s in g), g[0].start, g[-1].end) for g in groups]


def _single(text: str) -> bool:
    return " " not in text and not _UNSPACED.search(text)
