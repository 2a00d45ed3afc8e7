"""Write the figures of a training run: always to files, and to trackers by name.

    with open(["tensorboard"], "runs/x/train", "x-round_1", {"train": {...}}, step=0) as log:
        log.log(12, {"loss": 0.61, "margin": 0.4}, "train")       train.jsonl, tensorboard/
        log.log(12, {"loss": 0.64, "kl": 0.002}, "heldout")       heldout.jsonl
        log.samples(12, [{"prompt": "...", "text": "..."}])       samples.jsonl

A run that continues after step 10 drops the lines of later steps, so no step appears twice.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from facttune_ray.errors import UserError
from facttune_ray.storage.schema import digest

Kind = Literal["train", "heldout"]
FILES = ("train", "heldout", "samples")
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # tracker: module
logger = logging.getLogger(__name__)


class Tracker(Protocol):
    def log(self, step: int, figures: dict[str, float], kind: Kind) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Files and trackers of one run. A tracker that fails is logged once and then left out; the
    files have all figures, and training continues."""

    def __init__(self, files: dict[str, TextIO], trackers: dict[str, Tracker]) -> None:
        self.files, self.trackers = files, trackers

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, figures: dict[str, float], kind: Kind) -> None:
        self._write(kind, {"step": step, **figures})
        if kind == "heldout":
            text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
            logger.warning("step %d, held out: %s", step, text)  # only warnings reach a job's log
        self._each(lambda tracker: tracker.log(step, figures, kind))

    def samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self._write("samples", {"step": step, **row})

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        for file in self.files.values():
            file.close()

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self.files[name].write(json.dumps(row, ensure_ascii=False) + "\n")

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            except Exception as e:  # trackers raise errors of all kinds when a service is down
                del self.trackers[name]
                logger.warning("%s is left out from here on: %s: %s", name, type(e).__name__, e)


def open(
    names: Sequence[str], folder: str, run: str, config: dict[str, Any], step: int
) -> Trackers:
    """Files and trackers of a run that has done `step` steps. `config`: settings to show. UserError
    when a tracker is not installed or cannot start."""
    for name in names:
        check(name)
    path = Path(folder)
    files: dict[str, TextIO] = {}
    for name in FILES:
        file = path / f"{name}.jsonl"
        _drop_later(file, step)
        files[name] = builtins.open(file, "a", buffering=1, encoding="utf-8")
    # A run that continues has the same key; a run in another folder has another key.
    key = f"{run}-{digest(str(path.resolve()), chars=8)}"
    trackers: dict[str, Tracker] = {}
    for name in names:
        try:
            trackers[name] = TRACKERS[name](path, key, config, step)
        except Exception as e:  # no account, no network, a wrong setting of the tracker
            line = " ".join(str(e).split())[:200]
            raise UserError(f"train.log={name}: cannot start: {type(e).__name__} {line}") from None
    return Trackers(files, trackers)


def check(name: str) -> None:
    """UserError when a tracker is not installed."""
    if find_spec(NEEDS[name]) is None:
        raise UserError(f"train.log={name}: pip install {NEEDS[name]}, or leave it out")


def _drop_later(path: Path, step: int) -> None:
    """Drop lines of later steps, and an incomplete last line. With step 0, drop all lines."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and step and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    growing = path.with_suffix(".tmp")
    growing.write_text("".join(kept), encoding="utf-8")
    os.replace(growing, path)


def _named(figures: dict[str, float], kind: Kind) -> dict[str, float]:
    return {f"{kind}/{k}": v for k, v in figures.items()}


class TensorBoard:
    def __init__(self, folder: Path, run: str, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", step)

    def log(self, step: int, figures: dict[str, float], kind: Kind) -> None:
        for name, value in _named(figures, kind).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    def __init__(self, folder: Path, run: str, config: dict[str, Any], step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "facttune_ray"),
            id=run,
            name=run,
            dir=str(folder),
            config=config,
            resume="allow",
        )

    def log(self, step: int, figures: dict[str, float], kind: Kind) -> None:
        self.run.log(_named(figures, kind), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    def __init__(self, folder: Path, run: str, config: dict[str, Any], step: int) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "facttune_ray")
        experiment = self.client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self.client.create_experiment(name)
        query = f"tags.`facttune_ray.run` = '{run}'"
        found = self.client.search_runs([where], query, max_results=1)
        if found:
            self.run = found[0].info.run_id
            return
        tags = {"facttune_ray.run": run}
        self.run = self.client.create_run(where, tags=tags, run_name=run).info.run_id
        for section, settings in config.items():
            for key, value in settings.items():
                self.client.log_param(self.run, f"{section}.{key}", value)

    def log(self, step: int, figures: dict[str, float], kind: Kind) -> None:
        for name, value in _named(figures, kind).items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, Callable[[Path, str, dict[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
