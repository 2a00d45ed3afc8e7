"""A sampled answer -> what it says, apart from how it is written.

    form("2nd of Jun. 1,955")     ->  ("1955 2 june", ())
    form("2 June 1955")           ->  the same
    form("Dr. Johann S. Bach")    ->  ("bach dr johann s", ("johann", "s", "bach"))
    form("...")                   ->  ("", ())

The key is the sorted set of the words, in lower case, without accents, articles, punctuation,
hyphens, possessive and plural s and a leading preposition, numbers and dates in one form. What
changes the meaning stays: "not married", "955" beside "1955", "player" beside "basketball player".
"""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

ARTICLES = {"a", "an", "the"}
LEADING = {"in", "on", "at", "as", "by", "from", "to", "of", "with"}
TITLES = {"dr", "mr", "mrs", "ms", "miss", "sir", "prof", "professor"}
SUFFIXES = {"jr", "sr", "junior", "senior", "ii", "iii", "iv"}
PARTICLES = {"van", "von", "der", "den", "de", "del", "della", "di", "da", "dos", "du", "la", "le"}
PARTICLES |= {"al", "el", "ibn", "bin", "ter", "ten", "zu", "y", "e"}

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_ONES += " fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh"
_ORDINALS += " twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
NUMBERS = {word: n for n, word in enumerate(_ONES.split())}
NUMBERS |= {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
ORDINALS = {word: f"{n}th" for n, word in enumerate(_ORDINALS.split())}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
MONTHS = "january february march april may june july august september october november december"
_MONTH = {name[:3]: name for name in MONTHS.split()}
_MONTH_WORDS = {*MONTHS.split(), *_MONTH, "sept"}
_SIGNS = {"%": " percent ", "$": " dollar ", "€": " euro ", "£": " pound ", "&": " and "}

_TOKEN = re.compile(r"(?:(?<![\w-])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th|s)?(?![^\W_])|\w+")
_NUMBER = re.compile(r"(-?)([\d,]+)(\.\d+)?(st|nd|rd|th|s)?")
_ISO = re.compile(r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b")
_DAY = re.compile(r"\d+th")
_LETTERS = re.compile(r"[^\W\d_]+")
_OUTSIDE = " \t\r\n.,;:!?\"'*()<>[]_`"
_LEAD = f"^(?i:(?:(?:{'|'.join(sorted(ARTICLES | LEADING))})[ ]+)+)"
_YES_NO = re.compile(
    r"\W*(yes|no)\b\s*(?:[,.!;:]|$|(?:it|they|he|she|there|this|that|you|we|i|not)\b)"
)


Name = tuple[str, ...]  # words of what looks like a name of two to six parts; () otherwise
Form = tuple[str, Name]  # two answers of equal key say the same


def trimmed(texts: pa.Array) -> pa.Array:
    """The texts without what no form looks at, many at once, so that fewer are left to read."""
    texts = pc.utf8_trim(texts, _OUTSIDE)
    return pc.replace_substring_regex(texts, _LEAD, "")


def form(answer: str) -> Form:
    """The form of a trimmed answer."""
    plain = answer.isascii() and answer.replace(" ", "").isalnum()
    text = answer.lower() if plain else fold(answer)
    words = normal_words(text, plain)
    key = " ".join(sorted(set(words))) if len(words) > 1 else words[0] if words else ""
    if key and " " in answer and answer[0].isupper():
        return key, _name(answer, text)
    return key, ()


def normal_words(text: str, plain: bool = False) -> list[str]:
    """The words of a folded text that its key holds, in their order, repeats included.

    `plain`: it holds ASCII letters, digits and spaces alone."""
    if text[:1] in "ny\"'(" and (found := _YES_NO.match(text)):
        return [found[1]]
    if plain:
        tokens = text.split()
        digits = not text.replace(" ", "").isalpha()
    else:
        if "-" in text:
            text = _ISO.sub(lambda m: _iso(*m.groups()), text)
        tokens = _TOKEN.findall(text)
        digits = True
    if len(tokens) > 1:
        if not ARTICLES.isdisjoint(tokens):
            tokens = [w for w in tokens[:-1] if w not in ARTICLES] + tokens[-1:]
        while len(tokens) > 1 and tokens[-1] in ("and", "or"):
            tokens.pop()
        while len(tokens) > 1 and tokens[0] in LEADING:
            tokens = tokens[1:]
    if digits or not _NUMERIC.isdisjoint(tokens):
        tokens = _numbers(tokens)
    if not _MONTH_WORDS.isdisjoint(tokens):
        tokens = _dates(tokens)
    return [singular(w) if w[-1] == "s" else w for w in tokens]


def fold(text: str) -> str:
    """Lower case without accents, possessive s, apostrophes, and with signs as words."""
    if not text.isascii():
        text = text.replace("\u2019", "'").replace("\u2212", "-")
        split = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(c for c in split if not unicodedata.combining(c))
    text = text.lower()
    if "'" in text:
        text = re.sub(r"'s\b", "", text).replace("'", "")
    for sign, word in _SIGNS.items():
        if sign in text:
            text = text.replace(sign, word)
    return text


def singular(word: str) -> str:
    """A plural's singular by its ending; short words and numbers stay as they are."""
    if len(word) <= 3 or word[-1] != "s" or word.endswith(("ss", "us", "is")):
        return word
    if word[0].isdigit():
        return word
    return word[:-3] + "y" if len(word) > 4 and word.endswith("ies") else word[:-1]


_NUMERIC = NUMBERS.keys() | ORDINALS.keys()


def _numbers(tokens: list[str]) -> list[str]:
    """Numbers in digits: "twenty five" as 25, "one thousand" and "1,000" as 1000, "1st" as 1th."""
    out: list[str] = []
    at = 0
    while at < len(tokens):
        word = tokens[at]
        at += 1
        if word in ORDINALS:
            out.append(ORDINALS[word])
            continue
        value = _value(word)
        if value is None:
            found = _NUMBER.fullmatch(word)
            out.append(f"{found[1]}{_plain(found[2])}{_ending(found[4])}" if found else word)
            continue
        if word in NUMBERS and value >= 20 and at < len(tokens):
            ones = NUMBERS.get(tokens[at], 0)
            if 0 < ones < 10:
                value, at = value + ones, at + 1
        while at < len(tokens) and tokens[at] in SCALES:
            value, at = value * SCALES[tokens[at]], at + 1
        out.append(f"{value:.10g}" if value % 1 else str(int(value)))
    return out


def _value(word: str) -> float | int | None:
    if word in NUMBERS:
        return NUMBERS[word]
    found = _NUMBER.fullmatch(word)
    if not found or found[4]:
        return None
    whole = int(found[1] + found[2].replace(",", ""))
    return float(f"{whole}{found[3]}") if found[3] else whole


def _plain(digits: str) -> str:
    return str(int(digits.replace(",", "")))


def _ending(suffix: str | None) -> str:
    """A decade keeps its s; all ordinals end alike."""
    return "" if not suffix else "s" if suffix == "s" else "th"


def _dates(tokens: list[str]) -> list[str]:
    """Months in full and, beside one, the day as a plain number."""
    out = []
    for word in tokens:
        if word in _MONTH_WORDS:
            out.append(_MONTH[word[:3]])
        elif _DAY.fullmatch(word):
            out.append(word[:-2])
        elif word != "of":
            out.append(word)
    return out


def _iso(year: str, month: str, day: str) -> str:
    if not 1 <= int(month) <= 12:
        return f"{year} {month} {day}"
    return f"{int(day)} {MONTHS.split()[int(month) - 1]} {year}"


# ---------------------------------------------------------------- names


def _name(answer: str, text: str) -> Name:
    parts = answer.split()
    if not 2 <= len(parts) <= 8 or not parts[-1][0].isupper() or any(c.isdigit() for c in answer):
        return ()
    if not all(p[0].isupper() or p in PARTICLES for p in parts):
        return ()
    found = _LETTERS.findall(text)
    while found and found[0] in TITLES:
        found = found[1:]
    return tuple(found) if 2 <= len(found) <= 6 else ()


def same_name(a: Name, b: Name) -> bool:
    """Whether two names may be one person's: the same last name, first names that are equal or one
    the other's initial, and the middle parts of one among those of the other, in order."""
    (a, a_suffix), (b, b_suffix) = _without_suffix(a), _without_suffix(b)
    if a_suffix and b_suffix and a_suffix != b_suffix:
        return False
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-1] or not _same_part(a[0], b[0]):
        return False
    short, long = sorted((a[1:-1], b[1:-1]), key=len)
    rest = iter(long)
    return all(any(_same_part(part, other) for other in rest) for part in short)


def _same_part(a: str, b: str) -> bool:
    return a == b or (1 in (len(a), len(b)) and a[0] == b[0])


def _without_suffix(name: Name) -> tuple[Name, str]:
    return (name[:-1], name[-1]) if name[-1] in SUFFIXES else (name, "")


def last_name(name: Name) -> str:
    """What two names must share to be one person's."""
    return _without_suffix(name)[0][-1] if len(name) > 1 else ""
