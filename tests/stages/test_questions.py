"""Questions of a shard: requests, equal facts, errors."""

from facttune_ray import config
from facttune_ray.errors import RowError
from facttune_ray.stages import questions


def fact(rid, position, text, topic="Ada"):
    ids = {"fact_id": f"{rid}{position}", "response_id": rid, "topic": topic}
    return ids | {"split": "train", "position": position, "fact": text}


class Asks:
    """An LLM that turns a fact's words into a question, and records its prompts."""

    def __init__(self, answers=()):
        self.answers, self.seen = dict(answers), []

    async def ask(self, messages, parse, reject_cut=False):
        shown = messages[-1]["content"]
        self.seen.append(shown)
        text = shown.rpartition("Fact: <<<")[2].removesuffix(">>>")
        answer = self.answers.get(text, f"Is it that {text.rstrip('.')}?")
        if answer is None:
            raise RowError("refused: no")
        return parse(answer)


FACTS = [
    fact("r", 0, "She sang."),
    fact("r", 1, None),
    fact("r", 2, "She won."),
    fact("r", 3, "She left."),
    fact("s", 0, "she  sang"),
    fact("t", 0, "She won.", "Bo"),
]


def test_identical_facts_of_a_topic_are_asked_once(run_stage):
    client = Asks()
    rows = run_stage(questions, {"facts": FACTS}, resources={"client": client})
    assert len(client.seen) == 4
    assert [r["fact_id"] for r in rows] == ["r0", "r2", "r3", "s0", "t0"]
    first, won, _, again, other = rows
    assert first["question_id"] == again["question_id"] != won["question_id"]
    assert won["question_id"] != other["question_id"]  # of another topic
    assert {r["answer"] for r in rows} == {None} == {r["error"] for r in rows}


def test_equal_questions_share_id_and_wording(run_stage):
    client = Asks({"She sang.": "What did Ada do?", "She won.": "what  did Ada do ?"})
    rows = run_stage(questions, {"facts": FACTS[:3]}, resources={"client": client})
    assert len({r["question_id"] for r in rows}) == 1
    assert [r["question"] for r in rows] == ["What did Ada do?"] * 2


def test_facts_before_are_shown_and_never_more_than_there_are(run_stage):
    client = Asks()
    run_stage(questions, {"facts": FACTS}, ["questions.context=2"], {"client": client})
    before = [s.partition("before it: <<<")[2].partition(">>>\n")[0] for s in client.seen]
    # the reference's negative slice shows nothing, or the end, at the first facts
    assert before == ["", "She sang.", "She sang. She won.", ""]  # s0 is r0 again


def test_a_fact_after_other_facts_is_another_request(run_stage):
    facts = [fact("r", 0, "A."), fact("r", 1, "X."), fact("s", 0, "B."), fact("s", 1, "X.")]
    facts += [fact("t", 0, "A."), fact("t", 1, "X.")]
    client = Asks()
    run_stage(questions, {"facts": facts}, ["questions.context=1"], {"client": client})
    assert len(client.seen) == 4  # A, X behind A, B, X behind B


def test_answers_belong_to_their_facts(run_stage):
    client = Asks(
        {
            "She sang.": "Question: What did Ada do?\nAnswer: sang",
            "She won.": "Question: What did Ada do?\nAnswer: won",
            "She left.": "What did Ada do?",
        }
    )
    rows = run_stage(questions, {"facts": FACTS[:4]}, ["questions.answer=true"], {"client": client})
    assert [r["answer"] for r in rows] == ["sang", "won", None]
    assert rows[0]["question_id"] == rows[1]["question_id"]
    assert rows[2]["question_id"] is None and "no answer behind" in rows[2]["error"]


def test_pronouns_and_conditions_come_from_the_prompts(run_stage):
    prompts = [
        {"topic": "Ada", "split": "train", "pronoun": "her"},
        {"topic": "Flu", "split": "train", "lower_case": "the flu"},
    ]
    tables = {"facts": [fact("r", 0, "She sang."), fact("s", 0, "It hurts.", "Flu")]}
    client = Asks()
    run_stage(
        questions, tables | {"prompts": prompts}, ["questions.domain=bio"], {"client": client}
    )
    assert client.seen[0].startswith("Person: Ada\nPronoun: her\n")
    client = Asks()
    run_stage(
        questions, tables | {"prompts": prompts}, ["questions.domain=medicine"], {"client": client}
    )
    assert client.seen[1].startswith("Condition: the flu\n")


def test_a_question_that_fails_is_an_error_of_its_fact_only(run_stage):
    client = Asks({"She won.": None, "She left.": "I cannot."})
    rows = run_stage(questions, {"facts": FACTS[:4]}, resources={"client": client})
    assert [r["error"] and r["error"][:11] for r in rows] == [None, "refused: no", "no question"]
    assert [r["question_id"] is None for r in rows] == [False, True, True]


def test_the_recipe_knows_the_template_in_use():
    def recipe(*overrides):
        return questions.recipe(config.load([], list(overrides)))

    plain = recipe()
    assert [k for k in plain if k.startswith("prompts/")] == ["prompts/questions_general.txt"]
    used = recipe("questions.domain=medicine", "questions.answer=true")
    assert "prompts/questions_medicine_answer.txt" in used
    found = [plain, used, recipe("questions.context=1"), recipe("questions.domain=bio")]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert recipe("answers.samples=3", "facts.domain=bio") == plain
