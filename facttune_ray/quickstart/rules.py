"""The annotator's answers: this project's prompts, answered by rules of ordinary English.

    answer(prompts.questions.render("Ada Lovelace", "Ada Lovelace was born in London."))
        ->  "Where was Ada Lovelace born?"

The system message tells the task; the slots are read back out of the last user message with the
template's own text, so words inside a slot cannot change the task. Facts and questions are made
by `scoring.decompose` and `quickstart.asking`, verdicts by `scoring.verify_lexical` and, where the
passages hold plain statements of the same kind, by their objects.
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
    """The reply to chat messages. Rules have no temperature: every sample is the same."""
    task = task_of(messages)
    slots = slots_of(task, messages[-1]["content"]) if task else None
    if task is None or slots is None:
        return CHAT_REPLY
    return TASKS[task](**slots)


def task_of(messages: list[dict[str, str]]) -> str | None:
    """One of the tasks; None for any other conversation."""
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


_INSIDE = {"passages": "(?s:.*)", "facts": "(?s:.*)", "before": "(?:[^\\n]*\\n)?"}  # of a slot


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    """The last user block with its slots as groups; only lists run over several lines, and
    `before` is one whole line or nothing."""
    pieces = re.split(r"\{(\w+)\}", template.blocks(name)[-1][1])
    parts = [re.escape(p) for p in pieces]
    for i in range(1, len(pieces), 2):
        inside = _INSIDE.get(pieces[i], "[^\\n]*")
        parts[i] = f"(?P<{pieces[i]}>{inside})"
    return re.compile("".join(parts))


def slots_of(task: str, text: str) -> dict[str, str] | None:
    """What the slots of the task's template hold in this user message; None: another text."""
    found = (_pattern(name).fullmatch(text.strip("\n")) for name in _templates(task))
    return next((match.groupdict() for match in found if match), None)


def _facts(topic: str, sentence: str, context: str = "") -> str:
    most = facts.MAX_CHARS
    every = (f for s in split(sentence) for f in rule_facts(topic, s.text))  # several, if carried
    found = (f if len(f) <= most else textwrap.shorten(f, most) for f in every)
    return "\n".join(f"- {fact}" for fact in found) or "- none"


def _questions(topic: str, fact: str, before: str = "", pronoun: str = "") -> str:
    return ask(topic, fact).question


def _questions_answer(topic: str, fact: str, before: str = "", pronoun: str = "") -> str:
    asked = ask(topic, fact)
    return f"Question: {asked.question}\nAnswer: {asked.answer}"


# What a reference tells of a topic; a prompt asks for the first that are not there yet
ASKED = {
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
    every = [form.format(topic=topic) for form in ASKED[domain].split("|")]
    new = [question for question in every if question not in (before or "")]
    return "\n".join(f"- {question}" for question in new[: int(number)]) or "- none"


def _abstention(prompt: str, response: str) -> str:
    return "Yes" if abstained(response) else "No"


def _equivalence(question: str, first: str, second: str) -> str:
    return "Yes" if equivalence.same_answer(first, second) else "No"


def _judgements(prompt: str, first: str, second: str) -> str:
    """Fluency: fewer sentences said twice, an end with a full stop. Helpfulness: an answer, then
    more different sentences. Equal ones tie."""
    said: list[tuple] = []
    for text in (first, second):
        parts = re.split(r"(?<=[.!?])\s+", text)
        sentences = [s.strip(" .!?").lower() for s in parts if s.strip()]
        twice = len(sentences) - len(set(sentences))
        smooth = -twice - (not text.rstrip().endswith((".", "!", "?", '"', ")")))
        said.append((smooth, (not abstained(text), len(set(sentences)))))
    better = [
        "A" if a > b else "B" if b > a else "Tie" for a, b in zip(said[0], said[1], strict=True)
    ]
    return f"Fluency: {better[0]}\nHelpfulness: {better[1]}"


# ---------------------------------------------------------------- verdicts

_EMPTY = set(
    "a an the of in on at for with by from to as into about over and or but his her their its he "
    "she they it who which that this these those also".split()
)
_SHORT = 9  # words: a sentence of at most so many states one thing


def _verdicts(topic: str, passages: str, fact: str) -> str:
    return str(supported(topic, fact, unnumbered(passages)))


def _verdicts_many(topic: str, passages: str, facts: str) -> str:
    told = unnumbered(facts)
    return "\n".join(f"{i}. {_verdicts(topic, passages, f)}" for i, f in enumerate(told, 1))


def _verdicts_closed(topic: str, fact: str) -> str:
    """The rules know nothing but passages: no statement is right."""
    return "False"


def supported(topic: str, fact: str, passages: list[str]) -> bool:
    """Whether the passages support the whole fact.

    Short plain statements about the topic with the fact's verb decide by their object: "Ada was
    born in Lyon." makes "Ada was born in Rome." false. Otherwise the lexical score decides.
    """
    parts = rule_facts(topic, fact)
    if len(parts) > 1:
        return all(_supported(topic, part, passages) for part in parts)
    return _supported(topic, fact, passages)


def _supported(topic: str, fact: str, passages: list[str]) -> bool:
    verbs, said = _content(fact, topic)
    if verbs and said:
        told = _statements(topic, tuple(passages))
        alike = [(v, words) for v, words in told if v & verbs]
        if any(said <= words for _, words in alike):
            return True
        if any(v == verbs and len(words) <= len(said) + 1 for v, words in alike):
            return False
    article = _article(topic, tuple(sorted(passages)))
    score = lexical.support_prepared(fact, article).score
    return score is not None and score >= lexical.THRESHOLD


@functools.lru_cache(maxsize=256)  # a topic's facts come close together
def _article(topic: str, passages: tuple[str, ...]) -> lexical.Prepared:
    return lexical.prepare(topic, passages)


@functools.lru_cache(maxsize=256)
def _statements(topic: str, passages: tuple[str, ...]) -> list[tuple[set[str], set[str]]]:
    """Content of the passages' short sentences that open with the topic's name."""
    found = (s for p in passages for s in re.split(r"(?<=[.!?;])\s+", p.strip()))
    name = re.sub(r"\s*\([^)]*\)$", "", topic)
    return [_content(s, topic) for s in found if s.startswith(f"{name} ") and s.count(" ") < _SHORT]


def _content(sentence: str, topic: str) -> tuple[set[str], set[str]]:
    """(verbs, other content words) of a sentence, inflection aside, without the topic's name."""
    own = set(re.findall(r"\w+", topic.lower()))
    verbs: set[str] = set()
    words: set[str] = set()
    for word in re.findall(r"\d[\d,.]*\d|\w+", sentence.lower()):
        if word in own or word in _EMPTY or word in AUXILIARIES:
            continue
        if not verbs and is_finite(word) and base(word) in KNOWN:
            verbs.add(base(word))
        elif not verbs and word in KNOWN:  # "did not study"
            verbs.add(word)
        else:
            words.add(str(NUMBERS.get(word, singular(word))))
    return verbs, words


TASKS: dict[str, Callable[..., str]] = {
    **{prompts.template_name(d): functools.partial(_prompts, d) for d in ASKED},
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
