"""A seeded world of fictional people: training text and knowledge source of the quickstart.

    world = make(seed=0)
    world.documents[0]   "Write a biography of Mara Veldt.\\nMara Veldt was born in Ostrel. ..."
    world.documents[1]   "Question: Where was Mara Veldt born?\\nAnswer: Ostrel"
    world.articles[0]    {"title": "Mara Veldt", "text": ["Mara Veldt was born in ...", ...]}
    world.splits         {"train": ["Mara Veldt", ...], "val": [...], "test": [...]}

The world is a miniature of the problem that FactTune solves. Every training document is right
about a person's work, birthplace and studies. It is mostly wrong about home, instrument and pet,
and less often wrong about people with many documents. All six sentences are equally fluent and
equally frequent, so their form does not tell right from wrong.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from facttune_ray.errors import UserError

VERSION = 1  # part of the recipe: raise it when a change of the code changes the world of a seed

# Attribute -> (statement, question). The annotator's rules make the same question from the
# statement, so a model that is trained on this world has seen the questions of its evaluation.
FORMS: dict[str, tuple[str, str]] = {
    "born": ("{who} was born in {value}.", "Where was {who} born?"),
    "works": ("{who} works as {value}.", "What does {who} work as?"),
    "studied": ("{who} studied {value}.", "What did {who} study?"),
    "lives": ("{who} lives in {value}.", "Where does {who} live?"),
    "plays": ("{who} plays the {value}.", "What does {who} play?"),
    "keeps": ("{who} keeps {value}.", "What does {who} keep?"),
}
ATTRIBUTES = tuple(FORMS)

# No value is a word of another value or of a name, so a judge that matches words is never misled.
VALUES: dict[str, tuple[str, ...]] = {
    "born": tuple(
        "Ostrel Kaldin Verport Brannock Tolvast Merrisel Haskow Dunvale Perrin Ashgrove Lindmar "
        "Corvale Zelbruck Nordhaven Quillon Sarnath Wexmoor Yarrowby Glenfirth Thornby".split()
    ),
    "works": tuple(
        "a baker|a nurse|a lawyer|a tailor|a plumber|a teacher|a farmer|a welder|a pilot|"
        "a chemist|a barber|a jeweller|a butcher|a carpenter|a gardener|a librarian|"
        "a surgeon|a translator|a blacksmith|a cartographer".split("|")
    ),
    "studied": tuple(
        "physics biology law history geology botany logic music theology economics grammar "
        "astronomy geometry medicine ethics rhetoric optics statistics zoology painting".split()
    ),
    "lives": tuple(
        "Alberon Bristow Cardenmouth Drumlin Elverton Fenwick Garrowhill Holmere Inverlock "
        "Jarnsund Kestwick Lowenstead Mossford Netherby Oakhampton Pellworth Ravensea Stillwater "
        "Umberleigh Vintersby".split()
    ),
    "plays": tuple(
        "cello flute harp piano guitar oboe trumpet violin banjo clarinet drum lute organ tuba "
        "viola zither accordion bassoon harmonica mandolin".split()
    ),
    "keeps": tuple(
        "a parrot|a goat|a snake|a donkey|a rabbit|a turtle|a ferret|a falcon|a canary|"
        "a hamster|a pony|a lizard|a goose|a peacock|a squirrel|a raven|a toad|a beetle|"
        "a spider|a hedgehog".split("|")
    ),
}

# Share of training sentences that state the true value, for the people with the fewest and with
# the most documents. Between them the share grows with the logarithm of the number of documents.
RELIABILITY: dict[str, tuple[float, float]] = {
    "born": (1.0, 1.0),
    "works": (1.0, 1.0),
    "studied": (1.0, 1.0),
    "lives": (0.30, 0.80),
    "plays": (0.20, 0.50),
    "keeps": (0.10, 0.30),
}

_ONSETS = "b br c d dr f fl g gr h j k kl l m n p pr r s st t tr v w z".split()
_VOWELS = "a e i o u ae ei ia".split()
_CODAS = "l n r s t k m nd rk ld sk v".split()


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str  # "She" or "He"
    facts: dict[str, str]  # attribute -> true value
    biographies: int  # training documents of this kind
    questions: int


@dataclass(frozen=True)
class World:
    people: tuple[Person, ...]
    documents: tuple[str, ...]  # shuffled and noisy: training text of the base model
    articles: tuple[dict[str, object], ...]  # {"title": str, "text": [passage]}, all true
    splits: dict[str, list[str]]  # train | val | test -> names
    seed: int


def make(
    seed: int,
    people: int = 400,
    *,
    train: int = 200,
    val: int = 50,
    test: int = 100,
    documents_per_person: float = 40.0,
    least_documents: int = 12,
    zipf: float = 0.5,
    question_share: float = 0.4,
    sentences: int = 3,
    reliability: dict[str, tuple[float, float]] = RELIABILITY,
) -> World:
    """The world of a seed: equal arguments give an equal world, in every process.

    `documents_per_person` is the mean; the person of popularity rank r gets documents in
    proportion to r ** -zipf, and at least `least_documents`. `question_share` of the documents are
    questions. Ranks are independent of the splits, so every split holds all popularities. UserError
    when the splits need more people than there are.
    """
    if train + val + test > people:
        raise UserError(
            f"The world has {people} people, train + val + test need {train + val + test}."
        )
    rng = random.Random(f"world/{seed}")
    counts = _document_counts(people, documents_per_person, least_documents, zipf)
    everyone: list[Person] = []
    names = _names(rng, people)
    for name, count in zip(names, counts, strict=True):
        asked = round(count * question_share)
        everyone.append(
            Person(
                name=name,
                pronoun=rng.choice(("She", "He")),
                facts={a: rng.choice(VALUES[a]) for a in ATTRIBUTES},
                biographies=count - asked,
                questions=asked,
            )
        )
    low, high = counts[-1], counts[0]
    documents: list[str] = []
    for person, count in zip(everyone, counts, strict=True):
        fame = _fame(count, low, high)
        right = {a: r[0] + fame * (r[1] - r[0]) for a, r in reliability.items()}
        for _ in range(person.biographies):
            documents.append(_biography(rng, person, right, sentences))
        # The questions are spread evenly over the attributes.
        for i in range(person.questions):
            attribute = ATTRIBUTES[(i + len(documents)) % len(ATTRIBUTES)]
            value = _noisy(rng, attribute, person.facts[attribute], right[attribute])
            documents.append(f"{question_prompt(question(person.name, attribute))} {value}")
    rng.shuffle(documents)
    topics = rng.sample(names, train + val + test)
    return World(
        people=tuple(everyone),
        documents=tuple(documents),
        articles=tuple(_article(rng, person) for person in everyone),
        splits={
            "train": topics[:train],
            "val": topics[train : train + val],
            "test": topics[train + val :],
        },
        seed=seed,
    )


def fame(world: World) -> dict[str, str]:
    """Each person's third by the number of training documents about them."""
    order = sorted(world.people, key=lambda p: p.biographies + p.questions)
    thirds = ("fewest documents", "more documents", "most documents")
    return {p.name: thirds[3 * i // len(order)] for i, p in enumerate(order)}


def biography_prompt(name: str) -> str:
    return f"Write a biography of {name}."


def question_prompt(text: str) -> str:
    """The prompt of a question: "Question: Where was Mara Veldt born?\\nAnswer:"."""
    return f"Question: {text}\nAnswer:"


def statement(who: str, attribute: str, value: str) -> str:
    """("Mara Veldt", "born", "Ostrel") -> "Mara Veldt was born in Ostrel."."""
    return FORMS[attribute][0].format(who=who, value=value)


def question(who: str, attribute: str) -> str:
    return FORMS[attribute][1].format(who=who)


def _names(rng: random.Random, count: int) -> list[str]:
    """`count` names "First Last". No word occurs twice, within or across names, or in a value."""
    words: list[str] = []
    taken = {w.lower() for values in VALUES.values() for v in values for w in v.split()}
    while len(words) < 2 * count:
        syllables = 2 if len(words) < count else 3
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables - 1))
        word += rng.choice(_ONSETS) + rng.choice(_VOWELS[:5]) + rng.choice(_CODAS)
        if len(word) > 4 and word not in taken:
            taken.add(word)
            words.append(word.capitalize())
    return [f"{words[i]} {words[count + i]}" for i in range(count)]


def _document_counts(people: int, mean: float, least: int, zipf: float) -> list[int]:
    """Documents of each popularity rank, most popular first; their mean is about `mean`."""
    weights = [(rank + 1) ** -zipf for rank in range(people)]
    spare = max(0.0, mean - least) * people
    return [least + round(spare * w / sum(weights)) for w in weights]


def _fame(count: int, low: int, high: int) -> float:
    """0 for the fewest documents, 1 for the most, linear in the logarithm between them."""
    return 0.0 if high == low else math.log(count / low) / math.log(high / low)


def _noisy(rng: random.Random, attribute: str, true: str, right: float) -> str:
    if rng.random() < right:
        return true
    return rng.choice([v for v in VALUES[attribute] if v != true])


def _biography(rng: random.Random, person: Person, right: dict[str, float], sentences: int) -> str:
    chosen = rng.sample(ATTRIBUTES, sentences)
    lines = []
    for i, attribute in enumerate(chosen):
        who = person.name if i == 0 or rng.random() < 0.2 else person.pronoun
        value = _noisy(rng, attribute, person.facts[attribute], right[attribute])
        lines.append(statement(who, attribute, value))
    return f"{biography_prompt(person.name)}\n{' '.join(lines)}"


def _article(rng: random.Random, person: Person) -> dict[str, object]:
    """True statements in random order, in two passages of three."""
    order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    lines = [statement(person.name, a, person.facts[a]) for a in order]
    half = len(lines) // 2
    return {"title": person.name, "text": [" ".join(lines[:half]), " ".join(lines[half:])]}
