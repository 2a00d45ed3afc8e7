"""Names of people with and without their middle parts.

    name("Dr. Johann S. Bach")                                       ->  ("johann", "s", "bach")
    name("Basketball Player")                                        ->  ()
    joined([{("bach",)}, {("johann", "bach")}])                      ->  [(1, 0)]
    joined([{("bach",)}, {("johann", "bach")}, {("anna", "bach")}])  ->  []   whose "Bach"?

A string shows only that something is written like a name: "Nobel Prize" is told from one by its
words alone (`NOT_PEOPLE`, `_THING`), so a thing that neither knows may join its last word. "John
Adams" and "John Quincy Adams" count as one person, "George W." and "George H. W. Bush" as two.
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
# words of places, institutions, things and callings; one that is a surname too is no loss: its
# bearers are then compared by all their words
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
    """Of an answer that is written like a person's name: its words, without titles and a particle
    that leads; () of any other."""
    parts = answer.split()
    if not 1 <= len(parts) <= 8 or not parts[-1][0].isupper():
        return ()
    if not all(p[0].isupper() or p in PARTICLES for p in parts):
        return ()
    main, _, rest = fold(answer).partition(",")
    if rest and rest.strip(" .") not in YOUNGER:  # "London, Ontario"
        return ()
    found = _LETTERS.findall(f"{main} {rest}")
    while found and found[0] in TITLES | PARTICLES:
        found = found[1:]
    if len(found) > 6 or len(last(tuple(found))) < 2 or any(c.isdigit() for c in answer):
        return ()
    if not NOT_PEOPLE.isdisjoint(found) or _THING.search(last(tuple(found))):
        return ()
    return tuple(found)


def likely_last(answer: str) -> str:
    """`last(name(answer))`, or some word or "" where that is ""; quick, and a name is read only
    where two share it."""
    word = answer.rpartition(" ")[2]
    if not word[:1].isupper():
        return ""
    if word.isascii() and word.isalpha():
        low = word.lower()
        if low not in YOUNGER and low not in NUMERALS:
            return low
    return last(name(answer))


def core(name: Name) -> tuple[Name, str]:
    """The name without what follows the last name ("jr", "iii"), and that."""
    if len(name) > 1 and name[-1] in YOUNGER | NUMERALS:
        return name[:-1], {"junior": "jr", "senior": "sr"}.get(name[-1], name[-1])
    return name, ""


def last(name: Name) -> str:
    """What two names must share to be one person's; "" of no name."""
    return core(name)[0][-1] if name else ""


def same_name(a: Name, b: Name) -> bool:
    """Whether two names may be one person's.

    The last names are equal, and so are the first ones, or one is the other's initial, or one is
    left out with all before the last. Middle parts may be left out, but initials line up. "Jr."
    may be left out, "II" may not.
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
    """Pairs of groups whose names are one person's; a group: wordings of one word set.

    A group that fits two others which do not fit each other is ambiguous and in no pair. So all
    groups of a component fit each other: by induction along a path, whose inner groups are in
    pairs.
    """
    n = len(groups)
    fits = [[i != j and _all_same(groups[i], groups[j]) for j in range(n)] for i in range(n)]
    near = [[j for j in range(n) if fits[i][j]] for i in range(n)]
    clear = [all(fits[a][b] for a in near[i] for b in near[i] if a < b) for i in range(n)]
    return [(i, j) for i in range(n) for j in near[i] if j < i and clear[i] and clear[j]]


def _all_same(first: Set[Name], second: Set[Name]) -> bool:
    return all(same_name(a, b) for a in first for b in second)
