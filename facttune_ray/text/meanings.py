"""Words of like meaning, for the lexical verifier: families of words, and roles in broader roles.

    meaning("bordering") == meaning("neighbours") == "border"
    "athlet" in BROADER["boxer"]         a boxer is an athlete

`words.stem` serves the search, too; this file adds families that only a verdict may use. Both
tables hold general English and nothing about any single person or place.
"""

from __future__ import annotations

import functools

from facttune_ray.text.words import stem

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
debut debuts debuted debuting
execute executed execution executions
arrest arrested arrests
create created creates creating creation creations creator creators
donate donated donation donations donor
support supports supported supporting supporter supporters
oppose opposed opposes opposition opponent opponents
represent represented represents representing representative representatives representation
reside resides resided resident residents live lives lived living home
raise raised raises upbringing
appoint appointed appoints appointment appointments
resign resigned resigns resignation
defeat defeated defeats beat beats beaten
release released releases releasing
novel novels novelist novelists
guitar guitars guitarist guitarists
piano pianist pianists
drum drums drummer drummers
violin violins violinist violinists
bass bassist bassists
photograph photographs photographed photographer photographers photography photo photos
cartoon cartoons cartoonist cartoonists
sculpt sculpted sculpting sculptor sculptors sculpture sculptures
investigate investigated investigating investigation investigations investigative investigator
tour tours toured touring
train trained training trainer
sign signs signed signing
various several numerous multiple many
skill skills skilled ability abilities talent talents talented
create creative creativity
divorce divorced divorces separated separation
emigrate emigrated immigrate immigrated immigrant immigrants immigration
conduct conducts conducted conductor conductors
edit edits edited editing editor editors
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
choreograph choreographed choreographer choreography
participate participated participates participating participation participant
"""

# "broader: narrower ..." for roles. A verdict may use a narrower role as evidence of the broader.
_ROLES = """
writer: novelist poet playwright essayist screenwriter dramatist biographer columnist lyricist
  journalist blogger memoirist author
author: novelist essayist playwright biographer
musician: singer guitarist drummer pianist bassist violinist cellist rapper composer songwriter
  saxophonist trumpeter organist vocalist flautist harpist conductor keyboardist
artist: painter sculptor cartoonist illustrator photographer musician singer rapper engraver
  printmaker
entertainer: singer actor comedian dancer actress
performer: singer actor comedian dancer actress
athlete: player footballer boxer sprinter swimmer cyclist wrestler gymnast cricketer golfer runner
  skier skater rower jumper pitcher fighter racer quarterback goalkeeper midfielder defender
  striker
sportsman: player footballer boxer cricketer golfer swimmer cyclist
sportswoman: player footballer boxer cricketer golfer swimmer cyclist
player: footballer cricketer golfer goalkeeper midfielder defender striker quarterback pitcher
  batsman bowler linebacker receiver
footballer: goalkeeper midfielder defender striker
politician: senator minister president governor mayor congressman congresswoman parliamentarian
  legislator councillor chancellor premier
statesman: minister president chancellor premier
scientist: physicist chemist biologist astronomer geologist zoologist botanist mathematician
  psychologist neuroscientist archaeologist anthropologist
academic: professor lecturer scholar historian philosopher linguist
scholar: historian philosopher linguist theologian
educator: teacher professor lecturer
diplomat: ambassador consul envoy
soldier: sniper general colonel captain lieutenant sergeant commander infantryman
official: minister governor ambassador commissioner
filmmaker: director producer screenwriter
businessperson: businessman businesswoman entrepreneur executive industrialist
religious leader: pope bishop priest imam rabbi pastor
cleric: bishop priest imam rabbi pastor
doctor: physician surgeon cardiologist neurologist psychiatrist pediatrician
lawyer: attorney barrister solicitor judge
monarch: king queen emperor empress
ruler: king queen emperor empress pharaoh sultan
"""


def _families() -> dict[str, str]:
    rows = [line.split() for line in _FAMILIES.replace("\n  ", " ").strip().splitlines()]
    return {word: row[0] for row in rows for word in row}


_FAMILY = _families()


@functools.lru_cache(maxsize=100_000)
def meaning(word: str) -> str:
    """The common form of a lower-case word and of all words of its family."""
    return _FAMILY.get(word) or stem(word)


def _narrower() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for line in _ROLES.replace("\n  ", " ").strip().splitlines():
        broad, _, narrow = line.partition(": ")
        table.setdefault(meaning(broad.split()[-1]), set()).update(map(meaning, narrow.split()))
    return {broad: frozenset(narrow - {broad}) for broad, narrow in table.items()}


NARROWER = _narrower()  # meaning of a role -> meanings of roles that it includes
