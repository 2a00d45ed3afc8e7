"""Split an English sentence into facts: first clauses, then predicates, then lists.

    facts("She was a writer and mathematician who lived in London", "Ada Lovelace")
        ->  ["She was a writer", "She was a mathematician", "She lived in London"]

`decompose` has replaced each quotation, bracket and date by one word.

The rules know only the word classes of `verbs` and a few closed lists. In doubt they leave a clause
whole: the fact then says too much at once, but nothing that the sentence does not say.
"""

from __future__ import annotations

import re

from facttune_ray.text.verbs import (
    AUXILIARIES,
    BE,
    KNOWN,
    MODALS,
    base,
    is_finite,
    is_past,
    is_present,
    past,
    third,
)

PRONOUNS = {"he", "she", "they", "it"}
POSSESSIVES = {"his", "her", "their", "its"}
ARTICLES = {"a", "an", "the"}
COUNTS = set(
    "several many numerous various some two three four five six seven eight nine ten".split()
)
PREPOSITIONS = set(
    "in on at for with by from to of as into about over under through during since until after "
    "before between against across alongside among within without towards toward around near "
    "including like via upon throughout featuring".split()
)
ADVERBS = set(
    "also then later first eventually currently now once still never always often soon again both "
    "ultimately notably best well just even only subsequently previously formerly".split()
)
_ADJECTIVE = re.compile(r"[a-z-]+(?:al|ive|ic|ous|ful|less|able|ible|ary|ed|ish)$")
# After a plural these are nouns, too: "films and shows in London".
_ALSO_NOUNS = set(
    "works plays shows studies records awards tours releases features stars covers designs "
    "reports matches pitches moves films stages scores dances".split()
)
_ALSO_ADJECTIVES = set("organized organised mixed animated related applied advanced".split())
INTRANSITIVE = set(
    "retired died resigned returned emigrated immigrated graduated married lived left".split()
)
_NOT_ADJECTIVES = set(
    "music critic musical festival executive native capital animal medal hospital journal canary "
    "dictionary library secretary missionary documentary table fable clinic comic public".split()
)
_JOINERS = {"of", "the", "de", "da", "del", "von", "van", "vs", "for", "&"}
_BODIES = set("Foundation Society Association Institute Committee Center Centre Council".split())
# After "was ... and" these are passive, too: "was born in Lyon and raised in Paris".
ALSO_PASSIVE = set(
    "raised brought educated based buried known nominated inducted considered regarded praised "
    "appointed elected awarded given named honored recognized released influenced trained".split()
)
MARK = "\ue000"
CAP = rf"(?:[A-Z0-9{MARK}\u00c0-\u00de][^\s,]*)"
CAPS = rf"{CAP}(?:\s(?:(?:of|the|de|da|del|von|van|for)\s)*{CAP})*"
CONNECTIVE = re.compile(
    r"^(?:However|Additionally|In addition|Furthermore|Moreover|Also|Overall|Today|Later|Then|"
    r"Finally|Eventually|Subsequently|Meanwhile|Instead|Thus|Therefore|Nevertheless|Nonetheless|"
    r"Unfortunately|Notably|Sadly|Off the \w+|(?:In addition to|Apart from|Aside from|Besides|"
    r"Outside of|Beyond|Despite|As well as|Along with|Alongside|Throughout) [^,]+),\s+"
)
LEAD = re.compile(
    r"((?:In|On|As|At|During|After|Before|Since|From|By|Until|For|Under|Following|Prior to|Between|"
    r"Around|Upon)\s[^,]+),\s+(?=\S)"
)
_PARTICIPLE_LEAD = re.compile(r"((?:Born|Raised|Educated|Known|Based)\s.+?),\s+(?=\S)")
_REGION = re.compile(rf"({CAPS}),\s+(?=((?:he|she|they|it)\s)?)")
VAGUE = re.compile(r" (?:since then|in recent years|at the same time|over the years|after that)$")
_OWN_SUBJECT = re.compile(r"(?:;|,?\s(?:and|but|while|although|whereas|so|where))\s(?=\S)")
_JOINT = re.compile(r",?\s(?:and then|and|but)\s|,\s(?=[a-z])")


def facts(text: str, name: str) -> list[str]:
    """Facts of a masked sentence without its end mark. Pronouns are not replaced yet."""
    return [f for clause, lead in _clauses(text, name) for f in _clause_facts(clause, lead, name)]


def _clauses(text: str, name: str) -> list[tuple[str, str]]:
    """(clause with its own subject, its introductory phrase: " in 2018" or "")."""
    text = CONNECTIVE.sub("", text, count=1)
    out: list[tuple[str, str]] = []
    if match := _PARTICIPLE_LEAD.match(text):
        text = text[match.end() :]
        region = _REGION.match(text)  # "Born in Bastia, Corsica, Rami played"
        place = ""
        if region and (name_length(text[region.end() :].split(), name) or region[2]):
            text, place = text[region.end() :], f", {region[1]}"
        out.append((f"{name} was {match[1][0].lower()}{match[1][1:]}{place}", ""))
    lead = ""
    if (match := LEAD.match(text)) and verb_at(text[match.end() :].split(), name) is not None:
        text, lead = text[match.end() :], f" {match[1][0].lower()}{match[1][1:]}"
        lead = "" if VAGUE.match(lead) else lead
    start = 0
    for match in _OWN_SUBJECT.finditer(text):
        rest = text[match.end() :].split()
        before = text[start : match.start()].split()
        own = rest[0].lower() in PRONOUNS | POSSESSIVES or name_length(rest, name)
        at, verb = verb_at(before, name), verb_at(rest, name) if own else None
        if at and verb and verb <= 5:
            out.append((" ".join(before), lead))
            if rest[0] == "it":  # the subject of the clause before, not the topic
                text = f"{text[: match.end()]}{' '.join(before[:at])}{text[match.end() + 2 :]}"
                return [*out, *_clauses(text[match.end() :], name)]
            start, lead = match.end(), ""
    return [*out, (text[start:], lead)]


def is_person(name: str) -> bool:
    """Whether a name of several words, all capitalised, is taken for a person's: never "it"."""
    return " " in name and not re.search(r"\b[a-z]", name)


def name_length(words: list[str], name: str) -> int:
    """The number of leading words that are the topic's name, or its first or last part.

    "Liam James Payne" is Liam Payne; "Wendy Shon" is not Wendy.
    """
    parts = name.lower().replace(",", "").split()
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


def verb_at(words: list[str], name: str) -> int | None:
    """Index of the clause's finite verb, or None."""
    bare = [w.strip(",").lower() for w in words]
    if not words:
        return None
    at = 1 if bare[0] in PRONOUNS else name_length(words, name)
    if at and not words[at - 1].endswith(","):
        while at < len(bare) and (bare[at] in ADVERBS or bare[at].endswith("ly")):
            at += 1
        if at < len(bare) and (is_finite(bare[at]) or (bare[0] == "they" and bare[at] in KNOWN)):
            return at
    limit = next((i for i, w in enumerate(bare) if w in {"which", "who", "that"}), len(bare))
    auxiliaries = [i for i in range(1, limit) if bare[i] in AUXILIARIES]
    for i in range(1, 0 if auxiliaries else limit):
        if (is_finite(bare[i]) or bare[i] == "include") and words[i].islower():
            if bare[i - 1] not in ARTICLES | POSSESSIVES:
                return i
    return auxiliaries[0] if auxiliaries else None


def _clause_facts(clause: str, lead: str, name: str) -> list[str]:
    words = clause.strip(" ,").split()
    at = verb_at(words, name)
    if at is None or (words[0] in {"It", "There"} and words[at] in AUXILIARIES):
        return [" ".join(words) + lead]
    while at > 1 and (words[at - 1] in ADVERBS or re.fullmatch(r"[a-z]+ly", words[at - 1])):
        at -= 1
    subject, predicate = " ".join(words[:at]), " ".join(words[at:])
    facts: list[str] = []
    if match := re.match(r"([^,]+), (.+),$", subject):  # apposition: "Ada, a writer, was ..."
        subject = match[1]
        past_tense = predicate.split()[0] in {"was", "were"} or match[2].startswith("born")
        be = "was" if past_tense else "is"
        apposition = re.sub(r"^who ", "", match[2])
        is_clause = apposition != match[2]
        facts += _predicate_facts(subject, apposition if is_clause else f"{be} {apposition}")
    for part in _predicates(predicate):
        for fact in _predicate_facts(subject, part):
            facts.append(fact if re.search(r", (?:including|such as) ", fact) else fact + lead)
        lead = ""  # it belongs to the first predicate
    return facts


def _predicates(text: str) -> list[str]:
    """Split predicates: "wrote a book and directed a film" -> ["wrote a book", "directed ..."]."""
    out, start = [], 0
    head = text.split()
    for match in _JOINT.finditer(text):
        words = text[match.end() :].split()
        i = 0
        while i < len(words) - 1 and (words[i] in ADVERBS or words[i].endswith("ly")):
            i += 1
        verb, follow = words[i].strip(","), (words[i + 1] if i + 1 < len(words) else "")
        before = text[start : match.start()].split()
        later = re.findall(r"\sand\s(?:[a-z]+ly\s)?([a-z]+)", text[match.end() :])
        listed = match[0] == ", " and (i > 0 or not any(map(is_finite, later)))
        if not listed and _opens_predicate(verb, follow, before, head):
            out.append(text[start : match.start()])
            start = match.end()
            passive = head[0] in BE and verb in ALSO_PASSIVE and head[1:2] and is_past(head[1])
            bare_participle = is_past(verb) and past(base(verb)) != verb
            if passive or (bare_participle and head[0] in {"has", "have", "had"}):
                text = f"{text[:start]}{head[0]} {text[start:]}"
                return [*out, *_predicates(text[start:])]
    return [*out, text[start:]]


def _is_plain(word: str) -> bool:
    """Whether the word is in lower case and in no closed class: a noun, adjective or verb."""
    closed = (
        {"him", "them", "it", "himself", "herself", "much", "most", "more"}
        | ARTICLES
        | POSSESSIVES
        | PREPOSITIONS
        | COUNTS
        | ADVERBS
    )
    return bool(re.fullmatch(r"[a-z-]+,?", word)) and word.strip(",") not in closed


def _opens_predicate(verb: str, follow: str, before: list[str], head: list[str]) -> bool:
    """Whether "and VERB FOLLOW" opens a new predicate of the same subject."""
    plain = _is_plain(follow)
    if not before or {"that", "which"} & set(before):
        return False  # continues the relative clause
    if verb in AUXILIARIES:
        return True
    if is_past(verb):
        if plain and verb in _ALSO_ADJECTIVES:
            return False
        if len(before) <= 3 and is_past(before[-1]) and before[-1] not in INTRANSITIVE:
            return False  # "wrote and directed a film", "was written and directed by"
        noun_phrase = head[0] in BE and head[1:2] and head[1] in ARTICLES
        return not plain or not (noun_phrase or _is_adjective(before[-1]))
    if is_present(verb) and not plain and follow:
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
    """Facts of one subject and one predicate: split its dependent clauses, then its lists."""
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
            verb, follow = base(match[1]), rest.split()[0]
            if _is_plain(follow) and re.search(r",? and ", match[0] + rest):
                continue  # a list: "speed, dribbling skills, and strength"
            if verb == "make":
                if became := re.match(r"(?:him|her|them)\s(?=the|an?\s|one\s)", rest):
                    verb, rest = "become", rest[became.end() :]
                elif re.match(r"(?:him|her|them|it)\s", rest):
                    continue
            if verb == "have":  # "having taught"
                verb = "has"
            elif first in MODALS:
                continue  # "can relieve pain, reducing fever"
            elif is_past(first) or first in {"was", "were", "had", "did", "has", "have"}:
                verb = past(verb)
            else:
                verb = third(verb)
            more = [f for p in _predicates(f"{verb} {rest}") for f in _predicate_facts(subject, p)]
        else:
            names = [*re.finditer(rf"({MARK}\d+{MARK}|(?:[Tt]he\s)?(?!\d){CAPS})", head)]
            noun = names[-1] if names else re.search(r"\b((?:the|an?|his|her|their)\s[^,]*)$", head)
            if not noun or not is_finite(rest.split()[0]):
                continue
            more = [f for p in _predicates(rest) for f in _predicate_facts(noun[1], p)]
        return [*_predicate_facts(subject, head), *more]
    return [f"{subject} {part}" for part in split_predicate(text)]


def split_predicate(text: str) -> list[str]:
    """Split a predicate at its lists, or at the places and dates of a birth or death."""
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
    """Split a list: "A, B, and C" -> ["A", "B", "C"]."""
    items = re.split(r",\s(?:and|or|as well as)\s|,\s|\s(?:and|as well as)\s", text)
    return [i.strip() for i in items if i.strip()]


def _is_adjective(word: str) -> bool:
    return bool(_ADJECTIVE.fullmatch(word)) and word not in _NOT_ADJECTIVES


def _distribute(text: str) -> list[str]:
    """Distribute a list: "worked in film and theatre" -> "worked in film", "worked in theatre"."""
    listed = re.search(r"^(.+?)((?:,\s[^,]+)*),?\s(?:and|as well as)\s([^,]+)$", text)
    if not listed or re.search(r"\b(?:between|both|from\s\S+\sto)\b", text):
        return [text]
    middle = [m.strip() for m in listed[2].split(",") if m.strip()]
    if listed[1].count(" and "):
        return [text]
    lead, last = listed[1].split(), listed[3].split()
    if middle and middle[0].split()[0] in PREPOSITIONS and last[0] not in PREPOSITIONS:
        lead, middle = " ".join([*lead, *middle]).split(), []  # "with Brazil, in 1958 and 1962"
    others = [*middle, listed[3]]
    if any(len(o.split()) > 14 or any(w in AUXILIARIES for w in o.split()) for o in others):
        return [text]
    opener = middle[0].split()[0] if middle and middle[0][0].isupper() else last[0]
    start = _item_start(lead, opener)
    verb = is_present(last[0]) and last[0] not in _ALSO_NOUNS
    if start is None or verb or last[0] in {"abroad", "overseas"}:
        return [text]
    head, item = lead[:start], lead[start:]
    role = (head or [""])[-1] in BE | {"as", "been"} or (lead[0] in BE and lead[1] in ARTICLES)
    if last[-1] in _BODIES and last[0] != "the" and item[-1] not in _BODIES:
        return [text]  # "the Research and Development Foundation"
    if not role and item[-1].islower() and re.search(r"^[a-z ]*[a-z] [A-Z]", listed[3]):
        if not set(last) & PREPOSITIONS:
            return [text]  # "the actress and singer Emily Taheny"
    adjective = _is_adjective(item[-1])
    bare = len(item) == 1 or item[0] in ARTICLES | POSSESSIVES and len(item) == 2
    if not middle and len(last) > 1 and adjective and (bare or _is_adjective(last[0])):
        others = [" ".join([*item[:-1], *last])]
        item = [*item, *last[1:]]
    elif not middle and len(last) > 1 and item[-1].isdigit() and last[0].isdigit():
        item = [*item, *last[1:]]
    shared = re.search(r"\s(?:of|for|at)\s(?:the\s)?[A-Z\ue000].*$", listed[3])
    if role and shared and not set(item) & PREPOSITIONS:
        others = [o if o.endswith(shared[0]) else o + shared[0] for o in others]
        item = [*item, shared[0].strip()]
    article = item[0] if item[0] in {"a", "an"} else ""
    out = [" ".join([*head, *item])]
    for other in others:
        if article and other.split()[0] not in ARTICLES | POSSESSIVES and other[0].islower():
            other = f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
        out.append(" ".join([*head, other]))
    return out


def _item_start(lead: list[str], opener: str) -> int | None:
    """Index in `lead` of a list's first item, or None. `opener`: first word of the last item."""
    at = len(lead) - 1
    if opener in PREPOSITIONS:
        return max((i for i, w in enumerate(lead) if w == opener), default=None)
    verb = next((i for i, w in enumerate(lead) if is_finite(w) and w not in AUXILIARIES), 0)
    if opener[0].isdigit() or opener in ARTICLES | POSSESSIVES | COUNTS:
        same = {opener} if opener in POSSESSIVES else ARTICLES | COUNTS
        starts = [i for i, w in enumerate(lead) if (w in same or w[0].isdigit()) and i > 0]
        return starts[-1] if starts else None
    if re.match(CAP, opener):
        while at > 0 and (re.match(CAP, lead[at]) or lead[at] in _JOINERS):
            at -= 1
        at += 1
        while at < len(lead) and lead[at] in _JOINERS:
            at += 1
        if at == len(lead):
            return None
        return at - 1 if lead[at - 1] in {"the", "a", "an"} else at
    stops = PREPOSITIONS | POSSESSIVES | AUXILIARIES
    while at > verb and lead[at] not in stops | ARTICLES:
        at -= 1
    if lead[at] in ARTICLES:
        return at
    if lead[at] == "to" and at + 1 < len(lead) and lead[at + 1] in KNOWN:
        at += 1
    return at + 1 if at + 1 < len(lead) else None
