"""Give words of like meaning one form, and say which roles include others, for `lexical`.

    meaning("bordering") == meaning("neighbours") == "border"
    meaning("boxer") in NARROWER[meaning("athlete")]         a boxer is an athlete

`words.stem` serves the search, too; this file adds families that only a verdict may use. Both
tables hold general English and nothing about any single person or place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from facttune_ray.text.words import families, rows, stem

# One line per family, continued on indented lines; its first word is the meaning of all.
_FAMILIES = """
west western westerly
east eastern easterly
north northern northerly
south southern southerly
border borders bordered bordering neighbour neighbours neighbor neighbors neighbouring neighboring
  adjoin adjoins adjoining adjacent
locate located location locations lies situated situate situates
currency currencies monetary
language languages speak speaks spoke spoken speaking speaker speakers
capital capitals
member members membership belong belongs belonged belonging
receive receives received receiving recipient recipients earn earns earned earning obtain obtained
  obtains gain gained gains garner garnered
attend attended attending attends enroll enrolled alumnus alumna alumni
collaborate collaborated collaborates collaborating collaboration collaborations collaborator
execute executed execution executions
create created creates creating creation creations creator creators creative creativity
donate donated donation donations donor
oppose opposed opposes opposition opponent opponents
represent represented represents representing representative representatives representation
reside resides resided resident residents live lives lived living home
raise raised raises upbringing
defeat defeated defeats beat beats beaten
release released releases releasing
piano pianist pianists
drum drums drummer drummers
photograph photographs photographed photographer photographers photography photo photos
sculpt sculpted sculpting sculptor sculptors sculpture sculptures
investigate investigated investigating investigation investigations investigative investigator
various several numerous multiple many
skill skills skilled ability abilities talent talents talented
divorce divorced divorces separated separation
emigrate emigrated immigrate immigrated immigrant immigrants immigration
rap raps rapped rapping rapper rappers
host hosts hosted hosting presenter presenters presented
own owns owned owner owners
employ employs employed employee employees employment
sell sells sold selling seller sales
reign reigned reigns ruled ruler rulers
inherit inherited inheritance
surgery surgeon surgeons surgical
accuse accused accuses accusation accusations allegation allegations alleged
sentence sentenced convicted conviction convict
attack attacked attacks assault assaulted
participate participated participates participating participation participant
"""

# A role, and narrower roles that a verdict may use as evidence of it.
_ROLES = """
writer novelist poet playwright essayist screenwriter dramatist biographer columnist lyricist
  journalist blogger memoirist
musician singer guitarist drummer pianist bassist violinist cellist rapper composer songwriter
  saxophonist trumpeter organist vocalist flautist harpist conductor keyboardist
artist painter sculptor cartoonist illustrator photographer musician singer rapper engraver
  printmaker
entertainer singer actor comedian dancer actress
performer singer actor comedian dancer actress
athlete player footballer boxer sprinter swimmer cyclist wrestler gymnast cricketer golfer runner
  skier skater rower jumper pitcher fighter racer quarterback goalkeeper midfielder defender
  striker
sportsman player footballer boxer cricketer golfer swimmer cyclist
sportswoman player footballer boxer cricketer golfer swimmer cyclist
player footballer cricketer golfer goalkeeper midfielder defender striker quarterback pitcher
  batsman bowler linebacker receiver
footballer goalkeeper midfielder defender striker
politician senator minister president governor mayor congressman congresswoman parliamentarian
  legislator councillor chancellor premier
statesman minister president chancellor premier
scientist physicist chemist biologist astronomer geologist zoologist botanist mathematician
  psychologist neuroscientist archaeologist anthropologist
academic professor lecturer scholar historian philosopher linguist
scholar historian philosopher linguist theologian
diplomat ambassador consul envoy
soldier sniper general colonel captain lieutenant sergeant commander infantryman
official minister governor ambassador commissioner
filmmaker director producer screenwriter
businessperson businessman businesswoman entrepreneur executive industrialist
cleric pope bishop priest imam rabbi
doctor physician surgeon cardiologist neurologist psychiatrist pediatrician
lawyer solicitor judge
monarch king queen emperor empress
ruler king queen emperor empress pharaoh sultan
"""


_FAMILY = families(_FAMILIES)


@functools.lru_cache(maxsize=100_000)
def meaning(word: str) -> str:
    """The common form of a lower-case word and of all words of its family."""
    return _FAMILY.get(word) or stem(word)


def meanings(words: Sequence[str]) -> list[str]:
    """The meaning of each word and mark of a sentence."""
    return [meaning(word.lower()) for word in words]


def _narrower() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for broad, *narrow in rows(_ROLES):
        table.setdefault(meaning(broad), set()).update(map(meaning, narrow))
    return {broad: frozenset(narrow - {broad}) for broad, narrow in table.items()}


NARROWER = _narrower()  # meaning of a role -> meanings of roles that it includes
# The nouns themselves: "lead" and "play" have the meanings of roles and are none.
ROLES = frozenset(broad for broad, *_ in rows(_ROLES))
