"""Trainers of dpo.py: each trains once, in the process that runs this file.

    python -m bench.dpo_trainers pairwise MODEL GIVEN.json
    {"pairs_per_s": 4.1, "training_pairs_per_s": 4.1, "wall_s": 11.0, "tokens_a_pair": 833.8,
     "padded_tokens_a_pair": 876.9, "peak_mb": 324, "losses": [0.6931, 0.6916, 0.3044]}

    facttune_ray     groups: `training/step.py`, reference log-probabilities made first
    facttune_ray_small_passes    the same in passes of cfg["small_pass_tokens"], to save memory
    pairwise         a plain loop as in FactTune's trainer: chosen and rejected of some pairs in one
                     padded batch, the frozen reference model beside the policy
    trl              TRL's DPOTrainer; `trl_precomputed`: its reference log-probabilities made first

Groups are the rows of `dpo.data`, `groups_a_step` per optimizer step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.dpo_meter import Groups, Meter, load, optimizer, warm_up
from bench.dpo_trl import trl, trl_precomputed

OURS, SMALL = "facttune_ray", "facttune_ray_small_passes"


def small_passes(path: str, groups: Groups, cfg: dict[str, Any]) -> dict[str, Any]:
    return ours(path, groups, cfg | {"pass_tokens": cfg["small_pass_tokens"]})


def ours(path: str, groups: Groups, cfg: dict[str, Any]) -> dict[str, Any]:
    """This project, without Ray and DeepSpeed around it."""
    from facttune_ray.config import GroupsConfig, TrainConfig
    from facttune_ray.training.batches import group_of, tokenize
    from facttune_ray.training.model import GroupModel, compile_layers
    from facttune_ray.training.reference import token_logps_of
    from facttune_ray.training.step import Objective, Step, pair_weights

    warm_up()
    meter = Meter(cfg["device"])
    tokenizer, lm = load(path, cfg)
    model = GroupModel(meter.count(lm).eval(), longest=1024)
    if cfg["compile"]:
        compile_layers(lm)
    rmsprop = optimizer(model, cfg)
    train = TrainConfig(max_length=1024)
    objective = Objective("dpo", cfg["beta"], pass_tokens=cfg["pass_tokens"])
    tokens = [tokenize("p", g["prompt"], g["responses"], tokenizer, train) for g in groups]
    references, spent = [], []
    each = cfg["groups_a_step"]
    starts = range(0, len(groups), each)
    for s in starts:  # before any update, because the reference is the model at the start
        references += token_logps_of(model, tokens[s : s + each], objective.pass_tokens)
        spent.append(meter.now())
    steps = len(starts) - 1  # the first step is not counted
    first = [(b - a) / steps for a, b in zip(spent[0], spent[-1], strict=True)]
    prepared = [
        group_of(
            {
                "prompt_id": "p",
                "prompt_tokens": found.prompt,
                "response_tokens": found.responses,
                "rewards": row["rewards"],
            },
            GroupsConfig(),
        )
        for row, found in zip(groups, tokens, strict=True)
    ]
    meter.mark()
    for s in starts:
        some = prepared[s : s + each]
        step = Step(some, references[s : s + each], pair_weights(some, "pair"), objective)
        for i in range(len(step.first)):
            step.look(model, i)
        for i in range(len(step.passes)):
            step.loss(model, i).backward()
        rmsprop.step()
        rmsprop.zero_grad()
        meter.losses.append(step.figures()["loss"])
        meter.mark()
    pairs = sum(len(g.pairs) for g in some)
    found = meter.figures(pairs, first)
    flops = sum(model_flops(lm, len(g.prompt), [len(r) for r in g.responses]) for g in some)
    rate = flops * found["training_pairs_per_s"] / pairs
    return found | {"model_tflops_per_s": round(rate / 1e12, 2), "mfu": utilisation(rate)}


def pairwise(path: str, groups: Groups, cfg: dict[str, Any]) -> dict[str, Any]:
    """cfg["batch"] pairs per forward; the reference model beside the policy."""
    import torch
    from torch.nn import functional as F
    from torch.nn.utils.rnn import pad_sequence

    from facttune_ray.sampling.protocol import encode_prompt, encode_response, end_mark
    from facttune_ray.scoring.pairs import pairs

    warm_up()
    meter = Meter(cfg["device"])
    tokenizer, policy = load(path, cfg)
    reference = load(path, cfg)[1]
    for model in (policy, reference):
        meter.count(model).eval()
    rmsprop = optimizer(policy, cfg)

    def logps(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        whole = [torch.tensor(prompt + response) for prompt, response in rows]
        ids_BT = pad_sequence(whole, batch_first=True).to(cfg["device"])
        seen_BT = pad_sequence([torch.ones_like(x) for x in whole], batch_first=True)
        seen_BT = seen_BT.to(cfg["device"])
        logits = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).logits[:, :-1]
        found = logits.float().log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
        mask = seen_BT[:, 1:].clone()
        for b, (prompt, _) in enumerate(rows):
            mask[b, : len(prompt) - 1] = 0
        return (found * mask).sum(1)

    end = end_mark(tokenizer)
    encoded = [
        (
            encode_prompt(tokenizer, g["prompt"]),
            [encode_response(tokenizer, r, end) for r in g["responses"]],
            pairs(g["rewards"]),
        )
        for g in groups
    ]
    batch, each = cfg["batch"], cfg["groups_a_step"]
    meter.mark()
    for s in range(0, len(encoded), each):
        chosen = [
            ((prompt, responses[win]), (prompt, responses[lose]))
            for prompt, responses, found in encoded[s : s + each]
            for win, lose in found
        ]
        total = 0.0
        for start in range(0, len(chosen), batch):
            some = chosen[start : start + batch]
            rows = [pair[side] for side in (0, 1) for pair in some]
            with torch.no_grad():
                base = logps(reference, rows)
            ratio = logps(policy, rows) - base
            z = cfg["beta"] * (ratio[: len(some)] - ratio[len(some) :])
            loss = -F.logsigmoid(z).sum() / len(chosen)
            loss.backward()
            total += loss.item()
        rmsprop.step()
        rmsprop.zero_grad()
        meter.losses.append(total)
        meter.mark()
    return meter.figures(len(chosen))


def model_flops(lm: Any, prompt: int, responses: list[int]) -> float:
    """FLOPs of a training step's forward and backward on a group's unique tokens, whatever was run.

    6 per weight and token (for the output layer: per response token), and 12 per layer, channel of
    the heads and attended pair of tokens (Chowdhery et al. 2022, arXiv 2204.02311, appendix B, with
    causal attention).
    """
    cfg, head = lm.config, lm.get_output_embeddings().weight
    body = sum(p.numel() for n, p in lm.named_parameters() if p.ndim == 2 and ".layers." in n)
    tokens = prompt + sum(responses)
    attended = prompt * (prompt + 1) / 2 + sum(r * prompt + r * (r + 1) / 2 for r in responses)
    channels = cfg.num_attention_heads * cfg.head_dim
    attention = 12 * cfg.num_hidden_layers * channels * attended
    return 6 * (body * tokens + head.numel() * sum(responses)) + attention


def utilisation(flops_per_s: float) -> float | None:
    """Share of the GPU's dense bfloat16 peak (its data sheet); None for an unlisted GPU."""
    import torch

    peaks = {"H100 80GB HBM3": 989.4e12, "H200": 989.4e12, "A100": 312e12}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((round(flops_per_s / peak, 3) for gpu, peak in peaks.items() if gpu in name), None)


TRAINERS: dict[str, Callable[[str, Groups, dict[str, Any]], dict[str, Any]]] = {
    OURS: ours,
    SMALL: small_passes,
    "pairwise": pairwise,
    "trl": trl,
    "trl_precomputed": trl_precomputed,
}


if __name__ == "__main__":
    trainer, model_path, file = sys.argv[1:]
    given = json.loads(Path(file).read_text())
    print(json.dumps(TRAINERS[trainer](model_path, given["groups"], given["settings"])))
