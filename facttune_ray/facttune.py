"""The FactTune loop of one run: sample, score, prefer, train; choose by val; measure on test.

    out/prompts                     every topic
    out/base/tune/responses ...     the base model on train and val topics, up to rewards
    out/facttune_fs/round_1/groups  preferences of round 1; train/ holds the model they gave
    out/facttune_fs/round_1/tune/   that model on val topics (and train topics, for round 2)
    out/facttune_fs/round_2/test/   the chosen round alone, on test topics

Each tuned model (config section `tune`) takes its reward's rounds: every round samples from the
model of the round before. The round with the best val figure is the one measured on test.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from facttune_ray import tables
from facttune_ray.config import Config, TuneConfig
from facttune_ray.errors import UserError
from facttune_ray.pipeline import Missing, Run, Snapshot, model_digest
from facttune_ray.quickstart import base_model
from facttune_ray.scoring.confidence import CONFIDENCES
from facttune_ray.stages import prompts
from facttune_ray.tables import Recipe


class FactTune(Run):
    """A run whose nodes are the FactTune loop's."""

    def knowledge(self) -> None:
        """{title, text} articles -> knowledge/knowledge.db."""
        from facttune_ray.interop.factscore import file_digest
        from facttune_ray.knowledge import build, source

        cfg, folder = self.cfg, self.root / "knowledge"
        ready = source.is_database(cfg.data.knowledge)
        if ready:
            recipe = {"data.knowledge": source.fingerprint(self.knowledge_file())}
        elif cfg.data.source == "world":
            recipe = prompts.source_recipe(cfg)
        elif cfg.data.knowledge:
            where = file_digest(cfg.data.folder, cfg.data.knowledge)
            recipe = {"data.knowledge": where}
        else:
            raise UserError("data.knowledge is empty: name a {title, text} JSONL or a database")

        def make() -> None:
            started = time.monotonic()
            tables.begin(folder, recipe)
            out, rows = Path(folder.path) / "knowledge.db", 0
            if not ready and cfg.data.source == "world":
                rows = build.write(prompts.world_of(cfg).articles, out)
            elif not ready:
                rows = build.build([Path(cfg.data.folder) / cfg.data.knowledge], out)
            self.finish_artifact("knowledge", recipe, started, {"rows": rows})

        self.ensure("knowledge", "knowledge", recipe, make)

    def base(self) -> Snapshot:
        """The base model: model.path, or a tiny one trained from scratch."""
        cfg = self.cfg
        if cfg.model.path:
            return Snapshot("base", cfg.model.path, model_digest(cfg.model.path))
        recipe = {f"model.pretrain.{k}": v for k, v in vars(cfg.model.pretrain).items()}
        recipe |= prompts.source_recipe(cfg) | {"version": base_model.VERSION}

        def make() -> None:
            started = time.monotonic()
            out = Path(self.root.path) / "base" / "pretrain"
            tables.begin(self.root / "base/pretrain", recipe)
            figures = self._pretrain(out / "model")
            self.finish_artifact("base/pretrain", recipe, started, {"rows": 1, "figures": figures})

        self.ensure("base/pretrain", "pretrain", recipe, make)
        path = str(Path(self.root.path) / "base" / "pretrain" / "model")
        return Snapshot("base", path, self.fingerprint("base/pretrain"))

    def _pretrain(self, out: Path) -> dict[str, float]:
        import transformers
        from tqdm import tqdm

        transformers.utils.logging.set_verbosity_error()  # it warns of documents that are cut
        transformers.utils.logging.disable_progress_bar()  # of saving one small file
        settings = {k: v for k, v in vars(self.cfg.model.pretrain).items() if k != "documents"}
        with tqdm(desc="pre-training", unit="step", disable=not sys.stderr.isatty()) as bar:

            def on_step(step: int, steps: int, loss: float) -> None:
                bar.total = steps
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(1)

            return base_model.pretrain(
                self._documents(), out, seed=self.cfg.run.seed, on_step=on_step, **settings
            )

    def _documents(self) -> list[str]:
        if self.cfg.model.pretrain.documents == "world":
            return list(prompts.world_of(self.cfg).documents)
        rows = prompts.imported_responses(self.cfg)
        return [f"{r['prompt']}\n{r['text']}" for r in rows]

    def respond(self, model: Snapshot, scope: str, splits: tuple[str, ...]) -> str:
        """`scope/responses`, sampled from the model; imported ones are already there."""
        if not model.path:
            return f"{scope}/responses"
        return self.table(scope, "responses", ["prompts"], model=model, splits=splits)

    def judge(self, scope: str, splits: tuple[str, ...]) -> str:
        """`scope/facts`, and `scope/verdicts` for the given splits."""
        facts = self.table(scope, "facts", [f"{scope}/responses"])
        if splits:
            self.table(scope, "verdicts", [facts, "knowledge"], splits=splits)
        return facts

    def rewards(self, model: Snapshot, scope: str, wanted: set[str]) -> str:
        """`scope/rewards`, with the columns that the tuned models of this run use."""
        inputs = [f"{scope}/responses", f"{scope}/facts"]
        if not wanted or any(w.startswith("factscore") for w in wanted):
            inputs.append(f"{scope}/verdicts")
        if any(w in CONFIDENCES for w in wanted):
            questions = self.table(scope, "questions", [f"{scope}/facts"], splits=("train",))
            answers = self.table(scope, "answers", [questions], model=model)
            inputs += [questions, answers]
        return self.table(scope, "rewards", inputs)

    def train(
        self, name: str, tune: TuneConfig, number: int, start: Snapshot, source: str
    ) -> Snapshot:
        """One round: groups from the rewards of `source`, then DPO from the model `start`."""
        from facttune_ray.training import loop

        cfg, scope = self.cfg, f"{name}/round_{number}"
        groups = self.table(
            scope,
            "groups",
            [f"{source}/rewards", f"{source}/responses"],
            reward=tune.reward,
            splits=("train",),
        )
        chosen = replace(
            cfg.train,
            lr=tune.lr if tune.lr is not None else cfg.train.lr,
            epochs=tune.epochs if tune.epochs is not None else cfg.train.epochs,
        )
        hardware = {"workers", "gpus", "zero"}
        recipe: Recipe = {f"train.{k}": v for k, v in vars(chosen).items() if k not in hardware}
        recipe |= {"input.groups": self.fingerprint(groups), "input.model": start.fingerprint}
        recipe |= {"run.seed": cfg.run.seed, "version": loop.VERSION}
        out = Path(self.root.path) / scope / "train"

        def make() -> None:
            from facttune_ray.stages import worker

            started = time.monotonic()
            tables.begin(self.root / scope / "train", recipe)
            worker.start_ray()
            parts = sorted(Path(self.root.path, groups).glob("part-*.parquet"))
            job = loop.TrainJob(
                groups=tuple(map(str, parts)),
                model=start.path,
                out=str(out),
                train=chosen,
                threshold=cfg.groups.threshold,
                chat=cfg.model.chat,
                seed=cfg.run.seed,
                deepspeed=loop.deepspeed_config(chosen),
            )
            steps = loop.train(job)
            self.finish_artifact(f"{scope}/train", recipe, started, {"rows": steps})

        self.ensure(f"{scope}/train", "train", recipe, make)
        return Snapshot(scope, str(out / "model"), self.fingerprint(f"{scope}/train"))

    def tune(self, name: str, tune: TuneConfig, first: Snapshot, source: str) -> list[Snapshot]:
        """All rounds of one tuned model: each is sampled and scored by the one before."""
        start = first if first.path else self.base()
        rounds: list[Snapshot] = []
        for number in range(1, tune.rounds + 1):
            start = self.train(name, tune, number, start, source)
            rounds.append(start)
            more = number < tune.rounds
            val = ("val",) if self.cfg.evaluation.tuned else ()
            if not more and not val:
                continue
            source = f"{start.name}/tune"
            self.respond(start, source, (("train",) if more else ()) + val)
            train_too = more and tune.reward.startswith("factscore")
            self.judge(source, (("train",) if train_too else ()) + val)
            if more:
                self.rewards(start, source, {tune.reward})
        return rounds

    def loop(self) -> None:
        """FactTune: sample, score, prefer, train; choose by val; measure on test."""
        cfg = self.cfg
        self.knowledge()
        self.driver_table("prompts", "prompts", prompts.recipe(cfg), lambda: prompts.prompts(cfg))
        tuned = {name: t for name, t in cfg.tune.items() if t.rounds}
        wanted: set[str] = {t.reward for t in tuned.values()}
        if cfg.data.source != "world":
            first = Snapshot("imported", "", "")
            source = "imported/all"
            recipe = prompts.recipe(cfg) | {"responses": "imported"}
            self.driver_table(
                f"{source}/responses",
                "responses",
                recipe,
                lambda: prompts.imported_responses(cfg),
            )
            self.judge(source, ("train", "val", "test"))
        else:
            first, source = self.base(), "base/tune"
            self.respond(first, source, ("train", "val"))
            self.judge(source, ("train", "val"))
        self.rewards(first if first.path or not wanted else self.base(), source, wanted)
        rounds = {n: self.tune(n, t, first, source) for n, t in tuned.items()}
        measured = {"base": "base/test"} if first.path else {}
        selection = {}
        if measured:
            self._test(first)
        if cfg.evaluation.tuned:
            for name, snapshots in rounds.items():
                selection[name] = self.select(snapshots)
                chosen = next(s for s in snapshots if s.name == selection[name]["chosen"])
                self._test(chosen)
                measured[name] = f"{chosen.name}/test"
        self.measured, self.selection = measured, selection

    def select(self, rounds: list[Snapshot]) -> dict:
        """The round that the val topics choose, and what it was chosen from."""
        from facttune_ray.evaluation import measure

        return measure.select(self.root, rounds, self.cfg.evaluation.select)

    def _test(self, model: Snapshot) -> None:
        self.respond(model, f"{model.name}/test", ("test",))
        self.judge(f"{model.name}/test", ("test",))

    def evaluate(self, again: bool = False) -> dict:
        """summary.json and report.html, written when a table they come from has changed."""
        from facttune_ray.evaluation import measure

        if self.only not in (None, "evaluate"):
            return {}
        recipe = {k: m["fingerprint"] for k, m in self.manifests.items()}
        recipe["evaluation"] = tables.fingerprint(vars(self.cfg.evaluation))
        found = (self.root / "summary.json").read_json()
        if found and not again and found["run"]["fingerprint"] == tables.fingerprint(recipe):
            if (self.root / "report.html").exists():
                return found
        with tables.writing(self.root.path):
            return measure.write(
                self.root,
                self.cfg,
                measured=self.measured,
                imported="imported/all" if "imported/all/facts" in self.manifests else "",
                selection=self.selection,
                manifests=self.manifests,
                fingerprint=tables.fingerprint(recipe),
            )


def run(cfg: Config, only: str | None = None) -> tuple[dict, list[str]]:
    """Make what is missing (of one stage, when `only` names it). -> (summary, names made)"""
    with FactTune(cfg, only) as this:
        if not this.root.local:
            raise UserError(f"run.out={cfg.run.out}: needs a local or shared folder")
        try:
            this.loop()
        except Missing:
            if not any(m["table"] == only for m in this.manifests.values()):
                raise
            return {}, this.made
        return this.evaluate(), this.made


def report(cfg: Config) -> dict:
    """Write summary and report again from finished tables; makes no table."""
    with FactTune(cfg, "evaluate") as this:
        this.loop()
        return this.evaluate(again=True)
