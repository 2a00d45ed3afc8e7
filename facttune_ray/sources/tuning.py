"""Topics, prompts, responses and FActScores as files of FactTune's scripts, written and read.

    questions_per_topic_train.json     [{"topic": "Ada", "topic_id": 0, "pronoun": "her",
                                         "questions": ["Write a biography of Ada."]}]
    responses/Ada_generations.json     {"Write a biography of Ada.": {"responses": ["Ada ..."]}}
    factscore_outputs/Ada_fs_out.json  [{"topic": "Ada", "generation": "Ada ...", "score": 0.01,
                                         "init_score": 0.5, "respond_ratio": 1.0,
                                         "num_facts_per_response": 2, "decisions":
                                         [[{"atom": "Ada was ...", "is_supported": true}, ...]]}]

Responses are found by their question, not by counting, so a question with fewer responses moves no
other. An undefined score is null. Functions take the rows of one shard: it holds whole topics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.scoring.factscore import factscore
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
    write_json,
)
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.schema import TABLES, digest
from facttune_ray.text.decompose import normal_fact

SPLITS = {"train": "train", "dpoval": "val", "val": "val", "test": "test"}  # theirs -> ours
RESPONSES, RESPONSES_END = "responses", "_generations.json"
SCORES, SCORES_END = "factscore_outputs", "_fs_out.json"


@dataclass(frozen=True)
class Topic:
    """One entry of a questions file."""

    topic: str
    topic_id: int | str
    questions: tuple[str, ...]
    pronoun: str | None = None  # biographies: "her" in "people around her"
    lower_case: str | None = None  # medicine: the condition within a sentence


# ---------------------------------------------------------------- questions, responses


def read_topics(folder: str, split: str) -> list[Topic]:
    """`questions_per_topic_{split}.json` of a data folder. UserError names file and entry."""
    if split not in SPLITS:
        raise UserError(f'no split "{split}".{did_you_mean(split, SPLITS)}')
    file = _questions_file(folder, split)
    form = "a list of {topic, topic_id, questions}"
    rows = read_json(file, list, form, "check data.folder and the split")
    topics: dict[str, Topic] = {}
    for i, row in enumerate(rows):
        topic = _topic(row, i, f"{file.path}: entry {i}")
        if topics.setdefault(topic.topic, topic) is not topic:
            raise UserError(f'{file.path}: topic "{topic.topic}" stands twice: join its questions')
    return list(topics.values())


def _questions_file(folder: str, split: str) -> Folder:
    return Folder.of(folder) / f"questions_per_topic_{split}.json"


def _topic(row: Any, index: int, where: str) -> Topic:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object {{topic, topic_id, questions}}")
    questions = row.get("questions")
    if not isinstance(questions, list) or not all(isinstance(q, str) for q in questions):
        raise UserError(f'{where}: "questions" must be a list of strings')
    if len(set(questions)) < len(questions):
        raise UserError(f"{where}: a question stands twice: answers are found by their question")
    if not isinstance(row.get("topic"), str) or not row["topic"]:
        raise UserError(f'{where}: "topic" must be a string')
    about = {k: row[k] for k in ("pronoun", "lower_case") if isinstance(row.get(k), str)}
    return Topic(row["topic"], row.get("topic_id", index), tuple(questions), **about)


def prompts(topics: Iterable[Topic], split: str) -> Iterator[dict]:
    """Rows of `prompts`; dpoval is our val."""
    for topic in topics:
        about = {"pronoun": topic.pronoun, "lower_case": topic.lower_case}
        for question in topic.questions:
            yield _prompt(topic.topic, question, split) | about


def _prompt(topic: str, question: str, split: str) -> dict:
    ids = {"prompt_id": digest(topic, question), "topic": topic}
    return ids | {"split": SPLITS[split], "prompt": question}


def responses(topics: Iterable[Topic], split: str, folder: str, model: str) -> Iterator[dict]:
    """Rows of `responses` from `{folder}/responses`. UserError names a missing file, or what is
    missing in a file."""
    for topic in topics:
        file = Folder.of(folder) / RESPONSES / file_name(topic.topic, RESPONSES_END)
        absent = f'topic "{topic.topic}" has no responses'
        content = read_json(file, dict, '{question: {"responses": [...]}}', absent)
        if unknown := content.keys() - set(topic.questions):
            raise UserError(
                f'{file.path}: "{min(unknown)}" is no question of the topic: check '
                f"questions_per_topic_{split}.json"
            )
        for question in topic.questions:
            if question not in content:
                raise UserError(f'{file.path}: no answers to "{question}"')
            value = content[question]
            texts = value.get("responses") if isinstance(value, dict) else value
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise UserError(f'{file.path}: "{question}": expected {{"responses": [texts]}}')
            prompt = _prompt(topic.topic, question, split)
            extra = value.get(EXTRA) if isinstance(value, dict) else None
            try:
                yield from _responses(prompt, texts, extra, model)
            except (KeyError, TypeError, StopIteration, RuntimeError):
                raise UserError(
                    f'{file.path}: "{question}": "{EXTRA}" does not match "responses": remove it'
                ) from None


def _responses(prompt: dict, texts: list[str], extra: list[dict] | None, model: str) -> list[dict]:
    """`extra`: one entry per row, failed rows included, with the columns that differ from those of
    a response that the scripts made."""
    if extra is None:
        extra = [{"text": True}] * len(texts)
    elif sum(e["text"] for e in extra) != len(texts):
        raise TypeError("another number of texts")
    rest, rows = iter(texts), []
    for sample, entry in enumerate(extra):
        row = prompt | {"model": model, "sample": sample, "tokens": None, "abstained": None}
        row |= {"error": None} | {k: v for k, v in entry.items() if k != "text"}
        row |= {"text": next(rest) if entry["text"] else None}
        row |= {"response_id": digest(prompt["prompt_id"], row["model"], row["sample"])}
        rows.append(row)
    return rows


def write_topics(folder: str, split: str, rows: Rows) -> int:
    """`questions_per_topic_{split}.json` from rows of `prompts`; returns the number of topics.

    Topics are numbered in the order of the rows. Rows of other splits are left out.
    """
    entries: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["split"] != SPLITS[split]:
            continue
        new = {"topic": row["topic"], "topic_id": len(entries), "questions": []}
        entry = entries.setdefault(row["topic"], new)
        entry |= {k: v for k in ("pronoun", "lower_case") if (v := row.get(k)) is not None}
        entry["questions"].append(row["prompt"])
    write_json(_questions_file(folder, split), list(entries.values()))
    return len(entries)


def write_responses(folder: str, rows: Rows) -> int:
    """`responses/{topic}_generations.json` from rows of `responses`; returns the files written.

    A failed response is not among the texts; its error stands under EXTRA.
    """
    return write_each(folder, RESPONSES, RESPONSES_END, rows, _generations)


def _generations(topic: str, rows: list[dict]) -> dict[str, dict]:
    questions: dict[str, dict] = {}
    for r in rows:
        value = questions.setdefault(r["prompt"], {"responses": [], EXTRA: []})
        if r["text"] is not None:
            value["responses"].append(r["text"])
        extra = {k: r[k] for k in ("model", "sample", "tokens", "abstained", "error")}
        value[EXTRA].append(extra | {"text": r["text"] is not None})
    return questions


# ---------------------------------------------------------------- FActScore of a topic


def write_scores(folder: str, responses: Rows, facts: Rows, verdicts: Rows, gamma: float) -> int:
    """`factscore_outputs/{topic}_fs_out.json`, one per topic; returns the files written.

    A file has one entry for each response with a text, in the order of write_responses. A fact
    without a verdict has is_supported null and is in no score; a failed sentence is counted under
    EXTRA. respond_ratio is that of the topic, over the responses that did not fail.
    """
    entries_of = score_entries(facts, verdicts, gamma)

    def content(topic: str, rows: list[dict]) -> list[dict]:
        entries = entries_of(rows)
        known = [e for e in entries if e["decisions"][0] or not e[EXTRA]["errors"]]
        answered = sum(bool(e["decisions"][0]) for e in known)
        for e in entries:
            e["respond_ratio"] = answered / len(known) if known else None
        return entries

    return write_each(folder, SCORES, SCORES_END, responses, content)


def score_entries(facts: Rows, verdicts: Rows, gamma: float) -> Callable[[list[dict]], list[dict]]:
    """A function from the responses of a topic to their entries of fs_out."""
    facts_of = facts_by_response(facts)
    verdict_of = {v["fact_id"]: v for v in verdicts}

    def entries(responses: list[dict]) -> list[dict]:
        return [
            _score_entry(r, facts_of[r["response_id"]], verdict_of, gamma)
            for r in responses
            if r["text"] is not None
        ]

    return entries


def _score_entry(
    response: dict, facts: list[dict], verdict_of: dict[str, dict], gamma: float
) -> dict:
    decisions, others = [], []
    for f in facts:
        v = verdict_of.get(f["fact_id"])
        extra = {
            "fact": {k: x for k, x in f.items() if k not in ("fact", "response_id", "topic")},
            "verdict": v and {k: x for k, x in v.items() if k not in _IN_THE_ENTRY},
        }
        supported = v["supported"] if v else None
        if f["fact"] is None:
            others.append(extra | {"is_supported": supported})
        else:
            decisions.append({"atom": f["fact"], "is_supported": supported, EXTRA: extra})
    score, penalised = factscore([d["is_supported"] for d in decisions], gamma)
    return {
        "topic": response["topic"],
        "generation": response["text"],
        "score": penalised,
        "init_score": score,
        "respond_ratio": None,  # of the topic: filled in by write_scores
        "num_facts_per_response": len(decisions) or None,
        "decisions": [decisions],
        EXTRA: {
            "response_id": response["response_id"],
            "errors": sum(f["error"] is not None for f in facts),
            "others": others,
        },
    }


_IN_THE_ENTRY = ("fact_id", "response_id", "topic", "supported")


def read_scores(folder: str, responses: Rows) -> Iterator[tuple[dict, dict | None]]:
    """(row of `facts`, its row of `verdicts` or None) of the responses' topics.

    A file of the scripts themselves holds facts and verdicts alone. `response_of` finds the
    response of an entry. UserError when there is none, and for a topic without a file.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / SCORES / file_name(topic, SCORES_END)
        absent = f'topic "{topic}" has no scores'
        with_text = [r for r in rows if r["text"] is not None]
        taken: set[str] = set()
        form = "a list, an entry a response"
        for index, entry in enumerate(read_json(file, list, form, absent)):
            with errors_named(f"{file.path}: entry {index}"):
                yield from _scored(entry, response_of(entry, index, with_text, taken))


def _scored(entry: dict, response: dict) -> list[tuple[dict, dict | None]]:
    decisions = decisions_of(entry)
    for d in decisions:
        if not isinstance(d["atom"], str):
            raise TypeError('"atom" must be a string')
        if not isinstance(d["is_supported"], bool | None):
            raise TypeError(f'"is_supported" is {d["is_supported"]!r:.40}, not true, false or null')
    if EXTRA not in entry:
        return list(_plain(decisions, response))
    rows = [_rebuilt(response, d["atom"], d["is_supported"], d[EXTRA]) for d in decisions]
    others = entry[EXTRA]["others"]
    rows += [_rebuilt(response, None, other["is_supported"], other) for other in others]
    return sorted(rows, key=lambda pair: pair[0]["position"])


def decisions_of(entry: dict) -> list[dict]:
    """The decisions of an entry, which stand in a list of one list, or of null."""
    decisions = (entry["decisions"] or [None])[0] or []
    if not isinstance(decisions, list):
        raise TypeError("decisions of a response must be a list or null")
    return decisions


def _rebuilt(
    response: dict, fact: str | None, supported: bool | None, extra: dict
) -> tuple[dict, dict | None]:
    ids = {k: response[k] for k in ("response_id", "topic")}
    row = extra["fact"] | ids | {"fact": fact}
    verdict = extra["verdict"]
    if verdict is not None:
        verdict = verdict | ids | {"fact_id": row["fact_id"], "supported": supported}
    return row, verdict


def _plain(decisions: list[dict], response: dict) -> Iterator[tuple[dict, dict]]:
    """Rows of an entry that the scripts wrote: without sentences and evidence."""
    seen: set[str] = set()
    for position, decision in enumerate(decisions):
        fact, supported = decision["atom"], decision["is_supported"]
        ids = {
            "fact_id": digest(response["response_id"], position),
            "response_id": response["response_id"],
            "topic": response["topic"],
        }
        normal = normal_fact(fact)
        row = dict.fromkeys(TABLES["facts"].names) | ids | {"split": response["split"]}
        row |= {"position": position, "fact": fact, "repeated": normal in seen, "abstained": False}
        seen.add(normal)
        verdict = dict.fromkeys(TABLES["verdicts"].names) | ids
        score = None if supported is None else float(supported)
        yield row, verdict | {"supported": supported, "score": score, "estimator": "factscore"}
