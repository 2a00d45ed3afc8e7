"""Tables of a run -> the reference systems' files, one folder a model.

in   runs/score/imported/all/{responses,facts,verdicts}, runs/score/prompts
out  EXPORT/ChatGPT/questions_per_topic_test.json, responses/*_generations.json,
     factscore_outputs/*_fs_out.json (llm_factuality_tuning), factscore.jsonl (FActScore's input)

Shards are read one after the other; nothing grows with the topics but the list of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from facttune_ray import tables
from facttune_ray.errors import UserError
from facttune_ray.interop import factscore, tuning
from facttune_ray.tables import Folder

NEEDED = ("responses", "facts", "verdicts")


def scopes(root: Folder, within: str = "") -> Iterator[str]:
    """Folders of a run that hold finished responses, facts and verdicts: "imported/all"."""
    here = root / within if within else root
    if all((here / name / tables.MANIFEST).exists() for name in NEEDED):
        yield within
        return
    for name in sorted(here.names()):
        if "." not in name and not name.startswith("_"):
            yield from scopes(root, f"{within}/{name}" if within else name)


def export(root: Folder, out: str, gamma: float) -> dict[str, factscore.Summary]:
    """Write every scope's files under `out`. -> "scope/model" or "scope": its FActScore"""
    found = list(scopes(root))
    if not found:
        raise UserError(
            f"{root.path}: no finished facts and verdicts there: run `facttune run` or "
            f"`facttune stage verdicts` first"
        )
    done = {}
    for scope in found:
        models = _models(root / scope / "responses")
        for model in models:
            name = scope if len(models) == 1 else f"{scope}/{model}"
            done[name] = _one(root, scope, model, Path(out, *name.split("/")), gamma)
    return done


def _models(folder: Folder) -> list[str]:
    shards = range(tables.manifest(folder)["shards"])
    return sorted({r["model"] for s in shards for r in tables.rows(folder, s)})


def _one(root: Folder, scope: str, model: str, out: Path, gamma: float) -> factscore.Summary:
    shards = range(tables.manifest(root / scope / "responses")["shards"])

    def read(shard: int) -> tuple[list[dict], list[dict], list[dict]]:
        rows = [r for r in tables.rows(root / scope / "responses", shard) if r["model"] == model]
        mine = {r["response_id"] for r in rows}
        facts, verdicts = (
            [r for r in tables.rows(root / scope / t, shard) if r["response_id"] in mine]
            for t in ("facts", "verdicts")
        )
        return rows, facts, verdicts

    out.mkdir(parents=True, exist_ok=True)
    with open(out / "factscore.jsonl", "w", encoding="utf-8") as file:
        for shard in shards:
            responses, facts, verdicts = read(shard)
            file.writelines(factscore.jsonl(responses, facts))
            tuning.write_responses(str(out), responses)
            tuning.write_scores(str(out), responses, facts, verdicts, gamma)
    _questions(root, lambda: (r for s in shards for r in read(s)[0]), str(out))
    return factscore.aggregate((d for s in shards for d in factscore.decisions(*read(s))), gamma)


def _questions(root: Folder, responses: Callable[[], Iterator[dict]], out: str) -> None:
    """Questions files of the splits that the responses are of."""
    for split in sorted({r["split"] for r in responses()}):
        asked = {(r["topic"], r["prompt"]): r for r in responses() if r["split"] == split}
        tuning.write_topics(out, split, asked.values())


def show(done: dict[str, factscore.Summary]) -> str:
    """What FActScore prints, for each model."""
    return "\n".join(line for name, s in done.items() for line in (f"{name}:", *s.lines()))
