import pytest

from facttune_ray.text.kinds import kind_of


@pytest.mark.parametrize(
    ("fact", "kind"),
    [
        ("Mara Veldt was born in Ostrel.", "born in"),
        ("Mara Veldt was born on May 3, 1950.", "born on"),
        ("She works as a baker.", "work as"),
        ("Mara Veldt plays the cello.", "play"),
        ("Mara Veldt has two sons.", "have"),
        ("Mara Veldt has appeared in many films.", "appear in"),
        ("Mara Veldt had been working with him.", "working with"),
        ("Mara Veldt is a cellist.", "is a"),
        ("He is American.", "is"),
        ("Mara Veldt was in Rome.", "is in"),
        ("Mara Veldt can be treated with steroids.", "treated with"),
        ("Mara Veldt", "other"),
        ("", "other"),
    ],
)
def test_a_kind_is_the_verb_and_its_preposition(fact, kind):
    assert kind_of("Mara Veldt", fact) == kind
