import json

import pytest

from facttune_ray.errors import UserError
from facttune_ray.sources import confidence, entities
from facttune_ray.storage.schema import TABLES, digest

ADA = "Ada Lovelace"
WHERE = "atomic_qs_samples/base_2samples"
NE = "ne_samples/base_2samples"
NOTES = "Ada wrote a note in London and a note in Paris."


def response(prompt, sample, text, **more):
    prompt_id = digest(ADA, prompt)
    row = dict.fromkeys(TABLES["responses"].names) | {"prompt_id": prompt_id, "topic": ADA}
    row |= {"response_id": digest(prompt_id, "base", sample), "split": "train", "model": "base"}
    return row | {"sample": sample, "prompt": prompt, "text": text} | more


def fact(r, position, text, **more):
    row = dict.fromkeys(TABLES["facts"].names) | {"position": position, "fact": text}
    row |= {k: r[k] for k in ("response_id", "topic", "split")}
    return row | {"fact_id": digest(r["response_id"], position), "sentence": 0} | more


def question(f, text, answer=None, error=None):
    row = {k: f[k] for k in ("fact_id", "response_id", "topic")}
    question_id = digest(ADA, text) if text else None
    return row | {"question_id": question_id, "question": text, "answer": answer, "error": error}


def answer(text, samples, error=None):
    row = {"question_id": digest(ADA, text), "topic": ADA, "question": text}
    return row | {"answers": samples, "error": error}


def entity(r, text, start, samples, **more):
    row = {k: r[k] for k in ("response_id", "topic", "split")}
    row |= {"entity_id": digest(r["response_id"], start), "text": text, "start": start}
    row |= {"end": start + len(text), "prefix": "Ada", "tokens": 2, "answers": samples}
    return row | {"error": None} | more


def ours():
    """Responses, facts, verdicts, questions and answers; each kind of gap occurs."""
    one, two = response("Who?", 0, "A poet. Born in London."), response("Who?", 1, "A poet.")
    lost, silent = response("Who?", 2, None, error="timeout"), response("Who?", 3, "I cannot say.")
    again = response("When?", 0, "A poet.")
    facts = [
        fact(one, 0, "Ada was a poet."),
        fact(one, 1, "Ada was born in London."),
        fact(one, 2, "Ada lived."),
        fact(one, 3, None, error="no list of facts"),
        fact(two, 0, "Ada was a poet."),
        fact(silent, 0, None, abstained=True),
        fact(again, 0, "Ada was a poet."),
        fact(again, 1, "Ada had a cat."),
    ]
    verdict = {"score": 1.0, "evidence": "x", "title": ADA, "estimator": "chat"}
    verdict |= {"topic": ADA, "reason": None, "error": None}
    verdicts = [
        verdict | {"fact_id": f["fact_id"], "response_id": f["response_id"], "supported": s}
        for f, s in zip(facts, [True, False, None, None, None, None, True, True], strict=True)
    ]
    questions = [
        question(facts[0], "What was Ada?", "a poet"),
        question(facts[1], "Where?", "London"),
        question(facts[2], None, error="no question"),
        question(facts[4], "What was Ada?", "a poet"),
        question(facts[6], "What was Ada?", "poet"),
        question(facts[7], "Which pet?"),
    ]
    answers = [
        answer("What was Ada?", ["a poet", ""]),
        answer("Where?", None, error="no samples"),
        answer("Which pet?", [None, "a cat"]),
    ]
    return [one, two, lost, silent, again], facts, verdicts, questions, answers


def read_all(folder, responses, samples=None):
    pairs = list(confidence.read_questions(str(folder), responses, samples))
    return [q for qs, _ in pairs for q in qs], [a for _, answers in pairs for a in answers]


def test_questions_and_answers_come_back(tmp_path):
    responses, facts, verdicts, questions, answers = ours()
    folder = str(tmp_path)
    args = (responses, facts, verdicts, questions)
    assert confidence.write_questions(folder, *args, 10.0, answers) == 1
    assert confidence.write_answers(folder, WHERE, responses, facts, questions, answers) == 1
    assert read_all(tmp_path, responses, WHERE) == (questions, answers)
    assert read_all(tmp_path, responses) == (questions, [])
    # without answers, what has a question stays where the reference samples it
    confidence.write_questions(folder, *args, 10.0)
    assert read_all(tmp_path, responses) == (questions, [])


def test_the_scripts_see_only_questions_with_samples(tmp_path):
    responses, facts, verdicts, questions, answers = ours()
    confidence.write_questions(str(tmp_path), *ours()[:4], 10.0, answers)
    confidence.write_answers(str(tmp_path), WHERE, responses, facts, questions, answers)
    entries = json.loads((tmp_path / "atomic_qs" / f"{ADA}_aqs.json").read_text())
    levels = json.loads((tmp_path / WHERE / f"{ADA}_samples.json").read_text())["samples"]
    assert [e["generation"] for e in entries] == [
        "A poet. Born in London.",
        "A poet.",
        "I cannot say.",
        "A poet.",
    ]
    asked = [[d["atomic_question"] for d in e["decisions"][0]] for e in entries]
    assert asked == [["What was Ada?"], ["What was Ada?"], [], ["What was Ada?", "Which pet?"]]
    assert [list(one) for one in levels] == asked
    assert levels[3] == {"What was Ada?": ["a poet", ""], "Which pet?": [None, "a cat"]}
    assert entries[0]["decisions"][0][0]["atomic_answer"] == "a poet"
    assert "atomic_answer" not in entries[3]["decisions"][0][1]
    scores = [e["init_score"] for e in entries]
    assert (scores[0], scores[3]) == (0.5, 1.0)  # over all facts, those set aside too
    assert all(s != s for s in scores[1:3])  # NaN: nothing was judged
    # not sampled yet: the reference's next script asks the question without an answer, too
    confidence.write_questions(str(tmp_path), *ours()[:4], 10.0)
    entries = json.loads((tmp_path / "atomic_qs" / f"{ADA}_aqs.json").read_text())
    assert [d["atomic_question"] for d in entries[0]["decisions"][0]] == ["What was Ada?", "Where?"]


def reference(folder, entries, samples):
    (folder / "atomic_qs").mkdir()
    (folder / WHERE).mkdir(parents=True)
    texts = [
        {"generation": t, "decisions": [[{"atom": q, "atomic_question": q} for q in qs]]}
        for t, qs in entries
    ]
    (folder / "atomic_qs" / f"{ADA}_aqs.json").write_text(json.dumps(texts))
    (folder / WHERE / f"{ADA}_samples.json").write_text(json.dumps({"samples": samples}))


def test_unequal_counts_and_equal_texts_of_the_reference(tmp_path):
    # two answers to Who?, one to When?: counting puts the second chunk in the wrong place
    rows = [response("Who?", 0, "x"), response("Who?", 1, "y"), response("When?", 0, "x")]
    reference(
        tmp_path,
        [("x", ["A?", "A?"]), ("y", ["B?"]), ("x", ["A?", "C?"])],
        [{"A?": ["1", None]}, {"B?": []}, {"A?": ["2", "3"], "C?": None}],
    )
    questions, answers = read_all(tmp_path, rows, WHERE)
    found = {a["question_id"]: a["answers"] for a in answers}
    seen = [(q["response_id"], q["question"], found[q["question_id"]]) for q in questions]
    ids = [r["response_id"] for r in rows]
    assert seen == [
        (ids[0], "A?", ["1", None]),
        (ids[0], "A?", ["1", None]),
        (ids[1], "B?", []),
        (ids[2], "A?", ["2", "3"]),  # its own samples: its own question_id
        (ids[2], "C?", None),
    ]
    assert [q["fact_id"] for q in questions[:2]] == [digest(ids[0], 0), digest(ids[0], 1)]
    assert questions[0]["question_id"] == questions[1]["question_id"] == digest(ADA, "A?")
    assert len(answers) == 4
    # an entry out of its place is found by its text, and its samples stay its own
    reference_order = [rows[1], rows[0], rows[2]]
    questions, answers = read_all(tmp_path, reference_order, WHERE)
    found = {a["question_id"]: a["answers"] for a in answers}
    assert {q["response_id"]: found[q["question_id"]] for q in questions if q["question"] == "B?"}
    assert [q["response_id"] for q in questions][2] == ids[1]


@pytest.mark.parametrize(
    ("entries", "samples", "says"),
    [
        ([("x", ["A?"])], [], "samples of 0 responses, but .*_aqs.json has 1"),
        ([("x", ["A?"])], [{"B?": []}], 'entry 0: no samples of "A[?]"'),
        ([("x", ["A?"])], [{"A?": "London"}], "expected a list of samples"),
        ([("x", ["A?"])], [{"A?": [1]}], "expected a list of samples"),
        ([("x", ["A?"])], ["A?"], "expected .*samples"),
        ([("z", ["A?"])], [{"A?": []}], "entry 0: no response of the topic has the text"),
        ([("x", [None])], [{}], 'entry 0: decision 0: "atomic_question" is null'),
        ([("x", [3])], [{}], '"atomic_question" is 3, not a text'),
    ],
)
def test_bad_questions_are_one_line(tmp_path, entries, samples, says):
    reference(tmp_path, entries, samples)
    with pytest.raises(UserError, match=says) as caught:
        read_all(tmp_path, [response("Who?", 0, "x")], WHERE)
    assert "\n" not in str(caught.value) and ADA in str(caught.value)


def test_an_empty_question_is_its_rows_error(tmp_path):
    reference(tmp_path, [("x", ["", "A?"])], [{"": ["1"], "A?": ["2"]}])
    questions, answers = read_all(tmp_path, [response("Who?", 0, "x")], WHERE)
    empty, asked = questions
    assert (empty["question_id"], empty["question"]) == (None, None) and "empty" in empty["error"]
    assert asked["error"] is None and [a["answers"] for a in answers] == [["2"]]


def test_missing_and_broken_files(tmp_path):
    rows = [response("Who?", 0, "x")]
    reference(tmp_path, [("x", ["A?"])], [{"A?": []}])
    with pytest.raises(UserError, match="has no answers"):
        read_all(tmp_path, rows, "atomic_qs_samples/other_20samples")
    with pytest.raises(UserError, match="has no questions"):
        read_all(tmp_path / "gone", rows)
    path = tmp_path / "atomic_qs" / f"{ADA}_aqs.json"
    path.write_text('[{"generation": "x", "decisions": [[{"atom": "a"}]]}]')
    with pytest.raises(UserError, match="entry 0: 'atomic_question' is missing"):
        read_all(tmp_path, rows)
    path.write_text("[{")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_all(tmp_path, rows)
    with pytest.raises(UserError, match="has no entities"):
        list(entities.read_entities(str(tmp_path), rows, NE))


def test_entities_come_back_with_every_occurrence(tmp_path):
    one, twin = response("Who?", 0, NOTES), response("Who?", 1, NOTES)
    lost, other = response("Who?", 2, None, error="timeout"), response("When?", 0, "In 1815.")
    rows = [
        entity(one, "a note", 10, [None, None]),
        entity(one, "London", 20, ["London", ""]),
        entity(one, "a note", 31, ["a song", "a poem"]),
        entity(twin, "a note", 10, ["a word", "a word"]),
        entity(twin, "Paris", 41, None, error="no samples"),
        entity(other, "1815", 3, []),
    ]
    failed = dict.fromkeys(TABLES["entities"].names) | {"entity_id": "e", "error": "not parsed"}
    rows.append(failed | {"response_id": other["response_id"], "topic": ADA, "split": "train"})
    responses = [one, twin, lost, other]
    assert entities.write_entities(str(tmp_path), NE, responses, rows) == 1
    written = json.loads((tmp_path / NE / f"{ADA}_ne_samples.json").read_text())
    assert written["Who?"] == {NOTES: {"London": ["London", ""], "a note": ["a song", "a poem"]}}
    assert written["When?"] == {"In 1815.": {}}  # the reference looks the response up
    assert [e for topic in entities.read_entities(str(tmp_path), responses, NE) for e in topic] == [
        *rows
    ]


def test_entities_in_a_file_of_the_scripts(tmp_path):
    one, twin = response("Who?", 0, NOTES), response("Who?", 1, NOTES)
    other = response("When?", 0, "In the artist era, the art of the year.")
    (tmp_path / NE).mkdir(parents=True)
    path = tmp_path / NE / f"{ADA}_ne_samples.json"
    levels = {
        "When?": {other["text"]: {"the art": ["the way"], "the year": [None]}},
        "Who?": {NOTES: {"London": ["Rome"], "a note": ["a song"], "Paris": []}},
    }
    path.write_text(json.dumps(levels))
    (rows,) = entities.read_entities(str(tmp_path), [one, twin, other], NE)
    seen = [(r["response_id"], r["text"], r["start"], r["end"], r["answers"]) for r in rows]
    here = [
        ("London", 20, 26, ["Rome"]),
        ("a note", 31, 37, ["a song"]),  # looked for after London
        ("Paris", 41, 46, []),
    ]
    assert seen == [
        *((one["response_id"], *e) for e in here),
        *((twin["response_id"], *e) for e in here),
        (other["response_id"], "the art", 19, 26, ["the way"]),  # not in "the artist"
        (other["response_id"], "the year", 30, 38, [None]),
    ]
    assert rows[0]["entity_id"] == digest(one["response_id"], 20)
    assert rows[0]["prefix"] == "Ada wrote a note in" and rows[0]["tokens"] is None
    for bad, says in [
        ({"Who?": {NOTES: {"Rome": []}}}, '"Rome" is not in the response'),
        ({"Who?": {NOTES: {"London": "Rome"}}}, "expected a list of samples"),
        ({"Who?": {"other": {}}}, 'no response has the text "other'),
        ({"Who?": {}}, "no entities of the response"),
        ({"Who?": {NOTES: []}}, "expected {entity"),
        ({"Why?": {}}, "is no question of the topic"),
        ({}, 'no entities of "Who[?]"'),
        ([], "expected {question"),
    ]:
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=says):
            list(entities.read_entities(str(tmp_path), [one], NE))


def test_the_facttune_key_has_to_match_the_rest(tmp_path):
    responses, facts, _, questions, answers = ours()
    one = responses[0]
    confidence.write_questions(str(tmp_path), responses, facts, [], questions, 10.0, answers)
    confidence.write_answers(str(tmp_path), WHERE, responses, facts, questions, answers)
    path = tmp_path / WHERE / f"{ADA}_samples.json"
    value = json.loads(path.read_text())
    value["facttune"][0]["question_id"] = "other"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match='"facttune" does not match "samples": remove it'):
        read_all(tmp_path, responses, WHERE)
    entities.write_entities(str(tmp_path), NE, [one], [entity(one, "A poet", 0, ["x"])])
    path = tmp_path / NE / f"{ADA}_ne_samples.json"
    path.write_text(path.read_text().replace('"A poet": [', '"a writer": ['))
    with pytest.raises(UserError, match='"facttune" does not match the rest: remove it'):
        list(entities.read_entities(str(tmp_path), [one], NE))
    with pytest.raises(UserError, match='the prompt "facttune"'):
        entities.write_entities(str(tmp_path), NE, [one | {"prompt": "facttune"}], [])


def test_the_name_of_a_folder_of_samples():
    name = confidence.samples_folder("atomic_qs_samples", "facttune_fs/round_1", 20)
    assert name == "atomic_qs_samples/facttune_fs%2Fround_1_20samples"
