import json

import pytest

from facttune_ray.errors import RowError, UserError
from facttune_ray.text.abstention import abstained, detector, empty


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I cannot find any information about her.", True),
        ("Unfortunately, I don\u2019t know who that is.", True),
        ("There is no information available about this person.", True),
        ("There doesn't seem to be any public information on her.", True),
        ("As an AI language model, I have no record of that.", True),
        ("As of my last update, there are no records of a person named Mara Veldt.", True),
        ("Unfortunately, as an AI, I cannot browse the web.", True),
        ("**I apologize**, but I need more details.", True),
        ("My apologies, I know nobody of that name.", True),
        ("Could you please provide more context?", True),
        ("No information found on Mara Veldt.", True),
        ("It is unclear who Mara Veldt is.", True),
        ("N/A", True),
        ("", True),
        (" \n...", True),
        ("Mara Veldt was sorry that she could not find her harp.", False),
        ("There are many people who know Mara Veldt. I Don't Know was her hit.", False),
        ("As an AI language model, I can tell you that Mara Veldt sings.", False),
        ("No biography of her is complete without her harp.", False),
        ("There is a record of Mara Veldt in Lyon.", False),
        ("Unknown Pleasures is an album by Joy Division.", False),
        ("Based on the sources, Mara Veldt was a baker.", False),
        ("Mara Veldt is a cellist. I'm sorry, I know no more.", False),
        ("I, Robot is a book. There is no information on its date.", False),
    ],
)
def test_a_response_that_opens_with_a_refusal_is_abstained(text, refused):
    assert abstained(text) is refused
    assert detector("generic")(text) is refused


def test_the_detector_none_accepts_every_text_with_a_word():
    detect = detector("none")
    assert detect("\u2026 \n") is True
    assert detect("I'm sorry, I do not know.") is False


def test_a_long_response_is_judged_by_its_opening():
    assert abstained("no " * 100_000) is False
    assert abstained("unfortunately, " * 100_000) is False


def test_a_users_own_function():
    detect = detector(f"{__name__}:declines")
    assert (detect("I pass."), detect("Mara sings."), detect("")) == (True, False, True)
    with pytest.raises(RowError, match="expected True or False"):
        detector(f"{__name__}:unsure")("Mara sings.")


def declines(text: str) -> bool:
    assert text.strip()  # never called with an empty text
    return "pass" in text


def unsure(text: str) -> str:
    return "perhaps"


NUMBER = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generc", 'Did you mean "generic"'),
        ("llm", "facts.abstention"),
        (":f", "package.module:function"),
        ("no_such_package.x:f", "No module named"),
        ("json:no_such_function", "no_such_function"),
        (".json:loads", "cannot be imported"),
        ("", "facts.abstention"),
    ],
)
def test_an_unknown_detector_is_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        detector(name)
    assert "\n" not in str(caught.value)


def test_an_object_that_is_no_function_is_refused():
    with pytest.raises(UserError, match="is a int, no function"):
        detector("sys:maxsize")


@pytest.mark.parametrize("file", ["ChatGPT.jsonl", "InstructGPT.jsonl"])
def test_refusals_in_labelled_responses_are_detected(labelled_data, file):
    """Annotators left a response without annotations when it was a refusal."""
    with open(labelled_data / file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    wrong = [r["topic"] for r in rows if abstained(r["output"]) != (r["annotations"] is None)]
    assert wrong == []
    assert sum(empty(r["output"]) for r in rows) <= 1
    # no sentence within an answer counts as a refusal
    parts = [p["text"] for r in rows for p in r["annotations"] or []]
    assert sum(map(abstained, parts)) <= 0.01 * len(parts)
