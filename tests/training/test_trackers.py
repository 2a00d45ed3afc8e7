"""Figures of a run in files and trackers."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec

import pytest

from facttune_ray.errors import UserError
from facttune_ray.training import trackers

CONFIG = {"train": {"lr": 1e-5, "lora": {"rank": 0}}, "groups": {"threshold": 0.0}}


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_files_are_written_line_by_line(tmp_path):
    with trackers.open([], str(tmp_path), "run", CONFIG, 0) as log:
        log.log(1, {"loss": 0.69}, "train")
        assert read(tmp_path, "train") == [{"step": 1, "loss": 0.69}]
        log.log(1, {"loss": 0.7, "kl": 0.1}, "heldout")
        log.samples(1, [{"prompt": "Wer?", "text": "Ada Ångström"}])
    assert read(tmp_path, "heldout") == [{"step": 1, "loss": 0.7, "kl": 0.1}]
    assert read(tmp_path, "samples") == [{"step": 1, "prompt": "Wer?", "text": "Ada Ångström"}]


def test_a_continued_run_has_no_step_twice(tmp_path):
    with trackers.open([], str(tmp_path), "run", CONFIG, 0) as log:
        for step in (1, 2, 3, 4):
            log.log(step, {"loss": float(step)}, "train")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # cut by a kill
    with trackers.open([], str(tmp_path), "run", CONFIG, 2) as log:
        log.log(3, {"loss": 30.0}, "train")
    assert [(x["step"], x["loss"]) for x in read(tmp_path, "train")] == [(1, 1), (2, 2), (3, 30)]


def test_tensorboard_has_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.open(["tensorboard"], str(tmp_path), "run", CONFIG, 0) as log:
        log.log(1, {"loss": 0.5}, "train")
        log.log(2, {"loss": 0.25, "kl": 0.125}, "heldout")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 0.5)]
    assert [(e.step, e.value) for e in found.Scalars("heldout/kl")] == [(2, 0.125)]


class Down:
    """A service that answers once."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def log(self, step, figures, kind) -> None:
        if self.seen:
            raise ConnectionError("no route")
        self.seen.append(step)

    def close(self) -> None:
        raise AssertionError("was left out")


def test_a_failing_tracker_is_left_out_and_training_continues(tmp_path, caplog):
    with trackers.open([], str(tmp_path), "run", CONFIG, 0) as log:
        log.trackers["wandb"] = down = Down()
        with caplog.at_level(logging.WARNING):
            for step in (1, 2, 3):
                log.log(step, {"loss": 0.5}, "train")
    assert down.seen == [1] and len(read(tmp_path, "train")) == 3
    said = [r.getMessage() for r in caplog.records]
    assert said == ["wandb is left out from here on: ConnectionError: no route"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="train.log=wandb: pip install wandb"):
        trackers.open(["wandb"], str(tmp_path), "run", CONFIG, 0)


def test_a_restarted_run_has_its_first_measurement_once(tmp_path):
    for _ in range(2):  # killed before its first checkpoint
        with trackers.open([], str(tmp_path), "run", CONFIG, 0) as log:
            log.log(0, {"loss": 0.69}, "heldout")
    assert len(read(tmp_path, "heldout")) == 1


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_a_tracker_that_cannot_start_is_one_clear_line(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    with pytest.raises(UserError, match="train.log=tensorboard: cannot start: "):
        trackers.open(["tensorboard"], str(tmp_path), "run", CONFIG, 0)
