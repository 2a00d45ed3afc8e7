"""Split a parsed sentence into facts: first its clauses, then their lists (`parsed_lists.py`).

    read_sentence(parsed, "Ada Lovelace")
        parsed: "Born in London, she was a writer who met Mary Somerville"
        ->  (["she was a writer", "she was born in London", "she met Mary Somerville"], "")

The parse is that of a spaCy pipeline with the labels of `en_core_web_sm`. A clause is split off
where its subject is clear: a coordinated predicate, a relative clause, an apposition, a participle.
Any other clause stays in its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass

from facttune_ray.text.clauses import (
    ALSO_PASSIVE,
    INTRANSITIVE,
    MARK,
    POSSESSIVES,
    VAGUE,
    is_person,
    name_length,
    split_predicate,
)
from facttune_ray.text.parsed_checks import covers
from facttune_ray.text.parsed_lists import split_lists
from facttune_ray.text.parsed_tree import (
    COMMAS,
    NOUNS,
    ROLES,
    SUBJECTS,
    VERBS,
    WH,
    Parsed,
    Token,
    UnclearParse,
    below,
    child,
    conjunction,
    is_expletive,
    is_time,
    is_undivided,
    is_whole,
    own_subject,
    tense,
)
from facttune_ray.text.verbs import base, past, third

# A clause may hold clauses with other subjects in these parts.
_OPEN = {"prep", "pobj", "conj", "xcomp", "agent", "oprd", "dobj", "attr", "appos", "nsubj",
         "nsubjpass", "dative"}  # fmt: skip
_OWN_CLAUSE = {"although", "though", "while", "whereas"}
_NO_PARTICIPLES = set(
    "including during being following according starting beginning ranging regarding depending "
    "followed compared given provided considering concerning involving resulting causing "
    "allowing".split()
)
_ORIGINS = {"born", "raised"}
_BIRTHS = {"born", "died", "passed"}
_FIXED = {("based", "on"), ("leading", "to")}
_ORGANISATION = re.compile(r"School|University|College|Academy|Institut|Club|Conservato")
_EXAMPLES = re.compile(r"\b(?:including|such as)\b")
_YEAR = re.compile(r"\d{4}")
_LOOSE = re.compile(r"\bboth (?!.*\band\b)|,? among (?:many )?(?:others|more)$")


def read_sentence(parsed: Parsed, name: str, thing: str = "") -> tuple[list[str], str]:
    """(facts without an end mark; what "it" means in the next sentence).

    `thing`: what "it" means here; "" if that is unclear. Other pronouns are not replaced. There are
    no facts where the parse has no clause, is unclear, or would lose a name or a noun.
    """
    root = next((t for t in parsed.tokens if t.head == t), None)  # None: no words
    if root is None or root.pos_ not in VERBS or not own_subject(root):
        return [], ""
    reader = _Reader(parsed, name, thing)
    try:
        facts = reader.read(root, "")
    except UnclearParse:
        return [], ""
    return (facts, reader.thing) if covers(facts, parsed) else ([], "")


def _parts(head: Token) -> Iterator[Token]:
    """The parts of a clause that may be clauses of their own, in order."""
    for part in head.children:
        if part.dep_ in {"relcl", "acl", "appos", "advcl"}:
            yield part
        elif part.dep_ == "conj" and part.pos_ in VERBS:
            if head.pos_ in VERBS and head.dep_ not in {"xcomp", "pcomp"}:
                yield part
        elif part.dep_ == "conj" and head.pos_ in VERBS:
            if part.pos_ in NOUNS:
                raise UnclearParse  # "joined the band and the ambassador"
        elif part.dep_ in _OPEN:
            yield from _parts(part)


@dataclass(slots=True)
class _Reader:
    parsed: Parsed
    name: str
    thing: str  # what "it" means

    def read(
        self, head: Token, inherited: str, helpers: str = "", tail: str = "",
        swap: dict[int, str] | None = None, behind: Set[int] = frozenset(),
    ) -> list[str]:  # fmt: skip
        """Facts of the clause of a verb. `inherited`: its subject, unless it has its own;
        `helpers`: auxiliaries that it shares with the clause before it; `tail`: words to add;
        `swap`: token index -> another text; `behind`: tokens that belong to it against the
        parse."""
        whole, own = below(head) | behind, own_subject(head)
        if child(head, "expl"):
            return [self.parsed.text(whole)]
        before = below(own) if own else set()
        if own and (own.i > head.i or own.dep_[0] == "c" or not is_whole(before)):
            raise UnclearParse
        subject = self._noun_phrase(own) if own else inherited
        if 0 in before and self.parsed.tokens[0].tag_ == "VBN":
            raise UnclearParse  # "Born in Lyon, Vane"
        if subject.lower() == "it" and is_person(self.name) and not is_expletive(head):
            subject = self.thing or subject
        self._remember(head, own, subject)
        cut, more = self._split_off_all(head, subject, whole)
        drop = {c.i for c in head.children if c.dep_ in {"mark", "cc", "preconj"} and c.i < head.i}
        drop |= {c.i for c in head.children if c.dep_ in SUBJECTS and c.tag_ in WH}
        kept = whole - cut - before - drop
        lead = self._lead(head, own, kept)
        stated = self._stated(head, kept - lead, f"{subject} {helpers}".strip(),
                              tail, self._lead_text(lead), dict(swap or {}))  # fmt: skip
        return stated + more

    def _stated(
        self, head: Token, kept: set[int], before: str, tail: str, lead: str, swap: dict[int, str]
    ) -> list[str]:
        """Facts of a predicate, one for each item of its list."""
        opening = self.parsed.tokens[0]
        if 0 in kept and opening.pos_ != "PROPN":
            swap.setdefault(0, opening.text.lower())
        lists = [kept] if is_undivided(head) else split_lists(self.parsed, head, kept)
        if lists is None or head.lower_ in _BIRTHS and not is_undivided(head):
            texts = split_predicate(self.parsed.text(kept, swap))
        else:
            texts = [self.parsed.text(some, swap) for some in lists]
        facts = []
        for text in filter(None, texts):
            dated = len(texts) > 1 and _YEAR.search(lead) and _YEAR.search(text)
            ending = "" if dated or _EXAMPLES.search(text) else lead
            facts.append(f"{before} {_LOOSE.sub('', text)}{tail}{ending}")
        return facts

    # ------------------------------------------------------------ the main clause

    def _noun_phrase(self, noun: Token) -> str:
        """A noun with its modifiers, without the parts that could be facts of their own."""
        kept = below(noun)
        for part in noun.subtree:
            aside = part.dep_ in {"relcl", "acl"} and self._comma_before(part)
            if aside or part.dep_ == "appos" and part.head == noun and self._describes(part):
                kept -= below(part)
        return self.parsed.text(kept)

    def _remember(self, head: Token, own: Token | None, subject: str) -> None:
        """Keep what "it" in the next clause means: a subject other than the topic, or an object."""
        if own and own.pos_ in NOUNS and not name_length(subject.split(), self.name):
            single = own.tag_ == "NN" or own.i in self.parsed.shown
            self.thing = subject if single and not self._may_be_person(own) else ""
        elif own is None or own.lower_ != "it":
            objects = [c for c in head.children if c.dep_ == "dobj" and c.tag_ in {"NN", "NNP"}]
            named = [c for c in objects if c.i in self.parsed.shown or child(c, "det", "poss")]
            only = len(named) == 1 == len(objects) and not self._may_be_person(named[0])
            self.thing = self._noun_phrase(named[0]) if only else ""

    def _may_be_person(self, noun: Token) -> bool:
        """Whether a noun is a name without an article."""
        name = noun.pos_ == "PROPN" or noun.i in self.parsed.shown
        return name and noun.i not in self.parsed.titles and not child(noun, "det")

    def _lead(self, head: Token, own: Token | None, kept: set[int]) -> set[int]:
        """The words of the introductory phrases before the subject or the verb."""
        helpers = {c.i for c in head.children if c.dep_ in {"aux", "auxpass"}}
        if own is None:
            first = min(helpers | {head.i})
            opens = [c for c in head.children if c.dep_ in {"prep", "npadvmod"} and c.i < first]
            return kept & set().union(*map(below, opens))
        lead = {i for i in kept - helpers if i < own.left_edge.i}
        opens = [c for c in head.children if c.i in lead]
        if any(c.dep_ == "ccomp" or c.pos_ in NOUNS | {"PRON"} and not is_time(c) for c in opens):
            raise UnclearParse  # "television series she appeared"
        return lead

    def _lead_text(self, lead: set[int]) -> str:
        text = self.parsed.text(lead)
        dated = text[:1].isdigit() or text.startswith(MARK)
        if not text or len(text.split()) < 2 and not dated:
            return ""
        if self.parsed.tokens[min(lead)].pos_ != "PROPN":
            text = text[0].lower() + text[1:]
        return "" if VAGUE.match(f" {text}") else f" {text}"

    # ------------------------------------------------------------ parts that become facts

    def _split_off_all(self, head: Token, subject: str, whole: set[int]) -> tuple[set[int], list]:
        """(tokens of the parts that are facts of their own, these facts)."""
        cut: set[int] = set()
        facts: list[str] = []
        waiting, ends = [*_parts(head)], []
        while waiting:
            part = waiting.pop(0)
            if found := self._split_off(part, head, subject):
                cut |= below(part) | conjunction(part) | self._behind(part)
                facts += found
                ends.append(part)
            elif part.dep_ == "conj":  # "wrote and produced songs, releasing two albums"
                waiting[:0] = _parts(part)
        for part in ends:
            self._check_end(part, whole - cut)
        return cut, facts

    def _behind(self, part: Token) -> set[int]:
        """The phrase behind a relative clause at the end of a sentence, which the parser gives to
        the clause before: "a lawyer who was born in May, in Lyon"."""
        tokens, end = self.parsed.tokens, part.right_edge.i + 1
        if part.dep_ != "relcl" or end + 1 >= len(tokens) or tokens[end].text != ",":
            return set()
        if self._comma_before(part):
            return set()  # "She met Tom, who sang, in Lyon"
        phrase = tokens[end + 1]
        last = phrase.dep_ == "prep" and phrase.right_edge.i == len(tokens) - 1
        return {end, *below(phrase)} if last else set()

    def _check_end(self, part: Token, kept: set[int]) -> None:
        """Raise UnclearParse where words behind a part belong to the clause before it."""
        if part.dep_ == "appos" or part.i < part.head.i:
            return
        tokens, end, comma, joint = self.parsed.tokens, part.right_edge.i + 1, False, False
        while end < len(tokens) and (tokens[end].is_punct or tokens[end].dep_ == "cc"):
            comma |= tokens[end].is_punct
            joint |= tokens[end].dep_ == "cc"
            end += 1
        if end in kept and not joint:
            if not comma or tokens[end].dep_ == "prep" or part.dep_ == "conj":
                raise UnclearParse

    def _comma_before(self, part: Token) -> bool:
        start = part.left_edge.i
        return start > 0 and self.parsed.tokens[start - 1].text in COMMAS

    def _describes(self, part: Token) -> bool:
        """Whether an apposition says what a thing is: "a writer", "the capital of Mali"."""
        described = child(part, "det", "poss") and part.pos_ in {"NOUN", "PROPN"}
        if not described or not self._comma_before(part) or child(part, "conj") or is_time(part):
            return False
        end, tokens = part.right_edge.i + 1, self.parsed.tokens
        alone = [c for c in part.head.children if c.dep_ in {"appos", "conj"}] == [part]
        return alone and (end >= len(tokens) or tokens[end].is_punct)

    def _about(self, part: Token, head: Token, subject: str) -> str:
        """What a clause behind a noun is about; "" where that is not clear."""
        top = noun = part.head
        while top.dep_ == "conj" and top.head.pos_ in {"NOUN", "PROPN"}:
            top = top.head
        if top.dep_ in ROLES | SUBJECTS and top.head == head:
            return subject
        if top.dep_ == "pobj" and top.head.lower_ == "as" and top.head.head == head:
            return subject  # "is remembered as a poet who"
        if noun.dep_ == "appos" and noun.pos_ != "PROPN" or is_time(noun):
            return ""
        asides = [
            c
            for c in noun.children
            if c.dep_ in {"relcl", "acl"}
            or c.dep_ in {"cc", "conj"} and c.i > part.i
            or c.dep_ == "appos" and c.pos_ == "NOUN"
            or c.dep_ == "prep" and any(map(is_time, c.children))
        ]  # fmt: skip
        text = self.parsed.text(below(noun).difference(*map(below, asides)))
        named = noun.pos_ == "PROPN" or noun.i in self.parsed.shown
        return text if named or text.split(" ")[0].lower() in {"the", *POSSESSIVES} else ""

    def _split_off(self, part: Token, head: Token, subject: str) -> list[str]:
        """Facts of a part; [] where it stays in its clause."""
        if part.dep_ == "conj":
            return self._coordinate(part, subject)
        if part.dep_ == "relcl":
            return self._relative(part, head, subject)
        if part.dep_ == "appos":
            return self._apposition(part, head, subject)
        return self._participle(part, head, subject)

    def _coordinate(self, part: Token, subject: str) -> list[str]:
        first = part.head
        if own := own_subject(part):
            if own.pos_ == "NUM":
                raise UnclearParse  # "7 losses, and 0 draws"
            return self.read(part, subject)
        if part.pos_ == "AUX" or part.lower_ == "has" or child(part, "aux", "auxpass"):
            return self.read(part, subject)
        between = self.parsed.tokens[first.i + 1 : part.i]
        if all(t.dep_ in {"cc", "advmod", "punct"} for t in between):
            return []  # "wrote and directed a film"
        if part.tag_ == "VBZ" and first.tag_ in {"VBD", "VBN"}:
            raise UnclearParse  # "acted in films and television shows"
        shared = [
            c for c in first.children if c.dep_ in {"aux", "auxpass", "neg"} and c.i < first.i
        ]
        passive = any(c.dep_ == "auxpass" for c in shared) and part.lower_ in ALSO_PASSIVE
        alike = part.tag_ == first.tag_ in {"VB", "VBN", "VBG"}
        if passive or shared and alike and part.lower_ not in INTRANSITIVE:
            return self.read(part, subject, self.parsed.text(c.i for c in shared))
        return [] if part.tag_ in {"VB", "VBG"} else self.read(part, subject)

    def _relative(self, part: Token, head: Token, subject: str) -> list[str]:
        pronoun = next((c for c in part.children if c.tag_ in WH), None)
        if pronoun is None or pronoun.tag_ == "WP$":
            return []
        about, comma = self._about(part, head, subject), self._comma_before(part)
        if pronoun.dep_ in SUBJECTS:
            if comma and not about:
                raise UnclearParse  # "joined in 1963, which led"
            behind = self._behind(part)
            return self.read(part, about, behind=behind) if comma or about == subject else []
        if not comma or not own_subject(part):
            return []
        if pronoun.lower_ == "where":
            placed = any(c.dep_ == "prep" and c.lower_ in {"in", "at"} for c in part.subtree)
            at = "at" if _ORGANISATION.search(about) else "in"
            tail = "" if placed or part.head.pos_ != "PROPN" or not about else f" {at} {about}"
            return self.read(part, "", tail=tail, swap={pronoun.i: ""})
        if pronoun.dep_ == "dobj" and about not in {"", subject}:
            return self.read(part, "", swap={pronoun.i: "", part.i: f"{part.text} {about}"})
        return []

    def _apposition(self, part: Token, head: Token, subject: str) -> list[str]:
        noun = part.head
        if not self._describes(part) or noun.dep_ in ROLES:
            return []
        about = self._about(part, head, subject)
        if not about or noun.pos_ != "PROPN" and noun.i not in self.parsed.shown:
            return []
        if not tense(head):
            return []  # "will marry Tom Ruhl, a lawyer"
        cut, more = self._split_off_all(part, about, below(part))
        be = "was" if tense(head) == "past" else "is"
        return self._stated(part, below(part) - cut, f"{about} {be}", "", "", {}) + more

    def _participle(self, part: Token, head: Token, subject: str) -> list[str]:
        """A participle becomes a finite verb: "appearing in" -> "appeared in"."""
        first, after = self.parsed.tokens[part.left_edge.i], part.i + 1
        following = self.parsed.tokens[after].lower_ if after < len(self.parsed.tokens) else ""
        mark = next((c for c in part.children if c.dep_ == "mark" or c.tag_ in WH), None)
        comma = self._comma_before(part)
        if mark is not None:
            own = own_subject(part) and part.dep_ == "advcl"
            if own and (mark.lower_ in _OWN_CLAUSE or mark.lower_ == "where" and comma):
                return self.read(part, subject, swap={mark.i: ""})
            return []
        if part.lower_ in _NO_PARTICIPLES or (part.lower_, following) in _FIXED:
            return []
        if first.tag_ == "IN" or own_subject(part) or any(c.lower_ == "to" for c in part.lefts):
            return []
        time = tense(head)
        was = time == "past"
        fronted = part.dep_ == "advcl" and part.i < head.i and part.head == head
        if not time and part.lower_ not in _ORIGINS:
            if fronted:
                raise UnclearParse
            return []  # "may relieve pain, reducing fever"
        about = subject
        if part.dep_ == "acl" and not (part.tag_ == "VBG" and comma):
            about = self._about(part, head, subject)
        if not about:
            return []
        having = next((c for c in part.children if c.lower_ == "having"), None)
        if having is not None:
            swap = {having.i: "had" if was else "has"}
            return self.read(part, about, swap=swap) if comma or fronted else []
        if part.tag_ == "VBN" and (comma or fronted or about == subject and part.dep_ == "acl"):
            be = "was" if was or part.lower_ in _ORIGINS else "is"
            return [] if child(part, "aux", "auxpass") else self.read(part, about, be)
        if part.tag_ != "VBG" or not (comma or fronted):
            return []
        if any(c.dep_ == "xcomp" and c.tag_ == "VBG" for c in head.children):
            return []  # "enjoys exploring the coast, playing music, and reading"
        verb, done = base(part.lower_), was or time == "perfect"
        if verb == "make":
            return self._made(part, about, done)
        return self.read(part, about, swap={part.i: past(verb) if done else third(verb)})

    def _made(self, part: Token, about: str, was: bool) -> list[str]:
        """Read "making her the first woman" as "became the first woman"."""
        text = self.parsed.text(i for i in below(part) if i > part.i)
        became = re.match(r"(?:him|her|them) (?=(?:the|an?|one) )", text)
        verb = "became" if was else "becomes"
        return [f"{about} {verb} {text[became.end() :]}"] if became else []
