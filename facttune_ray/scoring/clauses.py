"""One English sentence -> the facts it states, clause by clause: `decompose.rule_facts` at work.

    split("She was a writer and mathematician who lived in London.", "Ada Lovelace")
        ->  ["She was a writer", "She was a mathematician", "She lived in London"]

    sentence -> clauses with their own subject -> predicates -> relative and participle clauses
    -> lists. What is quoted, bracketed or a date is masked as one word first.

The rules know no word classes but those of `verbs` and a few closed lists: where they are not
sure they leave a clause whole, so that a fact says what the sentence says, at worst too much of
it at once.
"""

from __future__ import annotations

import re

from facttune_ray.scoring.verbs import (
    AUXILIARIES,
    BE,
    KNOWN,
    base,
    is_finite,
    is_past,
    is_present,
    past,
    third,
)

PRONOUNS = {"he", "she", "they", "it"}
POSSESSIVES = {"his", "her", "their", "its"}
_ARTICLES = {"a", "an", "the"}
_COUNTS = set(
    "several many numerous various some two three four five six seven eight nine ten".split()
)
_PREPOSITIONS = set(
    "in on at for with by from to of as into about over under through during since until after "
    "before between against across alongside among within without towards toward around near "
    "including like via upon throughout featuring".split()
)
_ADVERBS = set(
    "also then later first eventually currently now once still never always often soon again both "
    "ultimately notably best well just even only subsequently previously formerly".split()
)
_ADJECTIVE = re.compile(r"[a-z-]+(?:al|ive|ic|ous|ful|less|able|ible|ary|ed|ish)$")
# With a plural before them these are nouns too: "films and shows in London".
_ALSO_NOUNS = set(
    "works plays shows studies records awards tours releases features stars covers designs "
    "reports matches pitches moves films stages scores dances".split()
)
_ALSO_ADJECTIVES = set("organized organised mixed animated related applied advanced".split())
_INTRANSITIVE = set("retired died resigned returned emigrated graduated married lived left".split())
_NOT_ADJECTIVES = set("music critic musical festival executive native capital public".split())
_JOINERS = {"of", "the", "de", "da", "del", "von", "van", "vs", "for", "&"}
_BODIES = set("Foundation Society Association Institute Committee Center Centre Council".split())
# After "was ... and" these are passive as well: "was born in Lyon and raised in Paris".
_ALSO_PASSIVE = set(
    "raised brought educated based buried known nominated inducted considered regarded praised "
    "appointed elected awarded given named honored recognized released influenced trained".split()
)
_MARK = "\ue000"
_CAP = rf"(?:[A-Z0-9{_MARK}\u00c0-\u00de][^\s,]*)"
_CAPS = rf"{_CAP}(?:\s(?:(?:of|the|de|da|del|von|van|for)\s)*{_CAP})*"
_DATE = (
    r"(?:(?:January|February|March|April|May|June|July|August|September|October|November|"
    r"December)\s\d{1,2},\s\d{3,4})"
)
_LIFE = re.compile(
    r"\s\(([^()]*?\d{3,4}(?:\sBC)?)\s?[-\u2013\u2014]\s?([^()]*?\d{3,4}[^()]*)\)"
)
_MASKED = (
    re.compile(
        rf'()("[^"]+"|\u201c[^\u201d]+\u201d|\([^()]*\)|{_DATE}|[A-Z]\w+,\s(?:Jr|Sr)\b\.?|'
        r"Bosnia and Herzegovina|Trinidad and Tobago|Antigua and Barbuda|Jammu and Kashmir)"
    ),
    # "City, Region", but not the list "Paris, London and Rome"
    re.compile(
        rf"(\b(?:in|at|of|to|from|near)\s)((?!\d){_CAPS},\s{_CAPS}(?:,\s{_CAPS})?)"
        rf"(?!\S|,?\s(?:and|or)\s{_CAP}|,\s{_CAP}|\s(?:was|is|has|had|[a-z]+ed)\b)"
    ),
    # "the Ministry of Trade and Industry"
    re.compile(
        r"(\b(?:School|Department|Faculty|Academy|Ministry|Institute|University|Minister|"
        rf"Secretary|Committee)\s)((?:of|for)(?:\sthe)?\s{_CAPS}(?:,\s{_CAPS})*,?\sand\s{_CAPS})"
    ),
)
_CONNECTIVE = re.compile(
    r"^(?:However|Additionally|In addition|Furthermore|Moreover|Also|Overall|Today|Later|Then|"
    r"Finally|Eventually|Subsequently|Meanwhile|Instead|Thus|Therefore|Nevertheless|Nonetheless|"
    r"Unfortunately|Notably|Sadly|(?:In addition to|Apart from|Aside from|Besides|Outside of|"
    r"Beyond|Despite|As well as|Along with|Alongside|Throughout) [^,]+),\s+"
)
_LEAD = re.compile(
    r"((?:In|On|At|During|After|Before|Since|From|By|Until|For|Under|Following|Prior to|Between|"
    r"Around|Upon)\s[^,]+),\s+(?=\S)"
)
_PARTICIPLE_LEAD = re.compile(r"((?:Born|Raised|Educated|Known|Based)\s.+?),\s+(?=\S)")
_VAGUE = re.compile(r" (?:since then|in recent years|at the same time|over the years|after that)$")
_OWN_SUBJECT = re.compile(r"(?:;|,?\s(?:and|but|while|although|whereas|so|where))\s(?=\S)")
_JOINT = re.compile(r",?\s(?:and then|and|but)\s|,\s(?=[a-z])")



def split(text: str, name: str) -> list[str]:
    """Facts of one sentence without its end mark, in order; pronouns are still in place."""
    text, facts = _lifespan(text)
    masked: list[str] = []
    text = _mask(text.replace(", however,", ""), masked, name)
    for clause, lead in _clauses(text, name):
        facts += _clause_facts(clause, lead, name)
    return [_unmask(f, masked) for f in facts]


def _lifespan(text: str) -> tuple[str, list[str]]:
    """"A B (1703-1763) was" -> ("A B was", ["A B was born in 1703", "A B died in 1763"])."""
    if match := _LIFE.search(text):
        who = text[: match.start()]
        if len(who.split()) <= 6:
            text = who + text[match.end() :]
            return text, [f"{who} {verb} {_when(date)}" for verb, date in
                          zip(("was born", "died"), match.groups(), strict=True)]  # fmt: skip
    if match := re.match(r"([^(]{2,60}?) \((?:also )?born ([^()]*?)\)(?= )", text):
        born = match[2] if match[2].startswith(("in ", "on ", "as ")) else _when(match[2])
        return match[1] + text[match.end() :], [f"{match[1]} was born {born}"]
    return text, []


def _when(date: str) -> str:
    """"1703" -> "in 1703"; "May 3, 1703" -> "on May 3, 1703"."""
    date = re.sub(r"^(?:born|died|in|on)\s", "", date.strip())
    day = re.search(r"[A-Za-z]{3,} \d{1,2}\b|\b\d{1,2} [A-Z]", date)
    return f"{'on' if day else 'in'} {date}"


def _mask(text: str, masked: list[str], name: str) -> str:
    """Quotations, brackets, dates with a comma and "City, Region" become one word each."""

    def keep(match: re.Match[str]) -> str:
        whole, comma = match[2], ""
        if match[1] and set(name.split()) & set(whole.replace(",", " ").split()[1:]):
            return match[0]  # "At Real Madrid, Ronaldo ..." is no place
        if whole[0] in '"\u201c' and whole[-2] in ",.":  # American style: "Title," -> "Title",
            whole, comma = whole[:-2] + whole[-1], whole[-2].replace(".", "")
        masked.append(whole)
        return f"{match[1]}{_MARK}{len(masked) - 1}{_MARK}{comma}"

    for pattern in _MASKED:
        text = pattern.sub(keep, text)
    return text


def _unmask(text: str, masked: list[str]) -> str:
    pattern = re.compile(f"{_MARK}(\\d+){_MARK}")
    while _MARK in text:
        text = pattern.sub(lambda m: masked[int(m[1])], text)
    return text


def _clauses(text: str, name: str) -> list[tuple[str, str]]:
    """(clause with a subject of its own, phrase that led it: " in 2018" or "")."""
    text = _CONNECTIVE.sub("", text, count=1)
    out: list[tuple[str, str]] = []
    if match := _PARTICIPLE_LEAD.match(text):
        text = text[match.end() :]
        out.append((f"{name} was {match[1][0].lower()}{match[1][1:]}", ""))
    lead = ""
    if (match := _LEAD.match(text)) and _verb_at(text[match.end() :].split(), name) is not None:
        text, lead = text[match.end() :], f" {match[1][0].lower()}{match[1][1:]}"
        lead = "" if _VAGUE.match(lead) else lead
    start = 0
    for match in _OWN_SUBJECT.finditer(text):
        rest = text[match.end() :].split()
        before = text[start : match.start()].split()
        own = rest[0].lower() in PRONOUNS | POSSESSIVES or name_length(rest, name)
        at, verb = _verb_at(before, name), _verb_at(rest, name) if own else None
        if at and verb and verb <= 5:
            out.append((" ".join(before), lead))
            if rest[0] == "it":  # what the clause before is about, not the topic
                text = f"{text[: match.end()]}{' '.join(before[:at])}{text[match.end() + 2 :]}"
                return [*out, *_clauses(text[match.end() :], name)]
            start, lead = match.end(), ""
    return [*out, (text[start:], lead)]


def name_length(words: list[str], name: str) -> int:
    """How many leading words are the topic's name, or its first or last part; 0 if none.

    "Liam James Payne" is Liam Payne; "Wendy Shon" is not taken for Wendy.
    """
    parts = name.lower().split()
    bare = [w.strip(",").lower() for w in words[: len(parts) + 3]]
    for part in (parts, parts[-1:], parts[:1], parts[1:]):
        if not part or bare[: len(part)] != part:
            continue
        end = len(part)
        if end == len(words) or words[end - 1].endswith(",") or not words[end][0].isupper():
            return end
        if part == parts[:1] and parts[-1] in bare[end:]:
            return bare.index(parts[-1], end) + 1
    return 0


def _verb_at(words: list[str], name: str) -> int | None:
    """Index of the clause's finite verb (adverbs before it skipped); None when none is found."""
    bare = [w.strip(",").lower() for w in words]
    if not words:
        return None
    at = 1 if bare[0] in PRONOUNS else name_length(words, name)
    if at:
        while at < len(bare) and (bare[at] in _ADVERBS or bare[at].endswith("ly")):
            at += 1
        if at < len(bare) and (is_finite(bare[at]) or (bare[0] == "they" and bare[at] in KNOWN)):
            return at
    limit = next((i for i, w in enumerate(bare) if w in {"which", "who", "that"}), len(bare))
    found = [i for i in range(1, limit) if bare[i] in AUXILIARIES]
    found = found or [
        i for i in range(1, limit)
        if is_finite(bare[i]) and words[i].islower() and bare[i - 1] not in _ARTICLES | POSSESSIVES
    ]  # fmt: skip
    return found[0] if found else None


def _clause_facts(clause: str, lead: str, name: str) -> list[str]:
    words = clause.strip(" ,").split()
    at = _verb_at(words, name)
    if at is None or (words[0] in {"It", "There"} and words[at] in AUXILIARIES):
        return [" ".join(words) + lead]
    while at > 1 and (words[at - 1] in _ADVERBS or re.fullmatch(r"[a-z]+ly", words[at - 1])):
        at -= 1
    subject, predicate = " ".join(words[:at]), " ".join(words[at:])
    facts: list[str] = []
    if match := re.match(r"([^,]+), (.+),$", subject):  # apposition: "Ada, a writer, was ..."
        subject = match[1]
        be = "was" if predicate.split()[0] in {"was", "were"} else "is"
        said = re.sub(r"^who ", "", match[2])
        facts += _predicate_facts(subject, said if said != match[2] else f"{be} {said}")
    for part in _predicates(predicate):
        for fact in _predicate_facts(subject, part):
            facts.append(fact if re.search(r", (?:including|such as) ", fact) else fact + lead)
        lead = ""  # it led the first predicate
    return facts


def _predicates(text: str) -> list[str]:
    """"wrote a book and directed a film" -> ["wrote a book", "directed a film"]."""
    out, start = [], 0
    head = text.split()
    for match in _JOINT.finditer(text):
        words = text[match.end() :].split()
        i = 0
        while i < len(words) - 1 and (words[i] in _ADVERBS or words[i].endswith("ly")):
            i += 1
        verb, follow = words[i].strip(","), (words[i + 1] if i + 1 < len(words) else "")
        before = text[start : match.start()].split()
        listed = match[0] == ", " and (verb in _ALSO_NOUNS or not is_finite(verb) or i > 0)
        if not listed and _opens_predicate(verb, follow, before, head):
            out.append(text[start : match.start()])
            start = match.end()
            passive = head[0] in BE and verb in _ALSO_PASSIVE and head[1:2] and is_past(head[1])
            bare_participle = is_past(verb) and past(base(verb)) != verb
            if passive or (bare_participle and head[0] in {"has", "have", "had"}):
                text = f"{text[:start]}{head[0]} {text[start:]}"
                return [*out, *_predicates(text[start:])]
    return [*out, text[start:]]


def _opens_predicate(verb: str, follow: str, before: list[str], head: list[str]) -> bool:
    """Whether "and VERB FOLLOW" goes on with a new predicate of the same subject."""
    plain = bool(re.fullmatch(r"[a-z-]+,?", follow)) and (
        follow.strip(",") not in _ARTICLES | POSSESSIVES | _PREPOSITIONS | _COUNTS | _ADVERBS
    )
    if not before or {"that", "which"} & set(before):
        return False  # goes on with that clause
    if verb in AUXILIARIES:
        return True
    if is_past(verb):
        if plain and verb in _ALSO_ADJECTIVES:
            return False
        if len(before) <= 3 and is_past(before[-1]) and before[-1] not in _INTRANSITIVE:
            return False  # "wrote and directed a film", "was written and directed by"
        noun_phrase = head[0] in BE and head[1:2] and head[1] in _ARTICLES
        return not plain or not (noun_phrase or _ADJECTIVE.fullmatch(before[-1]))
    if is_present(verb) and not plain:
        plural = before[-1].endswith("s") and follow in {"in", "of", "by", "on", "from", "about"}
        return not (verb in _ALSO_NOUNS and plural)
    return verb in KNOWN and head[0] in KNOWN and not plain  # "They live in Lyon and own a boat"


_WHO = re.compile(r",?\swho\s(?=\S)")
_WHICH = re.compile(r",\swhich\s(?=\S)")
_DOING = re.compile(
    r",\s(?:as well as\s|and\s)?(?!including|during|being|following|according)([a-z]{3,}ing)\s"
)
_KNOWN = re.compile(
    r",?\s(?:and\s)?((?:(?:best|widely|well|also|mainly|primarily|perhaps)\s)?"
    r"(?:known|famous|renowned|noted|born|based)\s(?:for|as|in|on|by)\s)"
)


def _predicate_facts(subject: str, text: str) -> list[str]:
    """Facts of one subject and one predicate: clauses hanging on it first, then its lists."""
    text = text.strip(" ,")
    first = text.split()[0]
    be = "was" if first in {"was", "were"} else "is"
    copular = first in BE or text.startswith(("has been ", "had been "))
    for pattern in (_WHICH, _WHO, _DOING, _KNOWN):
        match = pattern.search(text)
        if not match or (pattern is _WHO and not copular):
            continue
        head, rest = text[: match.start()], text[match.end() :]
        if pattern is _KNOWN and (len(head.split()) < 3 or not (copular or match[0][0] == ",")):
            continue
        if pattern is _WHO:
            more = [f for p in _predicates(rest) for f in _predicate_facts(subject, p)]
        elif pattern is _KNOWN:
            be = "was" if is_past(first) or "born" in match[1] else be
            more = _predicate_facts(subject, f"{be} {match[1]}{rest}")
        elif pattern is _DOING:
            verb = base(match[1])
            if verb == "make":
                if made := re.match(r"(?:him|her|them)\s(?=the|an?\s|one\s)", rest):
                    verb, rest = "become", rest[made.end() :]
                elif re.match(r"(?:him|her|them|it)\s", rest):
                    continue
            if verb == "have":  # "having taught"
                verb, rest = "has", rest
            said = verb if verb == "has" else past(verb) if is_past(first) or first in AUXILIARIES - {"is"} else third(verb)
            more = [f for p in _predicates(f"{said} {rest}") for f in _predicate_facts(subject, p)]
        else:
            what = re.search(rf"({_MARK}\d+{_MARK}|{_CAPS})[^{_MARK}]*$", head) or re.search(
                r"\b((?:the|an?|his|her|their)\s[^,]*)$", head
            )
            if not what or not is_finite(rest.split()[0]):
                continue
            more = [f for p in _predicates(rest) for f in _predicate_facts(what[1], p)]
        return [*_predicate_facts(subject, head), *more]
    return [f"{subject} {part}" for part in _parts(text)]


def _parts(text: str) -> list[str]:
    """Predicates that say one thing each: places and dates of birth and death, then lists."""
    if match := re.match(r"((?:was|were) born|died|passed away)\s(?=(?:on|in|at|to)\s)", text):
        spots = re.split(r",?\s(?=(?:on|in|at|to|after)\s)", " " + text[match.end() :].strip(" ,"))
        spots = [s.strip(" ,") for s in spots if s.strip(" ,")]
        if all(len(s.split()) <= 9 for s in spots):
            return [f"{match[1]} {s}" for s in spots]
    text = re.sub(r",?\s(?:among|and)\s(?:many )?(?:others|more)$", "", text)
    if match := re.search(r",?\s(including|such as)\s", text):
        head, items = text[: match.start()], _split_list(text[match.end() :])
        if len(items) > 1 and len(head.split()) > 2:
            return [head, *(f"{head}, {match[1]} {i}" for i in items)]
    own = re.match(r"(.*?\s)((his|her|their)\s.+?),?\s(?:and|as well as)\s(\3\s.+)$", text)
    if own:  # "for his songs and his voice"
        return [*_distribute(own[1] + own[2]), *_distribute(own[1] + own[4])]
    return _distribute(text)


def _split_list(text: str) -> list[str]:
    """"A, B, and C" -> ["A", "B", "C"]."""
    items = re.split(r",\s(?:and|or|as well as)\s|,\s|\s(?:and|as well as)\s", text)
    return [i.strip() for i in items if i.strip()]


def _distribute(text: str) -> list[str]:
    """"has worked in film and theatre" -> "has worked in film", "has worked in theatre"."""
    listed = re.search(r"^(.+?)((?:,\s[^,]+)*),?\s(?:and|as well as)\s([^,]+)$", text)
    if not listed or re.search(r"\b(?:between|both|from\s\S+\sto)\b", text):
        return [text]
    middle = [m.strip() for m in listed[2].split(",") if m.strip()]
    if listed[1].count(" and "):
        return [text]
    lead, last = listed[1].split(), listed[3].split()
    others = [*middle, listed[3]]
    if any(len(o.split()) > 14 or any(w in AUXILIARIES for w in o.split()) for o in others):
        return [text]
    opener = middle[0].split()[0] if middle and middle[0][0].isupper() else last[0]
    start = _item_start(lead, opener)
    if start is None or last[0] in {"abroad", "overseas"}:
        return [text]
    head, item = lead[:start], lead[start:]
    role = head[-1:] and head[-1] in BE | {"as", "been"} or lead[0] in BE
    if last[-1] in _BODIES and last[0] != "the" and item[-1] not in _BODIES:
        return [text]  # "the Research and Development Foundation"
    if not role and item[-1].islower() and re.search(r"^[a-z ]*[a-z] [A-Z]", listed[3]):
        if not set(last) & _PREPOSITIONS:
            return [text]  # "the actress and singer Emily Taheny"
    adjective = _ADJECTIVE.fullmatch(item[-1]) and item[-1] not in _NOT_ADJECTIVES
    bare = len(item) == 1 or item[0] in _ARTICLES | POSSESSIVES and len(item) == 2
    if not middle and len(last) > 1 and adjective and (bare or _ADJECTIVE.fullmatch(last[0])):
        others = [" ".join([*item[:-1], *last])]
        item = [*item, *last[1:]]
    elif not middle and len(last) > 1 and item[-1].isdigit() and last[0].isdigit():
        item = [*item, *last[1:]]
    shared = re.search(r"\s(?:of|for|at)\s(?:the\s)?[A-Z\ue000].*$", listed[3])
    if role and shared and not set(item) & _PREPOSITIONS:
        others = [o if o.endswith(shared[0]) else o + shared[0] for o in others]
        item = [*item, shared[0].strip()]
    article = item[0] if item[0] in {"a", "an"} else ""
    out = [" ".join([*head, *item])]
    for other in others:
        if article and other.split()[0] not in _ARTICLES | POSSESSIVES and other[0].islower():
            other = f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
        out.append(" ".join([*head, other]))
    return out


def _item_start(lead: list[str], opener: str) -> int | None:
    """Where the first item of a list starts in `lead`, judged by how the last item opens."""
    at = len(lead) - 1
    if opener in _PREPOSITIONS:
        return max((i for i, w in enumerate(lead) if w == opener), default=None)
    verb = next((i for i, w in enumerate(lead) if is_finite(w) and w not in AUXILIARIES), 0)
    if opener[0].isdigit() or opener in _ARTICLES | POSSESSIVES | _COUNTS:
        same = {opener} if opener in POSSESSIVES else _ARTICLES | _COUNTS
        found = [i for i, w in enumerate(lead) if (w in same or w[0].isdigit()) and i > 0]
        return found[-1] if found else None
    if re.match(_CAP, opener):
        while at > 0 and (re.match(_CAP, lead[at]) or lead[at] in _JOINERS):
            at -= 1
        at += 1
        while at < len(lead) and lead[at] in _JOINERS:
            at += 1
        if at == len(lead):
            return None
        return at - 1 if lead[at - 1] in {"the", "a", "an"} else at
    stops = _PREPOSITIONS | POSSESSIVES | AUXILIARIES
    while at > verb and lead[at] not in stops | _ARTICLES:
        at -= 1
    if lead[at] in _ARTICLES:
        return at
    if lead[at] == "to" and lead[at + 1] in KNOWN:
        at += 1
    return at + 1 if at + 1 < len(lead) else None
