"""Preference training on ten responses a prompt: this project's step beside pairwise trainers.

    *_, found = run(settings(quick=False, prompt_tokens=64), list(dpo_trainers.TRAINERS))
    {"settings": {...}, "results": {"facttune_ray": {"pairs_per_s": 40.1, ...}, "trl": {...}},
     "ratios": {"trl": 20.3, ...}}

Each prompt has ten responses of about 150 tokens with different rewards: 45 pairs. An optimizer
step takes one prompt on a CPU, and eight on a GPU, where the model has a billion parameters. All
trainers (dpo_trainers.py) run the same random Llama on the same texts in the same order with the
same threads, by RMSprop at the same rate without clipping, in float32 (bfloat16 on a GPU, with the
optimizer states). Each runs in its own process, so that its peak memory can be measured. The first
step is left out. The time of a step includes the reference log-probabilities of its pairs, whether
they are made first or beside the policy; `training_pairs_per_s` leaves them out.

TRL and the pairwise loop are tried with several numbers of pairs per forward pass, on fewer
responses; the fastest number runs in full. The prompts repeat, so that a loss moves and wrong
gradients show: `run` fails when a first loss is not ln 2, or when a later loss differs from that of
this project.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import dpo_trainers
from bench.dpo_trainers import OURS, SMALL
from bench.machine import save_random_llama, word

WORDS = 3000
TURNS = 2  # steps until the prompts repeat
SAME = {"float32": 5e-4, "bfloat16": 0.05}  # largest difference between the losses of two trainers
LONGER = 5  # our steps are short, so we run this many times as many


# about a billion parameters, Llama 3.2's shape with Llama 2's vocabulary
ON_GPU = {
    "hidden": 2048,
    "intermediate": 8192,
    "layers": 16,
    "heads": 32,
    "kv_heads": 8,
    "vocab": 32000,
    "dtype": "bfloat16",
    "groups_a_step": 8,
    "steps": 1,
    "compile": True,
    "pass_tokens": 16384,
    "tries": [15, 40],
}


def settings(quick: bool, prompt_tokens: int, device: str = "cpu") -> dict[str, Any]:
    """`steps`: number of measured steps. `tries`: numbers of pairs per forward to try."""
    long = prompt_tokens > 200
    found = {
        "device": device,
        "prompt_tokens": prompt_tokens,
        "response_tokens": [40, 60] if quick else [120, 180],
        "responses": 4 if quick else 10,
        "groups_a_step": 1,
        "hidden": 64 if quick else 256,
        "intermediate": 176 if quick else 704,
        "layers": 2 if quick else 6,
        "heads": 4,
        "kv_heads": 4,
        "vocab": 0,  # at least the tokenizer's
        "steps": 2 if quick or not long else 1,
        # a prompt and two or three responses: about the memory of a pair in the other trainers
        "small_pass_tokens": 150 if quick else 2 * prompt_tokens + 480,
        "pass_tokens": 8192,
        "compile": False,
        "optimizer": "rmsprop",
        "learning_rate": 1e-5,
        "beta": 0.1,
        "dtype": "float32",
        "tries": [3] if quick else [1, 5] if long else [1, 3, 5],
        "try_responses": 4 if quick else 6,
    }
    if device == "cpu":
        return found
    return found | ON_GPU | ({"tries": [15]} if long else {})


def data(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts with their responses, `groups_a_step` for every step. A word is one token."""
    draw = random.Random("dpo")

    def text(count: int) -> str:
        return " ".join(word(draw.randrange(WORDS), 4) for _ in range(count))

    low, high = cfg["response_tokens"]
    groups = [
        {
            "prompt": text(cfg["prompt_tokens"] - 1),  # a line end follows
            "responses": [text(draw.randint(low, high) - 1) for _ in range(cfg["responses"])],
            "rewards": [float(i) for i in draw.sample(range(cfg["responses"]), cfg["responses"])],
        }
        for _ in range(TURNS * cfg["groups_a_step"])
    ]
    return [groups[i % len(groups)] for i in range((cfg["steps"] + 1) * cfg["groups_a_step"])]


def make_model(cfg: dict[str, Any], folder: str | Path) -> None:
    """A random Llama and a tokenizer that has every word, at the start of a line and within it."""
    import torch

    from facttune_ray.quickstart.base_model import train_tokenizer

    words = [word(i, 4) for i in range(WORDS)]
    tokenizer = train_tokenizer(["\n".join(words), " ".join(words)], 2 * WORDS + 500, 1024)
    torch.set_default_dtype(getattr(torch, cfg["dtype"]))
    with torch.device(cfg["device"]):
        save_random_llama(
            folder,
            tokenizer,
            hidden_size=cfg["hidden"],
            intermediate_size=cfg["intermediate"],
            num_hidden_layers=cfg["layers"],
            num_attention_heads=cfg["heads"],
            num_key_value_heads=cfg["kv_heads"],
            vocab_size=max(cfg["vocab"], len(tokenizer)),
            max_position_embeddings=1024,
        )
    torch.set_default_dtype(torch.float32)


def run(cfg: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the results so far after each trainer, at its fastest number of pairs per forward."""
    fewer = cfg | {"responses": cfg["try_responses"], "steps": 1}
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(cfg, folder)
        for name in names:
            results[name] = _best(name, folder, cfg, fewer)
            check({n: found["losses"] for n, found in results.items()}, SAME[cfg["dtype"]])
            yield {"settings": cfg, "results": results, "ratios": _ratios(results)}


def _best(name: str, folder: str, cfg: dict[str, Any], fewer: dict[str, Any]) -> dict[str, Any]:
    """Figures of a trainer at its fastest number of pairs per forward, which `fewer` determines."""
    if name in (OURS, SMALL):
        return _apart(name, folder, cfg | {"steps": cfg["steps"] * LONGER}, 0)
    tries = cfg["tries"] if len(cfg["tries"]) > 1 else []
    tried = {batch: _apart(name, folder, fewer, batch) for batch in tries}
    best = max(tried, key=lambda b: tried[b]["pairs_per_s"], default=cfg["tries"][0])
    return _apart(name, folder, cfg, best) | {
        "pairs_a_forward": best,
        "tried": {
            batch: {k: found[k] for k in ("pairs_per_s", "peak_mb")}
            for batch, found in tried.items()
        },
    }


def _ratios(results: dict[str, dict]) -> dict[str, float]:
    """Trainer -> our pairs per second / its pairs per second; also for our small passes."""
    theirs = {n: r["pairs_per_s"] for n, r in results.items() if n not in (OURS, SMALL)}
    ratios = {n: round(results[OURS]["pairs_per_s"] / rate, 2) for n, rate in theirs.items()}
    if SMALL in results:
        small = results[SMALL]["pairs_per_s"]
        ratios |= {f"small_passes/{n}": round(small / rate, 2) for n, rate in theirs.items()}
    return ratios


def check(losses: dict[str, list[float]], same: float) -> None:
    """RuntimeError when the losses of two trainers differ."""
    for name, found in losses.items():
        if abs(found[0] - math.log(2)) > max(same / 2, 1e-3):
            raise RuntimeError(f"{name}: the first loss is {found[0]}, not ln 2")
        pairs = zip(found, losses[OURS], strict=False)  # ours has more steps
        if any(abs(theirs - ours) > same for theirs, ours in pairs):
            raise RuntimeError(f"{name} has the losses {found}, {OURS} {losses[OURS]}")


def trl_note() -> str:
    """TRL's version, and the setting that is not measured."""
    try:
        return (
            f"{version('trl')}; pairs in order of length; padding_free is left out: it needs the "
            "package flash-attn, and without it TRL falls back to padding"
        )
    except PackageNotFoundError:
        return "not installed"


def _apart(name: str, folder: str, cfg: dict[str, Any], batch: int) -> dict:
    """Figures of a trainer in a fresh process."""
    given = Path(folder, "given.json")
    given.write_text(json.dumps({"groups": data(cfg), "settings": cfg | {"batch": batch}}))
    command = [sys.executable, "-m", dpo_trainers.__name__, name, folder, str(given)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
