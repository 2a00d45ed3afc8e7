from __future__ import annotations

import sys

import numpy as np
import pytest

from facttune_ray.errors import UserError
from facttune_ray.knowledge.dense import Dense, digest

PASSAGES = ["red apple tree", "blue sea fish", "red red apple", "green hill"]
QUERIES = ["apple red", "fish sea", "apple red", "hill"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny BERT with mean pooling, in sentence-transformers' own form."""
    st = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    made = tmp_path_factory.mktemp("dense")
    words = sorted({w for text in PASSAGES + QUERIES for w in text.split()})
    (made / "vocab.txt").write_text("\n".join("[PAD] [UNK] [CLS] [SEP] [MASK]".split() + words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    model = BertModel(config)
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=1.0)
    model.save_pretrained(made / "bert")
    BertTokenizerFast(str(made / "vocab.txt")).save_pretrained(made / "bert")
    from sentence_transformers import models

    body = models.Transformer(str(made / "bert"), max_seq_length=32)
    pooling = models.Pooling(16, pooling_mode="mean")
    st.SentenceTransformer(modules=[body, pooling]).save(str(made / "model"))
    return str(made / "model")


def plain(folder: str, query: str, k: int) -> list[int]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    q = model.encode(query)
    near = []
    for passage in PASSAGES:
        p = model.encode(passage)
        near.append(float(q @ p / np.linalg.norm(q) / np.linalg.norm(p)))
    return sorted(range(len(PASSAGES)), key=lambda i: -near[i])[:k]


def test_passages_are_ordered_by_their_cosines(folder):
    got = Dense(folder, batch_size=2).top("Things", PASSAGES, QUERIES, 3)
    assert got == [plain(folder, query, 3) for query in QUERIES]
    assert len(set(map(tuple, got))) > 1


def test_passages_and_equal_queries_are_encoded_once(folder):
    dense = Dense(folder)
    dense.top("Things", PASSAGES, QUERIES, 1)
    assert dense.encoded == 4 + 3  # one query is asked twice
    dense.top("Things", PASSAGES, ["hill"], 1)
    assert dense.encoded == 8
    dense.top("Things", PASSAGES[:2], ["hill"], 1)  # another article under the same title
    assert dense.encoded == 11


def test_memory_is_bounded_and_the_oldest_vectors_are_dropped(folder):
    one = Dense(folder)._encode(PASSAGES).nbytes
    dense = Dense(folder, cache_bytes=one)
    dense.top("A", PASSAGES, ["hill"], 1)
    dense.top("B", PASSAGES, ["hill"], 1)
    assert list(dense._kept) == [digest(folder, "B", PASSAGES)] and dense._kept_bytes == one
    dense.top("A", PASSAGES, ["hill"], 1)
    assert dense.encoded == 3 * 5
    none = Dense(folder, cache_bytes=0)
    assert none.top("A", PASSAGES, QUERIES, 2) == dense.top("A", PASSAGES, QUERIES, 2)
    assert none._kept_bytes == 0


def test_a_folder_keeps_vectors_between_processes(folder, tmp_path):
    first = Dense(folder, cache_dir=str(tmp_path / "v"))
    expected = first.top("A", PASSAGES, QUERIES, 2)
    [file] = (tmp_path / "v").iterdir()  # and no temporary file
    second = Dense(folder, cache_dir=str(tmp_path / "v"))
    assert second.top("A", PASSAGES, QUERIES, 2) == expected
    assert second.encoded == 3  # only the queries
    file.write_bytes(file.read_bytes()[:40])  # damaged: encoded again and replaced
    third = Dense(folder, cache_dir=str(tmp_path / "v"))
    assert third.top("A", PASSAGES, QUERIES, 2) == expected
    assert third.encoded == 7 and np.load(file).shape == (4, 16)


def test_no_passages_no_queries_and_bad_models(folder, tmp_path):
    dense = Dense(folder)
    assert dense.top("A", [], ["x"], 2) == [[]]
    assert dense.top("A", PASSAGES, [], 2) == []
    assert sorted(dense.top("A", PASSAGES, ["hill"], 9)[0]) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no such folder"):
        Dense(str(tmp_path / "absent"))
    assert digest("m", "A", ["ab"]) != digest("m", "A", ["a", "b"])


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        Dense("any")
