"""Data of the report's browser: the responses to each prompt, side by side, with their facts.

    cards(root, {"base": Scope("base/test"), ...}, {}, most=5000)
        ->  Cards([{"topic": "Mara Veldt", "prompt": "Write ...", "split": "test", "group": None,
                    "responses": [{"model": "base", "sample": 0, "id": "9a01", "text": "Mara ...",
                                   "facts": [...]}]}, ...], responses=4000)

A fact: {"id", "fact", "supported", "score", "start", "end", "repeated", "human", "second",
"reason", "evidence", "title", "question", "answers", "conf", "trace"}; keys whose value is null are
left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from facttune_ray.evaluation.breakdowns import Scope, limited, shards_of
from facttune_ray.scoring.units import by_id, of_question
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import SECOND
from facttune_ray.storage.tables import Folder

# rows of one shard by table -> fact_id -> steps of the fact's trace (stages/traces.py)
Traces = Callable[[Mapping[str, list[dict]]], Mapping[str, list[dict]]]
EVIDENCE = 700  # characters shown of a passage


@dataclass(frozen=True)
class Cards:
    """Prompts with their responses, read once, and the number of responses of the run."""

    cards: Iterable[dict[str, Any]] = ()
    responses: int = 0


def cards(
    root: Folder,
    scopes: Mapping[str, Scope],
    group_of: Mapping[str, str],
    most: int,
    train: str = "",
    traces: Traces | None = None,
    topics: Set[str] | None = None,
) -> Cards:
    """At most `most` responses, with all responses of a prompt or none: measured responses first,
    then responses of the scope `train`, which have questions and sampled answers. Shards are read
    while the cards are. Facts have a trace if `traces` is given. `topics`: only responses about
    these topics."""
    names = {s.name for s in scopes.values()}
    sources = [_by_prompt(root, scopes, group_of, traces, topics)]
    if train:
        names.add(train)
        of_train = limited(root, {"base": Scope(train, only="train")}, 4 * most)
        sources.append(_by_prompt(root, of_train, group_of, traces, topics))
    total = sum(tables.manifest(root / name / "responses")["rows"] for name in names)
    return Cards(_fitting(itertools.chain(*sources), most), total)


def _fitting(sources: Iterable[dict[str, dict]], room: int) -> Iterator[dict[str, Any]]:
    """The cards all of whose responses fit into the room that is left."""
    for by_prompt in sources:
        for card in by_prompt.values():
            if len(card["responses"]) <= room:
                room -= len(card["responses"])
                yield card
        if not room:
            return


def _by_prompt(
    root: Folder,
    scopes: Mapping[str, Scope],
    group_of: Mapping[str, str],
    traces: Traces | None,
    topics: Set[str] | None = None,
) -> Iterator[dict[str, dict]]:
    """Shard by shard: prompt_id -> card with the responses of every scope, in order of samples."""
    for shard in shards_of(root, *scopes.values()):
        out: dict[str, dict] = {}
        loaded: dict[str, tuple[list[dict], dict[str, list[dict]]]] = {}
        for label, scope in scopes.items():
            if scope.name not in loaded:
                responses = list(tables.rows(root / scope.name / "responses", shard, topics))
                facts = _facts(root, scope.name, shard, responses, traces, topics)
                loaded[scope.name] = responses, facts
            responses, facts = loaded[scope.name]
            for r in sorted(responses, key=lambda r: r["sample"]):
                if scope.model not in (None, r["model"]) or scope.only not in (None, r["split"]):
                    continue
                head = {k: r[k] for k in ("topic", "prompt", "split")}
                card = out.setdefault(
                    r["prompt_id"], head | {"group": group_of.get(r["topic"]), "responses": []}
                )
                response = {k: r[k] for k in ("sample", "text")}
                response |= {"model": label, "id": r["response_id"]}
                response |= {k: r[k] for k in ("abstained", "error") if r[k]}
                response["facts"] = facts.get(r["response_id"], [])
                if any(f.get("abstained") for f in response["facts"]):
                    response |= {"abstained": True, "facts": []}
                card["responses"].append(response)
        yield out


def _facts(
    root: Folder,
    scope: str,
    shard: int,
    responses: list[dict],
    traces: Traces | None,
    topics: Set[str] | None,
) -> dict[str, list[dict]]:
    """response_id -> its facts, with verdicts, questions and answers from the scope's tables."""

    def read(name: str) -> list[dict]:
        return tables.rows_if_finished(root / scope / name, shard, topics)

    rows = {name: read(name) for name in ("facts", "verdicts", "questions")}
    rows |= {"second": read(f"{SECOND}/verdicts"), "responses": responses}
    steps: Mapping[str, list[dict]] = {}
    if traces:
        steps = traces(rows | {"prompts": tables.rows_if_finished(root / "prompts", shard)})
    verdicts = {v["fact_id"]: v for v in rows["verdicts"]}
    second = {v["fact_id"]: v["supported"] for v in rows["second"]}
    asked = {q["fact_id"]: q for q in rows["questions"]}
    answers = {a["question_id"]: a["answers"] for a in read("answers")}
    units = by_id(read("classes")) if asked else {}
    out: dict[str, list[dict]] = {}
    for f in rows["facts"]:
        v, q = verdicts.get(f["fact_id"], {}), asked.get(f["fact_id"], {})
        fact = {
            "id": f["fact_id"],
            "fact": f["fact"],
            "supported": v.get("supported"),
            "score": _short(v.get("score")),
            "start": f["start"],
            "end": f["end"],
            "repeated": f["repeated"] or None,
            "abstained": f["abstained"] or None,
            "human": f["human_label"],
            "second": second.get(f["fact_id"]),
            "reason": None if v.get("reason") == "no fact" else v.get("reason"),
            "error": f["error"] or v.get("error"),
            "evidence": (v.get("evidence") or "")[:EVIDENCE] or None,
            "title": v.get("title"),
            "question": q.get("question"),
            "answers": answers.get(q.get("question_id", "")),
            "conf": _short(of_question(q or None, units).get("max_conf")),
            "trace": steps.get(f["fact_id"]) or None,
        }
        known = {k: value for k, value in fact.items() if value is not None}
        out.setdefault(f["response_id"], []).append(known)
    return out


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
