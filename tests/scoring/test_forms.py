"""What counts as the same wording, case by case."""

import pyarrow as pa
import pytest

from facttune_ray.scoring import forms


def read(answer):
    (text,) = forms.trimmed(pa.array([answer])).to_pylist()
    return forms.form(text)


def key(answer):
    return read(answer)[0]


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
    ],
)
def test_the_same(a, b):
    assert key(a) == key(b) != ""


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
    ],
)
def test_not_the_same(a, b):
    assert key(a) != key(b)


@pytest.mark.parametrize("empty", ["", "  ", "...", "?!", '"', "\n"])
def test_nothing_said(empty):
    assert read(empty) == ("", ())


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Johann Sebastian Bach", ("johann", "sebastian", "bach")),
        ("Dr. J. S. Bach", ("j", "s", "bach")),
        ("Ludwig van Beethoven", ("ludwig", "van", "beethoven")),
        ("Martin Luther King Jr.", ("martin", "luther", "king", "jr")),
        ("Jean-Paul Sartre", ("jean", "paul", "sartre")),
        ("Bach", ()),
        ("basketball player", ()),
        ("Basketball player", ()),
        ("Apollo 11", ()),
    ],
)
def test_what_looks_like_a_name(answer, name):
    assert read(answer)[1] == name


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Johann Sebastian Bach", "Johann Bach", True),
        ("J. S. Bach", "Johann Sebastian Bach", True),
        ("J. Bach", "Johann Sebastian Bach", True),
        ("Johann Christian Bach", "Johann Sebastian Bach", False),
        ("Anna Bach", "Johann Bach", False),
        ("Johann Bach", "Johann Beck", False),
        ("Robert Downey Jr.", "Robert Downey", True),
        ("Robert Downey Jr.", "Robert Downey Sr.", False),
        ("Ludwig van Beethoven", "Ludwig Beethoven", True),
    ],
)
def test_names_with_and_without_middle_parts(a, b, same):
    assert forms.same_name(read(a)[1], read(b)[1]) is same
    assert forms.same_name(read(b)[1], read(a)[1]) is same
