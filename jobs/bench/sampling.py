"""Sampling short answers: this project's engine beside two ways to call `model.generate`.

    python jobs/bench_sampling.py --out FILE.json

64 questions behind 11 worked ones, 20 samples each, 15 new tokens at most, temperature 1, nucleus
0.9. All samplers run the same Llama with random weights on the same tokens with the same settings,
in one process on the same threads. Figures are samples per second.

    facttune_ray       the transformers engine, as the stage `answers` calls it
    reference_loop     every prompt n times, 20 rows a call, left padding, all tokens to the end
    generate_batched   num_return_sequences=n with the fastest number of questions per call, and a
                       newline ends a row, as a careful user of generate would write it

There are two scenarios. "full_length": no sample ends early, so every sampler makes the same number
of tokens. "early_end": a newline has probability 0.25 at each step, as at the end of real answers;
the reference's loop does not stop there. Random weights at Llama's usual scale give nearly uniform
tokens, the slowest case for a nucleus. The output layer is therefore scaled so that a token has an
entropy of a few nats, as in a trained model.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.machine import save_random_llama, word
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling.protocol import SampleRequest
from facttune_ray.sampling.transformers import TransformersSampler

OURS = "facttune_ray"
SHOTS, N, NEW_TOKENS, TOP_P, CHUNK = 11, 20, 15, 0.9, 20
NEWLINE = 0.25  # its probability at a step of "early_end"
ENTROPY = 2.5  # nats of a next token


def settings(quick: bool, **model: Any) -> dict[str, Any]:
    """`model`: device, dtype, hidden, layers, vocab, max_rows that differ from the defaults."""
    out = {
        "questions": 24 if quick else 64,
        "samples": N,
        "shots": SHOTS,
        "new_tokens": NEW_TOKENS,
        "temperature": 1.0,
        "top_p": TOP_P,
        "entropy_nats": ENTROPY,
        "device": "cpu",
        "dtype": "float32",
        "hidden": 256,
        "layers": 4,
        "head_dim": 64,
        "vocab": 8000,
        "max_rows": 512,
        "repeats": 1 if quick or model.get("device") == "cuda" else 2,
    }
    return out | {k: v for k, v in model.items() if v is not None}


def _word(number: int) -> str:
    return word(number, 3 + number // 15**3)


def texts(questions: int) -> tuple[str, list[str]]:
    """(worked questions, prompts): about 25 tokens per worked question, 11 to 17 per prompt."""
    rng = random.Random("sampling")

    def asked() -> str:
        words = " ".join(_word(rng.randrange(3000)) for _ in range(rng.randint(5, 11)))
        return f"Question: What {words}?\nAnswer:"

    shots = [
        f"{asked()} {' '.join(_word(rng.randrange(3000)) for _ in range(rng.randint(2, 8)))}\n"
        for _ in range(SHOTS)
    ]
    return "".join(shots), [asked() for _ in range(questions)]


def make_model(folder: Path, options: dict[str, Any]) -> str:
    every = " ".join(_word(i) for i in range(options["vocab"] - 300))  # beside 256 bytes
    prefix, prompts = texts(options["questions"])
    tokenizer = train_tokenizer([prefix, *prompts, f" {every}"], options["vocab"], 4096)
    save_random_llama(
        folder,
        tokenizer,
        hidden_size=options["hidden"],
        num_hidden_layers=options["layers"],
        num_attention_heads=max(1, options["hidden"] // options["head_dim"]),
        max_position_embeddings=4096,
    )
    return str(folder)


class Output(torch.nn.Linear):
    """An output layer that gives a newline the same probability at every step, or 0, and the end
    mark 0. All samplers pay for its sum over the vocabulary."""

    def __init__(
        self, weight_VH: torch.Tensor, ending: int, eos: int, newline: float | None
    ) -> None:
        vocab, width = weight_VH.shape
        super().__init__(width, vocab, bias=False, device=weight_VH.device, dtype=weight_VH.dtype)
        self.weight.copy_(weight_VH)
        self.never, self.ending, self.newline = [ending, eos], ending, newline

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits = super().forward(states)
        logits[..., self.never] = -1e4
        if self.newline is not None:
            rest = torch.logsumexp(logits.float(), dim=-1)
            odds = math.log(self.newline / (1 - self.newline))
            logits[..., self.ending] = (rest + odds).to(logits.dtype)
        return logits


@torch.inference_mode()
def set_output(sampler: TransformersSampler, prompts: list[str], newline: float | None) -> float:
    """Scale the output layer to the wanted entropy, and give a newline its probability. Returns the
    mean entropy."""
    model, tok = sampler.model, sampler.tokenizer
    states = torch.cat(
        [model.model(torch.tensor([_ids(tok, p)]).to(model.device))[0][0] for p in prompts]
    )
    head = model.lm_head
    low, high = 0.1, 1000.0
    for _ in range(40):
        scale = (low * high) ** 0.5
        logits = (head.weight @ states.T).T.float() * scale
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
        low, high = (scale, high) if entropy > ENTROPY else (low, scale)
    (ending,) = tok("\n")["input_ids"]
    out = Output(head.weight * scale, ending, tok.eos_token_id, newline)
    model.lm_head = out
    return entropy


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def ours(sampler: TransformersSampler, prefix: str, prompts: list[str]) -> list[str]:
    sampler._prefixes.clear()  # the prefix is part of the work
    got = sampler.sample(SampleRequest(
        prompts, n=N, seeds=list(range(len(prompts))), max_tokens=NEW_TOKENS, temperature=1.0,
        top_p=TOP_P, prefix=prefix, stop=("\n",),
    ))  # fmt: skip
    return [s.text for samples in got for s in samples]


def _generate(
    sampler: TransformersSampler, texts: list[str], rows: int, copies: int, **more: Any
) -> list[str]:
    tok, out = sampler.tokenizer, []
    tok.padding_side = "left"
    for first in range(0, len(texts), rows):
        inputs = tok(texts[first : first + rows], return_tensors="pt", padding=True)
        width = inputs["input_ids"].shape[1]
        made = sampler.model.generate(
            input_ids=inputs["input_ids"].to(sampler.device),
            attention_mask=inputs["attention_mask"].to(sampler.device),
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=0,
            num_return_sequences=copies,
            pad_token_id=tok.eos_token_id,
            **more,
        )
        out += tok.batch_decode(made[:, width:], skip_special_tokens=True)
    return [text.split("\n")[0] for text in out]


@torch.inference_mode()
def reference_loop(sampler: TransformersSampler, prefix: str, prompts: list[str]) -> list[str]:
    return _generate(sampler, [prefix + p for p in prompts for _ in range(N)], CHUNK, 1)


def generate_batched(questions: int) -> Callable[..., list[str]]:
    @torch.inference_mode()
    def run(sampler: TransformersSampler, prefix: str, prompts: list[str]) -> list[str]:
        (newline,) = sampler.tokenizer("\n")["input_ids"]
        ends = [sampler.tokenizer.eos_token_id, newline]
        whole = [prefix + p for p in prompts]
        return _generate(sampler, whole, questions, N, eos_token_id=ends)

    return run


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Every sampler in both scenarios."""
    prefix, prompts = texts(options["questions"])
    results: dict[str, dict] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder), options)
        sampler = TransformersSampler(
            path, device=options["device"], dtype=options["dtype"], max_rows=options["max_rows"]
        )
    head = sampler.model.lm_head
    tok = sampler.tokenizer
    options["prefix_tokens"] = len(_ids(tok, prefix))
    options["parameters"] = sum(p.numel() for p in sampler.model.parameters())
    assert _ids(tok, prefix + prompts[0]) == _ids(tok, prefix) + _ids(tok, prompts[0])
    for scenario, newline in (("full_length", None), ("early_end", NEWLINE)):
        sampler.model.lm_head = head
        entropy = set_output(sampler, prompts[:8], newline)
        warm = prompts[:4]
        ours(sampler, prefix, warm)
        reference_loop(sampler, prefix, warm[:1])
        batches = {size: generate_batched(size) for size in (1, 4, 16)}
        tried = {s: _measure(b, sampler, prefix, prompts[:16], 1) for s, b in batches.items()}
        best = max(tried, key=lambda s: tried[s]["samples_s"])
        samplers = {
            OURS: ours,
            "reference_loop": reference_loop,
            "generate_batched": batches[best],
        }
        found = {
            name: _measure(sample, sampler, prefix, prompts, options["repeats"])
            for name, sample in samplers.items()
        }
        found["generate_batched"]["questions_a_call"] = best
        for name, figures in found.items():
            results[f"{scenario}/{name}"] = figures
            if name != OURS:
                ratio = found[OURS]["samples_s"] / figures["samples_s"]
                ratios[f"{scenario}/{name}"] = round(ratio, 2)
        options[f"{scenario}/entropy"] = round(entropy, 2)
    return {"settings": options, "results": results, "ratios": ratios}


def _measure(
    sample: Callable[..., list[str]],
    sampler: TransformersSampler,
    prefix: str,
    prompts: list[str],
    repeats: int,
) -> dict[str, float]:
    """Figures of the fastest of `repeats`."""
    walls, words = [], 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        texts = sample(sampler, prefix, prompts)
        walls.append(time.perf_counter() - started)
        assert len(texts) == len(prompts) * N
        words = sum(len(t.split()) for t in texts) / len(texts)
    wall_s = min(walls)
    rate = len(prompts) * N / wall_s
    return {
        "samples_s": round(rate, 1),
        "wall_s": round(wall_s, 2),
        "questions": len(prompts),
        "words_a_sample": round(words, 2),
    }
