"""Facts about this machine and process, the file of results, and random models and words."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu".split()


def machine(**more: Any) -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "arch": platform.machine()} | more


def write(out: str, result: dict[str, Any], shown: str = "") -> None:
    """Write a JSON file of results with this machine; print one of its keys if `shown`."""
    Path(out).write_text(json.dumps({"machine": machine()} | result, indent=1) + "\n")
    if shown:
        print(json.dumps(result[shown], indent=1), flush=True)


def memory(field: str) -> int | None:
    """Bytes of this process: VmRSS is its memory now, VmHWM its peak. None without Linux's /proc.

    `ru_maxrss` is not used, because that of a child starts with that of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":"))


def peak_mb() -> float | None:
    peak = memory("VmHWM")
    return None if peak is None else round(peak / 2**20, 1)


def word(number: int, syllables: int) -> str:
    """A made-up word; different numbers below 15^syllables give different words."""
    return "".join(SYLLABLES[number // 15**i % 15] for i in range(syllables))


def save_random_llama(folder: str | Path, tokenizer: Any, **config: Any) -> None:
    """Save a Llama with random weights, and its tokenizer. `config`: fields of LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    defaults = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 3 * config["hidden_size"],
        "num_key_value_heads": config["num_attention_heads"],
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**defaults | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
