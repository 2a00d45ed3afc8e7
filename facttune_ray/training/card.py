"""The model card of an exported model: its base model, settings and figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facttune_ray.config import SFTConfig, TrainConfig

LIBRARIES = ("facttune_ray", "torch", "transformers", "deepspeed")


def card(
    train: TrainConfig,
    start: str,
    figures: dict[str, float],
    sft: SFTConfig | None = None,
    *,
    checked: str = "",
    adapted: Sequence[str] = (),
) -> str:
    """Markdown with the Hub's front matter. `start`: the model that was tuned, as the user named
    it; of a folder, the card shows the name only. `figures`: of the run, by name. `checked`: what
    was compared after the folder was written; `adapted`: ends of the names of layers with an
    adapter."""
    hub = not Path(start).exists() and "://" not in start
    loss = "supervised tuning" if sft else train.loss
    settings = {
        "loss": loss,
        "beta": train.beta,
        "optimizer": f"{train.optimizer}, learning rate {train.lr:g}, {train.schedule}",
        "prompts a step": train.groups_per_step,
        "precision": train.dtype,
    }
    if train.pairs_per_step:
        del settings["prompts a step"]
        settings["pairs a step"] = train.pairs_per_step
    if sft:
        del settings["beta"]
    if train.lora.rank:
        layers = f", on {', '.join(adapted)}" if adapted else ""
        settings["LoRA"] = f"rank {train.lora.rank}, alpha {train.lora.alpha:g}{layers}"
    if checked:
        settings["checked"] = f"{checked}; config.json also has the keys of transformers 4"
    front = ["library_name: transformers", "tags:", f"- {'sft' if sft else 'dpo'}", "- factuality"]
    if hub:
        front.insert(0, f"base_model: {start}")
    base = start if hub else Path(start).name
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {base}, tuned for factuality",
            "",
            f"`{base}` after {loss} on groups of its responses, rewarded by how true they are "
            f"(FactTune, Tian et al. 2023, arXiv 2311.08401).",
            "",
            "| setting | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in settings.items()),
            "",
            "| figure | |",
            "| --- | ---: |",
            *(f"| {name} | {value:.6g} |" for name, value in figures.items()),
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
            "```",
            "",
            f"Made with {versions}.",
            "",
        ]
    )
