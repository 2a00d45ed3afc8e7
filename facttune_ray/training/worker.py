"""One Ray Train worker of a training run: its share of every step, measurement and checkpoint.

    TorchTrainer(worker, train_loop_config={"job": TrainJob(...)})

Every worker walks through the same list of steps, made from seed and table alone, so a checkpoint
holds the number of a step and nothing of the data: whoever loads it, as one of any number of
workers, takes the steps behind it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from facttune_ray import telemetry
from facttune_ray.config import TrainConfig
from facttune_ray.errors import UserError
from facttune_ray.storage.folders import Folder, scratch
from facttune_ray.training.collectives import most, sums, together
from facttune_ray.training.job import TrainJob

# log-probabilities a token of one response, stored and computed again, at most apart
SAME = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
LOOK_S = 2.0  # between two looks for the notice that a host is taken away
HIGHER = ("reward_accuracy", "margin")  # figures of which more is better


def worker(config: dict[str, Any]) -> int | str:
    """-> steps, or what was wrong with the input: the driver says it."""
    try:
        return Training(config["job"]).run()
    except UserError as e:
        return str(e)


@dataclass(frozen=True)
class Place:
    """How far a run is: the caller's part of a checkpoint."""

    step: int = 0  # done
    best_step: int = 0
    best: float | None = None  # held-out figure at best_step, signed so that more is better
    since: int = 0  # measurements since then
    figures: dict[str, float] = field(default_factory=dict)  # of the last step and measurement


class Training:
    """The run as one worker sees it."""

    def __init__(self, job: TrainJob) -> None:
        import ray.train
        import ray.train.torch
        import torch

        from facttune_ray.training import engine, heldout
        from facttune_ray.training.batches import epoch_order, steps_of
        from facttune_ray.training.step import Objective

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.job, cfg = job, job.train
        if job.sft:
            cfg = replace(cfg, lr=job.sft.lr, epochs=job.sft.epochs, pairs_per_step=0)
            self.job = replace(job, train=cfg)
        self.out = Folder.of(job.out)
        # a log grows: where that is impossible, on the first worker's host, and copied
        self.here = Path(self.out.path) if self.out.local else scratch(job.out)
        self.here.mkdir(parents=True, exist_ok=True)
        device = ray.train.torch.get_device() if cfg.gpus else torch.device("cpu")
        if not cfg.gpus:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        self.rows = _rows(job, context.get_local_rank())
        topics = self.rows.table["topic"].to_pylist() if cfg.eval_topics else []
        kept, self.held = (
            heldout.split(topics, cfg.eval_topics, job.seed)
            if cfg.eval_topics
            else (list(range(len(self.rows))), [])
        )
        self.todo: list[tuple[int, list[int]]] = []  # (epoch, rows) of each step
        for epoch in range(cfg.epochs):
            order = [kept[i] for i in epoch_order(len(kept), seed=job.seed, epoch=epoch)]
            self.todo += [(epoch, some) for some in steps_of(order, self.rows.pairs_G, cfg)]
        if cfg.max_steps:
            self.todo = self.todo[: cfg.max_steps]
        self.tokenizer, self.engine, self.model = engine.build(self.job, len(self.todo), device)
        self.objective = Objective(
            "sft" if job.sft else cfg.loss,
            cfg.beta,
            cfg.label_smoothing,
            cfg.sft_weight,
            cfg.pass_tokens,
            cfg.share_prefix and self.model.shares,
        )
        self.device, self.place, self.log = device, Place(), None
        self.looked_s, self.warned = time.monotonic(), False  # for a notice; there was a new one
        self.leaving: list[str] = []  # hosts that will be taken away

    def run(self) -> int:
        """Train from where the last checkpoint ends, and write the model. -> steps done"""
        from facttune_ray.training.engine import states_on_nvme
        from facttune_ray.training.export import export

        cfg, steps, out = self.job.train, len(self.todo), self.job.out
        self._resume()
        self.log = together(self._open_log, f"{out}: cannot be written")
        if cfg.eval_every and not self.place.step:
            self._measure()
        while self.place.step < steps and not self._enough():
            self._step(*self.todo[self.place.step])
            due = cfg.save_every and self.place.step % cfg.save_every == 0
            last = self.place.step == steps
            if cfg.eval_every and (self.place.step % cfg.eval_every == 0 or last):
                due = self._measure() or due
            if due or (self.warned and not states_on_nvme(self.job.deepspeed)):
                self._save()
        done = self.place.step
        self._take_best()
        figures = {"steps": float(self.place.step), **self.place.figures}
        export(
            self.engine,
            self.tokenizer,
            str(self.here / "model"),
            self.rank,
            cfg,
            self.job.model,
            figures,
            self.job.sft,
        )
        if self.log:
            self.log.close()
        together(self._hand_in, f"{out}: cannot be written")
        return done

    def _hand_in(self) -> None:
        """All that the first worker wrote, where `out` is not a folder of its host."""
        if self.rank == 0 and not self.out.local:
            self.out.upload(self.here)
            shutil.rmtree(self.here)

    def _copy_logs(self) -> None:
        from facttune_ray.training.trackers import FILES

        if self.log and not self.out.local:
            for name in FILES:
                (self.out / f"{name}.jsonl").upload(self.here / f"{name}.jsonl")

    def _open_log(self) -> Any:
        """The first worker's."""
        from facttune_ray.training import trackers

        if self.rank:
            return None
        if not self.out.local:  # another host may have written them
            for name in trackers.FILES:
                file = self.out / f"{name}.jsonl"
                if file.exists():
                    (self.here / f"{name}.jsonl").write_bytes(file.read_bytes())
        cfg = self.job.train
        settings = {"train": dataclasses.asdict(cfg), "groups": vars(self.job.groups)}
        return trackers.open(cfg.log, str(self.here), self.job.name, settings, self.place.step)

    # -- one step --------------------------------------------------------------------------

    def _step(self, epoch: int, chosen: Sequence[int]) -> None:
        from facttune_ray.training.engine import grad_norm
        from facttune_ray.training.step import FIGURES, Step

        began, cfg = time.monotonic(), self.job.train
        groups, references, weights = self._groups(chosen)
        # a worker without a group in a short last step takes part with weight 0
        mine = list(range(self.rank, len(chosen), self.world))
        step = Step(
            [groups[i] for i in mine or [0]],
            [references[i] for i in mine or [0]],
            [weights[i] for i in mine] or [[0.0] * len(weights[0])],
            self.objective,
        )
        first, passes = most(len(step.first), len(step.passes), self.device)
        for i in range(first):
            if i < len(step.first):
                step.look(self.engine, i)
            else:
                step.idle(self.engine)
        for i in range(passes):
            self.engine.set_gradient_accumulation_boundary(i == passes - 1)
            last = i < len(step.passes)
            loss = step.loss(self.engine, i) if last else step.idle(self.engine)
            self.engine.backward(loss * self.world)  # it takes the mean over workers
        rate, norm = self.engine.get_lr()[0], grad_norm(self.engine)
        self.engine.step()
        ran = step.tokens if mine else 0
        far = not self.place.step and not step.apart() <= SAME[cfg.dtype]  # NaN is far, too
        look = not self.rank and time.monotonic() - self.looked_s > LOOK_S
        shared = [*step.figures().values(), ran, float(far), float(look)]
        *made, tokens, off, looks = sums(shared, self.device)
        self.warned = bool(looks) and self._told_to_leave()
        figures = dict(zip(FIGURES, made, strict=True))
        if self.job.sft:
            figures = {"loss": figures["loss"]}
        if not math.isfinite(figures["loss"]) and cfg.dtype != "float16":  # which skips such steps
            raise UserError(
                f"step {self.place.step + 1}: the loss is {figures['loss']}: lower train.lr, or "
                f"check that the weights of {self.job.model} are finite"
            )
        if not self.job.sft and not self.place.step:
            check_first(cfg, figures["loss"], bool(off))
        self._know(figures)
        self.place = replace(self.place, step=self.place.step + 1)
        if self.log:
            took = time.monotonic() - began
            pairs = sum(len(g.pairs) for g in groups)
            norm = float(norm or self.engine.get_global_grad_norm() or math.nan)
            line: dict[str, float] = {"steps": len(self.todo), "epoch": epoch, **figures}
            line |= {"lr": rate, "pairs": pairs, "tokens": int(tokens), "seconds": round(took, 6)}
            if math.isfinite(norm):  # not of a step that float16 skips
                line["grad_norm"] = norm
            self.log.log(self.place.step, line, "train")
            telemetry.count("train_pairs", pairs, run=self.job.name)
            telemetry.count("train_tokens", tokens, run=self.job.name)
            telemetry.gauge("train_loss", figures["loss"], run=self.job.name)

    def _know(self, figures: dict[str, float]) -> None:
        """For the model card, and in the checkpoint."""
        self.place = replace(self.place, figures={**self.place.figures, **figures})

    def _told_to_leave(self) -> bool:
        """Whether a host was announced to be taken away (a spot host gets a minute or two) since
        the last look. All workers look together: they agree on the answer."""
        import ray.train

        self.looked_s = time.monotonic()
        notice = ray.train.get_preemption_info()
        before, self.leaving = self.leaving, notice.preempted_node_ids if notice else []
        return self.leaving != before

    def _groups(self, chosen: Sequence[int]) -> tuple[list[Any], list[Any], list[list[float]]]:
        """(groups, their reference log-probabilities, weights of pairs or of targets)."""
        from facttune_ray.training.batches import group_of
        from facttune_ray.training.sft import response_weights, targets_of
        from facttune_ray.training.step import pair_weights

        rows = self.rows.at(chosen)
        if self.job.sft:
            groups = [targets_of(row, self.job.sft.targets) for row in rows]
            nothing = [[[0.0] * len(r) for r in g.responses] for g in groups]
            return groups, nothing, response_weights(groups)
        groups = [group_of(row, self.job.groups) for row in rows]
        weights = pair_weights(groups, self.job.train.loss_mean)
        return groups, [row["logps"] for row in rows], weights

    # -- held-out topics -------------------------------------------------------------------

    def _measure(self) -> bool:
        """Figures of the held-out topics. -> whether they are the best so far"""
        from facttune_ray.training import heldout

        cfg = self.job.train
        groups, references, _ = self._groups(self.held)
        with_pairs = [i for i, g in enumerate(groups) if g.pairs or self.job.sft]
        found = heldout.evaluate(
            self.engine,
            [groups[i] for i in with_pairs],
            [references[i] for i in with_pairs],
            self.objective,
            self.rank,
            self.world,
        )
        self._know({f"heldout_{k}": v for k, v in found.items()})
        place = self.place
        if self.log:
            self.log.log(place.step, found, "heldout")
        if cfg.eval_samples:
            prompts = [g.prompt for g in groups[: cfg.eval_samples]]
            longest = max(len(r) for g in groups for r in g.responses)
            texts = heldout.draw(self.engine, self.tokenizer, prompts, self.job.seed, longest)
            if self.log:
                rows = [
                    {"prompt": self.tokenizer.decode(p, skip_special_tokens=True), "text": text}
                    for p, text in zip(prompts, texts, strict=True)
                ]
                self.log.samples(place.step, rows)
        if cfg.best == "none" or not place.step:
            return False
        score = found[cfg.best] if cfg.best in HIGHER else -found[cfg.best]
        if math.isfinite(score) and (place.best is None or score > place.best):
            self.place = replace(place, best=score, best_step=place.step, since=0)
            return True
        self.place = replace(place, since=place.since + 1)
        return False

    def _enough(self) -> bool:
        """Whether `train.patience` ends the run."""
        patience = self.job.train.patience
        return bool(patience) and self.place.since >= patience

    # -- checkpoints -----------------------------------------------------------------------

    def _resume(self) -> None:
        import ray.train

        if found := ray.train.get_checkpoint():
            self._load(found)

    def _load(self, found: Any) -> None:
        from facttune_ray.training import checkpoint

        with found.as_directory() as folder:
            self.place = Place(**checkpoint.load(self.engine, folder))

    def _save(self) -> None:
        """Write this worker's part and go on; Ray uploads it beside the next steps."""
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        from facttune_ray.training import checkpoint

        together(self._copy_logs, f"{self.job.out}: cannot be written")  # of all its steps
        here = _local(self.job)
        here.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="checkpoint-", dir=here)
        checkpoint.save(self.engine, folder, vars(self.place))
        figures: dict[str, float] = {"step": self.place.step}
        if self.place.best is not None and self.place.best_step == self.place.step:
            figures["score"] = self.place.best
        ray.train.report(
            figures,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def _take_best(self) -> None:
        """Load the checkpoint of the best measurement, unless it is the model at hand."""
        import ray.train
        from ray.train import CheckpointConsistencyMode

        place = self.place
        if place.best is None or place.best_step == place.step:
            return
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        self._load(next(r.checkpoint for r in reported if r.metrics["step"] == place.best_step))


def _local(job: TrainJob) -> Path:
    """This host's folder of a training: its rows, and checkpoints until they are uploaded."""
    return scratch(f"{job.out}/{job.name}")


def _rows(job: TrainJob, local_rank: int) -> Any:
    """The table, from a file that the host's first worker writes and removes when all have it,
    with what a training that was killed left there."""
    from facttune_ray.training import rows

    file = _local(job) / "rows.arrow"

    def write() -> None:
        if local_rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.write(job.rows, file)

    together(write, f"{file}: cannot be written")
    found = together(lambda: rows.Rows(file), f"{file}: cannot be read")
    if local_rank == 0:
        shutil.rmtree(file.parent)
    return found


def check_first(cfg: TrainConfig, loss: float, off: bool) -> None:
    """Before the first update policy and reference agree on every response, so DPO's loss is
    ln 2: errors of several responses could cancel out in it."""
    same = cfg.loss in ("dpo", "cdpo", "dpo_norm", "fact_masked") and not cfg.sft_weight
    if off or same and not abs(loss - math.log(2)) <= 0.02:
        expected = ", not ln 2 = 0.6931" if same else ""
        raise UserError(
            f"first loss is {loss:.4f}{expected}: the stored log-probabilities are not the "
            f"starting model's: make the table reference again, or widen train.dtype"
        )
