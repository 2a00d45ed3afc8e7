"""Which answers are read as people's names, and which names may belong to one person."""

import pytest

from facttune_ray.text.names import joined, last, likely_last, name, same_name


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Johann Sebastian Bach", ("johann", "sebastian", "bach")),
        ("Dr. J. S. Bach", ("j", "s", "bach")),
        ("Ludwig van Beethoven", ("ludwig", "van", "beethoven")),
        ("van Beethoven", ("beethoven",)),
        ("Martin Luther King, Jr.", ("martin", "luther", "king", "jr")),
        ("Jean-Paul Sartre", ("jean", "paul", "sartre")),
        ("Conan O'Brien", ("conan", "obrien")),
        ("Kurt G\u00f6del", ("kurt", "godel")),
        ("Bach", ("bach",)),
        ("basketball player", ()),
        ("Basketball player", ()),
        ("Basketball Player", ()),
        ("Not Married", ()),
        ("Nobel Peace Prize", ()),
        ("London, Ontario", ()),
        ("Apollo 11", ()),
        ("Lung Cancer", ()),
        ("Particle Physics", ()),
        ("Rheumatoid Arthritis", ()),
        ("Malcolm X", ()),
        ("Dr. Jr.", ("jr",)),
        ("", ()),
    ],
)
def test_an_answer_is_read_as_a_name_or_not(answer, expected):
    assert name(answer) == expected
    assert likely_last(answer) == last(expected) or not expected


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Johann Sebastian Bach", "Johann Bach", True),
        ("J. S. Bach", "Johann Sebastian Bach", True),
        ("J. Bach", "Johann Sebastian Bach", True),
        ("Bach", "Johann Sebastian Bach", True),
        ("Johann", "Johann Bach", False),
        ("Johann Christian Bach", "Johann Sebastian Bach", False),
        ("Anna Bach", "Johann Bach", False),
        ("Johann Bach", "Johann Beck", False),
        ("George H. W. Bush", "George W. Bush", False),
        ("Gabriel Jos\u00e9 Garc\u00eda M\u00e1rquez", "Gabriel Garcia Marquez", True),
        ("Robert Downey Jr.", "Robert Downey", True),
        ("Robert Downey Jr.", "Robert Downey, Junior", True),
        ("Robert Downey Jr.", "Robert Downey Sr.", False),
        ("Henry Ford II", "Henry Ford", False),
        ("Ludwig van Beethoven", "Ludwig Beethoven", True),
        ("John Quincy Adams", "John Adams", True),  # two people, which the strings do not show
    ],
)
def test_two_names_may_belong_to_one_person_or_not(a, b, same):
    assert same_name(name(a), name(b)) is same
    assert same_name(name(b), name(a)) is same


def test_an_ambiguous_name_is_not_joined():
    bach, johann, anna = {("bach",)}, {("johann", "bach")}, {("anna", "bach")}
    assert joined([bach, johann]) == [(1, 0)]
    assert joined([bach, johann, anna]) == []
    assert joined([bach, johann, {("j", "bach")}, {("j", "s", "bach")}]) == [
        (a, b) for a in range(4) for b in range(a)
    ]
