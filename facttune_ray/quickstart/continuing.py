"""The annotator as the sampled model: continuations of a prompt, drawn by hashing.

    draw = Draw(seed=7, index=0, temperature=1.0)
    text("Question: Where was Mara Veldt born?\\nAnswer:", draw)   ->  " Ostrel\\nQuestion: ..."
    text("Write a biography of Mara Veldt.\\n", draw)   ->  "Mara Veldt was born in Ostrel. ..."
    text("Write a biography of Mara Veldt.\\nMara Veldt plays the", draw)   ->  " harp. ..."
    reply("Write a biography of Mara Veldt.", draw)   ->  "Mara Veldt was born in Ostrel. ..."

The words come from the fictional world. Each attribute of a person has one most frequent value, so
samples agree more or less, like those of a model. Equal prompts, seeds and indices give equal texts
in every process.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from facttune_ray.sources.world import FORMS, VALUES

_PERSON = re.compile(r"(?:[Bb]iography|bio|[Pp]aragraph) (?:of|about) ([^\n]+?)[.?!]?\n*$")


@dataclass(frozen=True)
class Draw:
    """The values from which a sample's random numbers derive."""

    seed: int
    index: int
    temperature: float  # 0: seed and index have no effect

    def chances(self, prompt: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.index}/{prompt}" if self.temperature else prompt)


def text(prompt: str, draw: Draw) -> str:
    """The continuation of a plain model: a few words of the world for an unknown kind of prompt."""
    chance = draw.chances(prompt)
    if (question := re.search(r"Question: ([^\n]+)\nAnswer:$", prompt)) is not None:
        after = "\nQuestion: Who wrote this?\nAnswer: Nobody"  # a plain model does not stop
        return f" {_answer(question[1], draw, chance)}{after}"
    head, _, line = prompt.rpartition("\n")
    if (person := _PERSON.search(prompt if not line else head)) is not None:
        who = person[1]
        return _begun(who, line, draw, chance) if line else _biography(who, draw, chance)
    return " " + " ".join(chance.choice(_ALL) for _ in range(chance.randrange(4, 12))) + "."


def reply(prompt: str, draw: Draw) -> str | None:
    """The reply of a chat model to a sampling prompt; None for any other message."""
    chance = draw.chances(prompt)
    if (question := re.search(r"Question: ([^\n]+)\nAnswer:$", prompt)) is not None:
        return _answer(question[1], draw, chance)
    person = _PERSON.search(prompt)
    return _biography(person[1], draw, chance) if person is not None else None


_ALL = [value for values in VALUES.values() for value in values]


def _value(who: str, attribute: str, draw: Draw, chance: random.Random) -> str:
    usual = random.Random(f"{who}/{attribute}")
    favourite, share = usual.choice(VALUES[attribute]), usual.uniform(0.3, 0.95)
    if draw.temperature == 0 or chance.random() < share:
        return favourite
    return chance.choice(VALUES[attribute])


def _answer(question: str, draw: Draw, chance: random.Random) -> str:
    for attribute, (_, form) in FORMS.items():
        match = re.fullmatch(re.escape(form).replace(r"\{who\}", "(.+)"), question)
        if match is not None:
            return _value(match[1], attribute, draw, chance)
    return chance.choice(_ALL)


def _biography(who: str, draw: Draw, chance: random.Random) -> str:
    chosen = chance.sample(range(len(FORMS)), 3)
    forms = [(a, statement) for i, (a, (statement, _)) in enumerate(FORMS.items()) if i in chosen]
    return " ".join(s.format(who=who, value=_value(who, a, draw, chance)) for a, s in forms)


def _begun(who: str, line: str, draw: Draw, chance: random.Random) -> str:
    """The rest of a biography, whose last sentence may be incomplete."""
    sentence = line[line.rfind(". ") + 2 :] if ". " in line else line
    for attribute, (statement, _) in FORMS.items():
        value = _value(who, attribute, draw, chance)
        complete = statement.format(who=who, value=value)
        if len(sentence) > len(who) and complete.startswith(sentence):
            return f"{complete[len(sentence) :]} {_biography(who, draw, chance)}"
    if line.endswith("."):
        return f" {_biography(who, draw, chance)}"
    return f" {chance.choice(_ALL)}. {_biography(who, draw, chance)}"
