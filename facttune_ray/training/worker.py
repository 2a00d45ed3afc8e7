"""One Ray Train worker of a training run: its share of every step, measurement and checkpoint.

    TorchTrainer(worker, train_loop_config={"job": TrainJob(...)})

All workers go through the same list of steps, which depends only on seed and table. So a checkpoint
holds the number of the step and no position in the data, and any number of workers can continue
from it.
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
from facttune_ray.training.collectives import maxima, sums, together
from facttune_ray.training.job import TrainJob

# Tolerance between stored and recomputed log-probability of a response, in nats a token.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
LOOK_S = 2.0  # seconds between two checks for the notice that a host will be taken away
HIGHER = ("reward_accuracy", "margin")  # figures that are better when higher


def worker(config: dict[str, Any]) -> int | str:
    """Return the number of steps, or the error message for the user, which the driver raises."""
    try:
        return Training(config["job"]).run()
    except UserError as e:
        return str(e)


@dataclass(frozen=True)
class Place:
    """The progress of a run, stored in its checkpoints."""

    step: int = 0  # steps done
    best_step: int = 0
    best: float | None = None  # held-out figure at best_step, signed so that higher is better
    since: int = 0  # measurements since best_step
    figures: dict[str, float] = field(default_factory=dict)  # of the last step and measurement


class Training:
    """A training run on one worker."""

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
        # Logs are appended to, which an object store cannot do: write here, and copy.
        self.here = Path(self.out.path) if self.out.local else host_folder(job.out) / "out"
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
            self.todo += [(epoch, step) for step in steps_of(order, self.rows.pairs_G, cfg)]
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
            self.model.one_length,
        )
        self.device, self.place, self.log = device, Place(), None
        self.looked_s, self.warned = time.monotonic(), False  # last check; a notice is new
        self.leaving: list[str] = []  # hosts that will be taken away

    def run(self) -> int:
        """Continue from the last checkpoint, write the model, and return the number of steps."""
        from facttune_ray.training.engine import states_on_nvme
        from facttune_ray.training.export import export

        job, cfg, steps, out = self.job, self.job.train, len(self.todo), self.job.out
        self._resume()
        self.log = together(self._open_log, f"{out}: cannot be written")
        if cfg.eval_every and not self.place.step:
            self._measure()
        while self.place.step < steps and not self._out_of_patience():
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
        model = str(self.here / "model")
        if self.log:
            self.log.close()
        try:
            export(self.engine, self.tokenizer, model, self.rank, cfg, job.model, figures, job.sft)
        except UserError:  # with LoRA, the adapter is complete: keep it
            together(self._upload, f"{out}: cannot be written")
            raise
        together(self._upload, f"{out}: cannot be written")
        self._clean()
        return done

    def _upload(self) -> None:
        """Move the first worker's files to `out`, if `out` is not a local folder."""
        if self.rank == 0 and not self.out.local:
            self.out.upload(self.here)

    def _clean(self) -> None:
        """Remove the training's temporary files, also those of hosts that were lost, where hosts
        share the folder for them. All checkpoints are uploaded then."""
        import ray.train
        from ray.train import CheckpointConsistencyMode

        if ray.train.get_context().get_local_rank():
            return
        # returns when Ray has every worker's part of the checkpoint that was saved last
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        shutil.rmtree(scratch(self.job.out), ignore_errors=True)

    def _copy_logs(self) -> None:
        from facttune_ray.training.trackers import FILES

        if self.log and not self.out.local:
            for name in FILES:
                (self.out / f"{name}.jsonl").upload(self.here / f"{name}.jsonl")

    def _open_log(self) -> Any:
        """Open the trackers on the first worker; None on the others."""
        from facttune_ray.training import trackers

        if self.rank:
            return None
        if not self.out.local:  # another host may have written the logs so far
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
        from facttune_ray.training.step import FIGURES, step_of_worker

        began, cfg = time.monotonic(), self.job.train
        groups, references, weights = self._groups(chosen)
        step, has_group = step_of_worker(
            groups, references, weights, self.objective, self.rank, self.world
        )
        first, passes = maxima([len(step.first), len(step.passes)], self.device)
        for i in range(first):
            if i < len(step.first):
                step.look(self.engine, i)
            else:
                step.idle(self.engine)
        for i in range(passes):
            self.engine.set_gradient_accumulation_boundary(i == passes - 1)
            loss = step.loss(self.engine, i) if i < len(step.passes) else step.idle(self.engine)
            self.engine.backward(loss * self.world)  # DeepSpeed takes the mean over workers
        rate, norm = self.engine.get_lr()[0], grad_norm(self.engine)
        self.engine.step()
        tokens = float(step.tokens if has_group else 0)
        # `not <=` is also true for NaN
        differs = not self.place.step and not step.difference() <= TOLERANCE[cfg.dtype]
        look = not self.rank and time.monotonic() - self.looked_s > LOOK_S
        values = [*step.figures().values(), tokens, float(differs), float(look)]
        *totals, tokens, differing, looks = sums(values, self.device)
        self.warned = bool(looks) and self._told_to_leave()
        figures = dict(zip(FIGURES, totals, strict=True))
        if self.job.sft:
            figures = {"loss": figures["loss"]}
        if not math.isfinite(figures["loss"]) and cfg.dtype != "float16":  # float16 skips the step
            raise UserError(
                f"step {self.place.step + 1}: the loss is {figures['loss']}: lower train.lr, or "
                f"check that the weights of {self.job.model} are finite"
            )
        if not self.job.sft and not self.place.step:
            check_first(cfg, figures["loss"], bool(differing))
        self._add_figures(figures)
        self.place = replace(self.place, step=self.place.step + 1)
        if self.log:
            took = time.monotonic() - began
            pairs = sum(len(g.pairs) for g in groups)
            norm = float(norm or self.engine.get_global_grad_norm() or math.nan)
            line: dict[str, float] = {"steps": len(self.todo), "epoch": epoch, **figures}
            line |= {"lr": rate, "pairs": pairs, "tokens": int(tokens), "seconds": round(took, 6)}
            if math.isfinite(norm):  # NaN in a step that float16 skips
                line["grad_norm"] = norm
            self.log.log(self.place.step, line, "train")
            telemetry.count("train_pairs", pairs, run=self.job.name)
            telemetry.count("train_tokens", tokens, run=self.job.name)
            telemetry.gauge("train_loss", figures["loss"], run=self.job.name)

    def _add_figures(self, figures: dict[str, float]) -> None:
        """Add figures for the model card; they are part of the checkpoint."""
        self.place = replace(self.place, figures={**self.place.figures, **figures})

    def _told_to_leave(self) -> bool:
        """Whether since the last check there is a notice that a host will be taken away (a spot
        host gets a minute or two). All workers check together, so they agree on the answer."""
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
            unused = [[[0.0] * len(r) for r in g.responses] for g in groups]
            return groups, unused, response_weights(groups)
        groups = [group_of(row, self.job.groups) for row in rows]
        weights = pair_weights(groups, self.job.train.loss_mean)
        return groups, [row["logps"] for row in rows], weights

    # -- held-out topics -------------------------------------------------------------------

    def _measure(self) -> bool:
        """Measure the held-out topics; return whether their figure is the best so far."""
        from facttune_ray.training import heldout

        cfg = self.job.train
        groups, references, _ = self._groups(self.held)
        with_pairs = [i for i, g in enumerate(groups) if g.pairs or self.job.sft]
        measured = heldout.evaluate(
            self.engine,
            [groups[i] for i in with_pairs],
            [references[i] for i in with_pairs],
            self.objective,
            self.rank,
            self.world,
        )
        self._add_figures({f"heldout_{k}": v for k, v in measured.items()})
        place = self.place
        if self.log:
            self.log.log(place.step, measured, "heldout")
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
        score = measured[cfg.best] if cfg.best in HIGHER else -measured[cfg.best]
        if math.isfinite(score) and (place.best is None or score > place.best):
            self.place = replace(place, best=score, best_step=place.step, since=0)
            return True
        self.place = replace(place, since=place.since + 1)
        return False

    def _out_of_patience(self) -> bool:
        """Whether `train.patience` ends the run."""
        patience = self.job.train.patience
        return bool(patience) and self.place.since >= patience

    # -- checkpoints -----------------------------------------------------------------------

    def _resume(self) -> None:
        import ray.train

        if saved := ray.train.get_checkpoint():
            self._load(saved)

    def _load(self, saved: Any) -> None:
        from facttune_ray.training import checkpoint

        with saved.as_directory() as folder:
            self.place = Place(**checkpoint.load(self.engine, folder))

    def _save(self) -> None:
        """Write this worker's part of a checkpoint. Ray uploads it during the next steps."""
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        from facttune_ray.training import checkpoint

        together(self._copy_logs, f"{self.job.out}: cannot be written")
        here = host_folder(self.job.out)
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
        """Load the checkpoint of the best measurement, unless it is the current model."""
        import ray.train
        from ray.train import CheckpointConsistencyMode

        place = self.place
        if place.best is None or place.best_step == place.step:
            return
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        self._load(next(r.checkpoint for r in reported if r.metrics["step"] == place.best_step))


def host_folder(out: str) -> Path:
    """This host's folder of the training that writes to `out`: its rows, checkpoints until they are
    uploaded, and its logs if `out` is in an object store. Hosts may share one /tmp, so the folder
    has Ray's id of the host."""
    import ray

    return scratch(out) / ray.get_runtime_context().get_node_id()


def _rows(job: TrainJob, local_rank: int) -> Any:
    """The table `reference`, from a file that the host's first worker writes, and removes when all
    workers have opened it."""
    from facttune_ray.training import rows

    file = host_folder(job.out) / "rows.arrow"

    def write() -> None:
        if local_rank == 0:
            for left in file.parent.glob("checkpoint-*"):  # of a worker that was killed
                shutil.rmtree(left, ignore_errors=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.write(job.rows, file)

    together(write, f"{file}: cannot be written")
    table = together(lambda: rows.Rows(file), f"{file}: cannot be read")
    if local_rank == 0:
        file.unlink()  # the workers have it open
    return table


def check_first(cfg: TrainConfig, loss: float, differs: bool) -> None:
    """UserError unless the policy equals the reference at the first step. `differs`: they differ on
    a response. DPO's loss must be ln 2, but errors of several responses could cancel out in it."""
    known = cfg.loss in ("dpo", "cdpo", "dpo_norm", "fact_masked") and not cfg.sft_weight
    if differs or known and not abs(loss - math.log(2)) <= 0.02:
        expected = ", not ln 2 = 0.6931" if known else ""
        raise UserError(
            f"first loss is {loss:.4f}{expected}: the stored log-probabilities are not the "
            f"starting model's: make the table reference again, or widen train.dtype"
        )
