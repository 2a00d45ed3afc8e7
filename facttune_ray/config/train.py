"""Training: the config sections `train` and `tune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from facttune_ray.config.model import Dtype
from facttune_ray.config.setting import setting

# Keys of training/losses.py
Loss = Literal["dpo", "cdpo", "ipo", "hinge", "reference_free", "dpo_norm", "fact_masked"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of all weights."""

    rank: int = setting(0, "Rank of the adapters; 0: train all weights.", ge=0)
    alpha: float = setting(32.0, "The adapters' product is multiplied by alpha / rank.")
    targets: list[str] = setting([], "Ends of module names; []: all linear layers but routers.")
    quantize: Literal["none", "8bit", "4bit"] = setting(
        "none", "QLoRA: quantise the frozen weights, on a GPU."
    )


@dataclass(frozen=True)
class SFTConfig:
    """Supervised tuning on the groups' responses before DPO, which then starts from its model."""

    epochs: int = setting(0, "Passes over the groups; 0: no supervised tuning.", ge=0)
    targets: Literal["all", "best"] = setting(
        "all", "all: every response of a prompt; best: the response of the highest reward."
    )
    lr: float = setting(5e-7, "Peak learning rate.", ge=0)


@dataclass(frozen=True)
class TrainConfig:
    """DPO on groups: Ray Train and DeepSpeed."""

    loss: Loss = setting("dpo", "Preference loss.")
    beta: float = setting(0.1, "Strength of the preference loss' pull to the reference.", gt=0)
    label_smoothing: float = setting(
        0.0, "loss=cdpo: share of preferences that are assumed to be flipped.", ge=0, lt=0.5
    )
    sft_weight: float = setting(
        0.0, "Weight of the winners' negative log-likelihood a token in the loss.", ge=0
    )
    loss_mean: Literal["pair", "prompt"] = setting(
        "pair", "pair: each pair counts the same; prompt: the pairs of a prompt count as one."
    )
    sft: SFTConfig = field(default_factory=SFTConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    lr: float = setting(5e-7, "Peak learning rate.", ge=0)
    optimizer: Literal["rmsprop", "adamw"] = setting("rmsprop", "Optimizer (the paper: rmsprop).")
    weight_decay: float = setting(0.0, "Weight decay of the optimizer.", ge=0)
    warmup_steps: int = setting(150, "Steps of linear warm-up.", unit="steps", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Learning rate after warm-up; linear and cosine go down to 0."
    )
    clip: float = setting(10.0, "Largest gradient norm.", ge=0)
    epochs: int = setting(1, "Passes over the groups in each round.", ge=1)
    max_steps: int = setting(
        0, "Stop after this many optimizer steps; 0: all epochs.", unit="steps", ge=0
    )
    groups_per_step: int = setting(
        8, "Prompts of an optimizer step, all workers together.", unit="prompts", ge=1
    )
    pairs_per_step: int = setting(
        0,
        "Above 0: a step takes as many prompts as hold this many pairs, instead.",
        unit="pairs",
        ge=0,
    )
    pass_tokens: int = setting(
        8192,
        "Most tokens of a forward pass; a step, or a large group, takes several.",
        unit="tokens",
        ge=1,
    )
    share_prefix: bool = setting(
        True, "Run a prompt once for all its responses; the loss is the same."
    )
    recompute: bool = setting(
        False, "Compute activations again in the backward pass: a third slower, far less memory."
    )
    compile: bool = setting(False, "Fuse the kernels of each layer, in the first minute; for GPUs.")
    max_length: int = setting(
        512,
        "Tokens of prompt and response; a longer response is cut at its end.",
        unit="tokens",
        ge=1,
    )
    max_prompt_length: int = setting(
        0, "Most tokens of the prompt; 0: only max_length limits it.", unit="tokens", ge=0
    )
    keep_prompt: Literal["end", "start"] = setting("end", "Part of a longer prompt that is kept.")
    eval_every: int = setting(
        0, "Steps between measurements on held-out topics; 0: none.", unit="steps", ge=0
    )
    eval_topics: int = setting(
        0, "Topics of the train split that are held out for measurements.", unit="topics", ge=0
    )
    eval_samples: int = setting(
        0, "Responses drawn at each measurement, one a held-out prompt.", ge=0
    )
    best: Literal["none", "loss", "reward_accuracy", "margin"] = setting(
        "none",
        "Held-out figure that chooses the model and stops early; none: the last step's model.",
    )
    patience: int = setting(
        0, "Stop after this many measurements without a better figure; 0: never.", ge=0
    )
    save_every: int = setting(100, "Steps between checkpoints; 0: none.", unit="steps", ge=0)
    keep: int = setting(
        1, "Checkpoints kept beside the last: the best by train.best, else the newest.", ge=1
    )
    checkpoints: str = setting("", "Folder or URI of the checkpoints; empty: in the run's folder.")
    max_failures: int = setting(
        3, "Lost workers after which training fails; before, it resumes from a checkpoint.", ge=0
    )
    log: list[Literal["tensorboard", "wandb", "mlflow"]] = setting(
        [], "Trackers that the figures of training are also written to."
    )
    dtype: Dtype = setting("float32", "Type of the weights.")
    workers: int = setting(1, "Ray Train workers.", ge=1)
    min_workers: int = setting(
        0, "Go on with this many when the cluster has no more; 0: train.workers.", ge=0
    )
    gpus: float = setting(0.0, "GPUs of a worker; 0: CPU, gloo.", unit="GPUs", ge=0)
    accelerator: str = setting(
        "", "GPU type, as in sampling.accelerator, also of the stage `reference`; empty: any."
    )
    deepspeed: str = setting(
        "zero0",
        "DeepSpeed settings: path of a JSON file, or a name in conf/deepspeed (zero0 ... zero3, "
        "zero2_cpu, zero3_cpu, zero3_nvme).",
    )


@dataclass(frozen=True)
class TuneConfig:
    """One tuned model: which reward, and how many on-policy rounds."""

    reward: str = setting("factscore", "A column of the table `rewards`, or a name in rewards.mix.")
    rounds: int = setting(
        1, "Sample, score, train; each round starts from the one before; 0: not tuned.", ge=0
    )
    lr: float | None = setting(None, "Peak learning rate; null: train.lr.", ge=0)
    epochs: int | None = setting(
        None, "Passes over the groups in each round; null: train.epochs.", ge=1
    )
