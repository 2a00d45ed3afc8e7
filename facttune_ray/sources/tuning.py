"""Files of FactTune's reference scripts (llm_factuality_tuning), read and written.

    questions_per_topic_train.json     [{"topic": "Ada", "topic_id": 0, "pronoun": "her",
                                         "questions": ["Write a biography of Ada."]}]
    responses/Ada_generations.json     {"Write a biography of Ada.": {"responses": ["Ada ..."]}}
    factscore_outputs/Ada_fs_out.json  [{"topic": "Ada", "generation": "Ada ...", "score": 0.01,
                                         "init_score": 0.5, "respond_ratio": 1.0,
                                         "num_facts_per_response": 2, "decisions":
                                         [[{"atom": "Ada was ...", "is_supported": true}, ...]]}]

Answers are found by their question, never by counting, so a question with fewer answers moves no
other. What the reference has no place for (ids, errors, evidence) stands under a key of its own,
"facttune", which its scripts do not read: our files come back as the rows that they were made
from. An undefined score is null. Rows are taken a shard at a time: a topic lies whole in one.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.scoring.factscore import factscore
from facttune_ray.sources.factscore import read_decisions
from facttune_ray.sources.records import loads
from facttune_ray.storage.schema import TABLES, digest
from facttune_ray.storage.tables import Folder
from facttune_ray.text.decompose import normal_fact

SPLITS = {"train": "train", "dpoval": "val", "val": "val", "test": "test"}  # theirs -> ours
OWN = "facttune"
NAME_BYTES = 200  # of a file's name, its ending aside; file systems take 255
Rows = Iterable[dict]


@dataclass(frozen=True)
class Topic:
    """One entry of a questions file."""

    topic: str
    topic_id: int | str
    questions: tuple[str, ...]
    pronoun: str | None = None  # biographies: "her" in "people around her"
    lower_case: str | None = None  # medicine: the condition within a sentence


def file_name(topic: str, ending: str) -> str:
    """`{topic}{ending}` as the reference names it; "AC/DC" becomes "AC%2FDC".

    The reference fails on a topic with a slash. Different topics get different names.
    """
    safe = re.sub(r"[/\\\x00-\x1f\x7f]|%(?=[0-9A-Fa-f]{2})", lambda m: f"%{ord(m[0]):02X}", topic)
    raw = safe.encode("utf-8", "surrogatepass")
    if len(raw) > NAME_BYTES:
        safe = f"{raw[:NAME_BYTES].decode('utf-8', 'ignore')}~{digest(topic, chars=12)}"
    return safe + ending


# ---------------------------------------------------------------- questions, responses


def read_topics(folder: str, split: str) -> list[Topic]:
    """`questions_per_topic_{split}.json` of a data folder. UserError names file and entry."""
    if split not in SPLITS:
        raise UserError(f'no split "{split}".{did_you_mean(split, SPLITS)}')
    file = Folder.of(folder) / f"questions_per_topic_{split}.json"
    rows = read_json(file)
    if rows is None:
        raise UserError(f"{file.path}: no such file: check data.folder and the split")
    if not isinstance(rows, list):
        raise UserError(f"{file.path}: expected a list of {{topic, topic_id, questions}}")
    topics = [_topic(row, i, f"{file.path}: entry {i}") for i, row in enumerate(rows)]
    names = [t.topic for t in topics]
    if twice := {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else set():
        raise UserError(f'{file.path}: topic "{min(twice)}" stands twice: join its questions')
    return topics


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
    """Rows of `responses` from `{folder}/responses`. UserError names what a file lacks, or a file
    that is not there."""
    for topic in topics:
        file = Folder.of(folder) / "responses" / file_name(topic.topic, "_generations.json")
        found = read_json(file)
        if found is None:
            raise UserError(f'{file.path}: no such file: topic "{topic.topic}" has no responses')
        if not isinstance(found, dict):
            raise UserError(f'{file.path}: expected {{question: {{"responses": [...]}}}}')
        if unknown := found.keys() - set(topic.questions):
            raise UserError(
                f'{file.path}: "{min(unknown)}" is no question of the topic: check '
                f"questions_per_topic_{split}.json"
            )
        for question in topic.questions:
            if question not in found:
                raise UserError(f'{file.path}: no answers to "{question}"')
            one = found[question]
            texts = one.get("responses") if isinstance(one, dict) else one
            if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                raise UserError(f'{file.path}: "{question}": expected {{"responses": [texts]}}')
            prompt = _prompt(topic.topic, question, split)
            own = one.get(OWN) if isinstance(one, dict) else None
            try:
                yield from _responses(prompt, texts, own, model)
            except (KeyError, TypeError, StopIteration, RuntimeError):
                raise UserError(
                    f'{file.path}: "{question}": "{OWN}" does not match "responses": remove it'
                ) from None


def _responses(prompt: dict, texts: list[str], own: list[dict] | None, model: str) -> list[dict]:
    """`own`: how the rows differ from imported ones; one entry a row, failed ones included."""
    if own is None:
        own = [{"text": True}] * len(texts)
    elif sum(o["text"] for o in own) != len(texts):
        raise TypeError("another number of texts")
    rest, rows = iter(texts), []
    for sample, one in enumerate(own):
        about = {"model": model, "sample": sample, "tokens": None, "abstained": None}
        about |= {"error": None} | {k: v for k, v in one.items() if k != "text"}
        ids = {"response_id": digest(prompt["prompt_id"], about["model"], about["sample"])}
        rows.append(ids | prompt | {"text": next(rest) if one["text"] else None} | about)
    return rows


def write_topics(folder: str, split: str, rows: Rows) -> int:
    """`questions_per_topic_{split}.json` from rows of `prompts`; returns the number of topics.

    Topics are numbered as they come. Rows of other splits are left out.
    """
    entries: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["split"] != SPLITS[split]:
            continue
        new = {"topic": row["topic"], "topic_id": len(entries), "questions": []}
        entry = entries.setdefault(row["topic"], new)
        entry |= {k: v for k in ("pronoun", "lower_case") if (v := row.get(k)) is not None}
        entry["questions"].append(row["prompt"])
    _write(Folder.of(folder) / f"questions_per_topic_{split}.json", list(entries.values()))
    return len(entries)


def write_responses(folder: str, rows: Rows) -> int:
    """`responses/{topic}_generations.json` from rows of `responses`; returns the files written.

    A failed response is not among the answers; its error stands under "facttune".
    """
    topics = by_topic(rows)
    for topic, found in topics.items():
        answers: dict[str, dict] = {}
        for r in found:
            one = answers.setdefault(r["prompt"], {"responses": [], OWN: []})
            if r["text"] is not None:
                one["responses"].append(r["text"])
            own = {k: r[k] for k in ("model", "sample", "tokens", "abstained", "error")}
            one[OWN].append(own | {"text": r["text"] is not None})
        _write(Folder.of(folder) / "responses" / file_name(topic, "_generations.json"), answers)
    return len(topics)


# ---------------------------------------------------------------- FActScore of a topic


def write_scores(folder: str, responses: Rows, facts: Rows, verdicts: Rows, gamma: float) -> int:
    """`factscore_outputs/{topic}_fs_out.json`, one a topic; returns the files written.

    An entry a response that has a text, in the order of write_responses. A fact without a verdict
    has is_supported null and is in no score; a sentence that failed is counted under "facttune".
    respond_ratio is of the topic, over responses that did not fail.
    """
    judged = {v["fact_id"]: v for v in verdicts}
    found: dict[str, list[dict]] = defaultdict(list)
    for f in facts:
        found[f["response_id"]].append(f)
    topics = by_topic(responses)
    for topic, rows in topics.items():
        entries = [
            score_entry(r, sorted(found[r["response_id"]], key=position_of), judged, gamma)
            for r in rows
            if r["text"] is not None
        ]
        known = [e for e in entries if e["decisions"][0] or not e[OWN]["errors"]]
        answered = sum(bool(e["decisions"][0]) for e in known)
        for e in entries:
            e["respond_ratio"] = answered / len(known) if known else None
        _write(Folder.of(folder) / "factscore_outputs" / file_name(topic, "_fs_out.json"), entries)
    return len(topics)


def position_of(fact: dict) -> int:
    return fact["position"]


def score_entry(response: dict, facts: list[dict], judged: dict[str, dict], gamma: float) -> dict:
    decisions, others = [], []
    for f in facts:
        v = judged.get(f["fact_id"])
        own = {
            "fact": {k: x for k, x in f.items() if k not in ("fact", "response_id", "topic")},
            "verdict": v and {k: x for k, x in v.items() if k not in _OF_VERDICT},
        }
        supported = v["supported"] if v else None
        if f["fact"] is None:
            others.append(own | {"is_supported": supported})
        else:
            decisions.append({"atom": f["fact"], "is_supported": supported, OWN: own})
    score, penalised = factscore([d["is_supported"] for d in decisions], gamma)
    return {
        "topic": response["topic"],
        "generation": response["text"],
        "score": penalised,
        "init_score": score,
        "respond_ratio": None,  # of the topic: filled in by the caller
        "num_facts_per_response": len(decisions) or None,
        "decisions": [decisions],
        OWN: {
            "response_id": response["response_id"],
            "errors": sum(f["error"] is not None for f in facts),
            "others": others,
        },
    }


_OF_VERDICT = ("fact_id", "response_id", "topic", "supported")


def read_scores(folder: str, responses: Rows) -> Iterator[tuple[dict, dict | None]]:
    """(row of `facts`, its row of `verdicts` or None) of the responses' topics.

    A file of the reference itself tells facts and verdicts alone; an entry belongs to the response
    at its place, if that has its text, else to the next one with this text. UserError when there
    is none, and for a topic without a file.
    """
    for topic, rows in by_topic(responses).items():
        file = Folder.of(folder) / "factscore_outputs" / file_name(topic, "_fs_out.json")
        entries = read_json(file)
        if entries is None:
            raise UserError(f'{file.path}: no such file: topic "{topic}" has no scores')
        if not isinstance(entries, list):
            raise UserError(f"{file.path}: expected a list, an entry a response")
        free = [r for r in rows if r["text"] is not None]
        taken: set[str] = set()
        for index, entry in enumerate(entries):
            where = f"{file.path}: entry {index}"
            try:
                response = owner_of(entry, index, free, taken)
                taken.add(response["response_id"])
                yield from _scored(entry, response)
            except KeyError as e:
                raise UserError(f"{where}: {e} is missing") from None
            except LookupError as e:
                raise UserError(f"{where}: {e}") from None
            except (TypeError, AttributeError) as e:
                raise UserError(f"{where}: {e}") from None


def owner_of(entry: dict, index: int, responses: list[dict], taken: set[str]) -> dict:
    own = (entry.get(OWN) or {}).get("response_id")
    text = entry["generation"]
    for r in [*responses[index : index + 1], *responses]:
        key = r["response_id"]
        if r["text"] == text and key not in taken and own in (None, key):
            return r
    raise LookupError(f'no response of the topic has the text "{str(text)[:40]}..."')


def _scored(entry: dict, response: dict) -> Iterator[tuple[dict, dict | None]]:
    decisions = entry["decisions"][0] if entry["decisions"] else None
    read = read_decisions(decisions) or ()
    if OWN not in entry:
        yield from _plain(read, response)
        return
    rows = [
        _rebuilt(response, atom, supported, d[OWN])
        for (atom, supported), d in zip(read, decisions or (), strict=True)
    ]
    others = entry[OWN]["others"]
    rows += [_rebuilt(response, None, other["is_supported"], other) for other in others]
    yield from sorted(rows, key=lambda pair: pair[0]["position"])


def _rebuilt(
    response: dict, fact: str | None, supported: bool | None, own: dict
) -> tuple[dict, dict | None]:
    ids = {k: response[k] for k in ("response_id", "topic")}
    row = own["fact"] | ids | {"fact": fact}
    verdict = own["verdict"]
    if verdict is not None:
        verdict = verdict | ids | {"fact_id": row["fact_id"], "supported": supported}
    return row, verdict


def _plain(
    decisions: Iterable[tuple[str, bool | None]], response: dict
) -> Iterator[tuple[dict, dict]]:
    """Rows of an entry that the reference wrote: no sentences, no evidence."""
    seen: set[str] = set()
    for position, (fact, supported) in enumerate(decisions):
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


# ---------------------------------------------------------------- files


def by_topic(responses: Rows) -> dict[str, list[dict]]:
    """Rows of each topic: prompts in the order of their first row, then as they come."""
    found: dict[str, dict[str, list[dict]]] = {}
    for r in responses:
        found.setdefault(r["topic"], {}).setdefault(r["prompt_id"], []).append(r)
    return {t: [r for rows in asked.values() for r in rows] for t, asked in found.items()}


def read_json(file: Folder) -> Any | None:
    """Content of a file, None when it is absent."""
    try:
        return loads(file.read_bytes().decode("utf-8-sig")) if file.exists() else None
    except (ValueError, RecursionError, OSError) as e:
        raise UserError(f"{file.path}: not readable as JSON: {e}") from None


def _write(file: Folder, value: Any) -> None:
    text = json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False)
    file.write_bytes(text.encode("utf-8") + b"\n")
