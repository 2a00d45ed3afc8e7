"""Find the passages nearest in meaning to a query, by any sentence-transformers model.

    Dense("sentence-transformers/gtr-t5-large").top(
        "Mara Veldt", ["She was born in Lyon.", "She plays the cello."], ["Mara Veldt music"], 1)
    ->  [[1]]

An article's passages are encoded once: their vectors stay in memory up to `cache_bytes` and, if
`cache_dir` is given, in one .npy file per article. Queries get no prefix, as for GTR, the model of
FActScore.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facttune_ray.errors import UserError


class Dense:
    """The model and the vectors. Calls from several threads run one after another."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        batch_size: int = 64,
        cache_bytes: int = 1 << 28,
        cache_dir: str | None = None,
    ) -> None:
        """`model`: folder or hub name. `batch_size`: texts per pass. `cache_bytes`: bytes of
        passage vectors in memory. `cache_dir`: a folder that several processes may share."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "Dense retrieval needs sentence-transformers: pip install sentence-transformers"
            ) from error
        try:
            self.model: Any = SentenceTransformer(
                model,
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            where = "" if Path(model).exists() else " (no such folder)"
            line = " ".join(str(error).split())[:200]
            raise UserError(f"Cannot load a sentence model from {model}{where}: {line}") from error
        self.name, self.batch_size, self.cache_bytes = model, batch_size, cache_bytes
        self.folder = Path(cache_dir) if cache_dir else None
        self.encoded = 0  # number of encoded queries and passages
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def top(
        self, title: str, passages: Sequence[str], queries: Sequence[str], k: int
    ) -> list[list[int]]:
        """For each query the indices of its k best passages, best first; ties keep their order.

        The model's own settings choose the similarity: cosine, dot product or a distance.
        """
        if not passages or not queries or k < 1:
            return [[] for _ in queries]
        with self._lock:
            passages_PD = self._vectors(title, passages)
            distinct = list(dict.fromkeys(queries))
            queries_QD = self._encode(distinct)
            near_QP = np.asarray(self.model.similarity(queries_QD, passages_PD))
        order_QK = (-near_QP).argsort(axis=1, kind="stable")[:, :k]
        best = dict(zip(distinct, order_QK.tolist(), strict=True))
        return [list(best[query]) for query in queries]

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        self.encoded += len(texts)
        vectors = self.model.encode(
            list(texts),
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _vectors(self, title: str, passages: Sequence[str]) -> np.ndarray:
        """Vectors [passages, width], float32: from memory, from the folder, or encoded now."""
        key = digest(self.name, title, passages)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        vectors = self._read(key, len(passages))
        if vectors is None:
            vectors = self._encode(passages)
            self._write(key, vectors)
        self._kept[key] = vectors
        self._kept_bytes += vectors.nbytes
        while self._kept_bytes > self.cache_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.nbytes
        return vectors

    def _read(self, key: str, passages: int) -> np.ndarray | None:
        if self.folder is None:
            return None
        try:
            vectors = np.load(self.folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent or truncated: encode again
            return None
        return vectors if vectors.ndim == 2 and len(vectors) == passages else None

    def _write(self, key: str, vectors: np.ndarray) -> None:
        if self.folder is None:
            return
        temporary = self.folder / f".{key}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, vectors, allow_pickle=False)
            os.replace(temporary, self.folder / f"{key}.npy")  # atomic
        except OSError as error:
            raise UserError(f"Cannot write passage vectors to {self.folder}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)


def digest(model: str, title: str, passages: Sequence[str]) -> str:
    """Digest of the inputs of the vectors. Lengths distinguish ["ab"] from ["a", "b"]."""
    sha = hashlib.sha256()
    for text in (model, title, *passages):
        data = text.encode()
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()[:32]
