"""Texts -> a tiny Llama with its own tokenizer, trained from scratch, in a Hugging Face folder.

    pretrain(world.documents, "base", seed=0)
    -> {"parameters": 631936, "documents": 16004, "tokens": 860000, "steps": 1682,
        "loss": 0.66, "seconds": 35.1}

`AutoModelForCausalLM.from_pretrained` opens the folder; it does not depend on this package. The
folder is written under another name and renamed, so it is complete when it appears.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from facttune_ray.errors import UserError

VERSION = 1  # part of the recipe: raise it when a change of the code changes the weights
EOS = "<|end|>"


def pretrain_shown(
    documents: Sequence[str], out_dir: str | Path, **settings: Any
) -> dict[str, float]:
    """`pretrain` with a progress bar on a terminal."""
    import transformers
    from tqdm import tqdm

    transformers.utils.logging.set_verbosity_error()  # no warnings about documents that are cut
    transformers.utils.logging.disable_progress_bar()  # for saving one small file
    with tqdm(desc="pre-training", unit="step", disable=not sys.stderr.isatty()) as bar:

        def on_step(step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(1)

        return pretrain(documents, out_dir, on_step=on_step, **settings)


def pretrain(
    documents: Sequence[str],
    out_dir: str | Path,
    *,
    seed: int,
    epochs: float = 2.5,
    steps: int | None = None,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    vocab_size: int = 3000,
    max_length: int = 512,
    batch_tokens: int = 512,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    threads: int | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Train tokenizer and model on `documents`, save both to `out_dir`, and return figures.

    `epochs`: passes over the documents. `steps` overrides it; 0 for either saves the random model.
    `vocab_size`: largest number of entries. `max_length`: positions of the model; longer documents
    are cut. `batch_tokens`: tokens per step; small steps learn rare names much faster than large
    steps. `lr`: peak learning rate of AdamW. `threads`: torch threads; None keeps their number.
    `on_step(step, steps, loss)` is called after each step. The result is deterministic for a seed,
    a number of threads and a machine. UserError without documents, or if `out_dir` is not writable.
    """
    import torch

    if not documents:
        raise UserError("No documents to train a base model on.")
    out_dir = Path(out_dir)
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    tokenizer = train_tokenizer(documents, vocab_size, max_length)
    model = random_model(tokenizer, seed, hidden, layers, heads, max_length)
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    rows = [[*ids[: max_length - 1], eos] for ids in encoded]
    batches_an_epoch = len(_batches(rows, batch_tokens, random.Random(0)))
    total = round(epochs * batches_an_epoch) if steps is None else steps

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
    )
    rng = random.Random(f"pretrain/{seed}")
    queue: list[list[int]] = []
    tokens, recent = 0, math.nan
    model.train()
    for step in range(total):
        if not queue:
            queue = _batches(rows, batch_tokens, rng)
        batch = _pad([rows[i] for i in queue.pop()], eos)
        loss = _loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step, total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int(batch[1].sum())
        value = loss.item()
        recent = value if math.isnan(recent) else 0.95 * recent + 0.05 * value
        if on_step is not None:
            on_step(step + 1, total, recent)
    model.eval()
    save_folder(out_dir, model, tokenizer)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(rows),
        "tokens": tokens,
        "steps": total,
        "loss": recent,  # nats per token, running mean of the last steps
        "seconds": time.perf_counter() - started,
    }


def train_tokenizer(documents: Sequence[str], vocab_size: int, max_length: int) -> Any:
    """A tokenizer of the documents' most frequent words, with all 256 bytes for other words.

    decode(encode(text)) == text for any text, without unknown tokens. Words are cut by GPT-2's
    pattern, with their leading space: "Write| a| biography| of| Mara| Veldt|.". The vocabulary has
    whole words instead of learned merges, so no entry is a half-finished word.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Counter(word for text in documents for word, _ in cut.pre_tokenize_str(text))
    ranked = sorted(words, key=lambda word: (-words[word], word))  # no ties
    entries = list(dict.fromkeys([EOS, *alphabet, *ranked]))[:vocab_size]
    vocab = {word: i for i, word in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def random_model(
    tokenizer: Any, seed: int, hidden: int, layers: int, heads: int, max_length: int
) -> Any:
    """A Llama with random weights for the tokenizer. Input and output embeddings are tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        # Llama's 0.02 suits widths of thousands; a width of 128 learns later and less with it
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_folder(out_dir: Path, model: Any, tokenizer: Any) -> None:
    """Write model and tokenizer to a sibling folder, then rename it to `out_dir`."""
    temporary = out_dir.with_name(f".{out_dir.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if out_dir.exists():
            shutil.rmtree(out_dir)
        os.replace(temporary, out_dir)
    except OSError as error:
        raise UserError(f"Cannot write the base model to {out_dir}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _batches(rows: list[list[int]], batch_tokens: int, rng: random.Random) -> list[list[int]]:
    """Row indices in batches of about `batch_tokens` tokens, rows of similar length together."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(rows[i]))  # a stable sort: equal lengths stay shuffled
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i]) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    rng.shuffle(batches)
    return batches


def _pad(rows: list[list[int]], pad_id: int) -> tuple[Any, Any]:
    """Tokens [B, T] padded on the right, and a mask [B, T] of real tokens."""
    import torch

    width = max(len(ids) for ids in rows)
    lengths = torch.tensor([len(ids) for ids in rows])
    tokens_BT = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in rows])
    return tokens_BT, torch.arange(width)[None] < lengths[:, None]


def _loss(model: Any, tokens_BT: Any, mask_BT: Any) -> Any:
    """Mean -log p over real next tokens, in nats. Causal attention does not see the padding."""
    import torch

    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
    keep = mask_BT[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits_BTV[keep].float(), tokens_BT[:, 1:][keep], reduction="mean"
    )


def _schedule(step: int, total: int) -> float:
    """Linear warm-up over 2% of the steps, then linear decay to 0."""
    warm = max(1, total // 50)
    return min((step + 1) / warm, (total - step) / max(1, total - warm))
