"""Compare names of people, with and without their middle parts.

    name("Dr. Johann S. Bach")                                       ->  ("johann", "s", "bach")
    name("Basketball Player")                                        ->  ()
    joined([{("bach",)}, {("johann", "bach")}])                      ->  [(1, 0)]
    joined([{("bach",)}, {("johann", "bach")}, {("anna", "bach")}])  ->  []   "Bach" is ambiguous

A string only shows that it is written like a name. "Nobel Prize" is recognised as a thing by its
words (`NOT_PEOPLE`, `_THING`), so an unknown thing may be joined with its last word. "John Adams"
and "John Quincy Adams" count as one person, "George W." and "George H. W. Bush" as two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from facttune_ray.text.forms import fold

TITLES = frozenset("dr mr mrs ms miss sir dame prof professor lord lady".split())
YOUNGER = frozenset("jr sr junior senior".split())
NUMERALS = frozenset("ii iii iv vi vii viii ix xi xii xiii xiv xv xvi".split())
PARTICLES = frozenset(
    "van von der den de del della di da dos du la le al el ibn bin ter ten zu".split()
)
# Words of places, institutions, things and professions. Some are also surnames: people with such a
# surname are compared by all their words, which is safe.
NOT_PEOPLE = frozenset(
    "not no non never nothing none yes very many some all left right new old north south east "
    "west northern southern eastern western central upper lower great united world national "
    "royal international saint st san santa los las fort port mount lake cape river sea ocean "
    "bay island islands mountain mountains valley beach park square street avenue road bridge "
    "city town county state states republic kingdom empire union war wars battle treaty act "
    "prize award medal cup league series championship olympics university college school "
    "institute academy museum library hospital church cathedral house hall theatre theater "
    "opera orchestra band club team party company corporation inc ltd press records times "
    "magazine society foundation association department ministry court army navy force player "
    "writer actor actress singer dancer teacher doctor nurse scientist physicist chemist "
    "biologist mathematician engineer artist painter sculptor poet author novelist journalist "
    "composer musician pianist conductor director producer politician president minister "
    "senator governor lawyer judge businessman entrepreneur athlete footballer coach disease "
    "syndrome disorder cancer tumor tumour fever flu attack stroke failure infection injury "
    "pain diabetes virus chemistry medicine music rock jazz pop blues folk metal punk soul dance "
    "ballet sonata symphony concerto quartet novel poem film movie book song album science "
    "sciences art arts law history geometry algebra theory spanish english french german".split()
)
_THING = re.compile(
    r"(?:itis|osis|emia|pathy|ology|ography|onomy|ics|phobia|ism|tion)$"  # a disease, a subject
)

_LETTERS = re.compile(r"[^\W\d_]+")

Name = tuple[str, ...]  # words in order, in lower case


def name(answer: str) -> Name:
    """The words of an answer that is written like a person's name, without titles and leading
    particles; () for any other answer."""
    parts = answer.split()
    if not 1 <= len(parts) <= 8 or not parts[-1][0].isupper():
        return ()
    if not all(p[0].isupper() or p in PARTICLES for p in parts):
        return ()
    main, _, rest = fold(answer).partition(",")
    if rest and rest.strip(" .") not in YOUNGER:  # "London, Ontario"
        return ()
    words = tuple(_LETTERS.findall(f"{main} {rest}"))
    while words and words[0] in TITLES | PARTICLES:
        words = words[1:]
    if len(words) > 6 or len(last(words)) < 2 or any(c.isdigit() for c in answer):
        return ()
    if not NOT_PEOPLE.isdisjoint(words) or _THING.search(last(words)):
        return ()
    return words


def likely_last(answer: str) -> str:
    """`last(name(answer))` if the answer is a name; for another answer any word or "". It is fast;
    the caller reads names only of answers that share this word."""
    word = answer.rpartition(" ")[2]
    if not word[:1].isupper():
        return ""
    if word.isascii() and word.isalpha():
        low = word.lower()
        if low not in YOUNGER and low not in NUMERALS:
            return low
    return last(name(answer))


def core(name: Name) -> tuple[Name, str]:
    """(the name without its suffix, the suffix: "jr", "iii" or "")."""
    if len(name) > 1 and name[-1] in YOUNGER | NUMERALS:
        return name[:-1], {"junior": "jr", "senior": "sr"}.get(name[-1], name[-1])
    return name, ""


def last(name: Name) -> str:
    """The last name, which two names of one person must share; "" for an empty name."""
    return core(name)[0][-1] if name else ""


def same_name(a: Name, b: Name) -> bool:
    """Whether two names may belong to one person.

    The last names must be equal. The first names must be equal, or one is the other's initial, or
    one name is only a last name. Middle parts may be missing, but initials must line up. "Jr." may
    be missing, "II" may not.
    """
    (a, a_end), (b, b_end) = core(a), core(b)
    if a_end != b_end and ((a_end and b_end) or not NUMERALS.isdisjoint({a_end, b_end})):
        return False
    if a[-1] != b[-1]:
        return False
    if len(a) == 1 or len(b) == 1:
        return True
    if not _same_part(a[0], b[0]):
        return False
    short, long = sorted((_middle(a), _middle(b)), key=len)
    if len(short) == len(long):
        return all(map(_same_part, short, long))
    rest = iter(long)
    return all(len(part) > 1 and part in rest for part in short)


def _middle(name: Name) -> list[str]:
    return [part for part in name[1:-1] if part not in PARTICLES]


def _same_part(a: str, b: str) -> bool:
    return a == b or (1 in (len(a), len(b)) and a[0] == b[0])


def joined(groups: Sequence[Set[Name]]) -> list[tuple[int, int]]:
    """Pairs (i, j), j < i, of groups whose names belong to one person. A group: wordings of one
    word set.

    A group that fits two groups which do not fit each other is ambiguous and in no pair. So all
    groups of a connected component fit each other (by induction along a path).
    """
    n = len(groups)
    fits = [[i != j and _all_same(groups[i], groups[j]) for j in range(n)] for i in range(n)]
    near = [[j for j in range(n) if fits[i][j]] for i in range(n)]
    clear = [all(fits[a][b] for a in near[i] for b in near[i] if a < b) for i in range(n)]
    return [(i, j) for i in range(n) for j in near[i] if j < i and clear[i] and clear[j]]


def _all_same(first: Set[Name], second: Set[Name]) -> bool:
    return all(same_name(a, b) for a in first for b in second)
