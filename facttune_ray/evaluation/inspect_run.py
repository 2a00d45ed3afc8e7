"""A run's responses in the terminal, fact by fact.

topics("runs/quickstart")                 ->  a line a topic: facts of each model by verdict
responses("runs/quickstart", "mara v")    ->  each response to the topic's prompts, its facts
"""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator

from facttune_ray.errors import UserError
from facttune_ray.evaluation.breakdowns import SECOND
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import scored
from facttune_ray.storage.tables import Folder

MARKS = {True: "✓", False: "✗", None: "?"}
EVIDENCE = 200  # characters of a passage


def topics(run: str, paint: bool = False) -> str:
    """Every topic with its correct, incorrect and unjudged distinct facts, by scope and model."""
    seen: dict[str, dict[str, Counter]] = {}
    for label, rows in _by_scope(run):
        for r in rows["responses"]:
            seen.setdefault(r["topic"], {}).setdefault(_label(label, r), Counter())
        of = {r["response_id"]: r for r in rows["responses"]}
        verdicts = {v["fact_id"]: v["supported"] for v in rows["verdicts"]}
        for f in rows["facts"]:
            if f["fact"] and not f["repeated"]:
                counted = seen[f["topic"]][_label(label, of[f["response_id"]])]
                counted[verdicts.get(f["fact_id"])] += 1
    width = max(map(len, seen), default=0)
    lines = []
    for topic in sorted(seen):
        told = (
            f"{label}  " + " ".join(_mark(k, paint, f"{n[k]}") for k in MARKS if n[k] or k is False)
            for label, n in seen[topic].items()
        )
        lines.append(f"{topic:<{width}}  " + "   ".join(told))
    return "\n".join(lines)


def responses(
    run: str, wanted: str, model: str = "", sample: int | None = None, paint: bool = False
) -> str:
    """Every response about a topic with its facts: verdict, human label, second opinion, the
    passage that decided. `model`: part of a scope's or model's name; `sample`: its number."""
    topic = _topic(run, wanted)
    width = max(20, min(100, shutil.get_terminal_size().columns))  # a passage is indented
    parts: list[str] = []
    for label, rows in _by_scope(run, topic):
        verdicts = {v["fact_id"]: v for v in rows["verdicts"]}
        second = {v["fact_id"]: v["supported"] for v in rows["second"]}
        for r in rows["responses"]:
            name = _label(label, r)
            if model.lower() not in name.lower() or sample not in (None, r["sample"]):
                continue
            head = f"{topic}  {name}  sample {r['sample']}"
            parts.append(f"\033[1m{head}\033[0m" if paint else head)
            parts.append(textwrap.fill(str(r["text"] or r["error"] or "(no text)"), width))
            shown = ""  # a passage stands once where facts in a row share it
            for f in rows["facts"]:
                if f["response_id"] == r["response_id"]:
                    v = verdicts.get(f["fact_id"], {})
                    why = _why(v, width)
                    parts.append(_fact(f, v, second, paint))
                    parts += [why] * (why not in ("", shown))
                    shown = why or shown
            parts.append("")
    if not parts:
        raise UserError(f'{run}: no response about "{topic}" matches --model or --sample')
    return "\n".join(parts).rstrip()


def _fact(f: dict, v: dict, second: dict, paint: bool) -> str:
    if f["fact"] is None:
        return "    it declines to answer" if f["abstained"] else f"    failed: {f['error']}"
    supported = v.get("supported")
    more = ["repeated"] * bool(f["repeated"])
    more += [f"human {f['human_label']}"] * bool(f["human_label"])
    other = second.get(f["fact_id"])
    more += [f"second opinion {MARKS[other]}"] * (other is not None and other != supported)
    if v.get("score") is not None:
        more.append(f"score {v['score']:.2f}")
    said = f["fact"] + (f"  [{', '.join(more)}]" if more else "")
    return f"  {_mark(supported, paint)} {said}"


def _why(v: dict, width: int) -> str:
    """The passage, or the reason, of a verdict that does not support its fact."""
    why = v.get("evidence") or v.get("reason") or v.get("error")
    if not why or v.get("supported") is True:
        return ""
    return textwrap.indent(textwrap.fill(textwrap.shorten(why, EVIDENCE), width - 6), "      ")


def _mark(supported: bool | None, paint: bool, before: str = "") -> str:
    colour = {True: 32, False: 31, None: 33}[supported]
    text = before + MARKS[supported]
    return f"\033[{colour}m{text}\033[0m" if paint else text


def _label(scope: str, response: dict) -> str:
    """The scope, which names the model; of imported responses the model."""
    return response["model"] if scope.startswith("imported") else scope


def _by_scope(run: str, topic: str | None = None) -> Iterator[tuple[str, dict[str, list[dict]]]]:
    """(scope, rows of its tables, of one topic if given), shard by shard."""
    root = Folder.of(run)
    if not root.exists():
        raise UserError(f"{run} does not exist: nothing has been run there")
    if root.is_file():
        raise UserError(f"{run} is a file: name the folder of a run")
    found = [s for s in scored(root) if tables.has_manifest(root / s / "facts")]
    if not found:
        raise UserError(f"{run}: no finished facts: run `facttune run` first")
    for scope in found:
        names = {n: n for n in ("responses", "facts", "verdicts")} | {
            "second": f"{SECOND}/verdicts"
        }
        for shard in range(tables.manifest(root / scope / "responses")["shards"]):
            rows = {
                role: [
                    r
                    for r in tables.rows(root / scope / name, shard)
                    if topic in (None, r["topic"])
                ]
                for role, name in names.items()
                if tables.has_manifest(root / scope / name)
            }
            yield scope, {role: [] for role in names} | rows


def _topic(run: str, wanted: str) -> str:
    """The topic of that name, whatever its case, or the only one that begins so."""
    known = {r["topic"] for _, rows in _by_scope(run) for r in rows["responses"]}
    if wanted in known:
        return wanted
    low = wanted.casefold()
    alike = [t for t in known if t.casefold() == low] or [
        t for t in known if t.casefold().startswith(low)
    ]
    if len(alike) == 1:
        return alike[0]
    close = sorted(alike)[:5] or difflib.get_close_matches(wanted, known, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`facttune inspect RUN` lists them all"
    raise UserError(f'{run}: no topic "{wanted}": {hint}')
