"""Fragments and empty facts are recognised; frames are equal for different topics."""

import pytest

from facttune_ray.text.fragments import is_fragment
from facttune_ray.text.frames import frame, names_only_its_topic


@pytest.mark.parametrize(
    ("topic", "fact"),
    [
        ("Togo", "The population of."),
        ("Ines Falk", "Ines Falk moved to the."),
        ("Ines Falk", "Falk."),
        ("Ines Falk", "Ines Falk is."),
        ("Ines Falk", "The first woman in the parliament."),
        ("Ines Falk", ""),
        ("Ines Falk", "..."),
    ],
)
def test_fragments(topic, fact):
    assert is_fragment(fact)
    assert not names_only_its_topic(topic, fact)


@pytest.mark.parametrize(
    ("topic", "fact"),
    [
        ("Togo", "Togo borders Ghana."),
        ("Togo", "It borders Benin."),
        ("Ines Falk", "She sings."),
        ("Ines Falk", "Ines Falk's memory lives on."),
        ("Ines Falk", "The prize honoured her."),
        ("Ines Falk", "Ines Falk was born in 1931."),
    ],
)
def test_whole_facts(topic, fact):
    assert not is_fragment(fact)
    assert not names_only_its_topic(topic, fact)


@pytest.mark.parametrize(
    ("topic", "fact", "only"),
    [
        ("Togo", "Togo borders Togo.", True),
        ("Togo", "Its capital is Togo.", True),
        ("Guinea-Bissau", "Guinea-Bissau lies in Guinea.", True),
        ("Ines Falk", "Her teacher was Ines Falk.", True),
        ("Ines Falk", "Falk's brother is Falk.", True),
        ("Niger", "Niger borders Nigeria.", False),  # another name that begins alike
        ("Togo", "Lome is the capital of Togo.", False),  # names another place
        ("Togo", "Togo became Togo in 1960.", False),  # names a year
        ("Togo", "Togo is a country.", False),  # no name after the verb
        ("Ines Falk (painter)", "Ines Falk is a Painter.", False),  # the bracket is no name
    ],
)
def test_facts_that_name_only_their_topic(topic, fact, only):
    assert names_only_its_topic(topic, fact) == only


@pytest.mark.parametrize(
    ("topic", "sentence", "expected"),
    [
        ("Togo", "Togo is a country in Africa.", "… is a country in africa"),
        ("Ghana", "It is a country in Africa!", "… is a country in africa"),
        ("Togo", "The capital of Togo is Lome.", "the capital of … is lome"),
        ("Togo", "Togolese music is lively.", "togolese music is lively"),
        ("Ines Falk (painter)", "Falk painted.", "… painted"),
        ("Ines Falk", "Ines Falk's work is known.", "…'s work is known"),
        ("Ines Falk", "Falk's work is known.", "…'s work is known"),
        ("Bo Lind", "Her work is known.", "…'s work is known"),
        ("C++ (language)", "C++ is fast.", "… is fast"),
    ],
)
def test_frames(topic, sentence, expected):
    assert frame(topic, sentence) == expected
