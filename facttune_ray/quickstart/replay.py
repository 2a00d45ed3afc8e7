"""Answers of the annotator from a labelled file: human facts and labels instead of rules.

    replay = load("ChatGPT.jsonl")
    replay.answer(prompts.facts.render("Lanny Flaherty", "Lanny Flaherty is an American actor."))
        ->  "- Lanny Flaherty is an American.\\n- Lanny Flaherty is an actor."
    replay.answer(prompts.verdicts.render("Lanny Flaherty", "Lanny Flaherty is an actor.", [...]))
        ->  "True"

A facts request gets the facts of the labelled sentences whose middle lies in the requested
sentence. The sentences of a response together therefore give every labelled fact once, however the
response is cut. Facts labelled IR are left out, so supported / facts is the human score,
S / (S + NS).

The rules answer requests that the file has no answer for; these are counted as `missing`. A fact
that occurs twice in one answer is listed as "... (2)", because equal lines count once. A request
contains only topic and text. If a topic has a fact both as S and as NS, the fact gets odd numbers
for its first label and even numbers for the other. If a sentence occurs twice with different facts,
it gets the facts of its first occurrence. Both cases are counted as `conflicts`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.prompts.fence import fenced, unnumbered
from facttune_ray.quickstart import rules
from facttune_ray.sources import factscore
from facttune_ray.text.decompose import normal_fact

_MARK = re.compile(r"(.*) \((\d+)\)", re.S)
_WORD = re.compile(r"[^\W_]+")
# Marks of list items, which requested sentences do not have: "1.", "a)", "(iv)", "- [x]".
_ITEM = re.compile(
    r"^(?:[^\w\n]*(?:\d{1,3}[.)]|[a-z][.)]|[ivx]{2,5}[.)]|(?<=\()[A-Z]\)|(?<=\[)[xX]\])\s)+", re.M
)
_EDGE = re.compile(r"[.!?:;\u2026\n]")


Facts = tuple[tuple[str, bool], ...]  # fact, supported


@dataclass(frozen=True)
class Text:
    """Words of a text as one string to search in."""

    joined: str  # " word word ... word "
    offsets: dict[int, int]  # place of a word's leading space in `joined` -> number of the word
    opens: frozenset[int]  # numbers of the words that follow the end of a sentence or line

    def places(self, sentence: Text) -> Iterator[tuple[int, int]]:
        """(first word, word after the last) of each occurrence of the sentence."""
        words = len(sentence.offsets)
        at = self.joined.find(sentence.joined) if words else -1
        while at >= 0:
            first = self.offsets[at]
            yield first, first + words
            at = self.joined.find(sentence.joined, at + 1)


@dataclass(frozen=True)
class Labelled:
    """One response: its text, and facts at the middle word of their sentence."""

    texts: tuple[tuple[Text, tuple[tuple[int, Facts], ...]], ...]

    def find(self, sentence: str) -> tuple[int, list[Facts]]:
        """(best fit, facts at each place with this fit). The fit is 2 if the place begins and ends
        like a sentence, 1 if it does one of these, else 0; -1 without a place."""
        best: int = -1
        found: list[Facts] = []
        for text, facts in self.texts:
            for first, end in text.places(_text(sentence, bare=False)):
                fit = (first in text.opens) + (end in text.opens)
                inside = tuple(f for at, of in facts if first <= at < end for f in of)
                if fit > best:
                    best, found = fit, []
                if fit == best:
                    found.append(inside)
            if found:
                break
        return best, found


class Replay:
    """Labels by topic. `counts`: `missing`, `conflicts`."""

    def __init__(self, records: Iterable[factscore.Record]) -> None:
        self.counts: Counter[str] = Counter(missing=0, conflicts=0)
        self.labels: dict[tuple[str, str], tuple[bool, ...]] = {}  # of (topic, normal fact)
        self.responses: dict[str, list[Labelled]] = {}
        self.unsure: set[tuple[str, str]] = set()  # sentences counted as conflicts
        for record in records:
            if record.abstained is not None:  # a response that abstains has no facts: "- none"
                topic = fenced(record.topic)
                self.responses.setdefault(topic, []).append(self._labelled(topic, record))

    def answer(self, messages: list[dict[str, str]], sample: int = 0) -> str:
        """The reply to chat messages, as `rules.answer`."""
        task = rules.task_of(messages)
        slots = rules.slots_of(task, messages[-1]["content"]) if task else None
        if slots and task and task.startswith("facts"):
            reply = self._facts(fenced(slots["topic"]), slots["sentence"])
        elif slots and task == "verdicts_many":
            return self._many(messages, slots)
        elif slots and task and task.startswith("verdicts"):
            verdict = self._verdict(slots["topic"], slots["fact"])
            reply = None if verdict is None else str(verdict)
        else:
            return rules.answer(messages, sample)
        if reply is None:
            self.counts["missing"] += 1
            return rules.answer(messages, sample)
        return reply

    def _facts(self, topic: str, sentence: str) -> str | None:
        best: int = -1
        found: list[Facts] = []
        for response in self.responses.get(topic, []):
            fit, places = response.find(sentence)
            if fit > best:
                best, found = fit, []
            if fit == best:
                found += places
        if not found:
            return None
        if len(set(found)) > 1 and (topic, sentence) not in self.unsure:
            self.unsure.add((topic, sentence))
            self.counts["conflicts"] += 1
        return "\n".join(f"- {fact}" for fact in self._marked(topic, found[0])) or "- none"

    def _marked(self, topic: str, facts: Facts) -> Iterator[str]:
        """The facts' texts, made different from each other."""
        used: set[str] = set()
        for fact, supported in facts:
            labels = self.labels[topic, normal_fact(fact)]
            number = labels.index(supported) + 1
            while (text := fact if number == 1 else f"{fact} ({number})") and (
                normal_fact(text) in used
                or (number > 1 and (topic, normal_fact(text)) in self.labels)
            ):
                number += len(labels)
            used.add(normal_fact(text))
            yield text

    def _verdict(self, topic: str, fact: str) -> bool | None:
        topic, fact = fenced(topic), fenced(fact)
        if labels := self.labels.get((topic, normal_fact(fact))):
            return labels[0]
        if (match := _MARK.fullmatch(fact)) and (
            labels := self.labels.get((topic, normal_fact(match[1])))
        ):
            return labels[(int(match[2]) - 1) % len(labels)]
        return None

    def _many(self, messages: list[dict[str, str]], slots: dict[str, str]) -> str:
        """One line per fact; the rules decide facts that the file lacks."""
        lines = rules.answer(messages).splitlines()
        for i, fact in enumerate(unnumbered(slots["facts"])):
            verdict = self._verdict(slots["topic"], fact)
            if verdict is None:
                self.counts["missing"] += 1
            else:
                lines[i] = f"{i + 1}. {verdict}"
        return "\n".join(lines)

    def _labelled(self, topic: str, record: factscore.Record) -> Labelled:
        facts = [self._listed(topic, s) for s in record.sentences]
        texts = [_text(record.response, bare) for bare in (True, False)]
        return Labelled(
            tuple((t, tuple(zip(_middles(t, record), facts, strict=True))) for t in texts)
        )

    def _listed(self, topic: str, sentence: factscore.Sentence) -> Facts:
        """The sentence's facts with S or NS. Adds their labels to `labels`."""
        facts = []
        for text, label in ((fenced(t), la) for t, la in sentence.human_facts):
            key = (topic, normal_fact(text))
            if label == "IR" or not key[1]:
                continue
            supported, known = label == "S", self.labels.get(key, ())
            if supported not in known:
                self.labels[key] = (*known, supported)
                self.counts["conflicts"] += len(known)
            facts.append((text, supported))
        return tuple(facts)


def load(path: str | Path) -> Replay:
    """The labels of a FActScore file. UserError when the file is wrong or has no labels."""
    replay = Replay(factscore.read(path, "--replay"))
    if not replay.labels:
        raise UserError(f"{path}: no fact has a label: replay needs human-atomic-facts")
    return replay


def _text(response: str, bare: bool) -> Text:
    """`bare`: without the marks of list items."""
    marks = [m.span() for m in _ITEM.finditer(response)] if bare else []
    joined, last = " ", None
    offsets: dict[int, int] = {}
    opens: set[int] = set()
    for match in _WORD.finditer(response):
        if any(start <= match.start() < end for start, end in marks):
            continue
        number = len(offsets)
        if last is None or _EDGE.search(response[last : match.start()]):
            opens.add(number)
        offsets[len(joined) - 1] = number
        joined += match[0].casefold() + " "
        last = match.end()
    return Text(joined, offsets, frozenset({*opens, len(offsets)}))


def _middles(text: Text, record: factscore.Record) -> list[int]:
    """Number of the middle word of each labelled sentence, in the order of the text.

    A sentence that is not in the text, such as a list mark alone, gets the number of the sentence
    before it.
    """
    middles: list[int] = []
    after = 0
    for sentence in record.sentences:
        forms = (_text(sentence.text, bare) for bare in (True, False))
        options = (p for form in forms for p in text.places(form) if p[0] >= after)
        at = next(options, None)
        if at is None:
            middles.append(middles[-1] if middles else 0)
        else:
            middles.append((at[0] + at[1]) // 2)
            after = at[1]
    return middles
