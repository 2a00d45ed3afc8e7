import json
import math

import pytest

from facttune_ray.errors import UserError
from facttune_ray.sources import topic_files, tuning
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder

ADA, ACDC = "Ada Lovelace", "AC/DC"
QUESTIONS = [
    {"topic": ADA, "topic_id": 7, "questions": ["Who?", "When?"], "pronoun": "her"},
    {"topic": ACDC, "topic_id": 8, "questions": ["What?"]},
]


def reference_folder(folder, generations):
    """A data folder as the reference's scripts leave it."""
    (folder / "responses").mkdir(parents=True)
    (folder / "questions_per_topic_train.json").write_text(json.dumps(QUESTIONS))
    for name, answers in generations.items():
        (folder / "responses" / f"{name}_generations.json").write_text(json.dumps(answers))
    return str(folder)


def response(topic, prompt, sample, text, **more):
    prompt_id = digest(topic, prompt)
    return {
        "response_id": digest(prompt_id, "base", sample),
        "prompt_id": prompt_id,
        "topic": topic,
        "split": "train",
        "model": "base",
        "sample": sample,
        "prompt": prompt,
        "text": text,
        "tokens": 5,
        "abstained": None,
        "error": None,
    } | more


def fact(r, position, text, **more):
    return {
        "fact_id": digest(r["response_id"], position),
        "response_id": r["response_id"],
        "topic": r["topic"],
        "split": r["split"],
        "position": position,
        "sentence": 0,
        "sentence_text": r["text"],
        "start": 0,
        "end": 9,
        "fact": text,
        "repeated": None if text is None else False,
        "human_label": None,
        "abstained": False,
        "error": None,
    } | more


def verdict(f, supported, **more):
    return {
        "fact_id": f["fact_id"],
        "response_id": f["response_id"],
        "topic": f["topic"],
        "supported": supported,
        "score": None if supported is None else 0.1 + 0.2,
        "evidence": "é\n####",
        "title": ADA,
        "estimator": "chat",
        "reason": None,
        "error": None,
    } | more


def test_a_question_with_fewer_answers_does_not_shift_other_answers(tmp_path):
    answers = {"When?": {"responses": ["1815."]}, "Who?": {"responses": ["A writer.", "Ada."]}}
    folder = reference_folder(tmp_path, {ADA: answers})
    topics = tuning.read_topics(folder, "train")
    rows = list(tuning.responses(topics[:1], "train", folder, model="llama"))
    assert [(r["prompt"], r["sample"], r["text"]) for r in rows] == [
        ("Who?", 0, "A writer."),
        ("Who?", 1, "Ada."),
        ("When?", 0, "1815."),
    ]
    assert rows[2]["prompt_id"] == digest(ADA, "When?")
    assert rows[2]["response_id"] == digest(digest(ADA, "When?"), "llama", 0)


def test_half_a_surrogate_pair_in_keys_and_values(tmp_path):
    file = Folder.of(str(tmp_path / "a.json"))
    file.write_bytes(b'\xef\xbb\xbf{"Who \\ud83d?": ["Ada \\uDE00"]}')
    assert topic_files.read_json(file, dict, "", "") == {"Who \ufffd?": ["Ada \ufffd"]}


def test_a_missing_answer_or_file_is_named(tmp_path):
    folder = reference_folder(tmp_path, {ADA: {"Who?": {"responses": ["Ada."]}}})
    topics = tuning.read_topics(folder, "train")
    with pytest.raises(UserError, match='no answers to "When[?]"'):
        list(tuning.responses(topics, "train", folder, model="llama"))
    with pytest.raises(UserError, match='topic "AC/DC" has no responses'):
        list(tuning.responses(topics[1:], "train", folder, model="llama"))


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"Who?": {"responses": ["a", None]}}, "expected"),
        ({"Who?": 3}, "expected"),
        ({"Why?": {"responses": []}}, "is no question of the topic"),
        ([], "expected"),
        ({"Who?": {"responses": ["a"], "facttune": [{"text": False}]}}, "does not match"),
    ],
)
def test_bad_answers_are_one_line(tmp_path, answers, says):
    folder = reference_folder(tmp_path, {ADA: answers})
    topics = tuning.read_topics(folder, "train")
    with pytest.raises(UserError, match=says) as caught:
        list(tuning.responses(topics, "train", folder, model="llama"))
    assert "Ada Lovelace_generations.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("{", "not readable as JSON"),
        ("{}", "expected a list"),
        ('[{"topic": "A", "questions": "Who?"}]', "entry 0: .*list of strings"),
        ('[{"topic": "A", "questions": ["Who?", "Who?"]}]', "stands twice"),
        ('[{"questions": []}]', '"topic" must be'),
        ('[{"topic": "A", "questions": []}, {"topic": "A", "questions": []}]', '"A" stands twice'),
    ],
)
def test_bad_questions_are_one_line(tmp_path, rows, says):
    (tmp_path / "questions_per_topic_val.json").write_text(rows)
    with pytest.raises(UserError, match=says):
        tuning.read_topics(str(tmp_path), "val")


def test_splits(tmp_path):
    with pytest.raises(UserError, match='Did you mean "dpoval"'):
        tuning.read_topics(str(tmp_path), "dpo_val")
    with pytest.raises(UserError, match="no such file"):
        tuning.read_topics(str(tmp_path), "test")
    assert [p["split"] for p in tuning.prompts([tuning.Topic("A", 0, ("Q",))], "dpoval")] == ["val"]


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("J. K. Rowling", "J. K. Rowling_x.json"),
        ("AC/DC", "AC%2FDC_x.json"),
        ("AC%2FDC", "AC%252FDC_x.json"),
        ("100% Wolf", "100% Wolf_x.json"),
        ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd_x.json"),
        ("a\\b\0c", "a%5Cb%00c_x.json"),
        ("Miguel Díaz", "Miguel Díaz_x.json"),
    ],
)
def test_file_names(topic, name):
    assert topic_files.file_name(topic, "_x.json") == name


def test_long_names_stay_different():
    a, b = (topic_files.file_name("é" * 300 + end, "_fs_out.json") for end in "ab")
    assert a != b and max(len(n.encode()) for n in (a, b)) <= 255


def test_questions_and_responses_come_back(tmp_path):
    rows = [
        response(ADA, "Who?", 0, "A writer."),
        response(ADA, "Who?", 1, None, tokens=None, error="timeout"),
        response(ADA, "Who?", 2, "", abstained=True),
        response(ADA, "When?", 0, "1815.\n"),
        response(ACDC, "What?", 0, "A band."),
    ]
    folder = str(tmp_path)
    topics = [
        tuning.Topic(ADA, 0, ("Who?", "When?"), pronoun="her"),
        tuning.Topic(ACDC, 1, ("What?",)),
    ]
    prompts = list(tuning.prompts(topics, "train"))
    assert tuning.write_topics(folder, "train", prompts) == 2
    numbered = [q | {"topic_id": i} for i, q in enumerate(QUESTIONS)]
    assert json.loads((tmp_path / "questions_per_topic_train.json").read_text()) == numbered
    assert tuning.read_topics(folder, "train") == topics
    assert tuning.write_responses(folder, rows) == 2
    written = json.loads((tmp_path / "responses" / f"{ADA}_generations.json").read_text())
    assert written["Who?"]["responses"] == ["A writer.", ""]  # what the reference reads
    assert list(tuning.responses(topics, "train", folder, model="other")) == rows
    assert not list(tmp_path.rglob("*.tmp"))


def test_scores_by_hand_come_back(tmp_path):
    right, silent, half = (
        response(ADA, "Who?", 0, "A writer. From London."),
        response(ADA, "Who?", 1, "I cannot say."),
        response(ADA, "When?", 0, "1815."),
    )
    lost = response(ADA, "When?", 1, None, error="timeout")
    facts = [
        fact(right, 0, "Ada wrote."),
        fact(right, 1, None, error="no list of facts"),
        fact(right, 2, "Ada is from London.", sentence=1),
        fact(silent, 0, None, sentence=None, sentence_text=None, abstained=True),
        fact(half, 0, "Ada was born in 1815."),
        fact(half, 1, "Ada was born in Rome."),
        fact(half, 2, "Ada had a dog."),
    ]
    said = [True, None, True, None, True, False, None]
    verdicts = [verdict(f, s) for f, s in zip(facts, said, strict=True)]
    rows = [right, silent, half, lost]
    assert tuning.write_scores(str(tmp_path), rows, facts, verdicts, gamma=10) == 1
    entries = json.loads((tmp_path / "factscore_outputs" / f"{ADA}_fs_out.json").read_text())
    assert [e["generation"] for e in entries] == [right["text"], silent["text"], half["text"]]
    assert [e["init_score"] for e in entries] == [1.0, None, 0.5]
    assert entries[0]["score"] == pytest.approx(math.exp(1 - 10 / 2))
    assert entries[2]["score"] == pytest.approx(0.5 * math.exp(1 - 10 / 2))  # two were judged
    assert [e["num_facts_per_response"] for e in entries] == [2, None, 3]
    assert {e["respond_ratio"] for e in entries} == {2 / 3}
    assert [e["facttune"]["errors"] for e in entries] == [1, 0, 0]
    atoms = [[(d["atom"], d["is_supported"]) for d in e["decisions"][0]] for e in entries]
    assert atoms == [
        [("Ada wrote.", True), ("Ada is from London.", True)],
        [],
        [
            ("Ada was born in 1815.", True),
            ("Ada was born in Rome.", False),
            ("Ada had a dog.", None),
        ],
    ]
    pairs = list(tuning.read_scores(str(tmp_path), rows))
    assert [f for f, _ in pairs] == facts
    assert [v for _, v in pairs] == verdicts


def test_scores_in_a_file_of_the_scripts(tmp_path):
    first, second = response(ADA, "Who?", 0, "A writer."), response(ADA, "Who?", 1, "A poet.")
    (tmp_path / "factscore_outputs").mkdir()
    atoms = [{"atom": "Ada wrote.", "is_supported": True}] * 2
    entries = [  # of the second response first: found by text
        {"topic": ADA, "generation": "A poet.", "decisions": [atoms]},
        {"topic": ADA, "generation": "A writer.", "decisions": [None]},
    ]
    path = tmp_path / "factscore_outputs" / f"{ADA}_fs_out.json"
    path.write_text(json.dumps(entries))
    (f, v), (again, _) = tuning.read_scores(str(tmp_path), [first, second])
    assert (f["response_id"], f["fact"], f["repeated"]) == (
        second["response_id"],
        "Ada wrote.",
        False,
    )
    assert again["repeated"] and again["fact_id"] == digest(second["response_id"], 1)
    assert (v["supported"], v["score"], v["estimator"]) == (True, 1.0, "factscore")
    with pytest.raises(UserError, match="entry 0: .*no response of the topic has the text"):
        list(tuning.read_scores(str(tmp_path), [first]))
    path.write_text('[{"generation": "A writer."}]')
    with pytest.raises(UserError, match="entry 0: 'decisions' is missing"):
        list(tuning.read_scores(str(tmp_path), [first]))
    with pytest.raises(UserError, match="has no scores"):
        list(tuning.read_scores(str(tmp_path / "gone"), [first]))
