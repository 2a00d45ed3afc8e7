"""`facttune run`, `stage`, `train`, `evaluate`, `report`: the loop on a run that makes its tables.

summary, made = run(cfg)                 every missing table, training, evaluation, report
summary, made = run(cfg, only="facts")   the tables of one stage
"""

from __future__ import annotations

from facttune_ray.config import Config
from facttune_ray.errors import Missing, UserError
from facttune_ray.evaluation import measure
from facttune_ray.loop.facttune import Outcome, facttune
from facttune_ray.loop.start import IMPORTED, knowledge_file
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime import preflight
from facttune_ray.runtime.run import Run
from facttune_ray.storage import tables
from facttune_ray.storage.memory import release_memory


def run(cfg: Config, only: str | None = None) -> tuple[dict, list[str]]:
    """Make what is missing (of one stage, when `only` names it). -> (summary, names made)"""
    with Run(cfg, embedded, only) as this:
        outcome = _loop(this)
        return _evaluate(this, outcome) if outcome else {}, this.made


def train(cfg: Config) -> tuple[list[str], list[str]]:
    """Train every model whose rewards are there. -> (folders of the models, names made)"""
    with Run(cfg, embedded, "train", also=("groups", "reference")) as this:
        _loop(this)
        trained = [n for n, m in this.manifests.items() if m["table"] == "train"]
        if not trained:
            raise UserError("nothing to train: `tune` names no model with rounds")
        return [(this.root / name / "model").uri for name in trained], this.made


def evaluate(cfg: Config) -> dict:
    """Missing responses, facts and verdicts of base and trained models, summary and report."""
    also = ("responses", "facts", "verdicts", "judgements")
    with Run(cfg, embedded, "evaluate", also) as this:
        outcome = _loop(this)
        return _evaluate(this, outcome) if outcome else {}


def report(cfg: Config) -> dict:
    """Write summary and report again from finished tables; makes no table."""
    with Run(cfg, embedded, "evaluate") as this:
        preflight.check(this.cfg, knowledge_file(this.cfg), models=False)
        return _evaluate(this, facttune(this, this.cfg), again=True)


def _loop(this: Run) -> Outcome | None:
    """Run the loop. None if only one stage was allowed to make tables and others are missing."""
    if this.cfg.data.groups not in ("", None):
        raise UserError("data.groups: only `facttune train` takes preferences from files")
    begun = this.only is not None or (this.root / "summary.json").exists()
    preflight.check(this.cfg, knowledge_file(this.cfg), models=not begun)
    try:
        return facttune(this, this.cfg)
    except Missing:
        if not any(m["table"] == this.only for m in this.manifests.values()):
            raise
        return None


def _evaluate(this: Run, outcome: Outcome, again: bool = False) -> dict:
    """Write summary.json and report.html if a table that they show has changed. -> the summary"""
    if this.only not in (None, "evaluate"):
        return {}
    recipe = {name: m["fingerprint"] for name, m in this.manifests.items()}
    recipe["evaluation"] = tables.fingerprint(measure.recipe(this.cfg))
    found = (this.root / "summary.json").read_json()
    if found and not again and found["run"]["fingerprint"] == tables.fingerprint(recipe):
        if (this.root / "report.html").exists():
            return found
    release_memory()  # what the coordination of the stages has used
    with tables.writing(this.root):
        return measure.write(
            this.root,
            this.cfg,
            measured=outcome.measured,
            imported=IMPORTED if f"{IMPORTED}/facts" in this.manifests else "",
            rewards=outcome.scored,
            selection=outcome.selection,
            manifests=this.manifests,
            fingerprint=tables.fingerprint(recipe),
            knowledge=knowledge_file(this.cfg),
        )
