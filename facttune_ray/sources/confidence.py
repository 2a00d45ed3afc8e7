"""Questions and answers as files of FactTune's scripts, written and read.

    atomic_qs/Ada_aqs.json             an fs_out list; each decision has "atomic_question", and
                                       "atomic_answer" where an answer was asked for
    atomic_qs_samples/llama-7b_20samples/Ada_samples.json
                                       {"samples": [{"Where was Ada born?": ["London", ...]}]}

"samples" holds one dict a response, in the order of atomic_qs. What the reference's score_metrics
stops at (a fact without a question, a question without a sample) stands beside its levels under
"facttune", where it looks for nothing, and so do ids: our files come back as the rows that they
were made from. An undefined score is NaN in atomic_qs: it is compared there, and null would stop
it. (A response with nothing to score still moves the rewards of those after it in score_metrics:
`rewards.write` does not.) Rows are taken a shard at a time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from facttune_ray.errors import UserError
from facttune_ray.sources.tuning import (
    OWN,
    Rows,
    by_topic,
    file_name,
    owner_of,
    position_of,
    read_json,
    score_entry,
)
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder

QUESTIONS, ANSWERS = "atomic_qs", "atomic_qs_samples"


def samples_folder(parent: str, model: str, n: int) -> str:
    """`atomic_qs_samples/llama-7b_20samples`, as the reference names it."""
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
    """`atomic_qs/{topic}_aqs.json`, one a topic of `responses`; returns the files written.

    With `answers`, a fact whose question has no sample is set aside too: score_metrics has
    nothing to score it by.
    """
    judged = {v["fact_id"]: v for v in verdicts}
    asked = {q["fact_id"]: q for q in questions}
    sampled = None if answers is None else _sampled(answers)
    found = by_response(facts)
    topics = by_topic(responses)
    for topic, rows in topics.items():
        entries = [
            _asked(
                score_entry(r, sorted(found[r["response_id"]], key=position_of), judged, gamma),
                asked,
                sampled,
            )
            for r in rows
            if r["text"] is not None
        ]
        write_json(Folder.of(folder) / QUESTIONS / file_name(topic, "_aqs.json"), entries)
    return len(topics)


def _asked(entry: dict, asked: dict[str, dict], sampled: dict[str, list] | None) -> dict:
    """The entry of fs_out with its questions; facts that have none are set aside."""
    kept: list[dict] = []
    aside: list[dict] = []
    for d in entry["decisions"][0]:
        q = asked.get(d[OWN]["fact"]["fact_id"])
        scored = False
        if q is not None:
            scored = q["question"] is not None
            scored = scored and (sampled is None or q["question_id"] in sampled)
            d["atomic_question"] = q["question"]
            if q["answer"] is not None:
                d["atomic_answer"] = q["answer"]
            d[OWN]["question"] = {k: q[k] for k in ("question_id", "error")}
        (kept if scored else aside).append(d)
    nan = float("nan")
    score = {k: nan if entry[k] is None else entry[k] for k in ("score", "init_score")}
    return entry | score | {"decisions": [kept], OWN: entry[OWN] | {"aside": aside}}


def write_answers(
    folder: str, samples: str, responses: Rows, facts: Rows, questions: Rows, answers: Rows
) -> int:
    """`{samples}/{topic}_samples.json` for the same rows as `write_questions`; returns the files.

    `samples`: what `samples_folder` says.
    """
    answers = list(answers)
    sampled, of_topic = _sampled(answers), defaultdict(list)
    for a in answers:
        of_topic[a["topic"]].append(a)
    asked = {q["fact_id"]: q for q in questions}
    found = by_response(facts)
    topics = by_topic(responses)
    for topic, rows in topics.items():
        levels, written = [], set()
        for r in rows:
            if r["text"] is None:
                continue
            one: dict[str, list] = {}
            for f in sorted(found[r["response_id"]], key=position_of):
                q = asked.get(f["fact_id"])
                if f["fact"] is not None and q is not None and q["question_id"] in sampled:
                    one[q["question"]] = sampled[q["question_id"]]
                    written.add(q["question_id"])
            levels.append(one)
        own = [
            {k: a[k] for k in ("question_id", "question", "error")}
            | ({} if a["question_id"] in written else {"answers": a["answers"]})
            for a in of_topic[topic]
        ]
        file = Folder.of(folder) / samples / file_name(topic, "_samples.json")
        write_json(file, {"samples": levels, OWN: own})
    return len(topics)


def _sampled(answers: Rows) -> dict[str, list]:
    """Samples by question_id, of the questions that score_metrics can score."""
    return {a["question_id"]: a["answers"] for a in answers if usable(a["answers"])}


def usable(samples: list[str | None] | None) -> bool:
    """Whether the reference can score them: one of all nulls, or none at all, stops it."""
    return any(s is not None for s in samples or ())


def by_response(rows: Rows) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = defaultdict(list)
    for r in rows:
        found[r["response_id"]].append(r)
    return found


# ---------------------------------------------------------------- questions and answers, read


def read_questions(
    folder: str, responses: Rows, samples: str | None = None
) -> Iterator[tuple[list[dict], list[dict]]]:
    """(rows of `questions`, rows of `answers`) of each of the responses' topics.

    `samples`: folder of the samples, such as "atomic_qs_samples/llama-7b_20samples"; None: there
    are none yet. An entry belongs to the response at its place, if that has its text, else to the
    next one with this text; its samples stand at its own place in "samples". The reference samples
    a question once in every response: where the samples differ, so do the question_ids.
    UserError for a missing file, a wrong form, a question without samples.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / QUESTIONS / file_name(topic, "_aqs.json")
        entries = read_json(file)
        if entries is None:
            raise UserError(f'{file.path}: no such file: topic "{topic}" has no questions')
        if not isinstance(entries, list):
            raise UserError(f"{file.path}: expected a list, an entry a response")
        found = None
        if samples is not None:
            sampled_in = Folder.of(folder) / samples / file_name(topic, "_samples.json")
            found = read_json(sampled_in)
            if found is None:
                raise UserError(f'{sampled_in.path}: no such file: topic "{topic}" has no answers')
            _check_samples(found, len(entries), sampled_in.path, file.path)
        yield _topic_rows(topic, rows, entries, found, file.path, sampled_in.path if found else "")


def _check_samples(found: Any, entries: int, where: str, questions: str) -> None:
    levels = found.get("samples") if isinstance(found, dict) else None
    if not isinstance(levels, list) or not all(isinstance(one, dict) for one in levels):
        raise UserError(f'{where}: expected {{"samples": [{{question: [answers]}}]}}')
    if len(levels) != entries:
        raise UserError(
            f"{where}: samples of {len(levels)} responses, but {questions} has {entries}: "
            f"sample the answers again"
        )
    for i, one in enumerate(levels):
        for question, values in one.items():
            check_values(values, f'{where}: entry {i}: "{question}"')


def check_values(values: Any, where: str) -> None:
    texts = values is None or isinstance(values, list)
    if not texts or not all(isinstance(v, str | None) for v in values or ()):
        raise UserError(f"{where}: expected a list of samples, texts or null")


def _topic_rows(
    topic: str, responses: list[dict], entries: list, found: dict | None, where: str, samples: str
) -> tuple[list[dict], list[dict]]:
    free = [r for r in responses if r["text"] is not None]
    taken: set[str] = set()
    questions: list[dict] = []
    sampled: dict[str, tuple[str, list | None]] = {}  # question_id -> (question, its samples)
    levels, own = (found["samples"], found.get(OWN)) if found else ([], None)
    for i, entry in enumerate(entries):
        try:
            response = owner_of(entry, i, free, taken)
            taken.add(response["response_id"])
            decisions = list((entry["decisions"] or [None])[0] or ())
            aside = entry[OWN].get("aside", ()) if OWN in entry else ()
            read = [_question(d, j, response) for j, d in enumerate(decisions)]
            rows = read + [_question(d, None, response) for d in aside if "question" in d[OWN]]
        except LookupError as e:
            missing = isinstance(e, KeyError)
            raise UserError(f"{where}: entry {i}: {e}{' is missing' * missing}") from None
        except (TypeError, AttributeError) as e:
            raise UserError(f"{where}: entry {i}: {e}") from None
        for q in read if found else ():
            if (question := q["question"]) is None:
                continue
            if question not in levels[i]:
                raise UserError(f'{samples}: entry {i}: no samples of "{question}"')
            values = levels[i][question]
            if own is None and sampled.get(q["question_id"], (question, values))[1] != values:
                q["question_id"] = digest(topic, q["question"], response["response_id"])
            sampled[q["question_id"]] = (question, values)
        questions += [_unplaced(q) for q in sorted(rows, key=position_of)]
    if own is None:
        answers = [_answer(topic, qid, *value) for qid, value in sampled.items()]
    else:
        answers = _own_answers(topic, own, sampled, samples)
    return questions, answers


def _unplaced(row: dict) -> dict:
    return {k: v for k, v in row.items() if k != "position"}


def _question(decision: dict, position: int | None, response: dict) -> dict:
    """Row of `questions`, with its fact's `position`.

    `position`: of a decision that the reference reads; None: it is set aside, so it is ours.
    """
    own = decision.get(OWN, {})
    ids = {k: response[k] for k in ("response_id", "topic")}
    row = {"fact_id": digest(response["response_id"], position)} | ids
    row |= {"question_id": None, "question": decision["atomic_question"]}
    row |= {"answer": decision.get("atomic_answer"), "error": None}
    for name in ("question", "answer"):
        if not isinstance(row[name], str | None):
            raise TypeError(f'"atomic_{name}" is {row[name]!r:.40}, not a text')
    if row["question"] is None and position is not None:
        raise TypeError(f'decision {position}: "atomic_question" is null')
    fact = own.get("fact", {})
    if row["question"] == "" and position is not None:
        row |= {"question": None, "error": "the file's question is empty"}
    if row["question"]:
        row["question_id"] = digest(response["topic"], row["question"])
    row["fact_id"] = fact.get("fact_id", row["fact_id"])
    return row | own.get("question", {}) | {"position": fact.get("position", position)}


def _answer(
    topic: str, question_id: str, question: str, answers: list | None, error: str | None = None
) -> dict:
    row = {"question_id": question_id, "topic": topic, "question": question}
    return row | {"answers": answers, "error": error}


def _own_answers(topic: str, own: list[dict], sampled: dict, where: str) -> list[dict]:
    try:
        return [
            _answer(
                topic,
                a["question_id"],
                a["question"],
                a["answers"] if "answers" in a else sampled[a["question_id"]][1],
                a["error"],
            )
            for a in own
        ]
    except (KeyError, TypeError):
        raise UserError(f'{where}: "{OWN}" does not match "samples": remove it') from None


def write_json(file: Folder, value: Any) -> None:
    """Unlike tuning's, with NaN."""
    file.write_bytes(json.dumps(value, indent=4, ensure_ascii=False).encode("utf-8") + b"\n")
