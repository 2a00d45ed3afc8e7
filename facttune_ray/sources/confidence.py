"""Questions and sampled answers as files of FactTune's scripts, written and read.

    atomic_qs/Ada_aqs.json             an fs_out list; each decision has "atomic_question", and
                                       "atomic_answer" if the answer was asked for
    atomic_qs_samples/llama-7b_20samples/Ada_samples.json
                                       {"samples": [{"Where was Ada born?": ["London", ...]}]}

"samples" holds one dict per response, in the order of atomic_qs. The scripts' score_metrics fails
on a fact without a question and on a question without a sample. Both are therefore kept under
EXTRA, where it does not look. It compares scores, so an undefined score is NaN here: null would
stop it. A response with nothing to score still shifts the rewards of the responses after it in
score_metrics; `export.rewards.write` does not have this fault. Functions take the rows of one
shard.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sources.topic_files import (
    EXTRA,
    Rows,
    by_topic,
    errors_named,
    facts_by_response,
    file_name,
    read_json,
    response_of,
    write_each,
)
from facttune_ray.sources.tuning import decisions_of, score_entries
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import digest

QUESTIONS, QUESTIONS_END = "atomic_qs", "_aqs.json"
ANSWERS, ANSWERS_END = "atomic_qs_samples", "_samples.json"


def samples_folder(parent: str, model: str, n: int) -> str:
    """`atomic_qs_samples/llama-7b_20samples`, as the scripts name the folder."""
    return f"{parent}/{file_name(model, f'_{n}samples')}"


# ---------------------------------------------------------------- questions and answers, written


def write_questions(
    folder: str,
    responses: Rows,
    facts: Rows,
    verdicts: Rows,
    questions: Rows,
    gamma: float,
    answers: Rows | None = None,
) -> int:
    """`atomic_qs/{topic}_aqs.json`, one per topic of `responses`; returns the files written.

    With `answers`, a fact whose question has no sample is set aside as well, because score_metrics
    cannot score it.
    """
    entries_of = score_entries(facts, verdicts, gamma)
    question_of = {q["fact_id"]: q for q in questions}
    samples_of = None if answers is None else _samples_of(answers)

    def content(topic: str, rows: list[dict]) -> list[dict]:
        return [_with_questions(e, question_of, samples_of) for e in entries_of(rows)]

    return write_each(folder, QUESTIONS, QUESTIONS_END, responses, content, allow_nan=True)


def _with_questions(
    entry: dict, question_of: dict[str, dict], samples_of: dict[str, list] | None
) -> dict:
    """The entry of fs_out with its questions; facts without a question are set aside."""
    kept: list[dict] = []
    aside: list[dict] = []
    for d in entry["decisions"][0]:
        q = question_of.get(d[EXTRA]["fact"]["fact_id"])
        scored = False
        if q is not None:
            scored = q["question"] is not None
            scored = scored and (samples_of is None or q["question_id"] in samples_of)
            d["atomic_question"] = q["question"]
            if q["answer"] is not None:
                d["atomic_answer"] = q["answer"]
            d[EXTRA]["question"] = {k: q[k] for k in ("question_id", "error")}
        (kept if scored else aside).append(d)
    nan = float("nan")
    score = {k: nan if entry[k] is None else entry[k] for k in ("score", "init_score")}
    return entry | score | {"decisions": [kept], EXTRA: entry[EXTRA] | {"aside": aside}}


def write_answers(
    folder: str, samples: str, responses: Rows, facts: Rows, questions: Rows, answers: Rows
) -> int:
    """`{samples}/{topic}_samples.json` for the rows of `write_questions`; returns the files.

    `samples`: the result of `samples_folder`.
    """
    answers = list(answers)
    samples_of, answers_of = _samples_of(answers), defaultdict(list)
    for a in answers:
        answers_of[a["topic"]].append(a)
    question_of = {q["fact_id"]: q for q in questions}
    facts_of = facts_by_response(facts)

    def content(topic: str, rows: list[dict]) -> dict:
        levels, written = [], set()
        for r in rows:
            if r["text"] is None:
                continue
            level: dict[str, list] = {}
            for f in facts_of[r["response_id"]]:
                q = question_of.get(f["fact_id"])
                if f["fact"] is not None and q is not None and q["question_id"] in samples_of:
                    level[q["question"]] = samples_of[q["question_id"]]
                    written.add(q["question_id"])
            levels.append(level)
        extra = [
            {k: a[k] for k in ("question_id", "question", "error")}
            | ({} if a["question_id"] in written else {"answers": a["answers"]})
            for a in answers_of[topic]
        ]
        return {"samples": levels, EXTRA: extra}

    return write_each(folder, samples, ANSWERS_END, responses, content, allow_nan=True)


def _samples_of(answers: Rows) -> dict[str, list]:
    """Samples by question_id, for the questions that score_metrics can score."""
    return {a["question_id"]: a["answers"] for a in answers if usable(a["answers"])}


def usable(samples: list[str | None] | None) -> bool:
    """Whether score_metrics can score the samples: it fails without any text among them."""
    return any(s is not None for s in samples or ())


# ---------------------------------------------------------------- questions and answers, read


def read_questions(
    folder: str, responses: Rows, samples: str | None = None
) -> Iterator[tuple[list[dict], list[dict]]]:
    """(rows of `questions`, rows of `answers`) of each topic of the responses.

    `samples`: folder of the samples, such as "atomic_qs_samples/llama-7b_20samples"; None: answers
    have not been sampled yet. `response_of` finds the response of an entry; the entry's samples
    stand at the entry's own place in "samples". The scripts sample a question once in every
    response, so questions with different samples get different question_ids. UserError for a
    missing file, a wrong form, or a question without samples.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / QUESTIONS / file_name(topic, QUESTIONS_END)
        absent = f'topic "{topic}" has no questions'
        entries = read_json(file, list, "a list, an entry a response", absent)
        content, where = None, ""
        if samples is not None:
            samples_file = Folder.of(folder) / samples / file_name(topic, ANSWERS_END)
            absent = f'topic "{topic}" has no answers'
            where = samples_file.path
            content = read_json(samples_file, dict, SAMPLES_FORM, absent)
            _check_samples(content.get("samples"), len(entries), where, file.path)
        yield _topic_rows(topic, rows, entries, content, file.path, where)


SAMPLES_FORM = '{"samples": [{question: [answers]}]}'


def _check_samples(levels: Any, entries: int, where: str, questions_file: str) -> None:
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise UserError(f"{where}: expected {SAMPLES_FORM}")
    if len(levels) != entries:
        raise UserError(
            f"{where}: samples of {len(levels)} responses, but {questions_file} has {entries}: "
            f"sample the answers again"
        )
    for i, level in enumerate(levels):
        for question, values in level.items():
            check_values(values, f'{where}: entry {i}: "{question}"')


def check_values(values: Any, where: str) -> None:
    """UserError unless the samples of a question or an entity have the right form."""
    texts = values is None or isinstance(values, list)
    if not texts or not all(isinstance(v, str | None) for v in values or ()):
        raise UserError(f"{where}: expected a list of samples, texts or null")


def _topic_rows(
    topic: str,
    responses: list[dict],
    entries: list,
    content: dict | None,
    questions_file: str,
    samples_file: str,
) -> tuple[list[dict], list[dict]]:
    """`content`: that of the samples file, None without one."""
    with_text = [r for r in responses if r["text"] is not None]
    taken: set[str] = set()
    questions: list[dict] = []
    samples_of: dict[str, tuple[str, list | None]] = {}  # question_id -> (question, its samples)
    levels, extra = (content["samples"], content.get(EXTRA)) if content else ([], None)
    for i, entry in enumerate(entries):
        with errors_named(f"{questions_file}: entry {i}"):
            response = response_of(entry, i, with_text, taken)
            aside = entry[EXTRA].get("aside", ()) if EXTRA in entry else ()
            scored = [_question(d, j, response) for j, d in enumerate(decisions_of(entry))]
            rows = scored + [_question(d, None, response) for d in aside if "question" in d[EXTRA]]
        for q in scored if content else ():
            if (question := q["question"]) is None:
                continue
            level = levels[i]
            if question not in level:
                raise UserError(f'{samples_file}: entry {i}: no samples of "{question}"')
            pair = (question, level[question])
            if extra is None and samples_of.get(q["question_id"], pair)[1] != pair[1]:
                q["question_id"] = digest(topic, question, response["response_id"])
            samples_of[q["question_id"]] = pair
        rows.sort(key=lambda q: q["position"])
        questions += [{k: v for k, v in q.items() if k != "position"} for q in rows]
    if extra is None:
        answers = [_answer(topic, qid, *pair) for qid, pair in samples_of.items()]
    else:
        answers = _extra_answers(topic, extra, samples_of, samples_file)
    return questions, answers


def _question(decision: dict, position: int | None, response: dict) -> dict:
    """Row of `questions`, with the `position` of its fact.

    `position`: place of a decision that the scripts read; None for a decision that is set aside,
    which only our files have.
    """
    extra = decision.get(EXTRA, {})
    ids = {k: response[k] for k in ("response_id", "topic")}
    row = {"fact_id": digest(response["response_id"], position)} | ids
    row |= {"question_id": None, "question": decision["atomic_question"]}
    row |= {"answer": decision.get("atomic_answer"), "error": None}
    for name in ("question", "answer"):
        if not isinstance(row[name], str | None):
            raise TypeError(f'"atomic_{name}" is {row[name]!r:.40}, not a text')
    if row["question"] is None and position is not None:
        raise TypeError(f'decision {position}: "atomic_question" is null')
    fact = extra.get("fact", {})
    if row["question"] == "" and position is not None:
        row |= {"question": None, "error": "the file's question is empty"}
    if row["question"]:
        row["question_id"] = digest(response["topic"], row["question"])
    row["fact_id"] = fact.get("fact_id", row["fact_id"])
    return row | extra.get("question", {}) | {"position": fact.get("position", position)}


def _answer(
    topic: str, question_id: str, question: str, answers: list | None, error: str | None = None
) -> dict:
    row = {"question_id": question_id, "topic": topic, "question": question}
    return row | {"answers": answers, "error": error}


def _extra_answers(topic: str, extra: list[dict], samples_of: dict, where: str) -> list[dict]:
    try:
        return [
            _answer(
                topic,
                a["question_id"],
                a["question"],
                a["answers"] if "answers" in a else samples_of[a["question_id"]][1],
                a["error"],
            )
            for a in extra
        ]
    except (KeyError, TypeError):
        raise UserError(f'{where}: "{EXTRA}" does not match "samples": remove it') from None
