"""Split a parsed English sentence into facts: first its clauses, then their lists.

    facts(parsed, "Ada Lovelace")    parsed: "Born in London, she was a writer who met Mary Somerville."
        ->  ["She was born in London", "She was a writer", "She met Mary Somerville"]

The parse is that of a spaCy pipeline with the labels of ClearNLP, as en_core_web_sm has them. A
clause is split off where its subject is clear: a coordinated predicate, a relative clause, an
apposition, a participle. Any other clause stays within its sentence. In doubt a fact says too much
at once, but nothing that its sentence does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from facttune_ray.text.clauses import ARTICLES, POSSESSIVES, VAGUE, split_predicate
from facttune_ray.text.quantities import MONTHS
from facttune_ray.text.verbs import BE, past, third
from facttune_ray.text.verbs import base as infinitive

if TYPE_CHECKING:
    from spacy.tokens import Token

_SUBJECTS = {"nsubj", "nsubjpass", "csubj", "csubjpass"}
_WH = {"WDT", "WP", "WP$", "WRB"}
_ROLES = {"attr", "oprd"}
# A list may be split where its first item has one of these labels.
_LISTED = {"dobj", "attr", "pobj", "oprd", "acomp", "xcomp", "pcomp", "prep", "dative", "agent"}
# Parts of a clause that may hold a clause with another subject.
_OPEN = {"prep", "pobj", "conj", "xcomp", "agent", "oprd", "dobj", "attr", "appos", "nsubj",
         "nsubjpass", "dative"}  # fmt: skip
_TOGETHER = set(
    "mix mixture combination combine blend fusion pair balance between merge unite difference "
    "relationship marriage among union collaboration cross".split()
)
_OWN_CLAUSE = {"although", "though", "while", "whereas"}
_NO_PARTICIPLES = set(
    "including during being following according starting beginning ranging regarding depending "
    "followed compared given based provided considering concerning involving leading resulting "
    "causing allowing".split()
)
# Verbs without an object whose time and place are two facts.
_EVENTS = set("born died married graduated retired debuted passed".split())
_TIMES_PLACES = {"in", "on", "at", "during"}
_NATIONS = re.compile(r"[A-Z][a-z]+(?:an|ese|ish|ch|sh|ss|i|ek|ndic)$|Dutch|Thai|Czech")
_SUBJECTS_TAUGHT = set("teacher professor lecturer literature scholar language".split())
_CONSONANT_VOWELS = re.compile(r"(?:uni|us[eu]|eu|one\b|once)", re.I)


class UnclearParse(Exception):
    """The parse cannot be right: "joined the band and the ambassador"."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed sentence. `shown` holds the text of tokens that stand for a longer text."""

    tokens: list[Token]
    shown: dict[int, str]

    def text(self, keep: Iterable[int], swap: dict[int, str] | None = None) -> str:
        """The tokens with these indices. A comma beside a gap is left out."""
        order = sorted(keep)
        out: list[str] = []
        for at, i in enumerate(order):
            token = self.tokens[i]
            word = (swap or {}).get(i, self.shown.get(i, token.text))
            if token.text in {",", "-", "--", "\u2013", "\u2014"} and (
                at in {0, len(order) - 1} or order[at - 1] != i - 1 or order[at + 1] != i + 1
            ):
                if out and not out[-1].endswith(" "):
                    out.append(" ")
                continue
            gap = at + 1 < len(order) and order[at + 1] != i + 1
            if gap and token.lower_ in {"a", "an"}:
                word = _article(word, self.tokens[order[at + 1]].text)
            out.append(word + (" " if gap else token.whitespace_))
        return re.sub(r"\s+", " ", "".join(out)).strip(" ,;:")


def facts(parsed: Parsed, name: str) -> list[str]:
    """Facts without an end mark, in the order of the text; [] where the parse has no clause.
    Pronouns are not replaced yet."""
    root = next(t for t in parsed.tokens if t.head == t)
    if root.pos_ not in {"VERB", "AUX"} or not _subject(root):
        return []
    try:
        out = _Reader(parsed, name).read(root, "")
    except UnclearParse:
        return []
    return out if _covers(out, parsed) else []


def _covers(out: list[str], parsed: Parsed) -> bool:
    """Whether the facts hold all names, numbers and nouns of the sentence."""
    held = set(re.findall(r"\w+", " ".join(out)))
    lead = next((t.i for t in parsed.tokens if t.dep_ in _SUBJECTS), 0)
    return all(
        t.text in held or t.i in parsed.shown or not t.text.isalnum()
        for t in parsed.tokens
        if t.pos_ in {"PROPN", "NUM"} or t.pos_ == "NOUN" and t.i > lead
    )


def _article(word: str, before: str) -> str:
    """The form of "a" before a word, with the case of `word`."""
    vowel = before[:1].lower() in "aeiou" and not _CONSONANT_VOWELS.match(before)
    return word[0] + "n" * vowel


def _subject(head: Token) -> Token | None:
    return next((c for c in head.children if c.dep_ in _SUBJECTS and c.tag_ not in _WH), None)


def _below(token: Token) -> set[int]:
    return {t.i for t in token.subtree}


def _is_past(head: Token) -> bool:
    words = [c for c in head.children if c.dep_ in {"aux", "auxpass"}] or [head]
    return words[0].tag_ == "VBD" or words[0].lower_ in {"was", "were", "had"}


@dataclass(slots=True)
class _Reader:
    parsed: Parsed
    name: str

    def read(self, head: Token, inherited: str, helpers: str = "", tail: str = "",
             swap: dict[int, str] | None = None, verb: str = "") -> list[str]:  # fmt: skip
        """Facts of the clause of a verb. `inherited`: its subject, unless it has its own;
        `helpers`: auxiliaries that it shares with the clause before; `verb`: its finite form."""
        own = _subject(head)
        whole = _below(head)
        if any(c.dep_ == "expl" for c in head.children):
            return [self.parsed.text(whole)]
        cut: set[int] = set()
        more: list[str] = []
        subject = self._noun_phrase(own) if own else inherited
        for part in self._parts(head):
            found = self._split_off(part, head, subject)
            if found:
                cut |= _below(part) | self._joint(part)
                more += found
                behind = max(_below(part)) + 1
                if part.dep_ in {"relcl", "acl"} and any(
                    t.i in whole and t.dep_ == "prep" for t in self.parsed.tokens[behind : behind + 2]
                ):
                    raise UnclearParse  # "a lawyer who was born in May, in Lyon"
        before = _below(own) if own else set()
        first = min(before, default=min(whole))
        drop = {t.i for t in head.children if t.dep_ == "mark" or t.dep_ in {"cc", "preconj"} and t.i < head.i}
        drop |= {t.i for t in head.subtree if t.tag_ in _WH and t.head == head and t.dep_ in _SUBJECTS}
        drop |= {t.i for t in head.children if t.dep_ == "punct" and t.text not in {",", '"', "-"}}
        kept = whole - cut - before - drop
        lead = {i for i in kept if own and i < first}
        auxiliaries = {t.i for t in head.children if t.dep_ in {"aux", "auxpass"}}
        lead_text = self._lead(lead - auxiliaries)
        swapped = dict(swap or {})
        if verb:
            swapped[head.i] = verb
        kept = kept - lead | (lead & auxiliaries)
        return self._stated(head, kept, f"{subject} {helpers}".strip(), tail + lead_text, swapped) + more

    def _stated(self, head: Token, kept: set[int], before: str, after: str, swap: dict[int, str]) -> list[str]:
        """Facts of a predicate, one for each item of its list."""
        lists = self._lists(head, kept)
        clauses = any(self.parsed.tokens[i].dep_ in {"mark", "relcl", "ccomp"} for i in kept)
        if lists is None and clauses:
            lists = [kept]
        if lists is not None:
            texts = [self.parsed.text(some, swap) for some in lists]
        else:
            texts = split_predicate(self.parsed.text(kept, swap))
        return [f"{before} {text}{after}" for text in texts if text]

    def _lead(self, keep: set[int]) -> str:
        text = self.parsed.text(keep)
        if not text or VAGUE.match(f" {text[0].lower()}{text[1:]}") or len(text.split()) < 2 and not text[:1].isdigit():
            return ""
        first = self.parsed.tokens[min(keep)]
        return " " + (text if first.pos_ == "PROPN" else text[0].lower() + text[1:])

    def _noun_phrase(self, noun: Token) -> str:
        """A noun with its modifiers, without the clauses that could be facts of their own."""
        keep = _below(noun)
        for child in noun.subtree:
            if child == noun or child.i not in keep:
                continue
            if child.dep_ in {"relcl", "acl"} and self._comma_before(child):
                keep -= _below(child)
            elif child.dep_ == "appos" and child.head == noun and self._is_description(child):
                keep -= _below(child)
        return self.parsed.text(keep)

    def _parts(self, head: Token) -> Iterator[Token]:
        """The parts of a clause that may be clauses of their own, in order."""
        for child in head.children:
            if child.dep_ in {"relcl", "acl", "appos", "advcl"}:
                yield child
            elif child.dep_ == "conj" and child.pos_ in {"VERB", "AUX"}:
                if head.pos_ in {"VERB", "AUX"} and head.dep_ not in {"xcomp", "pcomp"}:
                    yield child
                continue
            elif child.dep_ == "conj" and head.pos_ in {"VERB", "AUX"}:
                if child.pos_ in {"NOUN", "PROPN", "NUM"}:
                    raise UnclearParse
                continue
            if child.dep_ in _OPEN:
                yield from self._parts(child)

    def _joint(self, part: Token) -> set[int]:
        """The conjunction before a part."""
        return {t.i for t in part.head.children if t.dep_ == "cc" and t.i < part.i and
                not any(c.dep_ == "conj" and t.i < c.i < part.i for c in part.head.children)}  # fmt: skip

    def _comma_before(self, part: Token) -> bool:
        start = min(_below(part))
        return start > 0 and self.parsed.tokens[start - 1].text in {",", "-", "--", "\u2013", "\u2014"}

    def _is_description(self, part: Token) -> bool:
        """Whether an apposition says what a thing is: "a writer", "the capital of Mali"."""
        opens = next((c for c in part.children if c.dep_ in {"det", "poss"}), None)
        if not self._comma_before(part) or opens is None or part.pos_ not in {"NOUN", "PROPN"}:
            return False
        siblings = [c for c in part.head.children if c.dep_ in {"appos", "conj"}]
        end = max(_below(part)) + 1
        closed = end >= len(self.parsed.tokens) or self.parsed.tokens[end].is_punct
        return closed and siblings == [part] and not any(c.dep_ == "conj" for c in part.children)

    def _antecedent(self, noun: Token, head: Token, subject: str) -> str:
        """What a clause behind a noun is about; "" where that is not clear."""
        top = noun
        while top.dep_ in {"conj", "appos"} and top.head.pos_ in {"NOUN", "PROPN"}:
            top = top.head
        if top.dep_ in _ROLES and top.head == head or top.dep_ in _SUBJECTS and top.head == head:
            return subject
        if noun.dep_ == "appos" and noun.pos_ != "PROPN" and noun.head.pos_ == "PROPN":
            return self._antecedent(noun.head, head, subject)
        text = self.parsed.text(_below(noun) - {i for c in noun.children
                                if c.dep_ in {"relcl", "acl", "conj", "cc"} for i in _below(c)})
        named = noun.pos_ == "PROPN" or noun.i in self.parsed.shown or text.split()[0].lower() in {
            "the", *POSSESSIVES}  # fmt: skip
        return text if named and not _is_time(noun) else ""

    def _split_off(self, part: Token, head: Token, subject: str) -> list[str]:
        """Facts of a part; [] where it stays in its clause."""
        match part.dep_:
            case "conj":
                return self._coordinate(part, subject)
            case "relcl":
                return self._relative(part, head, subject)
            case "appos":
                return self._apposition(part, head, subject)
            case _:
                return self._participle(part, head, subject)

    def _coordinate(self, part: Token, subject: str) -> list[str]:
        if own := _subject(part):
            if own.pos_ == "NUM":
                raise UnclearParse  # "7 losses, and 0 draws"
            return self.read(part, subject)
        first = part.head
        between = self.parsed.tokens[first.i + 1 : part.i]
        if all(t.dep_ in {"cc", "advmod", "punct"} for t in between):
            return []  # "wrote and directed a film"
        helpers = [c for c in part.children if c.dep_ in {"aux", "auxpass"}]
        shared = [c for c in first.children if c.dep_ in {"aux", "auxpass", "neg"} and c.i < first.i]
        if helpers or part.pos_ == "AUX":
            return self.read(part, subject)
        if part.tag_ == "VBZ" and first.tag_ == "VBD" and not shared:
            raise UnclearParse  # "film and television shows"
        if shared and part.tag_ in {"VB", "VBN", "VBG"} and part.tag_ == first.tag_:
            return self.read(part, subject, self.parsed.text(c.i for c in shared))
        return [] if part.tag_ in {"VB", "VBG"} else self.read(part, subject)

    def _relative(self, part: Token, head: Token, subject: str) -> list[str]:
        about = self._antecedent(part.head, head, subject)
        pronoun = next((t for t in part.children if t.tag_ in _WH), None)
        comma = self._comma_before(part)
        if pronoun is not None and pronoun.dep_ in _SUBJECTS and comma and _is_time(part.head):
            raise UnclearParse  # "in 1963, which reached"
        if not about or pronoun is None or pronoun.tag_ == "WP$":
            return []
        if pronoun.dep_ in _SUBJECTS and (comma or about == subject):
            return self.read(part, about)
        if not comma:
            return []
        if pronoun.dep_ == "dobj" and _subject(part):
            verb = f"{part.text} {about}"
            return self.read(part, "", verb=verb, swap={pronoun.i: ""})
        if pronoun.lower_ == "where" and _subject(part) and part.head.pos_ == "PROPN":
            return self.read(part, "", tail=f" in {about}", swap={pronoun.i: ""})
        return []

    def _apposition(self, part: Token, head: Token, subject: str) -> list[str]:
        if not self._is_description(part) or _is_time(part):
            return []
        about = self._antecedent(part.head, head, subject)
        if not about or part.head.pos_ not in {"PROPN", "NOUN", "PRON"} or part.head.dep_ in _ROLES:
            return []
        if part.head.pos_ != "PROPN" and part.head.i not in self.parsed.shown:
            return []
        be = "was" if _is_past(head) else "is"
        cut: set[int] = set()
        more: list[str] = []
        for child in self._parts(part):
            found = self._split_off(child, part, about)
            cut |= _below(child) if found else set()
            more += found
        return self._stated(part, _below(part) - cut, f"{about} {be}", "", {}) + more

    def _participle(self, part: Token, head: Token, subject: str) -> list[str]:
        """A participle becomes a finite verb: "appearing in" -> "appeared in"."""
        first = self.parsed.tokens[min(_below(part))]
        if part.lower_ in _NO_PARTICIPLES or first.tag_ == "IN" and first.lower_ not in _OWN_CLAUSE:
            return []
        mark = next((c for c in part.children if c.dep_ == "mark" or c.tag_ in _WH), None)
        if mark is not None:
            if mark.lower_ in _OWN_CLAUSE and _subject(part) and part.dep_ == "advcl":
                return self.read(part, subject)
            return []
        if _subject(part) or any(c.dep_ == "aux" and c.lower_ == "to" for c in part.children):
            return []
        comma, was = self._comma_before(part), _is_past(head)
        fronted = part.dep_ == "advcl" and part.i < head.i and part.head == head
        about = subject
        if part.dep_ == "acl":
            about = self._antecedent(part.head, head, subject)
            if part.tag_ == "VBG" and comma:
                about = subject
        if not about:
            return []
        be = "was" if was or part.lower_ in {"born", "raised"} else "is"
        if part.tag_ == "VBN" and (comma or fronted or about == subject and part.dep_ == "acl"):
            passive = any(c.dep_ in {"aux", "auxpass"} for c in part.children)
            return [] if passive else self.read(part, about, be)
        if part.tag_ == "VBG" and (comma or fronted):
            aux = next((c for c in part.children if c.dep_ in {"aux", "auxpass"}), None)
            if aux is not None:  # "having taught"
                return self.read(part, about, swap={aux.i: "had" if was else "has"})
            verb = infinitive(part.lower_)
            if verb == "make":
                return self._made(part, about, was)
            return self.read(part, about, verb=past(verb) if was else third(verb))
        return []

    def _made(self, part: Token, about: str, was: bool) -> list[str]:
        """ "making her the first woman" -> "became the first woman"."""
        text = self.parsed.text(i for i in _below(part) if i > part.i)
        words = text.split()
        if words[:1] and words[0] in {"him", "her", "them"} and words[1:2] and words[1] in {"the", "a", "an", "one"}:
            return [f"{about} {'became' if was else 'becomes'} {' '.join(words[1:])}"]
        return []

    # ------------------------------------------------------------ lists

    def _lists(self, head: Token, kept: set[int]) -> list[set[int]] | None:
        """The tokens of each fact of a predicate; None where the rules must split its list."""
        group = self._group(head, kept)
        if not group:
            listed = any(self.parsed.tokens[i].dep_ == "cc" for i in kept)
            return None if listed else [*self._times_places(head, kept)]
        group.sort(key=lambda t: t.i)
        trees = [_below(item) & kept for item in group]
        owns = [tree.difference(*(t for t in trees if t < tree)) for tree in trees]
        shared = self._shared(group, owns)
        joints = {
            t.i for g in group for t in g.children
            if t.dep_ in {"cc", "preconj"} or t.text == "," and g.i < t.i < group[-1].i
        }  # fmt: skip
        every = set().union(*owns)
        if any(self.parsed.tokens[i].dep_ == "appos" for i in every):
            return None
        rest = kept - every
        out = []
        for item, own in zip(group, owns, strict=True):
            out.append(self._with_article(rest | shared | own - joints, group[0], item))
        return [*self._without_examples(group[0], kept - every), *out]

    def _without_examples(self, first: Token, rest: set[int]) -> list[set[int]]:
        """The predicate without "such as" and its list."""
        prep = first.head
        if prep.lower_ in {"including", "like"} or prep.lower_ == "as" and any(
            c.lower_ == "such" for c in prep.children
        ):
            return [rest - _below(prep)]
        return []

    def _shared(self, group: list[Token], owns: list[set[int]]) -> set[int]:
        """The phrase behind the last item that belongs to all: "law and music in Paris"."""
        last = group[-1]
        trailing = [c for g in group for c in g.children if c.dep_ == "prep" and c.i > last.i]
        if not trailing or any(c.dep_ in {"det", "poss"} for c in last.children):
            return set()
        if any(c.dep_ == "prep" and c.i < last.i for g in group for c in g.children):
            return set()
        opens = next((c.lower_ for c in group[0].children if c.dep_ == "det"), "")
        if opens in {"a", "an"}:
            trailing = [c for c in trailing if c.lower_ == "in" and group[0].dep_ not in _ROLES]
        return set().union(*map(_below, trailing))

    def _with_article(self, some: set[int], first: Token, item: Token) -> set[int]:
        """Add the first item's article, owner or "to" to an item without one."""
        if item == first:
            return some
        if item.pos_ == "VERB":
            return some | {c.i for c in first.children if c.dep_ == "aux" and c.lower_ == "to"}
        if item.pos_ != "NOUN" or any(c.dep_ in {"det", "poss", "nummod"} for c in item.children):
            return some
        opens = next((c for c in first.children if c.dep_ in {"det", "poss"}), None)
        if opens is None or opens.dep_ == "poss" and opens.lower_ not in POSSESSIVES:
            return some
        if opens.dep_ == "det" and not (item.tag_ == "NN" and opens.lower_ in ARTICLES):
            return some
        return some | {opens.i}

    def _group(self, head: Token, kept: set[int]) -> list[Token]:
        """The items of the first list of a predicate that can be split; [] without one."""
        for token in sorted(head.subtree, key=lambda t: t.i):
            if token.i not in kept or token.dep_ not in _LISTED and token != head:
                continue
            if token == head and head.dep_ != "appos":
                continue
            if not self._reachable(token, head):
                continue
            group = [token]
            for last in group:
                group += [c for c in last.children if c.dep_ == "conj" and c.i in kept]
            if len(group) > 1 and self._is_list(group):
                return group
        return []

    def _reachable(self, token: Token, head: Token) -> bool:
        while token != head:
            if token.dep_ not in {*_LISTED, "xcomp"} or token.dep_ == "conj":
                return False
            token = token.head
        return True

    def _is_list(self, group: list[Token]) -> bool:
        first = group[0]
        words = {t.lower_ for g in group[:-1] for t in g.children if t.dep_ == "cc"}
        if not words or not words <= {"and", "well", ",", "as", "&"} or words == {"&"}:
            return False
        above = {t.lemma_ or t.lower_ for t in (first.head, first.head.head)} | {first.head.lower_, first.head.head.lower_}
        above |= {infinitive(w) for w in above}
        if above & _TOGETHER:
            return False
        if first.head.lower_ in {"of", "for"} and first.head.head.pos_ == "PROPN" and first.dep_ == "pobj":
            return False  # "the Ministry of Trade and Industry"
        if first.pos_ == "VERB" and group[1].i - first.i < 3:
            return False  # "to write and direct films"
        kinds = [{"NOUN": "n", "PROPN": "n", "NUM": "n", "X": "n"}.get(g.pos_, g.pos_) for g in group]
        return len(set(kinds)) == 1 and kinds[0] in {"n", "ADJ", "VERB", "ADP"}

    def _times_places(self, head: Token, kept: set[int]) -> Iterator[set[int]]:
        """Split the times and places of an action: "was born in Lyon", "was born in 1950"."""
        adjuncts = [
            c for c in head.children
            if c.dep_ == "prep" and c.i in kept and c.i > head.i and c.lower_ in _TIMES_PLACES
            and any(o.dep_ == "pobj" and (o.pos_ == "PROPN" or _is_time(o)) for o in c.children)
        ]  # fmt: skip
        alone = any(c.dep_ in {"dobj", "auxpass", "nsubjpass"} for c in head.children)
        if len(adjuncts) < 2 or not (alone or head.lower_ in _EVENTS):
            yield kept
            return
        parts = [_below(a) for a in adjuncts]
        every = set().union(*parts)
        for part in parts:
            yield kept - every | part & kept


def _is_time(noun: Token) -> bool:
    return noun.text[0].isdigit() or noun.lower_ in MONTHS or any(
        c.lower_ in MONTHS for c in noun.children
    )
