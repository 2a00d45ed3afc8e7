import json

import pytest

from facttune_ray.text.decompose import normal_fact, rule_facts
from facttune_ray.text.fragments import is_fragment

TOPIC = "Mara Veldt"


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        ("", []),
        ("Who was she?", []),
        ("Mara Veldt was born in Ostrel.", ["was born in Ostrel."]),
        ("She plays the cello.", ["plays the cello."]),
        ("They play the cello.", ["plays the cello."]),
        ("Veldt plays the cello.", ["plays the cello."]),
        (
            "Mara Veldt was born in Ostrel and works as a baker.",
            ["was born in Ostrel.", "works as a baker."],
        ),
        (
            "She studied physics, plays the cello, and keeps a canary.",
            ["studied physics.", "plays the cello.", "keeps a canary."],
        ),
        ("He owns a boat and he supports the Owls.", ["owns a boat.", "supports the Owls."]),
        (
            "She was born on May 3, 1950, in Ostrel.",
            ["was born on May 3, 1950.", "was born in Ostrel."],
        ),
        (
            "She was born in Ostrel in 1950 and died in Lyon.",
            ["was born in Ostrel.", "was born in 1950.", "died in Lyon."],
        ),
        ("She studied law and physics.", ["studied law.", "studied physics."]),
        ("She can relieve pain, reducing fever.", ["can relieve pain, reducing fever."]),
        ("They are used as a drug, easing pain.", ["is used as a drug.", "eases pain."]),
        ("He is an English singer and actor.", ["is an English singer.", "is an actor."]),
        (
            "Mara Veldt (1703-1763) was a painter known for her portraits.",
            [
                "was born in 1703.",
                "died in 1763.",
                "was a painter.",
                "was known for her portraits.",
            ],
        ),
        ("Mara Veldt, a baker, lives in Lyon.", ["is a baker.", "lives in Lyon."]),
        (
            "She is a writer who won the Orange Prize in 2001.",
            ["is a writer.", "won the Orange Prize in 2001."],
        ),
        (
            'She has acted in films such as "Home," "I, Robot," and "Away."',
            [
                "has acted in films.",
                'has acted in films, such as "Home".',
                'has acted in films, such as "I, Robot".',
                'has acted in films, such as "Away".',
            ],
        ),
        ("In 2018, she moved to Lyon.", ["moved to Lyon in 2018."]),
        ("Born in Lyon, she works as a baker.", ["was born in Lyon.", "works as a baker."]),
        (
            "She worked as a model, appearing in several films.",
            ["worked as a model.", "appeared in several films."],
        ),
        # no lists, although they look like lists
        ("She wrote and directed a film.", ["wrote and directed a film."]),
        (
            "She led the Ministry of Trade and Industry.",
            ["led the Ministry of Trade and Industry."],
        ),
        ("She lives between Rome and Lyon.", ["lives between Rome and Lyon."]),
        (
            "She reports on politics and organized crime.",
            ["reports on politics.", "reports on organized crime."],
        ),
    ],
)
def test_a_sentence_is_split_into_facts(sentence, facts):
    assert rule_facts(TOPIC, sentence) == [f"{TOPIC} {f}" for f in facts]


@pytest.mark.parametrize(
    "sentence",
    [
        "The motto of.",
        "Mara Veldt travelled under the.",
        "Veldt.",
        "Mara Veldt was born.",
        "The quiet baker.",
        "Mara Veldt is known for her and.",
        "Mara Veldt keeps a of.",
    ],
)
def test_a_fragment_gives_no_fact(sentence):
    assert rule_facts(TOPIC, sentence) == []


def test_a_region_after_a_city_is_part_of_the_birthplace():
    assert rule_facts(TOPIC, "Born in Ostrel, Norland, Veldt plays the cello.") == [
        "Mara Veldt was born in Ostrel, Norland.",
        "Mara Veldt plays the cello.",
    ]


def test_facts_about_a_medical_condition_and_other_topics():
    assert rule_facts("Asthma", "It affects children and adults.") == [
        "Asthma affects children.",
        "Asthma affects adults.",
    ]
    assert rule_facts("Wendy (singer)", "Her album was praised.") == ["Wendy's album was praised."]
    # "it" is the subject of the clause before, not the person
    assert rule_facts(TOPIC, "Her death was sudden, and it shocked Lyon.") == [
        "Mara Veldt's death was sudden.",
        "Mara Veldt's death shocked Lyon.",
    ]


def test_labelled_sentences_give_complete_facts(labelled_data):
    """Almost every sentence gives facts; none is a fragment, and together they keep its words."""
    with open(labelled_data / "ChatGPT.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    count = labelled = without = 0
    for row in rows:
        for part in row["annotations"] or []:
            facts = rule_facts(row["topic"], part["text"])
            assert all(not is_fragment(f) and "\ue000" not in f for f in facts)
            without += not facts
            count += len(facts)
            labelled += len(part["human-atomic-facts"] or [])
    assert without <= 3  # the file's own fragments
    # people split finer (nationality and profession, city and country), never coarser
    assert 0.45 * labelled < count < labelled


def test_a_character_that_marks_placeholders_is_dropped():
    assert rule_facts(TOPIC, "She sings \ue0007\ue000 in\ue000 Lyon.") == [
        "Mara Veldt sings 7 in Lyon."
    ]


def test_normal_facts_ignore_case_spaces_and_end_marks():
    assert normal_fact(" Mara  Veldt plays. ") == normal_fact("mara veldt plays")
    assert normal_fact("Mara plays the cello.") != normal_fact("Mara plays the harp.")
