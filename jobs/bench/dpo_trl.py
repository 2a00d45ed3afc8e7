"""TRL's DPOTrainer in its fastest settings, for dpo.py.

    trl(path, groups, settings)               the frozen reference model beside the policy
    trl_precomputed(path, groups, settings)   its reference log-probabilities made first

Defaults that cost time here are off (gradient checkpointing, bf16), and so is clipping, which the
other trainers do not do. Rows keep their order.
"""

from __future__ import annotations

import tempfile
from typing import Any

from bench.dpo_meter import Groups, Meter, load, optimizer, tiny, warm_up


def trl_rows(groups: Groups) -> list[dict[str, str]]:
    """The pairs of each step in order of length, so that a device batch has little padding."""
    from facttune_ray.scoring.pairs import pairs

    rows = []
    for g in groups:
        words = [len(r.split()) for r in g["responses"]]
        by_length = sorted(pairs(g["rewards"]), key=lambda p: max(words[p[0]], words[p[1]]))
        rows += [
            {
                "prompt": g["prompt"] + "\n",
                "chosen": g["responses"][win],
                "rejected": g["responses"][lose],
            }
            for win, lose in by_length
        ]
    return rows


def trl(
    path: str, groups: Groups, cfg: dict[str, Any], precomputed: bool = False
) -> dict[str, Any]:
    """cfg["batch"] pairs per device step; gradients are accumulated over an optimizer step."""
    rows, batch = trl_rows(groups), cfg["batch"]
    steps = len(groups) // cfg["groups_a_step"]
    count = len(rows) // steps
    if count % batch:
        raise ValueError(f"{count} pairs a step are not a multiple of {batch} a forward")
    warm_up()
    tokenizer = load(path, cfg)[0]
    # train a tiny model first, so that TRL's imports do not count as memory of the training
    once = cfg | {"batch": 1, "groups_a_step": 1}
    small = [tiny(len(tokenizer)) for _ in range(2)]
    _train(small[0], None if precomputed else small[1], tokenizer, rows[:1], 1, once, Meter())
    meter = Meter(cfg["device"])
    policy = meter.count(load(path, cfg)[1])
    reference = None if precomputed else meter.count(load(path, cfg)[1])
    before = _train(policy, reference, tokenizer, rows, count, cfg, meter)
    if precomputed and not before[1]:
        raise RuntimeError("TRL did not compute reference log-probabilities first")
    return meter.figures(count, [x / steps for x in before])


def trl_precomputed(path: str, groups: Groups, cfg: dict[str, Any]) -> dict[str, Any]:
    return trl(path, groups, cfg, precomputed=True)


def _train(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    rows: list[dict[str, str]],
    count: int,
    cfg: dict[str, Any],
    meter: Meter,
) -> list[float]:
    """Train in steps of `count` rows. Returns the seconds, tokens and padded tokens that were spent
    on reference log-probabilities before the first step; zeros with a reference model."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    spent: list[float] = [0.0, 0, 0]

    class Clock(TrainerCallback):
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            meter.mark()

        def on_log(self, *_args: Any, logs: Any = None, **_more: Any) -> None:
            if logs and "loss" in logs:
                meter.losses.append(float(logs["loss"]))

    class Trainer(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any) -> Any:
            before = meter.now()
            logps = super()._precompute_ref_logps(*args)
            spent[:] = [b - a for a, b in zip(before, meter.now(), strict=True)]
            return logps

    tokenizer.pad_token = tokenizer.eos_token
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            policy,
            reference,
            DPOConfig(
                out,
                per_device_train_batch_size=cfg["batch"],
                gradient_accumulation_steps=count // cfg["batch"],
                train_sampling_strategy="sequential",
                precompute_ref_log_probs=reference is None,
                precompute_ref_batch_size=cfg["batch"],
                learning_rate=cfg["learning_rate"],
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                num_train_epochs=1,
                max_length=1024,
                beta=cfg["beta"],
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=cfg["device"] == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            optimizers=(optimizer(policy, cfg), None),
        )
        meter.mark()
        trainer.train()
    return spent
