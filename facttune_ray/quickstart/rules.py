"""The annotator's answers: this project's four prompts, answered by rules of ordinary English.

    answer(prompts.questions.render("Ada Lovelace", "Ada Lovelace was born in London."))
        ->  "Where was Ada Lovelace born?"

The system message tells the task; the slots are read back out of the last user message with the
template's own text, so words inside a slot cannot change the task. Facts and questions are made
by `scoring.decompose` and `quickstart.asking`, verdicts by `scoring.verify_lexical` and a check
that what the statement says of the topic stands in one sentence.
"""

from __future__ import annotations

import functools
import re

from facttune_ray.prompts import template
from facttune_ray.quickstart.asking import question
from facttune_ray.scoring import equivalence, verify_lexical
from facttune_ray.scoring.decompose import rule_facts, sentences
from facttune_ray.scoring.verbs import AUXILIARIES, KNOWN, base, is_finite

CHAT_REPLY = "I answer this project's own prompts: facts, verdicts, questions and equivalence."


def answer(messages: list[dict[str, str]], sample: int = 0) -> str:
    """The reply to chat messages. Rules have no temperature: every sample is the same."""
    task = task_of(messages)
    slots = _slots(task, messages[-1]["content"]) if task else None
    if task is None or slots is None:
        return CHAT_REPLY
    return TASKS[task](**slots)


def task_of(messages: list[dict[str, str]]) -> str | None:
    """ "facts", "verdicts", "questions" or "equivalence"; None for any other conversation."""
    first = messages[0] if messages else {}
    return _systems().get(first.get("content", "")) if first.get("role") == "system" else None


@functools.cache
def _systems() -> dict[str, str]:
    return {template.system(task): task for task in TASKS}


@functools.cache
def _pattern(task: str) -> re.Pattern[str]:
    """The last user block with its slots as groups; only passages run over several lines."""
    pieces = re.split(r"\{(\w+)\}", template.blocks(task)[-1][1])
    parts = [re.escape(p) for p in pieces]
    for i in range(1, len(pieces), 2):
        parts[i] = f"(?P<{pieces[i]}>{'(?s:.*)' if pieces[i] == 'passages' else '[^\n]*'})"
    return re.compile("".join(parts))


def _slots(task: str, text: str) -> dict[str, str] | None:
    match = _pattern(task).fullmatch(text.strip("\n"))
    return match.groupdict() if match else None


def _facts(topic: str, sentence: str) -> str:
    return "\n".join(f"- {fact}" for fact in rule_facts(topic, sentence)) or "- none"


def _equivalence(question: str, first: str, second: str) -> str:
    a, b = (_meaning(text) for text in (first, second))
    return "Yes" if a and b and equivalence.same(a, b) else "No"


_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
}


def _meaning(text: str) -> tuple[str, ...]:
    """Normal words of an answer, numbers in digits."""
    return tuple(_NUMBERS.get(w, w) for w in equivalence.normal_words(text))


# ---------------------------------------------------------------- verdicts

_EMPTY = set(
    "a an the of in on at for with by from to as into about over and or but his her their its he "
    "she they it who which that this these those also one".split()
)


def _verdicts(topic: str, passages: str, fact: str) -> str:
    texts = [re.sub(r"^\[\d+\] ", "", line) for line in passages.splitlines() if line.strip()]
    return str(supported(topic, fact, texts))


def supported(topic: str, fact: str, passages: list[str]) -> bool:
    """Whether the passages support the whole fact: the lexical score, and no other object.

    Where a sentence states what the fact states, of another object ("born in Lyon" against
    "born in Ostrava"), the object decides; a fact of few words needs every one of them.
    """
    found = verify_lexical.support(fact, topic, passages)
    if found.score is None:
        return False
    verb, said = _content(fact, topic)
    told = [_content(s, topic) for p in passages for s in sentences(p)]
    with_all = [v for v, words in told if said <= words | v]
    if len(said) <= 3:
        if not with_all:
            return False
        rivals = any(v & verb for v, _ in told)
        if verb and rivals and not any(v & verb for v in with_all):
            return False  # "lives in Lyon" against "was born in Lyon" and "lives in Ostrava"
        return True
    return found.score >= verify_lexical.THRESHOLD


def _content(sentence: str, topic: str) -> tuple[set[str], set[str]]:
    """(verbs, other content words) of a sentence as stems, without the topic's name."""
    own = {w for w in re.findall(r"\w+", topic.lower())}
    verbs, words = set(), set()
    for word in re.findall(r"\d[\d,.]*\d|\w+", sentence.lower()):
        if word in own or word in _EMPTY or word in AUXILIARIES:
            continue
        if is_finite(word) and base(word) in KNOWN:
            verbs.add(base(word))
        else:
            words.add(_NUMBERS.get(word, equivalence.singular(word)))
    return verbs, words


TASKS = {
    "facts": _facts,
    "verdicts": _verdicts,
    "questions": lambda topic, fact: question(topic, fact),
    "equivalence": _equivalence,
}
