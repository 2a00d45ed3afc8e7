"""Data of the report's browser: the responses to each prompt, side by side, with their facts.

    cards(root, {"base": Scope("base/test"), ...}, {}, most=5000)
        ->  Cards([{"topic": "Mara Veldt", "prompt": "Write ...", "split": "test", "group": None,
                    "responses": [{"model": "base", "sample": 0, "text": "Mara ...", "facts": [...]}
                   ]}], left_out=0)
    packed(cards)  ->  base64 of gzipped JSON; repeated texts (passages, questions) are stored once

A fact: {"fact", "supported", "score", "start", "end", "repeated", "human", "second", "reason",
"evidence", "title", "question", "answers", "conf"}; keys whose value is null are left out.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from facttune_ray.evaluation.breakdowns import SECOND, Scope, limited, shards_of
from facttune_ray.scoring.units import by_id, of_question
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

EVIDENCE = 700  # characters shown of a passage
MOST_BYTES = 16_000_000  # limit of the packed responses: report.html stays below 25 MB


@dataclass
class Cards:
    """Prompts with their responses, and the number of the run's other responses."""

    cards: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0


def cards(
    root: Folder,
    scopes: Mapping[str, Scope],
    group_of: Mapping[str, str],
    most: int,
    train: str = "",
    topics: Set[str] | None = None,
) -> Cards:
    """At most `most` responses, with all responses of a prompt or none: measured responses first,
    then responses of the scope `train`, which have questions and sampled answers. `topics`: only
    responses about these topics; None: about all topics."""
    out: dict[str, dict[str, Any]] = {}
    room, names = most, {s.name for s in scopes.values()}
    sources = [_by_prompt(root, scopes, group_of, topics=topics)]
    if train:
        names.add(train)
        of_train = limited(root, {"base": Scope(train)}, 4 * most)  # holds val topics, too
        sources.append(_by_prompt(root, of_train, group_of, "train", topics))
    for by_prompt in itertools.chain(*sources):
        if not (room := _take(by_prompt, out, room)):
            break
    total = sum(tables.manifest(root / name / "responses")["rows"] for name in names)
    return Cards(list(out.values()), total - (most - room))


def _take(by_prompt: dict[str, dict], out: dict[str, dict], room: int) -> int:
    """Add the prompts all of whose responses fit into `room`; return the room that is left."""
    for prompt_id, card in by_prompt.items():
        size = len(card["responses"])
        if size <= room:
            out[prompt_id] = card
            room -= size
    return room


def _by_prompt(
    root: Folder,
    scopes: Mapping[str, Scope],
    group_of: Mapping[str, str],
    split: str | None = None,
    topics: Set[str] | None = None,
) -> Iterator[dict[str, dict]]:
    """Shard by shard: prompt_id -> card with the responses of every scope, in order of samples."""
    for shard in shards_of(root, *scopes.values()):
        out: dict[str, dict] = {}
        loaded: dict[str, tuple[list[dict], dict[str, list[dict]]]] = {}
        for label, scope in scopes.items():
            if scope.name not in loaded:
                responses = list(tables.rows(root / scope.name / "responses", shard, topics))
                loaded[scope.name] = responses, _facts(root / scope.name, shard, topics)
            responses, facts = loaded[scope.name]
            for r in sorted(responses, key=lambda r: r["sample"]):
                if scope.model not in (None, r["model"]) or split not in (None, r["split"]):
                    continue
                head = {k: r[k] for k in ("topic", "prompt", "split")}
                card = out.setdefault(
                    r["prompt_id"], head | {"group": group_of.get(r["topic"]), "responses": []}
                )
                response = {"model": label, "sample": r["sample"], "text": r["text"]}
                response |= {k: r[k] for k in ("abstained", "error") if r[k]}
                response["facts"] = facts.get(r["response_id"], [])
                if any(f.get("abstained") for f in response["facts"]):
                    response |= {"abstained": True, "facts": []}
                card["responses"].append(response)
        yield out


def _facts(folder: Folder, shard: int, topics: Set[str] | None = None) -> dict[str, list[dict]]:
    """response_id -> its facts, with verdicts, questions and answers from the scope's tables."""

    def read(name: str) -> list[dict]:
        return tables.rows_if_finished(folder / name, shard, topics)

    verdicts = {v["fact_id"]: v for v in read("verdicts")}
    second = {v["fact_id"]: v["supported"] for v in read(f"{SECOND}/verdicts")}
    asked = {q["fact_id"]: q for q in read("questions")}
    answers = {a["question_id"]: a["answers"] for a in read("answers")}
    units = by_id(read("classes")) if asked else {}
    out: dict[str, list[dict]] = {}
    for f in read("facts"):
        v, q = verdicts.get(f["fact_id"], {}), asked.get(f["fact_id"], {})
        fact = {
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
        }
        known = {k: value for k, value in fact.items() if value is not None}
        out.setdefault(f["response_id"], []).append(known)
    return out


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


SHARED = ("evidence", "question", "title", "reason")  # keys whose texts are stored once, by number


def packed(shown: Cards) -> tuple[str, Cards]:
    """(base64 of gzipped JSON {strings, cards}, the cards in it). The last prompts are left out if
    it would exceed MOST_BYTES."""
    while True:
        data = json.dumps(_shared(shown.cards), ensure_ascii=False, separators=(",", ":"))
        text = base64.b64encode(gzip.compress(data.encode(), 6, mtime=0)).decode()
        if len(text) <= MOST_BYTES or len(shown.cards) <= 1:
            return text, shown
        keep = max(1, int(0.9 * len(shown.cards) * MOST_BYTES / len(text)))
        dropped = sum(len(c["responses"]) for c in shown.cards[keep:])
        shown = Cards(shown.cards[:keep], shown.left_out + dropped)


def _shared(all_cards: list[dict]) -> dict[str, Any]:
    """The cards with the texts of SHARED as numbers, and the list of these texts."""
    numbers: dict[str, int] = {}

    def fact(f: dict) -> dict:
        return {k: numbers.setdefault(v, len(numbers)) if k in SHARED else v for k, v in f.items()}

    numbered = [
        c | {"responses": [r | {"facts": list(map(fact, r["facts"]))} for r in c["responses"]]}
        for c in all_cards
    ]
    return {"cards": numbered, "strings": list(numbers)}
