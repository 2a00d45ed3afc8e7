"""Classes of a shard by every method, on hand-made tables and with fakes for the judges."""

import pytest

from facttune_ray.errors import RowError
from facttune_ray.stages import classes

INPUTS = {
    "questions": [
        {"question_id": "q1", "answer": "the cello"},
        {"question_id": "q1", "answer": "harp"},
        {"question_id": "q1", "answer": "the cello"},
        {"question_id": "q2", "answer": None},
    ],
    "answers": [
        {
            "question_id": "q1",
            "topic": "Mara",
            "question": "What does Mara play?",
            "answers": ["Cello", "the cello", "big fiddle", ""],
        },
        {"question_id": "q2", "topic": "Mara", "question": "Who?", "error": "no samples"},
    ],
    "entities": [
        {
            "entity_id": "e1",
            "topic": "Mara",
            "text": "Lyon",
            "prefix": "Mara was born in",
            "answers": ["Lyon", "Paris"],
            "split": "train",
        },
        {"entity_id": "e2", "topic": "Mara", "text": None, "error": "not parsed", "split": "train"},
    ],
}


def by_unit(rows):
    return {r["unit_id"]: r for r in rows}


def test_strings_give_each_unit_classes_and_shares_of_its_originals(run_stage):
    found = by_unit(run_stage(classes, INPUTS))
    assert list(found) == ["q1", "q2", "e1"]  # an entity that could not be parsed is no unit
    assert found["q1"]["classes"] == [0, 0, 1, -1]
    assert found["q1"]["originals"] == ["the cello", "harp"]
    assert found["q1"]["shares"] == [pytest.approx(2 / 3), 0.0]
    assert (found["e1"]["unit"], found["e1"]["shares"]) == ("entity", [0.5])
    assert (found["q2"]["classes"], found["q2"]["error"]) == (None, "no samples")


def test_only_the_reference_method_takes_a_suffix_for_an_equal_answer(run_stage):
    answers = [{"question_id": "q", "topic": "t", "question": "?", "answers": ["1955", "955"]}]
    found = {
        method: run_stage(classes, {"answers": answers}, [f"classes.method={method}"])[0]["classes"]
        for method in ("exact", "heuristic", "reference")
    }
    # the reference's suffix rule takes them for one year
    assert found == {"exact": [0, 1], "heuristic": [0, 1], "reference": [0, 0]}


class Judge:
    """An LLM that knows which texts mean the same, and records its requests."""

    def __init__(self, *groups, broken=()):
        self.groups, self.broken, self.seen = groups, broken, []

    async def ask(self, messages, parse):
        text = messages[-1]["content"]
        self.seen.append(text)
        if any(word in text for word in self.broken):
            raise RowError("refused: no")
        first, second = (
            line.split(": <<<")[1].removesuffix(">>>") for line in text.splitlines()[1:3]
        )
        return parse("Yes" if any({first, second} <= g for g in self.groups) else "No")


def test_an_llm_judges_answers_with_different_strings(run_stage):
    judge = Judge({"Cello", "big fiddle"})
    found = by_unit(run_stage(classes, INPUTS, ["classes.method=llm"], {"client": judge}))
    assert found["q1"]["classes"] == [0, 0, 0, -1]
    assert found["q1"]["shares"] == [1.0, 0.0]
    # Cello/big fiddle, harp against both; Lyon/Paris: the entity itself is one of its samples
    assert len(judge.seen) == 4
    assert any("Mara was born in" in text and "Lyon" in text for text in judge.seen)


def test_two_answers_are_one_request_in_either_order(run_stage):
    def ask(answers):
        judge = Judge()
        row = {"question_id": "q", "topic": "t", "question": "Where?", "answers": answers}
        run_stage(classes, {"answers": [row]}, ["classes.method=llm"], {"client": judge})
        return judge.seen

    assert ask(["Lyon", "Paris", "Lyon"]) == ask(["Paris", "Lyon", "Paris"])


def test_a_unit_whose_judge_fails_has_an_error_and_no_share(run_stage):
    judge = Judge(broken=["fiddle"])
    found = by_unit(run_stage(classes, INPUTS, ["classes.method=llm"], {"client": judge}))
    assert found["q1"]["error"] == "refused: no" and found["q1"]["classes"] is None
    assert found["q1"]["shares"] == [None, None]
    assert found["e1"]["classes"] == [0, 1]


class Entails:
    def same(self, pairs):
        self.seen = pairs
        return [all("o" in text.split()[-1] for text in pair) for pair in pairs]


def test_an_entailment_model_judges_all_pairs_of_the_shard_at_once(run_stage):
    model = Entails()
    found = by_unit(run_stage(classes, INPUTS, ["classes.method=nli"], {"entailment": model}))
    assert found["q1"]["classes"] == [0, 0, 1, -1]
    assert found["e1"]["classes"] == [0, 1]  # "Paris" has no o
    assert len(model.seen) == 4
    assert ("What does Mara play? Cello", "What does Mara play? big fiddle") in model.seen
