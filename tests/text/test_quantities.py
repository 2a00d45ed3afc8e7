"""Numbers and dates in one form, case by case."""

import pytest

from facttune_ray.text.quantities import dates, iso_dates, numbers


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("two", "2"),
        ("twenty five", "25"),
        ("two hundred fifty", "250"),
        ("two hundred and fifty one", "251"),
        ("one hundred and five", "105"),
        ("two million five hundred thousand", "2500000"),
        ("1.5 million", "1500000"),
        ("hundred", "100"),
        ("five six", "5 6"),
        ("5 6", "5 6"),
        ("twenty 5", "20 5"),
        ("two and three", "2 and 3"),
        ("seven hundred thousand and two", "700002"),
        ("1,955.50", "1955.5"),
        ("3.0", "3"),
        ("007", "7"),
        ("-0", "0"),
        ("-5", "-5"),
        ("third 3rd 21st", "3th 3th 21th"),
        ("1950s", "1950s"),
        ("harp", "harp"),
    ],
)
def test_numbers_are_written_in_digits(words, expected):
    assert " ".join(numbers(words.split())) == expected


def test_dates_are_written_in_one_form():
    assert dates(["3th", "of", "jun", "1955"]) == ["3", "june", "1955"]
    assert dates(["jan", "steen"]) == ["jan", "steen"]
    assert dates(["university", "of", "ohio"]) == ["university", "of", "ohio"]
    assert iso_dates("born 1955-06-03") == "born 3 june 1955"
    assert iso_dates("1955-13-03, 1955-06-032") == "1955-13-03, 1955-06-032"
