"""Tables of a run -> files of FactTune's scripts, FActScore and TRL, one folder per model.

in   runs/score/imported/all/{responses,facts,verdicts,...}, facttune_fs/round_1/groups
out  EXPORT/ChatGPT/questions_per_topic_test.json, responses/*_generations.json,
     factscore_outputs/*_fs_out.json (llm_factuality_tuning), factscore.jsonl (FActScore's input),
     atomic_qs/*_aqs.json, atomic_qs_samples/base_20samples/*, ne_samples/base_20samples/*,
     rewards/rewards_train_288.json, rewards/pairs_count_train_288.txt (factual_dpo)
     EXPORT/facttune_fs/round_1/preferences/train.jsonl, grouped/train.jsonl (TRL, datasets)

Files whose table is not finished are left out. Shards are read one after the other, so only the
list of questions grows with the topics in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from facttune_ray.errors import UserError
from facttune_ray.export import preferences, rewards
from facttune_ray.sources import confidence, entities, factscore, tuning
from facttune_ray.storage import tables
from facttune_ray.storage.schema import SPLITS
from facttune_ray.storage.scopes import finished, preferred, scored
from facttune_ray.storage.tables import Folder


@dataclass(frozen=True)
class ScopeTables:
    """The rows of one model in the finished tables of one folder of a run."""

    folder: Folder
    model: str

    def has(self, *names: str) -> bool:
        return all(tables.has_manifest(self.folder / name) for name in names)

    @property
    def shards(self) -> range:
        return range(tables.manifest(self.folder / "responses")["shards"])

    def rows(self, name: str, shard: int, splits: tuple[str, ...] = SPLITS) -> list[dict]:
        """Rows of a table that belong to the model's responses of the splits; [] if absent."""
        rows = tables.rows_if_finished(self.folder / name, shard)
        if name == "responses":
            return [r for r in rows if r["model"] == self.model and r["split"] in splits]
        key = "question_id" if name == "answers" else "response_id"
        parent = "questions" if name == "answers" else "responses"
        parents = {r[key] for r in self.rows(parent, shard, splits)}
        return [r for r in rows if r[key] in parents]

    def all_rows(self, name: str) -> Iterator[dict]:
        return (r for s in self.shards for r in self.rows(name, s))

    def splits(self, name: str) -> tuple[str, ...]:
        """The splits that a table was made for."""
        return tuple(tables.manifest(self.folder / name)["recipe"].get("splits", SPLITS))

    def samples(self, parent: str, name: str) -> str:
        """Folder of a table's samples, which the scripts name by model and number of samples."""
        recipe = tables.manifest(self.folder / name)["recipe"]
        number = recipe.get(f"{name}.samples")
        if number is None:  # an imported table: take the number of the first row with samples
            answers = (r["answers"] for r in tables.rows(self.folder / name))
            number = next((len(samples) for samples in answers if samples), 0)
        return confidence.samples_folder(parent, recipe.get("snapshot", self.model), number)


def export(
    root: Folder, out: str, gamma: float, *, threshold: float = 0.0, chat: bool = False
) -> dict[str, factscore.Summary | None]:
    """Write the files of every scope under `out`.

    `gamma`: facts per response up to which FActScore's length penalty applies. `threshold`: a pair
    is counted if its rewards differ by more. `chat`: preferences as chat messages. Returns the
    FActScore of each "scope/model" or "scope"; None for a scope without verdicts. UserError when
    nothing is finished.
    """
    found = finished(root)
    scopes = scored(found)
    if not scopes:
        raise UserError(
            f"{root.path}: no finished facts and verdicts there: run `facttune run` or "
            f"`facttune stage verdicts` first"
        )
    summaries = {}
    for scope in scopes:
        models = sorted({r["model"] for r in tables.rows(root / scope / "responses")})
        for model in models:
            name = scope if len(models) == 1 else f"{scope}/{model}"
            place = Path(out, *name.split("/"))
            place.mkdir(parents=True, exist_ok=True)
            summaries[name] = _write_model(
                ScopeTables(root / scope, model), root / "prompts", str(place), gamma, threshold
            )
    for scope in preferred(found):
        _write_preferences(root / scope / "groups", str(Path(out, *scope.split("/"))), chat)
    return summaries


def _write_model(
    scope: ScopeTables, prompts: Folder, out: str, gamma: float, threshold: float
) -> factscore.Summary | None:
    has_verdicts = scope.has("facts", "verdicts")
    with open(Path(out, "factscore.jsonl"), "w", encoding="utf-8") as file:
        for shard in scope.shards:
            responses, facts = scope.rows("responses", shard), scope.rows("facts", shard)
            file.writelines(factscore.jsonl(responses, facts))
            tuning.write_responses(out, responses)
            if has_verdicts:
                verdicts = scope.rows("verdicts", shard)
                tuning.write_scores(out, responses, facts, verdicts, gamma)
            if scope.has("facts", "questions"):
                _write_questions(scope, shard, out, gamma)
            if scope.has("entities"):
                entities.write_entities(
                    out,
                    scope.samples(entities.ENTITIES, "entities"),
                    scope.rows("responses", shard, scope.splits("entities")),
                    scope.rows("entities", shard),
                )
    _write_topics(scope, prompts, out)
    if scope.has("rewards"):
        _write_rewards(scope, out, threshold)
    if not has_verdicts:
        return None
    names = ("responses", "facts", "verdicts")
    shards = ([scope.rows(name, s) for name in names] for s in scope.shards)
    return factscore.aggregate((d for rows in shards for d in factscore.decisions(*rows)), gamma)


def _write_questions(scope: ScopeTables, shard: int, out: str, gamma: float) -> None:
    """Questions of one shard, and their answers if they are finished."""
    splits = scope.splits("questions")
    responses, facts, verdicts, questions, answers = (
        scope.rows(name, shard, splits)
        for name in ("responses", "facts", "verdicts", "questions", "answers")
    )
    has_answers = scope.has("answers")
    confidence.write_questions(
        out, responses, facts, verdicts, questions, gamma, answers if has_answers else None
    )
    if has_answers:
        place = scope.samples(confidence.ANSWERS, "answers")
        confidence.write_answers(out, place, responses, facts, questions, answers)


def _write_rewards(scope: ScopeTables, out: str, threshold: float) -> None:
    def shards() -> Iterator[rewards.Shard]:
        for s in scope.shards:
            yield (scope.rows("responses", s), scope.rows("rewards", s), scope.rows("mixes", s))

    for split in SPLITS:
        rewards.write(out, split, shards, threshold)


def _write_preferences(groups: Folder, out: str, chat: bool) -> None:
    recipe = tables.manifest(groups)["recipe"]
    threshold, max_pairs = recipe.get("groups.threshold", 0.0), recipe.get("groups.max_pairs", 0)
    preferences.write(out, tables.rows(groups), threshold, max_pairs, chat)


def _write_topics(scope: ScopeTables, prompts: Folder, out: str) -> None:
    """Questions files of the splits that have responses. The table `prompts`, where there is one,
    gives a prompt's pronoun."""
    rows = tables.rows(prompts) if tables.has_manifest(prompts) else ()
    prompt_of = {r["prompt_id"]: r for r in rows}
    for split in sorted({r["split"] for r in scope.all_rows("responses")}):
        responses = (r for r in scope.all_rows("responses") if r["split"] == split)
        response_of = {r["prompt_id"]: r for r in responses}
        tuning.write_topics(out, split, (prompt_of.get(p, r) for p, r in response_of.items()))


def show(summaries: dict[str, factscore.Summary | None]) -> str:
    """The lines that FActScore prints, for each model."""
    lines = []
    for name, summary in summaries.items():
        lines += [f"{name}:", *(summary.lines() if summary else ["no verdicts"])]
    return "\n".join(lines)


def plain(summaries: dict[str, factscore.Summary | None]) -> dict[str, dict | None]:
    """The same figures as plain values; None for a model without verdicts."""
    return {name: asdict(summary) if summary else None for name, summary in summaries.items()}
