"""Preference training on ten responses a prompt: this project's step beside pairwise trainers.

    *_, found = run(settings(quick=False, prompt_tokens=64), list(dpo_trainers.CONTENDERS))
    {"settings": {...}, "results": {"facttune_ray": {"pairs_per_s": 40.1, ...}, "trl": {...}},
     "ratios": {"trl": 20.3, ...}}

Each prompt has ten responses of about 150 tokens with different rewards: 45 pairs. An optimizer
step takes one prompt on a CPU, eight on a GPU, where the model has a billion parameters. All
contenders (benchmarks/dpo_trainers.py) run the same random Llama, the same texts in the same
order, RMSprop at the same rate without clipping, float32 (bfloat16 on a GPU, optimizer states
too), on the same threads, each in a process of its own so that its peak memory is its own. The
first step is left out. Every step pays for reference log-probabilities of its own pairs, whether
made first or beside the policy.

`training_pairs_per_s` leaves that out.

TRL and the pairwise loop are tried with several pairs a forward, on fewer responses; the fastest
runs in full. The prompts take turns, so that a loss moves and wrong gradients show: `run` fails
when a first loss is not ln 2, or a later one is not that of this project.
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

WORDS = 3000
TURNS = 2  # steps until the prompts come again
SAME = {"float32": 5e-4, "bfloat16": 0.05}  # losses of two contenders, at most apart
LONGER = 5  # times as many steps of ours, which are short


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
    """`steps` are measured, after one that is not. `tries`: pairs a forward that are tried."""
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
        # of prompt and two or three responses: about what a pair takes in the other trainers
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


def word(number: int) -> str:
    syllables = "ba ce di fo gu ha je ki lo mu na pe ri so tu".split()
    return "".join(syllables[number // 15**i % 15] for i in range(4))


def data(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts with their responses, `groups_a_step` for every step; a word is a token."""
    draw = random.Random("dpo")

    def text(count: int) -> str:
        return " ".join(word(draw.randrange(WORDS)) for _ in range(count))

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
    """A random Llama and a tokenizer that knows every word, at a line's start and within."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from facttune_ray.quickstart.base_model import train_tokenizer

    words = [word(i) for i in range(WORDS)]
    tokenizer = train_tokenizer(["\n".join(words), " ".join(words)], 2 * WORDS + 500, 1024)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, cfg["dtype"]))
    torch.set_default_device(cfg["device"])
    lm = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=cfg["hidden"],
            intermediate_size=cfg["intermediate"],
            num_hidden_layers=cfg["layers"],
            num_attention_heads=cfg["heads"],
            num_key_value_heads=cfg["kv_heads"],
            vocab_size=max(cfg["vocab"], len(tokenizer)),
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("cpu")
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(cfg: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Every contender at its fastest number of pairs a forward; what is known after each."""
    fewer = cfg | {"responses": cfg["try_responses"], "steps": 1}
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(cfg, folder)
        for name in names:
            results[name] = _best(name, folder, cfg, fewer)
            check({n: found["losses"] for n, found in results.items()}, SAME[cfg["dtype"]])
            yield {"settings": cfg, "results": results, "ratios": _ratios(results)}


def _best(name: str, folder: str, cfg: dict[str, Any], fewer: dict[str, Any]) -> dict[str, Any]:
    """Figures of a contender at its fastest number of pairs a forward, found with `fewer`."""
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
    """Contender -> our pairs a second / its own; with small passes, too."""
    theirs = {n: r["pairs_per_s"] for n, r in results.items() if n not in (OURS, SMALL)}
    ratios = {n: round(results[OURS]["pairs_per_s"] / rate, 2) for n, rate in theirs.items()}
    if SMALL in results:
        small = results[SMALL]["pairs_per_s"]
        ratios |= {f"small_passes/{n}": round(small / rate, 2) for n, rate in theirs.items()}
    return ratios


def check(losses: dict[str, list[float]], same: float) -> None:
    """RuntimeError when the contenders did not train the same."""
    for name, found in losses.items():
        if abs(found[0] - math.log(2)) > max(same / 2, 1e-3):
            raise RuntimeError(f"{name}: the first loss is {found[0]}, not ln 2")
        pairs = zip(found, losses[OURS], strict=False)  # ours has more steps
        if any(abs(theirs - ours) > same for theirs, ours in pairs):
            raise RuntimeError(f"{name} has the losses {found}, {OURS} {losses[OURS]}")


def trl_note() -> str:
    """Its version, and what of its settings is not measured."""
    try:
        return (
            f"{version('trl')}; pairs in order of length; padding_free is left out: it needs the "
            "package flash-attn, and without it TRL falls back to padding"
        )
    except PackageNotFoundError:
        return "not installed"


def _apart(name: str, folder: str, cfg: dict[str, Any], batch: int) -> dict:
    """Figures of a contender in a fresh process."""
    given = Path(folder, "given.json")
    given.write_text(json.dumps({"groups": data(cfg), "settings": cfg | {"batch": batch}}))
    command = [sys.executable, "-m", dpo_trainers.__name__, name, folder, str(given)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
