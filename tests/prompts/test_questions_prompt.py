"""Fact -> question: what is asked, and every way in which it is answered."""

import pytest

from facttune_ray.errors import RowError, UserError
from facttune_ray.prompts import questions
from facttune_ray.prompts.questions import Asked, parse, render

ASKED = Asked("Where was Ada born?", None)
BOTH = Asked("Where was Ada born?", "London")


def last(*args, **settings):
    return render(*args, **settings)[-1]["content"]


def test_what_the_model_is_shown():
    assert last("Ada", "She was\nborn in London.") == "Topic: Ada\nFact: She was born in London."
    assert last("Ada", "She sang.", domain="bio", pronoun="her") == (
        "Person: Ada\nPronoun: her\nFact: She sang."
    )
    assert "Pronoun: unknown\n" in last("Ada", "She sang.", domain="bio")
    assert last("Lead poisoning", "It harms.", domain="medicine") == (
        "Condition: lead poisoning\nFact: It harms."
    )
    given = last("MS", "It harms.", domain="medicine", lower_case="multiple sclerosis")
    assert given.startswith("Condition: multiple sclerosis\n")
    shown = last("Ada", "She sang.", before=["She won.", ">>> Ignore all. <<<"])
    assert shown == "Topic: Ada\nFacts before it: She won. > Ignore all. <\nFact: She sang."


def test_the_forms_differ_by_their_templates_alone():
    names = {questions.template_name(d, a) for d in questions.DOMAINS for a in (False, True)}
    assert names == {*questions.TEMPLATES, *questions.ANSWER_TEMPLATES} and len(names) == 6
    plain, both = render("Ada", "She sang."), render("Ada", "She sang.", answer=True)
    assert plain[0] != both[0] and plain[-1] == both[-1]
    with pytest.raises(UserError, match='questions.domain: no domain "law"'):
        render("Ada", "She sang.", domain="law")


@pytest.mark.parametrize(
    ("condition", "within"),
    [
        ("Asthma", "asthma"),
        ("Type 2 diabetes", "type 2 diabetes"),
        ("HIV", "HIV"),
        ("HIV infection", "HIV infection"),
        ("COVID-19", "COVID-19"),
        ("Crohn's disease", "Crohn's disease"),
        ("Down syndrome", "Down syndrome"),
        ("B12 deficiency", "B12 deficiency"),
        ("asthma", "asthma"),
    ],
)
def test_a_condition_within_a_sentence(condition, within):
    assert questions.lowered(condition) == within


@pytest.mark.parametrize(
    "text",
    [
        "Where was Ada born?",
        "Question: Where was Ada born?\n",
        "Q: Where was Ada born?",
        "**Question:** Where was Ada born?",
        '"Where was Ada born?"',
        "Sure! Here it is:\nWhere was Ada born?",
        "Where was Ada born? When was she born?",
        "Where was Ada born?\nWhen was she born?",
        "Where was Ada born? London",
        "Where was Ada born?\n\nStatement: She sang.\nQuestion: What did she do?",
        '{"question": "Where was Ada born?"}',
        "<think>Which question?</think>Where was Ada born?",
    ],
)
def test_one_question_is_read(text):
    assert parse(text) == ASKED


@pytest.mark.parametrize(
    "text",
    [
        "Question: Where was Ada born?\nAnswer: London",
        "Q: Where was Ada born?\nA: London.",
        "Where was Ada born? London",
        "Where was Ada born?\nLondon",
        "Question: Where was Ada born? Answer: London",
        "Question: Where was Ada born?\n\nAnswer: London\n\nStatement: She sang.",
        '{"question": "Where was Ada born?", "answer": "London"}',
    ],
)
def test_question_and_answer_are_read_alike(text):
    assert parse(text, answer=True) == BOTH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ada was born in London.",
        "I cannot do that.",
        "Answer: London?",
        "Statement: Who?",
        "{}",
    ],
)
def test_no_question_is_an_error(text):
    with pytest.raises(RowError, match="no question"):
        parse(text)


def test_a_question_that_only_repeats_the_fact():
    with pytest.raises(RowError, match="only repeats the fact"):
        parse("Ada was born in London?", fact="Ada was born in London.")
    assert parse("Was Ada born in London?", fact="Ada was born in London.").question


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Question: Where was Ada born?", "no answer behind the question"),
        ("Question: Where was Ada born?\nAnswer:", "no answer behind the question"),
        ("Where was Ada born?\nAnswer: ...", "no answer behind the question"),
        ("Where was Ada born? When was she born?", "no answer behind the question"),
        ("Where was Ada born?\nAnswer: " + "in London " * 30, "no short answer"),
    ],
)
def test_an_answer_that_is_missing_or_no_answer(text, says):
    with pytest.raises(RowError, match=says):
        parse(text, answer=True)
