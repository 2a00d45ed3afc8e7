"""The annotator's answers: this project's prompts, answered by rules of ordinary English.

    answer(prompts.questions.render("Ada Lovelace", "Ada Lovelace was born in London."))
        ->  "Where was Ada Lovelace born?"

The system message names the task. The template's own text is matched against the last user message
to read its slots, so words inside a slot cannot change the task. `text.decompose` makes facts and
`quickstart.asking` makes questions. Verdicts compare the object of plain statements with those of
the same kind in the passages; without such statements `verifiers.lexical` decides.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable

from facttune_ray.prompts import facts, prompts, questions, template
from facttune_ray.prompts.fence import unnumbered
from facttune_ray.quickstart.asking import ask
from facttune_ray.scoring import equivalence
from facttune_ray.text.abstention import abstained
from facttune_ray.text.decompose import rule_facts
from facttune_ray.text.forms import NUMBERS, singular
from facttune_ray.text.sentences import split
from facttune_ray.text.verbs import AUXILIARIES, KNOWN, base, is_finite
from facttune_ray.verifiers import lexical

CHAT_REPLY = "I answer this project's own prompts: facts, verdicts, questions, judgements."


def answer(messages: list[dict[str, str]], sample: int = 0) -> str:
    """The reply to chat messages. Every sample is the same, because rules have no temperature."""
    task = task_of(messages)
    slots = slots_of(task, messages[-1]["content"]) if task else None
    if task is None or slots is None:
        return CHAT_REPLY
    return TASKS[task](**slots)


def task_of(messages: list[dict[str, str]]) -> str | None:
    """The task of a conversation; None if it is none of TASKS."""
    first = messages[0] if messages else {}
    return _systems().get(first.get("content", "")) if first.get("role") == "system" else None


@functools.cache
def _systems() -> dict[str, str]:
    return {template.system(name): task for task in TASKS for name in _templates(task)}


def _templates(task: str) -> tuple[str, ...]:
    several = {
        "facts": facts.TEMPLATES,
        "questions": questions.TEMPLATES,
        "questions_answer": questions.ANSWER_TEMPLATES,
    }
    return several.get(task, (task,))


_INSIDE = {"passages": "(?s:.*)", "facts": "(?s:.*)", "before": "(?:[^\\n]*\\n)?"}  # slot -> text


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    """A pattern of the last user block with its slots as groups. Only lists span several lines;
    `before` is one line or empty."""
    pieces = re.split(r"\{(\w+)\}", template.blocks(name)[-1][1])
    parts = [re.escape(p) for p in pieces]
    for i in range(1, len(pieces), 2):
        inside = _INSIDE.get(pieces[i], "[^\\n]*")
        parts[i] = f"(?P<{pieces[i]}>{inside})"
    return re.compile("".join(parts))


def slots_of(task: str, text: str) -> dict[str, str] | None:
    """Slots of the task's template in a user message; None if the message is another text."""
    matches = (_pattern(name).fullmatch(text.strip("\n")) for name in _templates(task))
    return next((match.groupdict() for match in matches if match), None)


def _facts(topic: str, sentence: str, context: str = "") -> str:
    # a carried short sentence makes several sentences
    every = (f for s in split(sentence) for f in rule_facts(topic, s.text))
    limit = facts.MAX_CHARS
    short = (f if len(f) <= limit else textwrap.shorten(f, limit) for f in every)
    return "\n".join(f"- {fact}" for fact in short) or "- none"


def _questions(topic: str, fact: str, before: str = "", pronoun: str = "") -> str:
    return ask(topic, fact).question


def _questions_answer(topic: str, fact: str, before: str = "", pronoun: str = "") -> str:
    asked = ask(topic, fact)
    return f"Question: {asked.question}\nAnswer: {asked.answer}"


# Questions that an article on the topic would answer; the first that are not asked yet are taken
QUESTIONS = {
    "medicine": (
        "What are the symptoms of {topic}?|What causes {topic}?|How is {topic} diagnosed?|"
        "How is {topic} treated?|How can {topic} be prevented?|Who is at risk of {topic}?|"
        "Which complications does {topic} have?|How does {topic} progress over time?|"
        "Which part of the body does {topic} affect?|How many people have {topic}?"
    ),
    "bio": (
        "Where was {topic} born?|What does {topic} work as?|What did {topic} study?|"
        "Where does {topic} live?|What does {topic} play?|What does {topic} keep?|"
        "What is {topic} known for?|Who taught {topic}?|Which prizes did {topic} win?"
    ),
    "general": (
        "What is the history of {topic}?|How does {topic} work?|Why does {topic} matter?|"
        "Which examples of {topic} are well known?|Who shaped {topic}?|What is disputed about "
        "{topic}?|Where is {topic} found?|When did {topic} begin?|What belongs to {topic}?"
    ),
}


def _prompts(domain: str, topic: str, number: str, before: str = "") -> str:
    every = [form.format(topic=topic) for form in QUESTIONS[domain].split("|")]
    new = [question for question in every if question not in (before or "")]
    return "\n".join(f"- {question}" for question in new[: int(number)]) or "- none"


def _abstention(prompt: str, response: str) -> str:
    return "Yes" if abstained(response) else "No"


def _equivalence(question: str, first: str, second: str) -> str:
    return "Yes" if equivalence.same_answer(first, second) else "No"


def _judgements(prompt: str, first: str, second: str) -> str:
    """Fluency: fewer repeated sentences, and a full stop at the end. Helpfulness: no abstention,
    then more different sentences. Equal values tie."""
    values: list[tuple] = []
    for text in (first, second):
        parts = re.split(r"(?<=[.!?])\s+", text)
        sentences = [s.strip(" .!?").lower() for s in parts if s.strip()]
        repeated = len(sentences) - len(set(sentences))
        fluency = -repeated - (not text.rstrip().endswith((".", "!", "?", '"', ")")))
        values.append((fluency, (not abstained(text), len(set(sentences)))))
    better = [
        "A" if a > b else "B" if b > a else "Tie" for a, b in zip(values[0], values[1], strict=True)
    ]
    return f"Fluency: {better[0]}\nHelpfulness: {better[1]}"


# ---------------------------------------------------------------- verdicts

_STOP_WORDS = set(
    "a an the of in on at for with by from to as into about over and or but his her their its he "
    "she they it who which that this these those also".split()
)
_MAX_WORDS = 9  # a sentence of at most this many words makes one statement


def _verdicts(topic: str, passages: str, fact: str) -> str:
    return str(supported(topic, fact, unnumbered(passages)))


def _verdicts_many(topic: str, passages: str, facts: str) -> str:
    numbered = enumerate(unnumbered(facts), 1)
    return "\n".join(f"{i}. {_verdicts(topic, passages, fact)}" for i, fact in numbered)


def _verdicts_closed(topic: str, fact: str) -> str:
    """Always False: without passages the rules have no knowledge."""
    return "False"


def supported(topic: str, fact: str, passages: list[str]) -> bool:
    """Whether the passages support the whole fact.

    The objects of short plain statements about the topic with the fact's verb decide: "Ada was born
    in Lyon." makes "Ada was born in Rome." false. Without such statements the lexical score does.
    """
    parts = rule_facts(topic, fact)
    if len(parts) > 1:
        return all(_supported(topic, part, passages) for part in parts)
    return _supported(topic, fact, passages)


def _supported(topic: str, fact: str, passages: list[str]) -> bool:
    verbs, content = _content(fact, topic)
    if verbs and content:
        statements = _statements(topic, tuple(passages))
        same_verb = [(v, words) for v, words in statements if v & verbs]
        if any(content <= words for _, words in same_verb):
            return True
        if any(v == verbs and len(words) <= len(content) + 1 for v, words in same_verb):
            return False
    article = _article(topic, tuple(sorted(passages)))
    score = lexical.support_prepared(fact, article).score
    return score is not None and score >= lexical.THRESHOLD


@functools.lru_cache(maxsize=256)  # facts of a topic follow each other
def _article(topic: str, passages: tuple[str, ...]) -> lexical.Prepared:
    return lexical.prepare(topic, passages)


@functools.lru_cache(maxsize=256)
def _statements(topic: str, passages: tuple[str, ...]) -> list[tuple[set[str], set[str]]]:
    """Content of the passages' short sentences that begin with the topic's name."""
    sentences = (s for p in passages for s in re.split(r"(?<=[.!?;])\s+", p.strip()))
    name = re.sub(r"\s*\([^)]*\)$", "", topic)
    return [
        _content(s, topic)
        for s in sentences
        if s.startswith(f"{name} ") and s.count(" ") < _MAX_WORDS
    ]


def _content(sentence: str, topic: str) -> tuple[set[str], set[str]]:
    """(verbs, other content words) of a sentence as base forms, without the topic's name."""
    name = set(re.findall(r"\w+", topic.lower()))
    verbs: set[str] = set()
    words: set[str] = set()
    for word in re.findall(r"\d[\d,.]*\d|\w+", sentence.lower()):
        if word in name or word in _STOP_WORDS or word in AUXILIARIES:
            continue
        if not verbs and is_finite(word) and base(word) in KNOWN:
            verbs.add(base(word))
        elif not verbs and word in KNOWN:  # "did not study"
            verbs.add(word)
        else:
            words.add(str(NUMBERS.get(word, singular(word))))
    return verbs, words


TASKS: dict[str, Callable[..., str]] = {
    **{prompts.template_name(d): functools.partial(_prompts, d) for d in QUESTIONS},
    "facts": _facts,
    "abstention": _abstention,
    "verdicts": _verdicts,
    "verdicts_many": _verdicts_many,
    "verdicts_closed": _verdicts_closed,
    "questions": _questions,
    "questions_answer": _questions_answer,
    "equivalence": _equivalence,
    "judgements": _judgements,
}
