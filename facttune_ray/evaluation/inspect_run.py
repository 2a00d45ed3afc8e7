"""The responses of a run in the terminal, fact by fact.

topics("runs/quickstart")               ->  facts of each topic and model, by verdict
responses("runs/quickstart", "mara v")  ->  each response to the topic's prompts, its facts
show_topics(...), show_responses(...)   ->  the same for the terminal
"""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterator

from facttune_ray.errors import UserError
from facttune_ray.storage import tables
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.scopes import SECOND, finished, run_folder, scored

MARKS = {True: "✓", False: "✗", None: "?"}
KINDS = {True: "correct", False: "incorrect", None: "unjudged"}  # verdict -> kind of fact
VERDICT = ("supported", "score", "evidence", "title", "estimator", "reason", "error")
SECOND_VERDICTS = f"{SECOND}/verdicts"
TABLES = ("responses", "facts", "verdicts", SECOND_VERDICTS)  # of a scope
EVIDENCE = 200  # characters shown of a passage


def topics(run: str) -> dict[str, dict[str, dict[str, int]]]:
    """topic -> scope or model -> numbers of its distinct facts: correct, incorrect, unjudged."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for label, rows in _by_scope(run):
        by_id = {r["response_id"]: r for r in rows["responses"]}
        for r in by_id.values():
            of_topic = counts.setdefault(r["topic"], {})
            of_topic.setdefault(_label(label, r), dict.fromkeys(KINDS.values(), 0))
        verdicts = {v["fact_id"]: v["supported"] for v in rows["verdicts"]}
        for f in rows["facts"]:
            if f["fact"] and not f["repeated"]:
                of_model = counts[f["topic"]][_label(label, by_id[f["response_id"]])]
                of_model[KINDS[verdicts.get(f["fact_id"])]] += 1
    return dict(sorted(counts.items()))


def show_topics(counts: dict[str, dict[str, dict[str, int]]], paint: bool = False) -> str:
    """A line a topic."""
    width = max(map(len, counts), default=0)
    lines = []
    for topic, models in counts.items():
        cells = (
            f"{label}  "
            + " ".join(
                _mark(verdict, paint, f"{n[kind]}")
                for verdict, kind in KINDS.items()
                if n[kind] or verdict is False
            )
            for label, n in models.items()
        )
        lines.append(f"{topic:<{width}}  " + "   ".join(cells))
    return "\n".join(lines)


def responses(run: str, wanted: str, model: str = "", sample: int | None = None) -> list[dict]:
    """Every response about a topic: {"topic", "model", "sample", "text", "error", "facts"}. A fact
    has its verdict, human label, second opinion, and the passage behind the verdict. `model`: part
    of the name of a scope or model; `sample`: number of the sample. UserError if no response
    matches."""
    topic = _topic(run, wanted)
    out: list[dict] = []
    for label, rows in _by_scope(run, topic):
        verdicts = {v["fact_id"]: v for v in rows["verdicts"]}
        second = {v["fact_id"]: v["supported"] for v in rows[SECOND_VERDICTS]}
        for r in rows["responses"]:
            name = _label(label, r)
            if model.lower() not in name.lower() or sample not in (None, r["sample"]):
                continue
            facts = [
                {k: f[k] for k in ("fact", "repeated", "abstained", "human_label", "error")}
                | {"verdict": {k: verdicts.get(f["fact_id"], {}).get(k) for k in VERDICT}}
                | {"second": second.get(f["fact_id"])}
                for f in rows["facts"]
                if f["response_id"] == r["response_id"]
            ]
            head = {"topic": topic, "model": name, "sample": r["sample"]}
            out.append(head | {"text": r["text"], "error": r["error"], "facts": facts})
    if not out:
        raise UserError(f'{run}: no response about "{topic}" matches --model or --sample')
    return out


def show_responses(found: list[dict], paint: bool = False) -> str:
    """The responses with their facts, each with the passage behind its verdict."""
    width = max(20, min(100, shutil.get_terminal_size().columns))
    parts: list[str] = []
    for r in found:
        head = f"{r['topic']}  {r['model']}  sample {r['sample']}"
        parts.append(f"\033[1m{head}\033[0m" if paint else head)
        parts.append(textwrap.fill(str(r["text"] or r["error"] or "(no text)"), width))
        # The last passage: facts that follow with the same passage do not repeat it.
        shown = None
        for f in r["facts"]:
            v = f["verdict"]
            parts.append(_fact(f, paint))
            if v["supported"] is not True:
                parts += explanation(v, width, shown)
                shown = v["evidence"] or shown
        parts.append("")
    return "\n".join(parts).rstrip()


def _fact(f: dict, paint: bool) -> str:
    if f["fact"] is None:
        return "    it declines to answer" if f["abstained"] else f"    failed: {f['error']}"
    v, other = f["verdict"], f["second"]
    supported = v["supported"]
    remarks = ["repeated"] * bool(f["repeated"])
    remarks += [f"human {f['human_label']}"] * bool(f["human_label"])
    remarks += [f"second opinion {MARKS[other]}"] * (other is not None and other != supported)
    if v["score"] is not None:
        remarks.append(f"score {v['score']:.2f}")
    text = f["fact"] + (f"  [{', '.join(remarks)}]" if remarks else "")
    return f"  {_mark(supported, paint)} {text}"


def explanation(v: dict, width: int, shown: str | None) -> list[str]:
    """Lines with the reason and the passage of a verdict that does not support its fact. `shown`:
    the last passage, which is not shown again."""
    passage = v.get("evidence")
    lines = _indented(v.get("reason") or v.get("error"), width)
    return lines if passage == shown else lines + _indented(passage, width)


def _indented(text: str | None, width: int) -> list[str]:
    """The shortened text below a fact; [] for None."""
    if not text:
        return []
    return [textwrap.indent(textwrap.fill(textwrap.shorten(text, EVIDENCE), width - 6), "      ")]


def _mark(supported: bool | None, paint: bool, before: str = "") -> str:
    colour = {True: 32, False: 31, None: 33}[supported]
    text = before + MARKS[supported]
    return f"\033[{colour}m{text}\033[0m" if paint else text


def _label(scope: str, response: dict) -> str:
    """The scope, which names the model; for imported responses, the model."""
    return response["model"] if scope.startswith("imported") else scope


def _scopes(run: str) -> tuple[Folder, dict[str, list[str]]]:
    """(folder of the run, scope -> its finished tables of TABLES). UserError without facts."""
    root = run_folder(run)
    found = finished(root)
    there = {f"{folder}/{name}" for folder, names in found.items() for name in names}
    scopes = {
        s: [name for n in TABLES if (name := f"{s}/{n}") in there]
        for s in scored(found)
        if "facts" in found[s]
    }
    if not scopes:
        raise UserError(f"{run}: no finished facts: run `facttune run` first")
    return root, scopes


def _by_scope(run: str, topic: str | None = None) -> Iterator[tuple[str, dict[str, list[dict]]]]:
    """(scope, rows of its TABLES) shard by shard; only rows of one topic if `topic` is given."""
    root, scopes = _scopes(run)
    for scope, there in scopes.items():
        for shard in range(tables.manifest(root / scope / "responses")["shards"]):
            rows: dict[str, list[dict]] = {name: [] for name in TABLES}
            for name in there:
                read = tables.rows(root / name, shard)
                rows[name[len(scope) + 1 :]] = [r for r in read if topic in (None, r["topic"])]
            yield scope, rows


def _topic(run: str, wanted: str) -> str:
    """The topic of that name in any case, or the only topic that begins with it."""
    root, scopes = _scopes(run)
    known: set[str] = set()
    for scope in scopes:
        folder = root / scope / "responses"
        for shard in range(tables.manifest(folder)["shards"]):
            known |= set(tables.read_part(folder, shard, ["topic"])["topic"].to_pylist())
    if wanted in known:
        return wanted
    low = wanted.casefold()
    matches = [t for t in known if t.casefold() == low] or [
        t for t in known if t.casefold().startswith(low)
    ]
    if len(matches) == 1:
        return matches[0]
    close = sorted(matches)[:5] or difflib.get_close_matches(wanted, known, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`facttune inspect RUN` lists them all"
    raise UserError(f'{run}: no topic "{wanted}": {hint}')
