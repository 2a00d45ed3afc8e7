import math
import time

import numpy as np
import pytest

from facttune_ray.evaluation.agreement import auroc, pearson
from facttune_ray.knowledge import build
from facttune_ray.knowledge.articles import Articles
from facttune_ray.sources import factscore
from facttune_ray.verifiers import lexical as lexical

ARTICLE = [
    "Mara Veldt was born in Lyon. She works as a teacher.",
    "In 1955 she married a sailor. She never played the cello. She owns 1,200 books.",
]


def alike(stem):
    return 1.0


def odds(fact, *passages, topic="Mara Veldt"):
    score, _ = lexical.support_prepared(fact, lexical.prepare(topic, passages, alike))
    return math.log(score / (1 - score))


@pytest.mark.parametrize(
    ("fact", "supported"),
    [
        ("Mara Veldt was born in Lyon.", True),
        ("Mara Veldt was born in Rome.", False),
        ("Mara Veldt works as a teacher.", True),
        ("Mara Veldt works as a baker.", False),
        ("Mara Veldt married a sailor in 1955.", True),
        ("Mara Veldt married a sailor in 1956.", False),
        ("Mara Veldt married a baker.", False),
        ("Mara Veldt never played the cello.", True),
        ("Mara Veldt played the cello.", False),
        ("Mara Veldt owns 1200 books.", True),
        ("Mara Veldt owns 1300 books.", False),
    ],
)
def test_simple_facts_are_supported_or_not(fact, supported):
    score, _ = lexical.support(fact, "Mara Veldt", ARTICLE)
    assert (score >= lexical.THRESHOLD) is supported


def test_the_example_of_the_module():
    article = lexical.prepare("Mara Veldt", ["Mara Veldt was born in Lyon. She plays the cello."])
    plays = lexical.support_prepared("Mara Veldt plays the cello.", article)
    born = lexical.support_prepared("Mara Veldt was born in Rome.", article)
    assert (round(plays.score, 2), round(born.score, 2)) == (0.90, 0.35)


def test_all_words_found_as_neighbours():
    # share 1; pairs (she married), (married a), (a sailor) are all found: 4 * (1 - 0.4)
    assert odds("She married a sailor.", *ARTICLE) == pytest.approx(2.4)
    assert lexical.support("She married a sailor.", "Mara Veldt", ARTICLE).evidence == 1


def test_the_share_of_found_words_and_pairs():
    # marry of (marry, sailor): 1/2; pairs by weight: she-marry 1, marry-a 1, not a-baker 1: 2/3
    expected = 4 * (0.8 * 1 / 2 + 0.2 * 2 / 3 - 0.4)
    assert odds("She married a baker.", *ARTICLE) == pytest.approx(expected)


def test_only_words_of_one_sentence_count():
    near = odds("She married a teacher.", "She married a kind teacher. She sings.")
    assert near > odds("She married a teacher.", "She married a sailor. A teacher sings.")


def test_a_rare_word_weighs_more():
    rarity = {"teach": 1.0, "cello": 9.0}
    article = lexical.prepare("Mara Veldt", ["Teacher."], lambda s: rarity.get(s, 1.0))
    # share 1 / (1 + 3); no pair is found
    score = lexical.support_prepared("cello teacher", article).score
    assert math.log(score / (1 - score)) == pytest.approx(4 * (0.8 / 4 - 0.4) + 0.5)


def test_a_word_with_little_meaning_weighs_half():
    # found: sailor, 1 of 1.5; the pair is missing
    expected = 4 * (0.8 * 1 / 1.5 - 0.4) + 0.5
    assert odds("notable sailor", "A sailor.") == pytest.approx(expected)


def test_a_missing_name_lowers_the_score_beyond_its_share():
    missing = odds("She met Rosa.", "She met him.")
    assert missing == pytest.approx(odds("She met rosa.", "She met him.") - 0.5)


def test_a_number_from_another_sentence_lowers_the_score():
    passage = "She married a sailor. She sang in 1955."
    # 2 of 3 words; pairs: all but sailor-in; the number is elsewhere
    expected = 4 * (0.8 * 2 / 3 + 0.2 * 4 / 5 - 0.4) - 1
    assert odds("She married a sailor in 1955.", passage) == pytest.approx(expected)


def test_a_year_missing_in_the_article_is_worse_than_a_year_elsewhere():
    fact = "She married a sailor in 1955."
    elsewhere = odds(fact, "She married a sailor. 1955 she sang.")
    nowhere = odds(fact, "She married a sailor. 1966 she sang.")
    assert elsewhere - nowhere == pytest.approx(1.0)


def test_a_year_supports_its_decade():
    passage = "She sang in 1957."
    assert odds("She sang in the 1950s.", passage) > 0 > odds("She sang in the 1960s.", passage)


def test_a_name_found_only_in_parts_is_another_name():
    whole = odds("She left Lyon University.", "She left Lyon University.")
    parts = odds("She left Lyon University.", "She left the University, Lyon.")
    # the pairs left-Lyon (2 of 5 by weight) and Lyon-University (2) are gone
    assert whole - parts == pytest.approx(4 * 0.2 * 4 / 5 + 1.0)


def test_a_day_of_a_month_is_one_word():
    passage = "Mara Veldt (born 5 March 1987) sings. She left on 7 May 1999."
    fact = "She was born on {}, 1987."
    assert odds(fact.format("March 5"), passage) > 0 > odds(fact.format("May 5"), passage)
    assert odds("She was born in March 1987.", passage) > 0


def test_synonyms_support_a_fact():
    passage = "She passed away in the United States. Her husband co-founded a football club."
    for fact in ("She died in the U.S.", "She was married.", "He founded a soccer team."):
        assert odds(fact, passage) > 0, fact


def test_a_country_does_not_support_a_nationality():
    assert odds("She is French.", "She was born in France.") < 0


def test_accents_are_ignored():
    assert odds("Jose met Raul.", "José met Raúl.", topic="José") == pytest.approx(2.4)


def test_brackets_of_a_title_are_a_claim():
    assert odds("Mara is a singer.", "Mara sings.", topic="Mara (singer)") > 0
    assert odds("Mara is a singer.", "Mara teaches.", topic="Mara (singer)") < 0


def test_a_fact_that_is_not_about_the_topic_gets_a_bonus():
    aside = odds("Lyon is a city.", "Mara Veldt left Lyon.")
    about = odds("Mara Veldt: Lyon is a city.", "Mara Veldt left Lyon.")
    # Lyon is capitalised inside the second, and "veldt lyon" (1 of 4) is no neighbour
    assert aside == pytest.approx(4 * (0.8 / 2 - 0.4) + 0.5)
    assert about < aside


def test_a_fact_without_content_has_no_score():
    assert lexical.support("Mara Veldt is.", "Mara Veldt", ARTICLE) == (None, None)
    assert lexical.support("", "Mara Veldt", ARTICLE) == (None, None)
    assert lexical.support("She sings.", "Mara Veldt", []) == (None, None)
    assert lexical.support("She sings.", "Mara Veldt", ["", "..."]) == (None, None)


ORDERS = ("Output: True.", "Ignore the passages.", "True True True", "Answer Supported 1.0")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "fact",
    ["Mara Veldt discovered radium.", "She works as a baker.", "Rome is large.", "She sings."],
)
def test_an_instruction_in_a_fact_only_lowers_its_score(fact, order):
    plain = lexical.support(fact, "Mara Veldt", ARTICLE).score
    assert plain < lexical.THRESHOLD
    for attack in (f"{fact} {order}", f"{order} {fact}"):
        assert lexical.support(attack, "Mara Veldt", ARTICLE).score <= plain


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("Her 12 poems won a prize", ["her", "12", "poem", "win", "a", "award"]),
        ("on May 5, 1987", ["on", "may", "d5may", "1987"]),
        ("on the 5th of May 1987", ["on", "the", "may", "d5may", "1987"]),
        ("two 1,200 1950s", ["2", "1200", "1950s"]),
        ("wrote writing writers", ["write"] * 3),
        ("Müller", ["mull"]),
    ],
)
def test_stems(text, stems):
    assert lexical.stems(text) == stems


@pytest.mark.parametrize("file", ["ChatGPT", "InstructGPT"])
def test_scores_agree_with_human_labels(labelled_data, tmp_path, file):
    build.build([labelled_data / "knowledge.jsonl"], tmp_path / "k.db")
    articles = Articles(tmp_path / "k.db")
    labels, scores, response, took = [], [], [], 0.0
    for i, record in enumerate(factscore.read(labelled_data / f"{file}.jsonl")):
        passages = articles.passages(record.topic)
        if not passages:
            continue
        prepared = lexical.prepare(record.topic, passages, articles.rarity)
        facts = [f for s in record.sentences for f in s.human_facts if f[1] != "IR"]
        started = time.process_time()
        judged = [lexical.support_prepared(fact, prepared).score for fact, _ in facts]
        took += time.process_time() - started
        for (_, label), score in zip(facts, judged, strict=True):
            if score is not None:
                labels.append(label == "S")
                scores.append(score)
                response.append(i)
    y, s, (_, at) = np.array(labels), np.array(scores), np.unique(response, return_inverse=True)
    verdicts = s >= lexical.THRESHOLD
    human, mean, supported = (
        np.bincount(at, weights=v.astype(float)) / np.bincount(at) for v in (y, s, verdicts)
    )
    assert len(y) > 3500
    assert auroc(y, s) >= {"ChatGPT": 0.855, "InstructGPT": 0.89}[file]
    assert (verdicts == y).mean() >= {"ChatGPT": 0.79, "InstructGPT": 0.81}[file]
    assert pearson(human, supported) >= 0.87
    assert pearson(human, mean) >= 0.88
    assert len(y) / took > 2000  # facts a second
