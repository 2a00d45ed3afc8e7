"""Find fragments: texts that look like facts and state nothing ("She moved to the.").

is_fragment("Ada Vane was born.")        ->  True
is_fragment("Ada Vane was born in May.") ->  False
"""

from __future__ import annotations

from facttune_ray.text.clauses import ARTICLES
from facttune_ray.text.relations import (
    DETERMINERS,
    PREPOSITIONS,
    PRONOUNS,
    Clause,
    read,
    split_words,
)
from facttune_ray.text.verbs import AUXILIARIES, KNOWN, is_finite

# A sentence may end on one of these words: "lives on", "ever since", "honoured her".
_MAY_END = frozenset("like near over under since before after on around her his".split())
# A fact that ends on one of these words is cut off.
_OPEN_END = (
    ((PREPOSITIONS | DETERMINERS) - _MAY_END)
    | AUXILIARIES
    | frozenset("and or but nor be been being who which whose than".split())
)
# An article needs a noun before one of these words: "the of" is cut off.
_NEED_NOUN = frozenset(ARTICLES) | {"his", "their", "its"}
_NO_NOUNS = PREPOSITIONS - frozenset("like near over under since before after as".split())
_NO_NOUNS |= frozenset("which who whose and or but is was are were has had have".split())


def is_fragment(fact: str, has_verb: bool = False) -> bool:
    """Whether the text states nothing. `has_verb`: a parse has shown its verb."""
    words = split_words(fact)
    clause = next((c for c in read(words, frozenset()) if c.verb), None)
    return unfinished(words, clause, has_verb) is not None


def unfinished(words: list[str], clause: Clause | None, has_verb: bool = False) -> str | None:
    """Why the words (`relations.split_words`) are no complete statement; None if they are one.
    `clause`: their first clause with a verb."""
    low = [w.lower() for w in words if w[0].isalnum() or w == "'s"]
    if not low:
        return "a fragment: no words"
    if low[-1] in _OPEN_END and not {"which", "that", "who"} & set(low[:-1]):
        return f'a fragment: it ends on "{low[-1]}"'
    for word, after in zip(words, words[1:], strict=False):
        if word in _NEED_NOUN and after in _NO_NOUNS:
            return f'a fragment: "{word} {after}" lacks a noun'
    if clause and clause.verb == "born" and low[-1] == "born":
        return "a fragment: born, without a place or time"
    has_verb = has_verb or clause is not None
    if not has_verb and not any(w in KNOWN or is_finite(w) for w in low):
        follows = zip(words, words[1:], strict=False)
        # "Ada skydives": a verb that no list knows
        if not any(_may_be_verb(w) and (b[0].isupper() or b in PRONOUNS) for b, w in follows):
            return "a fragment: no verb"
    return None


def _may_be_verb(word: str) -> bool:
    return word.islower() and word.endswith(("s", "ed"))
