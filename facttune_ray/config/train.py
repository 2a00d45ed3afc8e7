"""Settings of training: the config section `train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# Keys of training/losses.py
Loss = Literal["dpo", "cdpo", "ipo", "hinge", "reference_free", "dpo_norm", "fact_masked"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of all weights."""

    rank: int = 0  # 0: train all weights
    alpha: float = 32.0  # the adapters' product counts alpha / rank times
    targets: list[str] = field(default_factory=list)  # ends of module names; []: all linear layers
    quantize: Literal["none", "8bit", "4bit"] = "none"  # QLoRA: the frozen weights, on a GPU


@dataclass(frozen=True)
class SFTConfig:
    """Supervised tuning on the groups' responses before DPO, which then starts from its model."""

    epochs: int = 0  # 0: none
    targets: Literal["all", "best"] = "all"  # a prompt's responses, or its best by reward
    lr: float = 5e-7


@dataclass(frozen=True)
class TrainConfig:
    """DPO on groups: Ray Train + DeepSpeed."""

    loss: Loss = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0  # cdpo: share of flipped preferences
    sft_weight: float = 0.0  # of the winners' negative log-likelihood a token, added to the loss
    loss_mean: Literal["pair", "prompt"] = "pair"  # a prompt's pairs count together as one, or not
    sft: SFTConfig = field(default_factory=SFTConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    lr: float = 5e-7
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    weight_decay: float = 0.0
    warmup_steps: int = 150  # linear
    # after warm-up; linear and cosine: down to 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: float = 10.0  # gradient norm
    epochs: int = 1  # passes over the groups, each round
    max_steps: int = 0  # stop after this many optimizer steps; 0: all epochs
    groups_per_step: int = 8  # prompts an optimizer step, all workers together
    pairs_per_step: int = 0  # above 0: as many prompts as hold so many pairs, instead
    pass_tokens: int = 8192  # of a forward pass at most; a step takes several, a group may, too
    share_prefix: bool = True  # run a prompt once for all its responses; the loss is the same
    recompute: bool = False  # activations in the backward pass: a third slower, far less memory
    compile: bool = False  # fused kernels for each layer, made in the first minute: for GPUs
    max_length: int = 512  # tokens of prompt and response; a longer response is cut at its end
    max_prompt_length: int = 0  # tokens of the prompt; 0: no limit of its own
    keep_prompt: Literal["end", "start"] = "end"  # what of a longer prompt is kept
    eval_every: int = 0  # steps between measurements on held-out topics; 0: none
    eval_topics: int = 0  # topics of the train split that are held out for them
    eval_samples: int = 0  # responses drawn at each measurement, one a held-out prompt
    # held-out figure that chooses the model and stops early; none: the last step's model
    best: Literal["none", "loss", "reward_accuracy", "margin"] = "none"
    patience: int = 0  # stop after so many measurements without a better one; 0: never
    save_every: int = 100  # steps between checkpoints; 0: none
    keep: int = 1  # checkpoints kept beside the last: the best by `best`, else the newest
    checkpoints: str = ""  # folder or URI of the checkpoints; "": in the run's folder
    max_failures: int = 3  # workers lost, each time going on from the last checkpoint
    log: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    workers: int = 1  # Ray Train workers
    min_workers: int = 0  # go on with as few when the cluster has no more; 0: `workers`
    gpus: float = 0.0  # GPUs a worker; 0: CPU, gloo
    accelerator: str = ""  # their kind, as sampling.accelerator; of the stage `reference`, too
    # DeepSpeed settings: a name in conf/deepspeed (zero0 ... zero3, zero2_cpu, zero3_cpu,
    # zero3_nvme), or a JSON file's path
    deepspeed: str = "zero0"
