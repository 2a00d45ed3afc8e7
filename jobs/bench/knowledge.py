"""Building a knowledge source: this project beside a builder that works as FActScore's does.

FActScore's builder is one process: it encodes each text by RoBERTa's byte-level BPE, cuts it into
passages of 256 tokens, decodes these and inserts them. `reference` uses a tokenizer in Python, like
the RobertaTokenizer of FActScore's transformers 4; `reference_rust` uses today's RobertaTokenizer.
Neither makes a full-text index; ours does. No vocabulary is downloaded: a vocabulary of the same
kind and size is trained on the generated text.

    python -m bench.knowledge SOURCE.jsonl OUT.db WORKERS
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import peak_mb
from facttune_ray.knowledge.articles import Articles
from facttune_ray.knowledge.build import SEPARATOR, build

WORDS = 30_000  # of the generated language, used by Zipf's law
VOCABULARY = 30_000  # of the tokenizer
MAX_TOKENS = 256
SAMPLE = 2_000  # articles that each reference builds
SEARCHES = 50


def article_rows(
    count: int, seed: int = 0, length: Callable[[random.Random], int] | None = None
) -> Iterator[dict[str, str]]:
    """Articles in sentences of 8 to 25 words; equal seeds give equal articles. `length`: words of
    an article, by default 200 to 400."""
    length = length or (lambda rng: rng.randint(200, 400))
    rng = random.Random(seed)
    words = [_word(rng) for _ in range(WORDS)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(WORDS)))
    for i in range(count):
        left = rng.choices(words, cum_weights=weights, k=length(rng))
        title = f"{left[0]} {left[1]} {i}".title()
        sentences = []
        while left:
            n = rng.randint(8, 25)
            sentences.append(" ".join(left[:n]).capitalize() + ".")
            left = left[n:]
        yield {"title": title, "text": " ".join(sentences)}


def wikipedia_length(rng: random.Random) -> int:
    """Words of an article: many short ones and a long tail, 490 in the mean (3,000 characters)."""
    return max(5, int(rng.lognormvariate(5.7, 1.0)))


def write_wikipedia(folder: Path, count: int, files: int = 2) -> None:
    """Parquet files in the shape of Hugging Face's wikimedia/wikipedia: columns id, url, title and
    text, row groups of 1,000 articles."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for part in range(files):
        rows = [
            {"id": f"{part}-{i}", "url": f"https://example.org/wiki/{part}-{i}"} | row
            for i, row in enumerate(article_rows(count // files, part, wikipedia_length))
        ]
        name = f"train-{part:05}-of-{files:05}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=1000)


def _word(rng: random.Random) -> str:
    parts = (
        rng.choice("bcdfghjklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))
    )
    return "".join(parts) + rng.choice(["", "n", "s", "r"])


def write_source(path: Path, count: int) -> None:
    with open(path, "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in article_rows(count))


Encode = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]


def reference_build(rows: list[dict[str, str]], out: Path, encode: Encode, decode: Decode) -> None:
    """Encode, cut every 256 tokens, decode and insert in one process, as FActScore does."""
    documents = []
    for row in rows:
        ids = encode(row["text"])
        parts = [decode(ids[i : i + MAX_TOKENS]) for i in range(0, len(ids), MAX_TOKENS)]
        documents.append((row["title"], SEPARATOR.join(parts)))
    with sqlite3.connect(out) as database:
        database.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
        database.executemany("INSERT INTO documents VALUES (?, ?)", documents)
    database.close()


def train(texts: Iterator[str], folder: Path) -> tuple[Path, Path]:
    """Train a byte-level BPE of RoBERTa's kind; return the files of its vocabulary and merges."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=special, show_progress=False)
    vocabulary, merges = tokenizer.save_model(str(folder))
    return Path(vocabulary), Path(merges)


def rust_tokenizer(vocabulary: Path, merges: Path) -> tuple[Encode, Decode]:
    from transformers import RobertaTokenizer

    tokenizer: Any = RobertaTokenizer(str(vocabulary), str(merges), model_max_length=10**9)
    return lambda text: tokenizer(text)["input_ids"], tokenizer.decode


def python_tokenizer(vocabulary: Path, merges: Path) -> tuple[Encode, Decode]:
    """Byte-level BPE (Radford et al. 2019) in Python; each word is merged once and then cached."""
    import regex
    from transformers import PreTrainedTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ids: dict[str, int] = json.loads(vocabulary.read_text())
    names = {i: name for name, i in ids.items()}
    pairs = [tuple(line.split()) for line in merges.read_text().splitlines()[1:]]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    letters = bytes_to_unicode()
    values = {letter: byte for byte, letter in letters.items()}
    words = regex.compile(
        r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    cache: dict[str, list[str]] = {}

    def merged(word: str) -> list[str]:
        parts = list(word)
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda p: ranks.get(p, len(ranks)))
            if best not in ranks:
                break
            out: list[str] = []
            i = 0
            while i < len(parts):
                pair = (parts[i], parts[i + 1]) if i + 1 < len(parts) else None
                out.append("".join(best) if pair == best else parts[i])
                i += 2 if pair == best else 1
            parts = out
        return parts

    class Slow(PreTrainedTokenizer):
        vocab_size = property(lambda self: len(ids))  # type: ignore[assignment]

        def get_vocab(self) -> dict[str, int]:
            return ids

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            found: list[str] = []
            for word in words.findall(text):
                known = "".join(letters[b] for b in word.encode())
                if known not in cache:
                    cache[known] = merged(known)
                found += cache[known]
            return found

        def _convert_token_to_id(self, token: str) -> int:
            return ids[token]

        def _convert_id_to_token(self, index: int) -> str:
            return names[index]

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return bytes(values[c] for c in "".join(tokens)).decode(errors="replace")

        def build_inputs_with_special_tokens(self, one: list[int], two: Any = None) -> list[int]:
            return [ids["<s>"], *one, ids["</s>"]]

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer: Any = Slow(**special, model_max_length=10**9)
    return lambda text: tokenizer(text)["input_ids"], tokenizer.decode


TOKENIZERS = {"reference": python_tokenizer, "reference_rust": rust_tokenizer}


def run(quick: bool, articles: int | None = None) -> dict[str, Any]:
    """settings, results (builder -> figures) and ratios (builder -> our speed / its speed)."""
    count = articles or (2_000 if quick else 100_000)
    sample = min(count, 500 if quick else SAMPLE)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "all.jsonl", count)
        write_source(folder / "quarter.jsonl", count // 4)
        results["facttune_ray"] = _measured(folder / "all.jsonl", folder / "all.db", 0)
        quarter = _measured(folder / "quarter.jsonl", folder / "quarter.db", 0)
        results["facttune_ray"]["peak_mb_of_a_quarter"] = quarter["peak_mb"]
        write_wikipedia(folder / "wikipedia", count)
        results["wikipedia_parquet"] = _measured(folder / "wikipedia", folder / "wikipedia.db", 0)
        one = _measured(folder / "all.jsonl", folder / "one.db", 1)
        results["facttune_ray_one_process"] = one
        results["facttune_ray"] |= _searched(folder / "all.db")
        rows = list(article_rows(sample))
        model = train((row["text"] for row in rows), folder)
        for builder, tokenizer in TOKENIZERS.items():
            encode, decode = tokenizer(*model)
            started = time.monotonic()
            reference_build(rows, folder / f"{builder}.db", encode, decode)
            wall_s = time.monotonic() - started
            results[builder] = {
                "articles": sample,
                "wall_s": round(wall_s, 2),
                "articles_per_s": round(sample / wall_s),
            }
        source_mb = (folder / "all.jsonl").stat().st_size / 2**20
    ours = results["facttune_ray"]["articles_per_s"]
    return {
        "settings": {
            "articles": count,
            "source_mb": round(source_mb, 1),
            "reference_sample": sample,
            "workers": os.cpu_count(),
        },
        "results": results,
        "ratios": {n: round(ours / results[n]["articles_per_s"], 2) for n in TOKENIZERS},
    }


def _measured(source: Path, out: Path, workers: int) -> dict[str, float]:
    """Figures of a build in a fresh process."""
    command = [sys.executable, "-m", "bench.knowledge", str(source), str(out)]
    done = subprocess.run([*command, str(workers)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _searched(path: Path) -> dict[str, float]:
    """Mean time of a search for a title and six words of an existing article."""
    articles = Articles(path)
    queries = [
        f"{row['title']} {' '.join(row['text'].split()[20:26])}" for row in article_rows(SEARCHES)
    ]
    started = time.monotonic()
    for query in queries:
        articles.search(query, 5)
    return {"search_ms": round((time.monotonic() - started) / len(queries) * 1000, 2)}


def main(source: str, out: str, workers: str) -> None:
    """Build, then print the figures. peak_mb is that of the writer, worker_peak_mb that of the
    largest process of the pool (Linux)."""
    import resource

    started = time.monotonic()
    count = build([source], out, workers=int(workers))
    wall_s = time.monotonic() - started
    figures = {
        "articles": count,
        "wall_s": round(wall_s, 2),
        "articles_per_s": round(count / wall_s),
        "peak_mb": peak_mb(),
        "worker_peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
        "database_mb": round(os.path.getsize(out) / 2**20, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
