"""Verdicts by a model of pairs (`nli`, `minicheck`): this project beside one pair at a time.

    run(quick=True)
    -> {"settings": {...}, "results": {"nli/facttune_ray": {"facts_s": 90.1, ...}, ...},
        "ratios": {"nli": 2.1, ...}}

The models are small and random, because the work is measured, not the verdicts. Both sides have the
same texts and passages and one thread, and must give equal scores. The loop encodes a pair, runs
it, and takes the best of a fact's passages, as the examples of model cards do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.local_lm import Topic, topic
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.verifiers.entailment import Entailment
from facttune_ray.verifiers.minicheck import MiniCheck

FACTS, FEW, HIDDEN, LAYERS, VOCABULARY, POSITIONS = 190, 40, 64, 2, 4000, 512
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
RUNS = 3  # the fastest counts
Model = Any


def bert(folder: Path, tokenizer: Any) -> Entailment:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    return Entailment(_saved(folder, BertForSequenceClassification(config), tokenizer))


def t5(folder: Path, tokenizer: Any) -> MiniCheck:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=HIDDEN,
        d_ff=4 * HIDDEN,
        d_kv=HIDDEN // 4,
        num_layers=LAYERS,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    return MiniCheck(_saved(folder, T5ForConditionalGeneration(config), tokenizer))


def _saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def one_pair(model: Entailment, passage: str, fact: str) -> float:
    inputs = model.tokenizer(passage, fact, return_tensors="pt", truncation="only_first")
    return float(torch.softmax(model.model(**inputs).logits[0], -1)[model.label])


def one_document(model: MiniCheck, passage: str, fact: str) -> float:
    text = f"predict: {passage}{model.tokenizer.eos_token}{fact}"
    inputs = model.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    start = torch.full((1, 1), model.start)
    logits = model.model(**inputs, decoder_input_ids=start).logits[0, 0]
    return float(torch.softmax(logits[[model.no, model.yes]], -1)[1])


MODELS: dict[str, tuple[Callable, Callable]] = {
    "nli": (bert, one_pair),
    "minicheck": (t5, one_document),
}


@torch.inference_mode()
def loop(score: Callable, model: Model, data: Topic) -> list[float]:
    _, facts, evidence, _ = data
    return [
        max(score(model, p, fact) for p in passages)
        for fact, passages in zip(facts, evidence, strict=True)
    ]


def run(quick: bool) -> dict[str, Any]:
    """Facts a CPU second on both sides, on one thread; the loop is timed on the first facts."""
    name, facts, evidence, article = topic(0, 60 if quick else FACTS)
    few: Topic = (name, facts[:FEW], evidence[:FEW], article)
    tokenizer = train_tokenizer([*article, *facts, "predict: 0 1"], VOCABULARY, POSITIONS)
    results: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, (make, score) in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(0)
                model = make(Path(folder), tokenizer)
            loop_s = ours_s = float("inf")
            for _ in range(RUNS):  # in turn, because other work slows the machine
                started = time.process_time()
                exact = loop(score, model, few)
                loop_s = min(loop_s, time.process_time() - started)
                started = time.process_time()
                scored = [s for s, _ in model.judge(name, facts, evidence)]
                ours_s = min(ours_s, time.process_time() - started)
            results[f"{kind}/facttune_ray"] = {
                "facts": len(facts),
                "facts_s": round(len(facts) / ours_s, 1),
                "max_score_difference": max(
                    abs(a - b) for a, b in zip(scored, exact, strict=False)
                ),
            }
            results[f"{kind}/one_pair_at_a_time"] = {
                "facts": len(exact),
                "facts_s": round(len(exact) / loop_s, 1),
            }
            ratios[kind] = round(len(facts) / ours_s / (len(exact) / loop_s), 2)
    finally:
        torch.set_num_threads(threads)
    settings = {"hidden": HIDDEN, "layers": LAYERS, "passages": 5, "passage_words": 200}
    return {"settings": settings, "results": results, "ratios": ratios}
