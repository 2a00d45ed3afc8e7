"""Durable answers of the annotator: a request with a key is answered and paid once.

journal = Journal("annotator.jsonl")
journal.add("key-1", "6f1c...", b'{"id": ...}')
journal.find("key-1")   ->  ("6f1c...", b'{"id": ...}')
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter

from facttune_ray.errors import UserError


class Journal:
    """Answers on disk, one JSON line each: {"key", "request_sha256", "response"}.

    Memory holds the place of each key's line, and how often each request was answered. Only one
    process writes the file. A last line that is incomplete after a crash is dropped.
    """

    def __init__(self, path: str | None, lock_wait_s: float = 10.0) -> None:
        self.places: dict[str, tuple[str, int, int]] = {}  # key -> request, offset, length
        self.answered: Counter[str] = Counter()  # request -> times answered
        self.bodies: dict[str, bytes] = {}  # answers of requests with a key, if there is no file
        self.fd: int | None = None
        self.end = 0
        if path is not None:
            self._open(path, lock_wait_s)

    def _open(self, path: str, lock_wait_s: float) -> None:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise UserError(f"Annotator journal {path} cannot be opened: {e.strerror}.") from None
        give_up = time.monotonic() + lock_wait_s  # the server of a killed run takes a moment to end
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > give_up:
                    raise UserError(
                        f"Annotator journal {path} is in use: stop its server."
                    ) from None
                time.sleep(0.05)
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break  # incomplete
                try:
                    row = json.loads(line)
                    self._note(row["key"], row["request_sha256"], self.end, len(line))
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"Annotator journal {path}, line {number} is no answer: remove the file."
                    ) from None
                self.end += len(line)
        os.ftruncate(self.fd, self.end)

    def _note(self, key: str | None, request: str, offset: int, length: int) -> None:
        self.answered[request] += 1
        if key is not None:
            self.places[key] = (request, offset, length)

    def add(self, key: str | None, request: str, body: bytes) -> None:
        """Write an answer. It survives a kill of the process after this returns."""
        if self.fd is None:
            self._note(key, request, 0, 0)
            if key is not None:
                self.bodies[key] = body
            return
        head = json.dumps({"key": key, "request_sha256": request})[:-1].encode()
        line = head + b', "response": ' + body + b"}\n"
        try:
            written = os.pwrite(self.fd, line, self.end)
        except OSError:
            written = 0
        if written != len(line):
            os.ftruncate(self.fd, self.end)
            raise OSError("the annotator's journal cannot be written: is the disk full?")
        self._note(key, request, self.end, len(line))
        self.end += len(line)

    def find(self, key: str) -> tuple[str, bytes] | None:
        """(request, body that was sent first) of a key; None if the key has no answer."""
        if key not in self.places:
            return None
        request, offset, length = self.places[key]
        if self.fd is None:
            return request, self.bodies[key]
        response = json.loads(os.pread(self.fd, length, offset))["response"]
        return request, json.dumps(response).encode()

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
