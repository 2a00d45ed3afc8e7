"""The FactTune loop of one run: sample, score, prefer, train; choose by val; measure on test.

    out/topics, out/prompts         every topic
    out/base/tune/responses ...     the base model on train and val topics, up to rewards
    out/facttune_fs/round_1/groups  preferences of round 1; train/ holds the model they gave
    out/facttune_fs/round_1/tune/   that model on val topics (and train topics, for round 2)
    out/facttune_fs/round_2/test/   the chosen round alone, on test topics
    out/dola/test/                  a contender: another model or decoder, on the same topics

Each tuned model (config section `tune`) takes its reward's rounds: every round samples from the
model of the round before. The round with the best val figure is the one measured on test.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from facttune_ray import opinions, preflight, storage, tables
from facttune_ray.config import Config, TuneConfig
from facttune_ray.contenders import contend, contenders
from facttune_ray.errors import UserError
from facttune_ray.interop import topics
from facttune_ray.memory import give_back
from facttune_ray.pipeline import Missing, Snapshot, full_name, model_digest
from facttune_ray.quickstart import base_model
from facttune_ray.scoring.confidence import CONFIDENCES
from facttune_ray.stages import prompts, stage
from facttune_ray.stages.rewards import asks_model, needed, wanted
from facttune_ray.tuning import Tuning, check_training


class FactTune(Tuning):
    """A run whose nodes are the FactTune loop's."""

    makes = True  # what it names, and needs the models for

    def __init__(self, cfg: Config, only: str | None = None) -> None:
        super().__init__(cfg, only)
        self.taken: set[str] = set()  # tables that were imported

    def knowledge(self) -> None:
        """{title, text} articles -> knowledge/knowledge.db."""
        from facttune_ray.interop.factscore import file_digest
        from facttune_ray.knowledge import build, source
        from facttune_ray.knowledge.local import local_copy

        cfg, folder = self.cfg, self.root / "knowledge"
        ready = source.is_database(cfg.data.knowledge)
        columns = needed(cfg, wanted(cfg))
        needless = "facts" in cfg.data.ready or (
            columns and not any(c.startswith("factscore") for c in columns)
        )
        if ready:
            recipe = {"data.knowledge": source.fingerprint(self.knowledge_file())}
        elif cfg.data.source == "world":
            recipe = prompts.source_recipe(cfg)
        elif cfg.data.knowledge:
            where = file_digest(cfg.data.folder, cfg.data.knowledge)
            recipe = {"data.knowledge": where}
        elif needless:
            recipe = {"data.knowledge": ""}
        else:
            raise UserError("data.knowledge is empty: name a {title, text} JSONL or a database")

        def make() -> None:
            started = time.monotonic()
            tables.begin(folder, recipe)
            rows = 0
            with storage.staged(folder) as here:
                out = here / "knowledge.db"
                if not ready and cfg.data.source == "world":
                    rows = build.write(prompts.world_of(cfg).articles, out)
                elif needless and not cfg.data.knowledge:
                    build.write([], out, least=0)  # no topic has an article: verdicts are null
                elif not ready:
                    given = local_copy(storage.join(cfg.data.folder, cfg.data.knowledge))
                    rows = build.build([Path(given)], out)
            self.finish_artifact("knowledge", recipe, started, {"rows": rows})

        self.ensure("knowledge", "knowledge", recipe, make)

    def base(self) -> Snapshot:
        """The base model: model.path, or a tiny one trained from scratch."""
        cfg = self.cfg
        if cfg.model.path:
            return Snapshot("base", cfg.model.path, model_digest(cfg.model.path))
        if cfg.sampling.engine == "api":
            return Snapshot("base", f"api:{cfg.sampling.llm.model}", "api")
        recipe = {f"model.pretrain.{k}": v for k, v in vars(cfg.model.pretrain).items()}
        recipe |= prompts.source_recipe(cfg) | {"version": base_model.VERSION}

        def make() -> None:
            started = time.monotonic()
            tables.begin(self.root / "base/pretrain", recipe)
            with storage.staged(self.root / "base/pretrain") as here:
                settings = {k: v for k, v in vars(cfg.model.pretrain).items() if k != "documents"}
                figures = base_model.pretrain_shown(
                    self._documents(), here / "model", seed=cfg.run.seed, **settings
                )
            self.finish_artifact("base/pretrain", recipe, started, {"rows": 1, "figures": figures})

        self.ensure("base/pretrain", "pretrain", recipe, make)
        path = (self.root / "base/pretrain/model").uri
        return Snapshot("base", path, self.fingerprint("base/pretrain"))

    def _documents(self) -> list[str]:
        if self.cfg.model.pretrain.documents == "world":
            return list(prompts.world_of(self.cfg).documents)
        return [f"{r['prompt']}\n{r['text']}" for r in prompts.imported_responses(self.cfg)]

    def table(
        self, scope: str, name: str, inputs: Iterable[str], cfg: Config | None = None, **work: Any
    ) -> str:
        """As `Run.table`; one of `data.ready` is there already."""
        if full_name(scope, name) in self.taken:
            return f"{scope}/{name}"
        return super().table(scope, name, inputs, cfg, **work)

    def take(self, scope: str) -> None:
        """The tables that stand in the folder's files: `data.ready`."""
        from facttune_ray.interop import ready

        data = self.cfg.data
        for kind, name in ((k, t) for k in data.ready for t in ready.TABLES[k]):
            recipe = prompts.recipe(self.cfg) | {"ready": name}
            topics = (rows[0]["topic"] for rows in self._by_topic(kind))
            recipe |= ready.recipe(data, name, topics)
            rows = functools.partial(self._ready, kind, name)
            self.taken.add(self.driver_table(f"{scope}/{name}", name, recipe, rows))

    def _ready(self, kind: str, name: str) -> Iterator[dict]:
        from facttune_ray.interop import ready

        for responses in self._by_topic(kind):
            yield from ready.rows(self.cfg.data, name, responses)

    def _by_topic(self, kind: str) -> Iterator[list[dict]]:
        """Imported responses; but for facts, only train responses are asked about."""
        responses = prompts.numbered(prompts.imported_responses(self.cfg))
        for _, rows in itertools.groupby(responses, key=lambda r: r["topic"]):
            found = [r for r in rows if kind == "facts" or r["split"] == "train"]
            if found:
                yield found

    def prompts(self) -> None:
        """The table `prompts`: written by the driver, or made of the topics of a file."""
        cfg = self.cfg
        if cfg.data.source == "topics":
            recipe = prompts.topics_recipe(cfg)
            self.driver_table("topics", "topics", recipe, lambda: topics.topics(cfg))
            self.table("", "prompts", ["topics"])
        else:
            recipe = prompts.recipe(cfg)
            rows = functools.partial(prompts.prompts, cfg)
            self.driver_table("prompts", "prompts", recipe, rows, prompts.once)

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
        """`scope/rewards`, with the wanted columns and those of the wanted mixes."""
        with self.streaming():
            rewards = self._rewards(model, scope, needed(self.cfg, wanted))
        mix = {n: dict(w) for n, w in self.cfg.rewards.mix.items() if n in wanted}
        if mix:
            moments = self.moments(rewards, {c for w in mix.values() for c in w})
            self.table(scope, "mixes", [rewards], mix=mix, moments=moments)
        return rewards

    def _rewards(self, model: Snapshot, scope: str, columns: set[str]) -> str:
        responses, facts = f"{scope}/responses", f"{scope}/facts"
        inputs, sampled = [responses, facts], []
        if not columns or any(c.startswith("factscore") for c in columns):
            inputs.append(f"{scope}/verdicts")
        train: dict[str, Any] = {"splits": ("train",)}
        if columns & {*CONFIDENCES, "samp_conf"}:
            questions = self.table(scope, "questions", [facts, "prompts"], **train)
            sampled += [questions, self.table(scope, "answers", [questions], model=model)]
            inputs.append(questions)
        if any(c.startswith("ne_") for c in columns):
            sampled.append(self.table(scope, "entities", [responses], model=model, **train))
            inputs.append(sampled[-1])
        if sampled:
            inputs.append(self.table(scope, "classes", sampled))
        if "p_true" in columns:
            inputs.append(self.table(scope, "p_true", [facts], model=model, **train))
        return self.table(scope, "rewards", inputs)

    def moments(self, rewards: str, columns: set[str]) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each column over train responses."""
        from facttune_ray.evaluation import rewards as measured

        return measured.moments(self.root / rewards, sorted(columns))

    def train(
        self, name: str, tune: TuneConfig, number: int, start: Snapshot, source: str
    ) -> Snapshot:
        """One round: groups from the rewards of `source`, then DPO from the model `start`, which
        is tuned on the groups' responses first where `train.sft` says so."""
        cfg, scope = self.cfg, f"{name}/round_{number}"
        table = f"{source}/{'mixes' if tune.reward in cfg.rewards.mix else 'rewards'}"
        groups = self.table(
            scope,
            "groups",
            [table, f"{source}/responses"],
            reward=tune.reward,
            splits=("train",),
        )
        self.check_pairs(groups, table, tune.reward)
        if number == 1 and cfg.train.sft.epochs:
            start = self.supervised(f"{name}/sft", groups, start)
        masked = cfg.train.loss == "fact_masked"
        judged = [f"{source}/facts", f"{source}/verdicts"] if masked else []
        rows = self.table(scope, "reference", [groups, *judged], model=start)
        chosen = replace(
            cfg.train,
            lr=tune.lr if tune.lr is not None else cfg.train.lr,
            epochs=tune.epochs if tune.epochs is not None else cfg.train.epochs,
        )
        return self.preferred(scope, rows, start, chosen)

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
            columns = needed(self.cfg, {tune.reward})
            train_too = more and any(c.startswith("factscore") for c in columns)
            with self.streaming():
                self.respond(start, source, (("train",) if more else ()) + val)
                self.judge(source, (("train",) if train_too else ()) + val)
            if more:
                self.rewards(start, source, {tune.reward})
        return rounds

    def _tune_all(
        self, tuned: dict[str, TuneConfig], first: Snapshot, source: str
    ) -> dict[str, list[Snapshot]]:
        """Rounds of every tuned model. Missing, of the first that lacks a table, after all."""
        rounds, lacking = {}, None
        for name, tune in tuned.items():
            try:
                rounds[name] = self.tune(name, tune, first, source)
            except Missing as e:
                lacking = lacking or e
        if lacking is not None:
            raise lacking
        return rounds

    def loop(self) -> None:
        """FactTune: sample, score, prefer, train; choose by val; measure on test."""
        cfg = self.cfg
        check_training(cfg)
        begun = self.only is not None or (self.root / "summary.json").exists()
        preflight.check(cfg, self.knowledge_file(), models=self.makes and not begun)
        opinions.check(cfg)
        if any(c.startswith("ne_") for c in needed(cfg, wanted(cfg))):
            stage("entities").hints(cfg)  # a missing spaCy pipeline, before anything is paid
        self.knowledge()
        self.prompts()
        tuned = {name: t for name, t in cfg.tune.items() if t.rounds}
        if cfg.data.source in prompts.IMPORTED:
            first = Snapshot("imported", "", "")
            source = "imported/all"
            recipe = prompts.recipe(cfg) | {"responses": "imported"}
            rows = functools.partial(prompts.imported_responses, cfg)
            self.driver_table(f"{source}/responses", "responses", recipe, rows, prompts.numbered)
            self.take(source)
            self.judge(source, ("train", "val", "test"))
        else:
            first, source = self.base(), "base/tune"
            with self.streaming():
                self.respond(first, source, ("train", "val"))
                self.judge(source, ("train", "val"))
        made = wanted(cfg)
        again = not first.path and asks_model(cfg, needed(cfg, made))
        self.rewards(self.base() if again else first, source, made)
        rounds = self._tune_all(tuned, first, source)
        measured, selection = {}, {}
        last = {name: snapshots[-1] for name, snapshots in rounds.items()}
        compared = rounds if cfg.evaluation.tuned else {}
        if first.path or compared:  # what a tuned model is compared with
            measured["base"] = self._test(first if first.path else self.base())
        for name, snapshots in compared.items():
            selection[name] = self.select(snapshots)
            last[name] = next(s for s in snapshots if s.name == selection[name]["chosen"])
            measured[name] = self._test(last[name])
        for one in contenders(cfg):
            measured[one.name] = contend(self, one, last)
        self.measured, self.selection, self.scored = measured, selection, source
        opinions.opinions(self, measured or {"": source})

    def whole(self) -> bool:
        """`loop`, or as much of it as one stage can make. -> whether all of it is there"""
        cfg, only = self.cfg, self.only
        if cfg.data.groups not in ("", None):
            raise UserError("data.groups: only `facttune train` takes preferences from files")
        try:
            self.loop()
        except Missing:
            if not any(m["table"] == only for m in self.manifests.values()):
                raise
            return False
        return True

    def select(self, rounds: list[Snapshot]) -> dict:
        """The round that the val topics choose, and what it was chosen from."""
        from facttune_ray.evaluation import measure

        return measure.select(self.root, rounds, self.cfg.evaluation.select)

    def _test(self, model: Snapshot) -> str:
        """Its responses to the test topics, judged. -> their scope"""
        scope = f"{model.name}/test"
        with self.streaming():
            self.respond(model, scope, ("test",))
            self.judge(scope, ("test",))
        return scope

    def evaluate(self, again: bool = False) -> dict:
        """summary.json and report.html, written when a table they come from has changed."""
        from facttune_ray.evaluation import measure

        if self.only not in (None, "evaluate"):
            return {}
        recipe = {k: m["fingerprint"] for k, m in self.manifests.items()}
        recipe["evaluation"] = tables.fingerprint(measure.recipe(self.cfg))
        found = (self.root / "summary.json").read_json()
        if found and not again and found["run"]["fingerprint"] == tables.fingerprint(recipe):
            if (self.root / "report.html").exists():
                return found
        give_back()  # what the stages' coordination has left
        with tables.writing(self.root):
            return measure.write(
                self.root,
                self.cfg,
                measured=self.measured,
                imported="imported/all" if "imported/all/facts" in self.manifests else "",
                rewards=self.scored,
                selection=self.selection,
                manifests=self.manifests,
                fingerprint=tables.fingerprint(recipe),
                knowledge=self.knowledge_file(),
            )


def run(cfg: Config, only: str | None = None) -> tuple[dict, list[str]]:
    """Make what is missing (of one stage, when `only` names it). -> (summary, names made)"""
    with FactTune(cfg, only) as this:
        found = this.whole()
        return this.evaluate() if found else {}, this.made


def train(cfg: Config) -> tuple[list[str], list[str]]:
    """Train every model whose rewards are there. -> (folders of the models, names made)"""
    with FactTune(cfg, "train") as this:
        this.also = frozenset({"groups", "reference"})
        this.whole()
        trained = [n for n, m in this.manifests.items() if m["table"] == "train"]
        if not trained:
            raise UserError("nothing to train: `tune` names no model with rounds")
        return [(this.root / name / "model").uri for name in trained], this.made


def evaluate(cfg: Config) -> dict:
    """Missing responses, facts and verdicts of base and trained models, summary and report."""
    with FactTune(cfg, "evaluate") as this:
        this.also = frozenset({"responses", "facts", "verdicts", "judgements"})
        this.whole()
        return this.evaluate()


def report(cfg: Config) -> dict:
    """Write summary and report again from finished tables; makes no table."""
    with FactTune(cfg, "evaluate") as this:
        this.loop()
        return this.evaluate(again=True)
