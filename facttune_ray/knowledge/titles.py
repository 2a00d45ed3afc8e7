"""Match titles of one article that are written differently.

key("Jean_Daulle")         ->  "jean daulle"       so is key("Jean Daullé")
base("John Smith (actor)") ->  "John Smith"        None for a title without "(…)"
"""

from __future__ import annotations

import re
import unicodedata

# letters that Unicode does not decompose, and punctuation that people type differently
_PLAIN = str.maketrans(
    {
        **{"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ŋ": "n", "ŧ": "t"},
        **{"æ": "ae", "œ": "oe", "þ": "th"},
        **{"‘": "'", "’": "'", "ʼ": "'", "ʻ": "'", "`": "'", "“": '"', "”": '"'},
        **{"‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-"},
    }
)
_BRACKET = re.compile(r"(.*\S)\s*\([^()]*\)", re.DOTALL)


def spaced(title: str) -> str:
    """The title with single blanks for underscores and white space, in composed characters."""
    return unicodedata.normalize("NFC", " ".join(title.replace("_", " ").split()))


def cased(title: str) -> str:
    """`spaced`, case-folded."""
    return spaced(title).casefold()


def key(title: str) -> str:
    """`cased`, without accents, and with plain quotes and dashes."""
    text = cased(title)
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text.translate(_PLAIN))
        plain = "".join(c for c in letters if not unicodedata.combining(c)).casefold()
        text = " ".join(plain.split()) or text
    return text


def base(title: str) -> str | None:
    """The title without its last "(…)"; None without brackets, or without text before them."""
    match = _BRACKET.fullmatch(title.strip().replace("_", " ")) if title.count("(") else None
    return match[1] if match else None


def variants(title: str) -> list[str]:
    """Spellings to look up exactly in a database without table of keys, likeliest first."""
    clean = spaced(title)
    bare = "".join(
        c for c in unicodedata.normalize("NFKD", clean) if not unicodedata.combining(c)
    ).translate(_PLAIN)
    spellings = [title, clean]
    for text in (clean, bare):
        capital = " ".join(w[:1].upper() + w[1:] for w in text.split())
        lowered = " ".join(w[:1].upper() + w[1:].lower() for w in text.split())
        spellings += [text, text[:1].upper() + text[1:], capital, lowered]
    return list(dict.fromkeys(spellings))
