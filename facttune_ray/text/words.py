"""Stem words for the lexical verifier and for search: words of like meaning get one stem.

    stems("Her 12 poems won a prize on May 5, 1987.")
        ->  ["her", "12", "poem", "win", "a", "award", "on", "may", "d5may", "1987"]

Rules handle inflection. Word families and phrases are literal tables of the general English of
biographies; they hold nothing about any single person. A day of a month is one word, so that
"May 5" equals "5 May" and differs from "March 5".
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from facttune_ray.text.quantities import MONTHS, NUMBERS
from facttune_ray.text.verbs import base

# One line per word family; its first word is the stem of all.
_FAMILIES = """
born birth births birthplace
die died dies dying death deaths dead deceased
marry married marries marriage marriages wife husband spouse wed wedding
child children son sons daughter daughters kid kids
parent parents father mother
sibling siblings brother brothers sister sisters
film films movie movies cinema
television tv televised
show shows series program programs programme programmes sitcom
act acts acted acting actor actors actress actresses
appear appears appeared appearing appearance appearances star stars starred starring cast role roles
play plays played playing player players portray portrays portrayed portraying portrayal
sing sings sang sung singing singer singers vocal vocals vocalist vocalists
song songs single singles track tracks
album albums record records lp
music musical musically musician musicians
write writes wrote written writing writings writer writers author authors authored
poem poems poet poets poetry poetic verse
produce produces produced producing producer producers production productions
direct directs directed directing director directors
compose composes composed composing composer composers composition compositions
publish publishes published publishing publisher publication publications
perform performs performed performing performer performance performances
award awards awarded prize prizes honor honors honored honour honours honoured accolade accolades
win wins won winning winner winners victory victories
champion champions championship championships
compete competes competed competing competition competitions competitor
study studies studied studying student students
educate educated education educational
graduate graduated graduates graduating graduation
university universities college colleges
teach teaches taught teaching teacher teachers professor professors lecturer instructor
research researcher researchers researching researched
science sciences scientific scientist scientists
elect elects elected election elections reelected
law laws lawyer lawyers legal attorney barrister
politics political politically politician politicians
economy economic economics economist economists
lead leads led leading leader leaders leadership head headed
found founds founded founding founder founders cofounder cofounded establish established
company companies firm firms corporation
business businesses businessman businesswoman entrepreneur entrepreneurs entrepreneurial
famous fame popular popularity prominent prominence renowned wellknown celebrated notable
influence influences influenced influential impact
critic critics critical critically criticism acclaim acclaimed review reviews praised praise
success successes successful successfully
advocate advocates advocated advocating advocacy activist activists activism campaigner
charity charitable charities philanthropy philanthropic philanthropist humanitarian
controversy controversies controversial scandal scandals
kill kills killed killing murder murders murdered assassinate assassinated assassination
prison imprisoned imprisonment jail jailed incarcerated
team teams club clubs squad side
football soccer footballer footballers
coach coaches coached coaching manager managers
score scores scored scoring scorer
paint paints painted painting paintings painter
dance dances danced dancing dancer dancers
model models modeled modelled modeling modelling
relationship dating dated boyfriend girlfriend
age aged ages
nation nations national nationally country
family families relatives
begin begins began begun beginning start starts started starting
join joins joined joining
move moves moved moving relocate relocated
retire retires retired retiring retirement
injury injured injuries
theater theatre theatrical
serve serves served serving service
military soldier soldiers army
box boxes boxed boxing boxer
swim swims swam swimming swimmer
design designs designed designer designing
comedy comedic comedian comedians comedienne
journalism journalist journalists journalistic reporter
religion religious
engineer engineers engineering
philosophy philosopher philosophical
history historian historical historic
medicine medical physician doctor
art arts artist artists artistic
invent invents invented inventor invention inventions
discover discovers discovered discovery discoveries
develop develops developed developing developer development
govern government governor
preside president presidential presidency
minister ministers ministry ministerial
diplomat diplomats diplomatic diplomacy
translate translates translated translating translator translation translations
explore explores explored explorer exploration expedition
climb climbs climbed climbing climber mountaineer mountaineering
race races raced racing racer
contribute contributes contributed contributing contribution contributions
recognize recognized recognised recognition
nominate nominated nomination nominations nominee
"""


_PHRASES = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\bUnited States(?: of America)?\b|\bU\.\s?S\.(?: ?A\.)?|\bUS\b", " USA "),
        (r"\bUnited Kingdom\b|\bU\.K\.", " UK "),
        (r"\bPh\. ?D\.?", " PhD "),
        (r"\bWorld War (?:II|Two)\b|\bSecond World War\b", "World War 2"),
        (r"\bWorld War (?:I|One)\b|\bFirst World War\b", "World War 1"),
        (r"\b[Pp]ass(?:ed|es) away\b", "died"),
        (r"\b[Gg]rew up\b", "raised"),
        (r"\b([Cc])o-(?=[a-z])", r"\1o"),
        (r"\b([Rr])e-(?=elect)", r"\1e"),
        (r"\b([Ww])ell-known\b", r"\1ellknown"),
    )
)
_ANY_PHRASE = re.compile("|".join(f"(?:{p.pattern})" for p, _ in _PHRASES))
_MONTH = "|".join(MONTHS).title()
_DATE = re.compile(
    rf"\b(?:(\d\d?)(?:st|nd|rd|th)?(?: of)? ({_MONTH})|({_MONTH}) (\d\d?)(?:st|nd|rd|th)?)\b"
)
_ENDINGS = (
    *("ations", "ation", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "ers", "ors", "er"),
    *("or", "ians", "ian", "an", "ists", "ist", "ism", "ment", "al", "ic", "e", "y"),
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_TOKEN = re.compile(r"d\d\d?[a-z]{3}\b|\d{3}0s\b|\d[\d,]*\d|\d|[^\W\d_]+")


def rows(table: str) -> list[list[str]]:
    """The words of each row of a literal table; an indented line continues its row."""
    return [line.split() for line in table.replace("\n  ", " ").strip().splitlines()]


def families(table: str) -> dict[str, str]:
    """Word -> first word of its row."""
    return {word: row[0] for row in rows(table) for word in row}


# Not "one", which is also a pronoun, and no ordinals: "third" is not "three".
FAMILY = families(_FAMILIES) | {word: str(n) for word, n in NUMBERS.items() if 2 <= n <= 12}


@functools.lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of a lower-case word: its family's first word, else its infinitive without a common
    ending, if at least four letters remain."""
    if any(map(str.isdigit, word)):
        return word
    root = base(word)
    family = FAMILY.get(word) or FAMILY.get(root)
    if family:
        return family
    for ending in _ENDINGS:
        if root.endswith(ending) and len(root) - len(ending) >= 4:
            return root[: -len(ending)]
    return root


def plain(text: str) -> str:
    """The text without accents. A phrase with a one-word synonym becomes that word; a day of a
    month becomes "May d5may"."""
    if not text.isascii():
        text = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
        text = unicodedata.normalize("NFC", text)
    if _ANY_PHRASE.search(text):
        for pattern, short in _PHRASES:
            text = pattern.sub(short, text)
    return _DATE.sub(_day, text)


def tokens(text: str) -> list[str]:
    """Words and numbers of the plain text in order, in their case, without thousands commas."""
    return [t.replace(",", "") for t in _TOKEN.findall(plain(text))]


def _day(match: re.Match[str]) -> str:
    day, month = match[1] or match[4], match[2] or match[3]
    return f"{month} d{int(day)}{month[:3].lower()}"


def stems(text: str) -> list[str]:
    """The stems of all words, in order."""
    return [stem(t.lower()) for t in tokens(text)]


def rarity_of(texts: Iterable[str]) -> Callable[[str], float]:
    """Inverse document frequency over `texts`: ln((n + 1) / (texts with the stem + 1))."""
    texts_with: Counter[str] = Counter()
    n = 0
    for text in texts:
        n += 1
        texts_with.update(set(stems(text)))
    return lambda stem: math.log((n + 1) / (texts_with[stem] + 1))
