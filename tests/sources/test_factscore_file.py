import json
import math

import pytest

from facttune_ray.errors import UserError
from facttune_ray.sources import factscore

LINE = (
    '{"topic": "A", "input": "Tell me.", "output": "A is old.", "annotations": [{"text": '
    '"A is old.", "human-atomic-facts": [{"text": "A is old.", "label": "S"}]}]}\n'
)


def test_a_labelled_line_and_an_abstention(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(LINE + '{"topic": "B", "input": "x", "output": "sorry", "annotations": null}\n')
    first, second = factscore.read(path)
    assert first.sentences[0].human_facts == (("A is old.", "S"),)
    assert (first.abstained, second.abstained, second.sentences) == (False, True, ())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("3", "expected an object"),
        ('{"topic": "A", "input": "x", "annotations": null}', '"output" is missing'),
        ('{"topic": 1, "input": "x", "output": "y"}', '"topic" must be a string'),
        (LINE.replace('"S"', '"Q"').strip(), 'label "Q" is none of S, NS, IR'),
        ('{"topic": "A", "input": "x", "output": "y", "annotations": 3}', "a list or null"),
    ],
)
def test_malformed_line_names_file_and_line(tmp_path, line, says):
    path = tmp_path / "m.jsonl"
    path.write_text(LINE + line + "\n")
    with pytest.raises(UserError) as caught:
        list(factscore.read(path))
    assert f"{path}:2: " in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="a/m.jsonl and b/m.jsonl: both are model m: rename one"):
        list(factscore.read_all(tmp_path, ["a/m.jsonl", "b/m.jsonl"]))


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="check data.folder"):
        list(factscore.read(tmp_path / "gone.jsonl"))
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        list(factscore.read(tmp_path / "e.jsonl"))


def test_a_byte_order_mark_blank_lines_and_half_a_surrogate_pair_are_accepted(tmp_path):
    path = tmp_path / "m.jsonl"
    halves = LINE.replace("A is old", r"A \ud83d is \ud83d\ude00").encode()
    path.write_bytes(b"\xef\xbb\xbf\n" + halves + b" \n\n" + LINE.encode() + b"{\n")
    records = factscore.read(path)
    first, _ = next(records), next(records)
    assert first.response == first.sentences[0].text == "A \ufffd is \U0001f600."
    with pytest.raises(UserError, match="jsonl:6: not JSON"):
        next(records)


def test_counts_of_the_real_files(labelled_data):
    for file, abstained, facts in (("ChatGPT", 26, 5426), ("InstructGPT", 1, 4726)):
        records = list(factscore.read(labelled_data / f"{file}.jsonl"))
        assert len(records) == 183
        assert sum(r.abstained for r in records) == abstained
        assert sum(len(s.human_facts) for r in records for s in r.sentences) == facts


def test_a_file_without_labels_does_not_say_who_abstained(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"topic": "A", "input": "x", "output": "A is old."}\n')
    (record,) = factscore.read(path)
    assert record.abstained is None
    with pytest.raises(UserError, match='"A" has no "annotations"'):
        factscore.given_facts(record)


def test_given_facts_of_the_model_and_of_humans(tmp_path):
    sentence = {
        "text": "A is old.",
        "model-atomic-facts": [{"text": "m"}],
        "human-atomic-facts": [
            {"text": "h", "label": "S"},
            {"text": "i", "label": "IR"},
            {"text": "h", "label": "NS"},
        ],
    }
    line = {"topic": "A", "input": "x", "output": "A is old.", "annotations": [sentence]}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (record,) = factscore.read(path)
    assert factscore.given_facts(record) == [("A is old.", (("m", None),))]
    human = (("h", "S"), ("i", "IR"), ("h", "NS"))
    assert factscore.given_facts(record, "human") == [("A is old.", human)]


def test_aggregate_by_hand():
    """The penalty is exp(0) = 1 for ten facts, exp(1 - 10 / 4) for four, none for eleven."""
    ten, four, eleven = [True] * 10, [True, True, False, None, False], [True] * 10 + [False]
    found = factscore.aggregate([ten, four, None, eleven, [], [None]], gamma=10)
    shares = 1, 0.5, 10 / 11
    assert found.init_score == pytest.approx(sum(shares) / 3, abs=1e-12)
    assert found.score == pytest.approx((1 + 0.5 * math.exp(-1.5) + 10 / 11) / 3, abs=1e-12)
    assert found.respond_ratio == pytest.approx(4 / 6)
    assert found.facts_per_response == (10 + 5 + 11 + 1) / 4
    assert factscore.aggregate([four], gamma=0).score == 0.5
    nothing = factscore.Summary(None, None, 0.0, None)
    assert factscore.aggregate([None], gamma=10) == nothing
    assert factscore.aggregate([], gamma=10) == factscore.Summary(None, None, None, None)
    assert nothing.lines()[0] == "FActScore = n/a"


def test_summary_of_rows_and_lines():
    def response(key, text="t", **more):
        ids = {"response_id": key, "topic": "A", "prompt": "x", "text": text, "abstained": None}
        return ids | more

    def fact(key, of, text="f", **more):
        ids = {"fact_id": key, "response_id": of, "fact": text, "error": None, "abstained": False}
        return (
            ids | {"position": 0, "sentence": 0, "sentence_text": "s", "human_label": None} | more
        )

    responses = [
        response("r1"),
        response("silent"),
        response("failed"),
        response("lost", text=None),
    ]
    facts = [fact("a", "r1"), fact("b", "r1"), fact("c", "failed", None, error="timeout")]
    verdicts = [{"fact_id": "a", "supported": True}, {"fact_id": "b", "supported": False}]
    found = factscore.aggregate(factscore.decisions(responses, facts, verdicts), gamma=2)
    assert found.lines() == [
        "FActScore = 50.0%",
        "FActScore w/o length penalty = 50.0%",
        "Respond ratio = 50.0%",
        "# Atomic facts per valid response = 2.0",
    ]


def test_real_labels_come_back_from_rows(labelled_data, tmp_path):
    records = list(factscore.read(labelled_data / "ChatGPT.jsonl"))
    responses, facts = [], []
    for i, r in enumerate(records):
        about = {"topic": r.topic, "prompt": r.prompt, "text": r.response}
        responses.append(about | {"response_id": i, "abstained": r.abstained})
        labelled = [(n, s.text, f, x) for n, s in enumerate(r.sentences) for f, x in s.human_facts]
        for position, (n, sentence, fact, label) in enumerate(labelled):
            row = {"response_id": i, "position": position, "sentence": n, "fact": fact}
            row |= {"sentence_text": sentence, "human_label": label, "abstained": False}
            facts.append(row)
    path = tmp_path / "again.jsonl"
    path.write_text("".join(factscore.jsonl(responses, facts)))
    again = list(factscore.read(path))
    assert [r.abstained for r in again] == [r.abstained for r in records]
    assert [r.response for r in again] == [r.response for r in records]
    for new, old in zip(again, records, strict=True):
        kept = [(s.text, s.human_facts) for s in old.sentences if s.human_facts]
        assert [(s.text, s.human_facts) for s in new.sentences] == kept
