"""Tables of a run -> the reference systems' files, one folder a model.

in   runs/score/imported/all/{responses,facts,verdicts,...}, facttune_fs/round_1/groups
out  EXPORT/ChatGPT/questions_per_topic_test.json, responses/*_generations.json,
     factscore_outputs/*_fs_out.json (llm_factuality_tuning), factscore.jsonl (FActScore's input),
     atomic_qs/*_aqs.json, atomic_qs_samples/base_20samples/*, ne_samples/base_20samples/*,
     rewards/rewards_train_288.json, rewards/pairs_count_train_288.txt (factual_dpo)
     EXPORT/facttune_fs/round_1/preferences/train.jsonl, grouped/train.jsonl (TRL, datasets)

What a scope has no finished table for is left out. Shards are read one after the other; nothing
grows with the topics but the list of questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.export import preferences, rewards
from facttune_ray.sources import confidence, entities, factscore, tuning
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import preferred, scored
from facttune_ray.storage.tables import Folder

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ScopeTables:
    """The finished tables of one folder of a run, and of them the rows of one model."""

    folder: Folder
    model: str

    def has(self, *names: str) -> bool:
        return all(tables.has_manifest(self.folder / name) for name in names)

    @property
    def shards(self) -> range:
        return range(tables.manifest(self.folder / "responses")["shards"])

    def rows(self, name: str, shard: int, splits: tuple[str, ...] = SPLITS) -> list[dict]:
        """Rows of a table that belong to the model's responses of the splits; [] without it."""
        if not self.has(name):
            return []
        found = list(tables.rows(self.folder / name, shard))
        if name == "responses":
            return [r for r in found if r["model"] == self.model and r["split"] in splits]
        key = "question_id" if name == "answers" else "response_id"
        parent = "questions" if name == "answers" else "responses"
        mine = {r[key] for r in self.rows(parent, shard, splits)}
        return [r for r in found if r[key] in mine]

    def splits(self, name: str) -> tuple[str, ...]:
        """Splits that a table was made for."""
        return tuple(tables.manifest(self.folder / name)["recipe"].get("splits", SPLITS))

    def samples(self, parent: str, name: str) -> str:
        """Folder of a table's samples, as the reference names it: by model and number."""
        recipe = tables.manifest(self.folder / name)["recipe"]
        number = recipe.get(f"{name}.samples")
        if number is None:  # an imported table: as many as its first unit has
            every = (r["answers"] for s in self.shards for r in tables.rows(self.folder / name, s))
            number = next((len(samples) for samples in every if samples), 0)
        return confidence.samples_folder(parent, recipe.get("snapshot", self.model), number)


def export(
    root: Folder, out: str, gamma: float, *, threshold: float = 0.0, chat: bool = False
) -> dict[str, factscore.Summary | None]:
    """Write every scope's files under `out`. -> "scope/model" or "scope": its FActScore, None
    where it has no verdicts.

    `threshold`: counted pairs differ by more; `chat`: preferences in the conversational form.
    """
    found = list(scored(root))
    if not found:
        raise UserError(
            f"{root.path}: no finished facts and verdicts there: run `facttune run` or "
            f"`facttune stage verdicts` first"
        )
    done = {}
    for within in found:
        models = _models(root / within / "responses")
        for model in models:
            name = within if len(models) == 1 else f"{within}/{model}"
            place = Path(out, *name.split("/"))
            done[name] = _one(
                ScopeTables(root / within, model), root / "prompts", place, gamma, threshold
            )
    for within in preferred(root):
        _preferences(root / within / "groups", Path(out, *within.split("/")), chat)
    return done


def _models(folder: Folder) -> list[str]:
    shards = range(tables.manifest(folder)["shards"])
    return sorted({r["model"] for s in shards for r in tables.rows(folder, s)})


def _one(
    scope: ScopeTables, prompts: Folder, out: Path, gamma: float, threshold: float
) -> factscore.Summary | None:
    out.mkdir(parents=True, exist_ok=True)
    judged = scope.has("facts", "verdicts")
    with open(out / "factscore.jsonl", "w", encoding="utf-8") as file:
        for shard in scope.shards:
            responses, facts = scope.rows("responses", shard), scope.rows("facts", shard)
            verdicts = scope.rows("verdicts", shard)
            file.writelines(factscore.jsonl(responses, facts))
            tuning.write_responses(str(out), responses)
            if judged:
                tuning.write_scores(str(out), responses, facts, verdicts, gamma)
            if scope.has("facts", "questions"):
                _asked(scope, shard, str(out), gamma)
            if scope.has("entities"):
                of = scope.splits("entities")
                entities.write_entities(
                    str(out),
                    scope.samples(entities.ENTITIES, "entities"),
                    scope.rows("responses", shard, of),
                    scope.rows("entities", shard),
                )
    _questions(scope, prompts, str(out))
    if scope.has("rewards"):
        _rewards(scope, str(out), threshold)
    if not judged:
        return None
    names = ("responses", "facts", "verdicts")
    read = ([scope.rows(name, s) for name in names] for s in scope.shards)
    return factscore.aggregate((d for found in read for d in factscore.decisions(*found)), gamma)


def _asked(scope: ScopeTables, shard: int, out: str, gamma: float) -> None:
    """Questions of one shard, and their answers if there are any."""
    of = scope.splits("questions")
    responses, facts, verdicts, questions, answers = (
        scope.rows(name, shard, of)
        for name in ("responses", "facts", "verdicts", "questions", "answers")
    )
    if not scope.has("answers"):
        confidence.write_questions(out, responses, facts, verdicts, questions, gamma)
        return
    confidence.write_questions(out, responses, facts, verdicts, questions, gamma, answers)
    where = scope.samples(confidence.ANSWERS, "answers")
    confidence.write_answers(out, where, responses, facts, questions, answers)


def _rewards(scope: ScopeTables, out: str, threshold: float) -> None:
    def shards() -> Iterator[rewards.Shard]:
        for s in scope.shards:
            yield (scope.rows("responses", s), scope.rows("rewards", s), scope.rows("mixes", s))

    for split in SPLITS:
        rewards.write(out, split, shards, threshold)


def _preferences(folder: Folder, out: Path, chat: bool) -> None:
    manifest = tables.manifest(folder)
    groups = (r for s in range(manifest["shards"]) for r in tables.rows(folder, s))
    of = manifest["recipe"]
    threshold, most = of.get("groups.threshold", 0.0), of.get("groups.max_pairs", 0)
    preferences.write(str(out), groups, threshold, most, chat)


def _questions(scope: ScopeTables, prompts: Folder, out: str) -> None:
    """Questions files of the splits that the responses are of."""

    def responses() -> Iterator[dict]:
        return (r for s in scope.shards for r in scope.rows("responses", s))

    found = (prompts / tables.MANIFEST).read_json() or {"shards": 0}
    rows = (r for s in range(found["shards"]) for r in tables.rows(prompts, s))
    about = {r["prompt_id"]: r for r in rows}  # pronouns and such
    for split in sorted({r["split"] for r in responses()}):
        asked = {r["prompt_id"]: r for r in responses() if r["split"] == split}
        tuning.write_topics(out, split, (about.get(p, r) for p, r in asked.items()))


def show(done: dict[str, factscore.Summary | None]) -> str:
    """What FActScore prints, for each model."""
    lines = []
    for name, summary in done.items():
        lines += [f"{name}:", *(summary.lines() if summary else ["no verdicts"])]
    return "\n".join(lines)
