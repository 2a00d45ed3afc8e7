"""`facttune run`, `stage`, `train`, `evaluate`, `report`: the loop, and what it makes.

summary, made = run(cfg)                 every missing table, training, evaluation, report
summary, made = run(cfg, only="facts")   the tables of one stage
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.errors import Missing, UserError
from facttune_ray.evaluation import measure
from facttune_ray.loop.facttune import Outcome, facttune
from facttune_ray.loop.run import Run
from facttune_ray.loop.start import knowledge_file
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import preflight
from facttune_ray.runtime.maker import Maker
from facttune_ray.stages.traces import Traces
from facttune_ray.storage import tables
from facttune_ray.storage.memory import release_memory
from facttune_ray.storage.scopes import IMPORTED


def run(cfg: Config, only: str | None = None) -> tuple[dict, list[str]]:
    """Make what is missing (of one stage, when `only` names it). -> (summary, names made)"""
    with Maker(cfg, embedded, only) as maker:
        return _evaluate(maker, _loop(maker)), maker.made


def train(cfg: Config) -> tuple[list[str], list[str]]:
    """Train every model whose rewards are there. -> (folders of the models, names made)"""
    with Maker(cfg, embedded, "train", also=("groups", "reference")) as maker:
        _loop(maker)
        trained = [name for name, m in maker.manifests.items() if m["table"] == "train"]
        if not trained:
            raise UserError("nothing to train: `tune` names no model with rounds")
        return [(maker.root / name / "model").uri for name in trained], maker.made


def evaluate(cfg: Config) -> dict:
    """Missing responses, facts and verdicts of base and trained models, summary and report."""
    also = ("responses", "facts", "verdicts", "judgements")
    with Maker(cfg, embedded, "evaluate", also) as maker:
        return _evaluate(maker, _loop(maker))


def report(cfg: Config) -> dict:
    """Write summary and report again from finished tables; makes no table."""
    with Maker(cfg, embedded, "evaluate") as maker:
        return _evaluate(maker, _loop(maker), again=True)


def _loop(maker: Maker) -> Outcome | None:
    """Run the loop. None if only one stage was allowed to make tables and others are missing."""
    cfg = maker.cfg
    if cfg.data.groups not in ("", None):
        raise UserError("data.groups: only `facttune train` takes preferences from files")
    begun = maker.only is not None or (maker.root / "summary.json").exists()
    preflight.check(cfg, knowledge_file(cfg), models=not begun)
    try:
        return facttune(Run(maker))
    except Missing:
        if not any(m["table"] == maker.only for m in maker.manifests.values()):
            raise
        return None


def _evaluate(maker: Maker, outcome: Outcome | None, again: bool = False) -> dict:
    """Write summary.json and report.html if a table that they show has changed. -> the summary; {}
    if tables are missing, or if this command makes another step"""
    if outcome is None or maker.only not in (None, "evaluate"):
        return {}
    cfg, root, manifests = maker.cfg, maker.root, maker.manifests
    recipe = {name: m["fingerprint"] for name, m in manifests.items()}
    recipe["evaluation"] = tables.fingerprint(measure.recipe(cfg))
    fingerprint = tables.fingerprint(recipe)
    summary = (root / "summary.json").read_json()
    if summary and not again and summary["run"]["fingerprint"] == fingerprint:
        if (root / "report.html").exists():
            return summary
    release_memory()  # what the coordination of the stages has used
    with tables.writing(root):
        return measure.write(
            root,
            cfg,
            measured=outcome.measured,
            imported=IMPORTED if f"{IMPORTED}/facts" in manifests else "",
            rewards=outcome.scored,
            selection=outcome.selection,
            manifests=manifests,
            fingerprint=fingerprint,
            knowledge=knowledge_file(cfg),
            traces=Traces(cfg, knowledge_file(cfg)).of_shard,
        )
