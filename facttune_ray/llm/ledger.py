"""Durable store of paid completions: each is on disk before it is used, and never paid twice.

    ledger/facts/6f1c....arrow   one append-only Arrow IPC stream a writer

One row: key (SHA-256 of model, messages, parameters, sample index), the completion's text, its
usage and how it was had. A stream that ends in the middle of a row (its writer was killed) gives
the rows before the tear. Neither keys of an account nor headers are stored.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from facttune_ray.tables import Folder, writing

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("served_model", pa.string()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),  # of the attempt that succeeded
        ("created_s", pa.float64()),  # Unix time
    ]
)


@dataclass(frozen=True)
class Completion:
    """What one paid request gave."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    served_model: str
    attempts: int
    latency_s: float


def request_key(model: str, messages: list[dict], params: dict[str, Any], sample: int) -> str:
    """SHA-256 (hex) of everything that decides a completion. The endpoint's address does not."""
    body = json.dumps([model, messages, params, sample], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(body.encode()).hexdigest()


class Ledger:
    """Completions of one stage: those of every finished or killed writer, plus this one's."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.known: dict[str, Completion] = {}
        for name in folder.names():
            if name.endswith(".arrow"):
                self._load(folder / name)
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._sink: pa.NativeFile | None = None

    def _load(self, file: Folder) -> None:
        try:
            with file.fs.open_input_stream(file.path) as f, pa.ipc.open_stream(f) as reader:
                for batch in reader:
                    for row in batch.to_pylist():
                        key, _ = row.pop("key"), row.pop("created_s")
                        self.known[key] = Completion(**row)
        except (pa.ArrowInvalid, OSError):
            pass  # the writer was killed inside a row: what came before it is kept

    def get(self, key: str) -> Completion | None:
        return self.known.get(key)

    def put(self, key: str, completion: Completion) -> None:
        """Write the completion out at once: after this returns, a killed process loses nothing."""
        with writing(self.folder.path):
            if self._writer is None:
                self.folder.fs.create_dir(self.folder.path, recursive=True)
                file = self.folder / f"{uuid.uuid4().hex}.arrow"
                self._sink = self.folder.fs.open_output_stream(file.path)
                self._writer = pa.ipc.new_stream(self._sink, SCHEMA)
            row = {"key": key, "created_s": time.time(), **vars(completion)}
            self._writer.write_batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))
            assert self._sink is not None
            self._sink.flush()
        self.known[key] = completion

    def close(self) -> None:
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None
