import pytest

from facttune_ray.knowledge import titles


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("Jean_Daullé", "jean daulle"),
        ("  JEAN  daulle ", "jean daulle"),
        ("Jean Daulle\u0301", "jean daulle"),
        ("Øystein Łukasz Þór", "oystein lukasz thor"),
        ("O’Brien–Smith", "o'brien-smith"),
        ("Straße", "strasse"),
        ("İstanbul", "istanbul"),
        ("東京", "東京"),
        ("\u0301", "\u0301"),  # an accent alone is kept, so that the key is not empty
    ],
)
def test_keys_ignore_case_accents_and_punctuation_styles(title, key):
    assert titles.key(title) == key


@pytest.mark.parametrize(
    ("title", "base"),
    [
        ("John Smith (politician)", "John Smith"),
        ("John_Smith_(footballer,_born_1984)", "John Smith"),
        ("A (b) (c)", "A (b)"),
        ("John Smith", None),
        ("(Everything I Do)", None),
        ("(What's the Story) Morning Glory?", None),
    ],
)
def test_the_base_of_a_title_lacks_its_brackets(title, base):
    assert titles.base(title) == base


def test_variants_begin_with_the_title_and_are_distinct():
    found = titles.variants("jean_daullé")
    assert found[0] == "jean_daullé"
    assert {"jean daullé", "Jean daullé", "Jean Daullé", "Jean Daulle"} <= set(found)
    assert len(found) == len(set(found))
