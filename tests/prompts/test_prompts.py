import pytest

from facttune_ray.errors import RowError
from facttune_ray.prompts import equivalence, facts, questions, template, verdicts


def test_parsers_read_what_the_prompts_ask_for():
    assert facts.parse("- Ada was English.\n2. Ada wrote.\n* Ada died.") == [
        "Ada was English.",
        "Ada wrote.",
        "Ada died.",
    ]
    assert facts.parse("- none") == []
    assert verdicts.parse("True.") is True
    assert verdicts.parse("The answer is false") is False
    assert questions.parse("Question: Where was Ada born?\n").question == "Where was Ada born?"
    assert equivalence.parse("No") is False


@pytest.mark.parametrize(
    ("parse", "answer"),
    [
        (facts.parse, "I cannot do that."),
        (verdicts.parse, "Maybe"),
        (verdicts.parse, "True or False"),
        (questions.parse, "Ada was born in London."),
        (equivalence.parse, ""),
    ],
)
def test_an_unparseable_answer_is_an_error_never_a_value(parse, answer):
    with pytest.raises(RowError):
        parse(answer)


def test_filled_text_is_not_read_for_slots():
    content = facts.render("Mara {sentence}", "She said {topic}.")[-1]["content"]
    assert content == "Topic: Mara {sentence}\nSentence: She said {topic}."


def test_a_missing_or_unknown_slot_is_a_bug():
    with pytest.raises(KeyError):
        template.messages("facts_general", topic="x")
    with pytest.raises(KeyError):
        template.messages("facts_general", topic="x", sentence="y", z="w")
