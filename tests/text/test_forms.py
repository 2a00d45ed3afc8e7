"""Which answers have the same form, case by case."""

import random

import pyarrow as pa
import pytest

from facttune_ray.text import forms


def read(answer):
    (text,) = forms.trimmed(pa.array([answer])).to_pylist()
    return forms.form(text)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("the cello", "Cello."),
        ("a well-known poet", "poet, well known"),
        ("teachers", "a teacher"),
        ("the countries", "country"),
        ("in Ostrava", "Ostrava"),
        ("from the United States", "United States"),
        ("Women's college", "women\u2019s college"),
        ("Bogotá", "bogota"),
        ("1,955", "1955"),
        ("007", "7"),
        ("2.50", "2.5"),
        ("twenty-five", "25"),
        ("two", "2"),
        ("1.5 million", "1,500,000"),
        ("two hundred thousand", "200000"),
        ("5%", "5 percent"),
        ("$20", "20 dollars"),
        ("the first", "1st"),
        ("June 3, 1955", "3 June 1955"),
        ("Jun. 3rd 1955", "the 3rd of June, 1955"),
        ("1955-06-03", "June 3, 1955"),
        ("September 1955", "Sept 1955"),
        ("Yes, it does", "yes"),
        ("No.", "no, he was not"),
        ("Wellesley College and", "Wellesley College"),
        ("*Paris*", '"Paris"'),
        ("\u201cParis\u201d", "Paris"),
        ("the 1950's", "1950s"),
        ("two hundred and fifty", "250"),
        ("two million five hundred thousand", "2,500,000"),
        ("a thousand", "1,000"),
        ("twelve o'clock", "12 o\u2019clock"),
        ("Bjørn, Łódź", "bjorn lodz"),
        ("Straße", "strasse"),
        ("boxes", "a box"),
        ("potatoes", "potato"),
        ("shoes", "shoe"),
        ("the U.S. Army", "US Army"),
        ("John's dog", "Johns dog"),
        (".5", "0.5"),
        ("\u01fere", "Ore"),  # two accents on one letter
        ("H\u2082O", "H2O"),
        ("\u30d0", "\u30cf\u3099"),  # the same letter as one character and as two
    ],
)
def test_answers_of_one_form(a, b):
    assert read(a) == read(b) != ""


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("955", "1955"),
        ("-5", "5"),
        ("3.5", "35"),
        ("1950s", "1950"),
        ("June 3, 1955", "1955"),
        ("June 3, 1955", "June 1955"),
        ("not married", "married"),
        ("left", "right"),
        ("basketball player", "player"),
        ("vitamin A", "vitamin C"),
        ("hepatitis A", "hepatitis"),
        ("no symptoms", "no"),
        ("bus", "bu"),
        ("Paris", "Rome"),
        ("May", "June"),
        ("No. 5", "No"),
        ("no one", "no"),
        ("1950's", "1950"),
        ("2 boys and 3 girls", "3 boys and 2 girls"),
        ("1990-1995", "1995-1990"),
        ("1955-06-03", "1955-03-06"),
        ("twenty, five", "20 50"),
        ("100", "1000"),
        ("10", "10th"),
        ("Mar", "March"),
        ("Jan Steen", "January Steen"),
        ("C++", "C"),
        ("C#", "C"),
        ("never married", "married"),
        ("A. Lee", "Lee"),
        (".5", "5"),
        ("B-", "B"),
        ("A+", "A"),
        ("10\u00b2", "102"),
        ("2\u00bd", "21 2"),
        ("\u30d0\u30ea", "\u30d1\u30ea"),  # Bali, Paris
        ("\u0930\u093e\u092e", "\u0930\u092e\u093e"),  # Ram, Rama (Hindi)
        ("\u0e14\u0e35", "\u0e14\u0e39"),  # good, look (Thai)
        ("\u043c\u043e\u0439", "\u043c\u043e\u0438"),  # my: singular, plural (Russian)
    ],
)
def test_answers_of_different_forms(a, b):
    assert read(a) != read(b)


@pytest.mark.parametrize("empty", ["", "  ", "...", "?!", '"', "\n"])
def test_an_answer_that_says_nothing_has_an_empty_form(empty):
    assert read(empty) == ""


def test_every_text_has_a_form():
    chance = random.Random(0)
    for _ in range(3000):
        text = "".join(chr(chance.choice((32, 39, 44, 45, 46, 48, 49, chance.randrange(0x3000))))
                       for _ in range(chance.randint(0, 12)))  # fmt: skip
        assert isinstance(read(text), str)
    assert read("9" * 5000) == "9" * 5000  # more digits than int() accepts
