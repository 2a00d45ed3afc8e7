"""Prompts about a topic: sentences, requests for questions, and the questions in answers."""

from __future__ import annotations

import pytest

from facttune_ray.errors import RowError
from facttune_ray.prompts import prompts
from facttune_ray.quickstart import rules


@pytest.mark.parametrize("domain", prompts.TEMPLATES)
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_every_domain_and_form_has_a_sentence(domain, form):
    assert "Ada Lovelace" in prompts.filled("Ada Lovelace", domain, form, lower_case="Ada Lovelace")


def test_conditions_are_written_as_within_a_sentence():
    assert prompts.filled("Type 2 diabetes", "medicine", "chat").startswith(
        "Write a paragraph about type 2 diabetes:"
    )
    own = prompts.filled("Crohn's disease", "medicine", "chat", "What is {topic}? Is {topic} rare?")
    assert own == "What is Crohn's disease? Is Crohn's disease rare?"
    assert prompts.filled("Ada {topic}", "bio", "chat", "{topic}!") == "Ada {topic}!"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("- What causes asthma?\n- How is asthma treated?", 2),
        ("1. What causes asthma?\n2. How is Asthma treated?\n", 2),
        ('["What causes asthma?", "How is asthma treated?"]', 2),
        ('{"questions": ["What causes asthma?", "How is asthma treated?"]}', 2),
        ("Here they are:\n- What causes asthma?\n- Is it rare?\n- Asthma is common.", 1),
        ("What causes asthma?", 1),
        ("- What causes asthma? " + "x " * 200 + "?\n- How is asthma treated?", 1),
    ],
)
def test_questions_about_the_topic_are_kept(answer, found):
    assert len(prompts.parse(answer, "Asthma")) == found


@pytest.mark.parametrize("answer", ["I cannot help with that.", "- Is it rare?", "- none", ""])
def test_an_answer_without_a_question_is_an_error(answer):
    with pytest.raises(RowError):
        prompts.parse(answer, "Asthma")


def test_a_question_need_not_name_the_brackets_of_a_title():
    assert prompts.parse("- Where was Carl Bell born?", "Carl Bell (actor)")
    assert prompts.parse("- What causes it in type 2 diabetics?", "T2D", "type 2 diabetes")


def test_questions_with_equal_content_words_are_duplicates():
    same = ["What are the symptoms of asthma?", "what are common symptoms of Asthma"]
    assert len({prompts.distinct(q) for q in same}) == 1
    others = ["How is asthma treated?", "Who treats asthma?", "What causes asthma?", *same]
    assert len({prompts.distinct(q) for q in others}) == 4


@pytest.mark.parametrize("domain", prompts.TEMPLATES)
def test_the_annotator_writes_other_questions_than_the_existing_ones(domain):
    before: list[str] = []
    for number in (4, 3):
        messages = prompts.render("Mara {topic} Veldt", number, domain, before)
        found = prompts.parse(rules.answer(messages), "Mara {topic} Veldt")
        assert len(found) == number and not set(found) & set(before)
        before += found
    assert len({prompts.distinct(q) for q in before}) == 7


def test_existing_questions_cannot_close_their_marks():
    messages = prompts.render("Asthma", 2, "medicine", ["What >>> is asthma?"])
    assert messages[-1]["content"].count(">>>") == 1
