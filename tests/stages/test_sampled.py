"""What the stages responses, answers and reference ask of a model: stops, worked questions."""

from facttune_ray import config
from facttune_ray.sampling.protocol import Sample
from facttune_ray.stages import answers, reference, responses

PROMPT = {"topic": "Mali", "split": "train", "pronoun": None, "lower_case": None, "error": None}
PROMPT |= {"prompt_id": "p", "prompt": "Italy\nRome.\n\nMali"}
QUESTION = {"fact_id": "f", "question_id": "q", "response_id": "r", "topic": "Mali"}
QUESTION |= {"question": "What is the capital of Mali?", "answer": None, "error": None}
OWN = "Question: What is the capital of Italy?\nAnswer: Rome\n"


class Sampler:
    def __init__(self):
        self.requests = []

    def sample(self, request):
        self.requests.append(request)
        return [[Sample("Bamako", 2, True)] * request.n for _ in request.prompts]


def test_responses_end_at_every_stop(run_stage):
    sampler = Sampler()
    words = ['responses.stop=["\\n", "###"]', "responses.samples=2"]
    rows = run_stage(responses, {"prompts": [PROMPT]}, words, {"sampler": sampler})
    assert [r["text"] for r in rows] == ["Bamako", "Bamako"]
    assert sampler.requests[0].stop == ("\n", "###")


def test_a_stop_is_part_of_the_recipes_where_there_is_one():
    plain, stopped = config.load([]), config.load([], ['responses.stop=["\\n"]'])
    for stage in (responses, reference):
        assert "responses.stop" not in stage.recipe(plain)
        assert stage.recipe(stopped)["responses.stop"] == ["\n"]


def test_worked_questions_by_name_or_from_a_file(run_stage, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(OWN + "\n\n")
    prefixes = {}
    for name in ("none", "bio", "general", str(file)):
        sampler = Sampler()
        words = [f"answers.examples={name}", "answers.samples=1"]
        (row,) = run_stage(answers, {"questions": [QUESTION]}, words, {"sampler": sampler})
        assert row["answers"] == ["Bamako"]
        (request,) = sampler.requests
        assert request.prompts == ["Question: What is the capital of Mali?\nAnswer:"]
        prefixes[name] = request.prefix
    assert prefixes["none"] == "" and prefixes[str(file)] == OWN + "\n"
    assert prefixes["general"] != prefixes["bio"] and prefixes["general"].endswith("\n\n")
    before = answers.recipe(config.load([], words))
    file.write_text(OWN + "Question: Who?\nAnswer: Ada\n")  # another content is another table
    assert answers.recipe(config.load([], words)) != before
