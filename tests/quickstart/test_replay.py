import json
import urllib.request

import pytest

from facttune_ray.errors import UserError
from facttune_ray.prompts import facts as facts_prompt
from facttune_ray.prompts import questions as questions_prompt
from facttune_ray.prompts import verdicts as verdicts_prompt
from facttune_ray.quickstart import replay, rules
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.scoring.factscore import factscore as score_of
from facttune_ray.sources import factscore, tuning
from facttune_ray.storage.schema import digest
from facttune_ray.text.sentences import carry, sentences, split

PARTS = {
    "our sentences": sentences,
    "short ones joined": lambda text: [s.text for s in carry(split(text))],
    "lines": lambda text: [line for line in text.splitlines() if line.strip()],
    "the whole text": lambda text: [text],
}


def record(output, *sentences, topic="Ada"):
    """A labelled line; a sentence is its text and (fact, label)s."""
    annotations = [
        {"text": text, "human-atomic-facts": [{"text": f, "label": label} for f, label in facts]}
        for text, *facts in sentences
    ]
    return {"topic": topic, "input": "Who?", "output": output, "annotations": annotations}


def load(tmp_path, *records):
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return replay.load(path)


def ask(answers, sentence, topic="Ada", **more):
    return facts_prompt.parse(answers.answer(facts_prompt.render(topic, sentence, **more)))


def judge(answers, fact, topic="Ada"):
    return verdicts_prompt.parse(answers.answer(verdicts_prompt.render(topic, fact, ["Some."])))


def test_facts_and_verdicts_by_label(tmp_path):
    answers = load(
        tmp_path,
        record(
            "Ada wrote. Ada was born in Rome.",
            ("Ada wrote.", ("Ada wrote.", "S"), ("Writing is nice.", "IR")),
            ("Ada was born in Rome.", ("Ada was  born.", "S"), ("Ada was born in Rome.", "NS")),
        ),
    )
    for more in ({}, {"domain": "bio"}, {"decontextualize": True, "context": "Ada wrote."}):
        assert ask(answers, "Ada was born in Rome.", **more) == [
            "Ada was born.",
            "Ada was born in Rome.",
        ]
    assert ask(answers, "Ada  wrote.") == ["Ada wrote."]
    assert judge(answers, "ada was born") and not judge(answers, "Ada was born in Rome.")
    many = verdicts_prompt.render_many("Ada", ["Ada was born in Rome.", "Ada wrote."], ["Some."])
    assert answers.answer(many) == "1. False\n2. True"
    closed = verdicts_prompt.render_closed("Ada", "Ada wrote.")
    assert answers.answer(closed) == "True"  # where the rules say False
    assert answers.counts == {"missing": 0, "conflicts": 0}


def test_rules_answer_what_the_file_lacks_and_count_it(tmp_path):
    answers = load(tmp_path, record("Ada wrote.", ("Ada wrote.", ("Ada wrote.", "S"))))
    unknown = facts_prompt.render("Ada", "Ada was born in Rome in 1815.")
    assert answers.answer(unknown) == rules.answer(unknown)
    other_topic = facts_prompt.render("Bob", "Ada wrote.")
    assert answers.answer(other_topic) == rules.answer(other_topic)
    assert answers.counts["missing"] == 2
    assert not judge(answers, "Ada swam.")
    many = verdicts_prompt.render_many("Ada", ["Ada swam.", "Ada wrote."], ["Ada swam."])
    assert answers.answer(many) == "1. True\n2. True"  # the rules find the first in the passage
    assert answers.counts["missing"] == 4
    question = questions_prompt.render("Ada", "Ada was born in Rome.")
    assert answers.answer(question) == rules.answer(question)
    assert answers.answer([{"role": "user", "content": "Hi"}]) == rules.CHAT_REPLY
    assert answers.counts["missing"] == 4


def test_a_sentence_without_facts_and_an_abstention_have_no_facts(tmp_path):
    answers = load(
        tmp_path,
        record("Ada wrote. Well, well.", ("Ada wrote.", ("Ada wrote.", "S")), ("Well, well.",)),
        record("I do not know Bob.", topic="Bob") | {"annotations": None},
    )
    assert answers.answer(facts_prompt.render("Ada", "Well, well.")) == "- none"
    assert answers.answer(facts_prompt.render("Bob", "I do not know Bob.")) == "- none"
    assert answers.counts["missing"] == 0


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_list_marks_and_other_sentence_cuts_lose_no_fact(tmp_path, parts):
    output = (
        "Some works:\n\n1. Notes. They are long.\n2. Letters, e.g. to J. R. Smith.\n- [x] Done."
    )
    answers = load(
        tmp_path,
        record(
            output,
            ("Some works:",),
            ("1.",),
            ("Notes.", ("n", "S")),
            ("They are long.", ("o", "S")),
            ("2. Letters, e.g. to J.", ("p", "S")),
            ("R. Smith.", ("q", "NS")),
            ("- [x] Done.", ("r", "S")),
        ),
    )
    found = [fact for part in parts(output) for fact in ask(answers, part)]
    assert found == ["n", "o", "p", "q", "r"]


def test_equal_and_contradicting_facts_stay_different(tmp_path):
    """S, S, NS, NS of one text: numbers 1 and 3 are the first label's, 2 and 4 the other's."""
    told = [("Ada wrote.", label) for label in ("S", "S", "NS", "NS", "IR")]
    again = [("Bob swam.", "NS"), ("Bob swam.", "NS"), ("Bob swam. (2)", "S")]
    answers = load(
        tmp_path,
        record("Ada wrote.", ("Ada wrote.", *told)),
        record("Bob swam.", ("Bob swam.", *again), topic="Bob"),
    )
    facts = ask(answers, "Ada wrote.")
    assert facts == ["Ada wrote.", "Ada wrote. (3)", "Ada wrote. (2)", "Ada wrote. (4)"]
    assert [judge(answers, f) for f in facts] == [True, True, False, False]
    facts = ask(answers, "Bob swam.", topic="Bob")
    assert facts == ["Bob swam.", "Bob swam. (3)", "Bob swam. (2)"]
    assert [judge(answers, f, topic="Bob") for f in facts] == [False, False, True]
    assert answers.counts == {"missing": 0, "conflicts": 1}


def test_a_repeated_sentence_gets_the_facts_of_its_first_place(tmp_path):
    sentences = ("He ran.", ("x", "S")), ("She saw he ran.", ("y", "S")), ("He ran.", ("z", "NS"))
    answers = load(tmp_path, record("He ran. She saw he ran. He ran.", *sentences))
    assert ask(answers, "He ran.") == ["x"]  # "she saw he ran" is another sentence
    assert ask(answers, "She saw he ran.") == ["y"]
    assert ask(answers, "He ran.") == ["x"]
    assert answers.counts == {"missing": 0, "conflicts": 1}


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no fact has a label"):
        load(tmp_path, record("Ada wrote.", ("Ada wrote.",)))
    with pytest.raises(UserError, match=":1: not JSON"):
        (tmp_path / "bad.jsonl").write_text("{")
        replay.load(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="no such file: check --replay"):
        replay.load(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("name", list(PARTS)[:3])  # a whole text has more facts than an answer may
@pytest.mark.parametrize("file", ["ChatGPT.jsonl", "InstructGPT.jsonl"])
def test_real_topics_get_exactly_the_human_scores(labelled_data, human_score, tmp_path, file, name):
    """Responses -> facts -> verdicts -> fs_out.json -> rows: S / (S + NS) of every topic."""
    records = list(factscore.read(labelled_data / file))
    answers = replay.load(labelled_data / file)
    responses, facts, verdicts = [], [], []
    for r in records:
        prompt_id = digest(r.topic, r.prompt)
        about = {"response_id": digest(prompt_id, file, 0), "topic": r.topic, "split": "test"}
        responses.append(about | {"prompt_id": prompt_id, "text": r.response})
        found = [f for part in PARTS[name](r.response) for f in ask(answers, part, r.topic)]
        for position, fact in enumerate(found):
            ids = about | {"fact_id": digest(about["response_id"], position)}
            facts.append(ids | {"position": position, "fact": fact, "error": None})
            supported = judge(answers, fact, r.topic)
            verdicts.append({k: ids[k] for k in ("fact_id", "response_id", "topic")})
            verdicts[-1]["supported"] = supported
    tuning.write_scores(str(tmp_path), responses, facts, verdicts, gamma=10)
    by_topic: dict[str, list] = {r.topic: [] for r in records}
    for fact, verdict in tuning.read_scores(str(tmp_path), responses):
        by_topic[fact["topic"]].append(verdict["supported"])
    for r in records:
        human, ours = human_score(r), score_of(by_topic[r.topic], gamma=10)[0]
        assert ours == (human if human is None else pytest.approx(human, abs=1e-9)), r.topic
    assert answers.counts == {"missing": 0, "conflicts": 0}


def test_the_server_replays_and_counts(tmp_path):
    load(tmp_path, record("Ada wrote.", ("Ada wrote.", ("Ada wrote it.", "S"))))

    def send(base_url, messages):
        body = json.dumps({"model": "rules", "messages": messages}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{base_url}/chat/completions", body, headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    with running(AnnotatorOptions(replay=str(tmp_path / "labelled.jsonl"))) as base_url:
        said = send(base_url, facts_prompt.render("Ada", "Ada wrote."))
        unknown = send(base_url, verdicts_prompt.render("Ada", "Ada swam.", ["Ada swam."]))
        with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats") as reply:
            stats = json.load(reply)
    assert (said, unknown) == ("- Ada wrote it.", "True")
    assert (stats["replay_missing"], stats["replay_conflicts"]) == (1, 0)


def test_a_bad_replay_file_stops_the_start(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl: no such file"):
        with running(AnnotatorOptions(replay=str(tmp_path / "gone.jsonl"))):
            pass
