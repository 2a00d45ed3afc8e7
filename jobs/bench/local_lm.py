"""Verdicts by a local causal LM: one whole prompt per fact, as FActScore does, beside ours.

    run(quick=True)
    -> {"settings": {...}, "results": {"10_responses/facttune_ray": {"facts_s": 66.1, ...}, ...},
        "ratios": {"10_responses/one_fact_at_a_time": 4.7, ...}}

The model is a small random Llama, because the work is measured, not the verdicts. It is wide and
shallow: in a narrow model attention costs more of the time, and sharing saves less of attention.
An article has 12 passages of 200 words. Each fact has its own five best passages by BM25, so the
gain depends on how many passages the facts of a topic share. The made-up text shares as much as
real text does: FActScore's articles of 10 to 14 passages save 3.2x the tokens for the facts of one
response and 3.9x for two responses; this text saves 3.0x and 3.9x. All methods have equal prompts
to the token and must give equal scores; only "joined" shows other, larger sets of passages.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.machine import save_random_llama, word
from facttune_ray.knowledge.retrieval import BM25
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.verifiers.local_lm import LocalLM, join, render

PASSAGES, WORDS, SHOWN, VOCABULARY = 12, 200, 5, 4000
FACTS = {"1_response": 31, "10_responses": 190}  # distinct facts of a topic (FactTune: 19 each)
JOINED = PASSAGES
Topic = tuple[str, list[str], list[list[str]], list[str]]  # name, facts, evidence, article


def settings(quick: bool) -> dict[str, Any]:
    model = {"hidden": 1024, "layers": 2, "heads": 8, "dtype": "float32"}
    text = {"passages": PASSAGES, "passage_words": WORDS, "shown": SHOWN, "joined": JOINED}
    return {"topics": 1 if quick else 2, "facts_per_topic": FACTS} | model | text


def topic(number: int, facts: int) -> Topic:
    """An article, and facts that repeat its words, most of them from the first passages."""
    rng = random.Random(f"topic/{number}")
    name = f"{word(rng.randrange(3000), 3)} {word(rng.randrange(3000), 3)}".title()
    article = []
    for i in range(PASSAGES):
        own = [word(rng.randrange(3000), 3) for _ in range(40)]
        words = [
            rng.choice(own) if rng.random() < 0.85 else word(int(3000 ** rng.random()), 3)
            for _ in range(WORDS)
        ]
        named = 12 if i == 0 else 1 + int(12 * rng.random() ** 2)
        for at in rng.sample(range(WORDS), named):
            words[at] = name
        article.append(" ".join(words) + ".")
    index = BM25(article)
    said, evidence = [], []
    for _ in range(facts):
        source = article[min(int(rng.expovariate(0.35)), PASSAGES - 1)].split()
        at = rng.randrange(len(source) - 7)
        said.append(f"{name} {' '.join(source[at : at + rng.randint(3, 7)])}")
        evidence.append([article[i] for i in index.top(f"{name} {said[-1]}", SHOWN)])
    return name, said, evidence, article


def model_folder(folder: Path, topics: list[Topic], options: dict[str, Any]) -> str:
    texts = [render(name, f, article) for name, facts, _, article in topics for f in facts[:1]]
    tokenizer = train_tokenizer([*texts, " True False"], VOCABULARY, 4096)
    save_random_llama(
        folder,
        tokenizer,
        hidden_size=options["hidden"],
        num_hidden_layers=options["layers"],
        num_attention_heads=options["heads"],
        max_position_embeddings=4096,
        initializer_range=0.1,  # large enough that scores differ
    )
    return str(folder)


def placed(evidence: list[str], article: list[str]) -> list[str]:
    return sorted(evidence, key=article.index)


@torch.inference_mode()
def generate_one(lm: LocalLM, data: Topic, new_tokens: int = 1) -> list[float | None]:
    """One fact after the other; the first generated token decides."""
    name, facts, evidence, article = data
    scores: list[float | None] = []
    for fact, passages in zip(facts, evidence, strict=True):
        prompt = render(name, fact, placed(passages, article))
        out = lm.model.generate(
            **lm.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False),
            max_new_tokens=new_tokens,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        scores += lm._score(out.scores[0])
        lm.tokens_run += out.sequences.shape[1] - 1
    return scores


def ours(lm: LocalLM, data: Topic) -> list[float | None]:
    name, facts, evidence, article = data
    return lm.judge(name, facts, evidence, article)


def joined(lm: LocalLM, data: Topic) -> list[float | None]:
    name, facts, evidence, article = data
    return lm.judge(name, facts, join(evidence, JOINED), article)


def reference(lm: LocalLM, data: Topic) -> list[float | None]:
    """Up to 128 new tokens per fact, as FActScore calls its local model. Only the first facts."""
    name, facts, evidence, article = data
    return generate_one(lm, (name, facts[:FEW], evidence[:FEW], article), 128)


@torch.inference_mode()
def padded(lm: LocalLM, data: Topic) -> list[float | None]:
    """Whole prompts in padded batches: the gain of batching alone."""
    name, facts, evidence, article = data
    place = {passage: i for i, passage in enumerate(article)}
    found = lm.prompts(name, facts, evidence, place)
    return list(lm._run_padded([ids for ids in found if ids is not None]))


OURS, JOINT = "facttune_ray", "facttune_ray_joined"
METHODS: dict[str, Callable[[LocalLM, Topic], list[float | None]]] = {
    OURS: ours,
    JOINT: joined,
    "one_fact_at_a_time": generate_one,
    "reference": reference,
    "padded_batches": padded,
}
FEW = 6


def run(quick: bool) -> dict[str, Any]:
    """Every method on the same topics, model and threads; figures are facts per second."""
    options = settings(quick)
    results: dict[str, dict] = {}
    ratios: dict[str, float] = {}
    for scenario, facts in FACTS.items():
        topics = [topic(i, facts) for i in range(options["topics"])]
        with tempfile.TemporaryDirectory() as folder:
            lm = LocalLM(model_folder(Path(folder), topics, options))
        name, said, evidence, article = topics[0]
        generate_one(lm, (name, said[:2], evidence[:2], article))  # warm up
        names = [n for n in METHODS if n != "padded_batches" or scenario == "1_response"]
        found = {
            n: _measure(lm, METHODS[n], topics[: 1 if n == "reference" else None]) for n in names
        }
        loop, exact = found["one_fact_at_a_time"]
        for method, (figures, scores) in found.items():
            pairs = list(
                zip(scores, exact, strict=False)
            )  # the reference scores only the first facts
            figures["max_score_difference"] = max(abs(a - b) for a, b in pairs)
            figures["equal_verdicts"] = sum((a > 0.5) == (b > 0.5) for a, b in pairs) / len(pairs)
            results[f"{scenario}/{method}"] = figures
            if method not in (OURS, JOINT):
                ours_s = found[OURS][0]["facts_s"]
                ratios[f"{scenario}/{method}"] = round(ours_s / figures["facts_s"], 2)
        joint_s = found[JOINT][0]["facts_s"]
        ratios[f"{scenario}/one_fact_at_a_time/joined"] = round(joint_s / loop["facts_s"], 2)
    return {"settings": options, "results": results, "ratios": ratios}


def _measure(
    lm: LocalLM, method: Callable[[LocalLM, Topic], list[float | None]], topics: list[Topic]
) -> tuple[dict[str, float], list[float]]:
    lm.tokens_run = 0
    started = time.monotonic()
    scores = [score for data in topics for score in method(lm, data) if score is not None]
    wall_s = time.monotonic() - started
    figures = {"facts_s": round(len(scores) / wall_s, 2), "wall_s": round(wall_s, 2)}
    return figures | {"tokens_a_fact": round(lm.tokens_run / len(scores), 1)}, scores
