"""OpenAI's Files and Batch APIs over the annotator: a file of chat requests, answered later.

    POST, GET /v1/files     GET, DELETE /v1/files/{id}    GET /v1/files/{id}/content
    POST, GET /v1/batches   GET /v1/batches/{id}          POST /v1/batches/{id}/cancel

The journal treats a line's `custom_id` as an `Idempotency-Key`. Lines do not count for the rate
limits. Files and batches are kept in memory, so a restarted server has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from facttune_ray.quickstart.answering import Annotator
from facttune_ray.quickstart.chat_api import (
    RequestError,
    check_request,
    parse_object,
    server_error,
)
from facttune_ray.quickstart.options import AnnotatorOptions

ENDPOINT = "/v1/chat/completions"
WINDOW_S = 24 * 3600
MAX_FILE_BYTES = 512 * 2**20  # of any upload; `batch_max_bytes` limits the input of a batch
MAX_ERRORS = 100  # listed by a failed batch
LINES_PER_TURN = 16  # lines handled before other requests get their turn
UNDONE = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "The batch was cancelled before this request executed.",
}
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True)
class File:
    id: str
    content: bytes
    name: str
    purpose: str
    created_at: int

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(frozen=True)
class Line:
    custom_id: str
    body: dict[str, Any]


@dataclass
class Batch:
    shown: dict[str, Any]  # the API's batch object
    random: random.Random
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    outputs: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)

    def move(self, status: str) -> None:
        self.shown |= {"status": status, f"{status}_at": int(time.time())}

    def add(
        self, line: Line, response: dict[str, Any] | None, error: dict[str, str] | None = None
    ) -> None:
        """Add a line's outcome to the output file if it is an answer, else to the error file."""
        row = {
            "id": f"batch_req_{self.random.getrandbits(96):024x}",
            "custom_id": line.custom_id,
            "response": response,
            "error": error,
        }
        answered = response is not None and response["status_code"] == 200
        (self.outputs if answered else self.errors).append(json.dumps(row).encode() + b"\n")
        self.shown["request_counts"]["completed" if answered else "failed"] += 1

    def spend(self, usage: dict[str, int]) -> None:
        for mine, theirs in (("input", "prompt"), ("output", "completion"), ("total", "total")):
            self.shown["usage"][f"{mine}_tokens"] += usage[f"{theirs}_tokens"]


class Batches:
    """Files and batches, both oldest first."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.files: dict[str, File] = {}
        self.batches: dict[str, Batch] = {}
        self.tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

    async def upload(self, request: web.Request) -> web.Response:
        if not request.content_type.startswith("multipart/"):
            raise RequestError("A file is uploaded as multipart/form-data.")
        try:
            form = await request.clone(client_max_size=MAX_FILE_BYTES).post()
        except web.HTTPRequestEntityTooLarge:
            message = f"File is too large: the maximum is {MAX_FILE_BYTES} bytes."
            raise RequestError(message, "file", status=413) from None
        if form.get("purpose") != "batch":
            raise RequestError("'purpose' must be 'batch' on this server.", "purpose")
        if not isinstance(file := form.get("file"), web.FileField):
            raise RequestError("'file' is a required property.", "file")
        return web.json_response(self._keep(file.file.read(), file.filename, "batch").shown())

    def _keep(self, content: bytes, name: str, purpose: str) -> File:
        file = File(f"file-{uuid.uuid4().hex}", content, name, purpose, int(time.time()))
        self.files[file.id] = file
        return file

    async def list_files(self, request: web.Request) -> web.Response:
        purpose = request.query.get("purpose")
        files = [f.shown() for f in self.files.values() if purpose in (None, f.purpose)]
        return _page(request, files, default=10_000, maximum=10_000)

    async def file(self, request: web.Request) -> web.Response:
        return web.json_response(self._file(request.match_info["id"]).shown())

    async def content(self, request: web.Request) -> web.Response:
        content = self._file(request.match_info["id"]).content
        return web.Response(body=content, content_type="application/octet-stream")

    async def delete_file(self, request: web.Request) -> web.Response:
        file = self._file(request.match_info["id"])
        del self.files[file.id]
        return web.json_response({"id": file.id, "object": "file", "deleted": True})

    def _file(self, id: Any, param: str = "id") -> File:
        if not isinstance(id, str) or id not in self.files:
            raise RequestError(f"No such File object: {id}", param, status=404)
        return self.files[id]

    async def create(self, request: web.Request) -> web.Response:
        asked = parse_object(await request.read())
        for name, only in (("endpoint", ENDPOINT), ("completion_window", "24h")):
            if asked.get(name) != only:
                message = f"Invalid value for '{name}': only '{only}' is supported."
                raise RequestError(message, name, "invalid_value")
        metadata = asked.get("metadata") or {}
        if not isinstance(metadata, dict) or len(metadata) > 16:
            raise RequestError("Invalid value for 'metadata'.", "metadata", "invalid_value")
        file = self._file(asked.get("input_file_id"), "input_file_id")
        if file.purpose != "batch":
            message = f"File {file.id} has purpose '{file.purpose}', not 'batch'."
            raise RequestError(message, "input_file_id", "invalid_value")
        now = int(time.time())
        id = f"batch_{uuid.uuid4().hex}"
        shown = {
            "id": id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": file.id,
            "completion_window": "24h",
            "status": "validating",
            "model": None,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + WINDOW_S,
            **{f"{status}_at": None for status in TIMES},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "usage": {
                "input_tokens": 0,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 0,
            },
            "metadata": metadata or None,
        }
        seed = f"batch/{self.annotator.options.seed}/{len(self.batches)}"
        batch = self.batches[id] = Batch(shown, random.Random(seed))
        task = asyncio.create_task(self._run(batch, file.content))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return web.json_response(shown)

    async def list_batches(self, request: web.Request) -> web.Response:
        return _page(request, [b.shown for b in self.batches.values()], default=20, maximum=100)

    async def batch(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch(request).shown)

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        status = batch.shown["status"]
        if status in ("validating", "in_progress"):
            batch.move("cancelling")
            batch.cancelled.set()
        elif status != "cancelling":
            raise RequestError(f"Cannot cancel a batch with status '{status}'.", status=409)
        return web.json_response(batch.shown)

    def _batch(self, request: web.Request) -> Batch:
        id = request.match_info["id"]
        if id not in self.batches:
            raise RequestError(f"No batch found with id '{id}'.", status=404)
        return self.batches[id]

    async def _run(self, batch: Batch, content: bytes) -> None:
        options = self.annotator.options
        lines, problems = await _read(content, options)
        if problems and not batch.cancelled.is_set():
            batch.shown["errors"] = {"object": "list", "data": problems}
            batch.move("failed")
            return
        if lines:
            batch.shown["model"] = lines[0].body.get("model")
        batch.shown["request_counts"]["total"] = len(lines)
        if not batch.cancelled.is_set():
            batch.move("in_progress")
        expires = batch.random.random() < options.batch_expire_share
        todo = lines[: len(lines) // 2] if expires else lines
        started, done = time.monotonic(), 0
        for number, line in enumerate(todo, 1):
            if number % LINES_PER_TURN == 0:
                await asyncio.sleep(0)
            wait_s = started + options.batch_delay_s * number / len(lines) - time.monotonic()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(batch.cancelled.wait(), wait_s)
            if batch.cancelled.is_set():
                break
            await self._line(batch, line)
            done = number
        end = "expired" if expires else "completed"
        if batch.cancelled.is_set():
            end = "cancelled"
        for line in lines[done:]:
            batch.add(line, None, {"code": f"batch_{end}", "message": UNDONE[end]})
        if end == "completed":
            batch.move("finalizing")
            await asyncio.sleep(0)
        for kind, rows in (("output", batch.outputs), ("error", batch.errors)):
            if rows:
                batch.random.shuffle(rows)
                name = f"{batch.shown['id']}_{kind}.jsonl"
                batch.shown[f"{kind}_file_id"] = self._keep(b"".join(rows), name, "batch_output").id
                rows.clear()
        batch.move(end)

    async def _line(self, batch: Batch, line: Line) -> None:
        broken = batch.random.random() < self.annotator.options.batch_error_share
        try:
            if broken:
                raise server_error()
            status, body = 200, await self._answer(line)
            batch.spend(body["usage"])
        except RequestError as e:
            status, body = e.status, e.body
        except OSError as e:  # the journal's disk is full
            status, body = 500, server_error(str(e)).body
        request_id = f"{batch.random.getrandbits(128):032x}"
        batch.add(line, {"status_code": status, "request_id": request_id, "body": body})

    async def _answer(self, line: Line) -> dict[str, Any]:
        asked = check_request(line.body)
        if (known := await self.annotator.known(asked, line.custom_id)) is not None:
            return json.loads(known)
        body = await self.annotator.answer(asked, line.custom_id, limited=False)
        self.annotator.counts["batch_lines"] += 1
        return json.loads(body)


async def _read(
    content: bytes, options: AnnotatorOptions
) -> tuple[list[Line], list[dict[str, Any]]]:
    """(lines, errors of the file in the API's form)"""
    if len(content) > options.batch_max_bytes:
        message = f"The batch input file is larger than the {options.batch_max_bytes} maximum."
        return [], [_file_error("file_too_large", message)]
    rows = content.strip().splitlines()
    if not rows:
        return [], [_file_error("empty_file", "The batch input file is empty.")]
    if len(rows) > options.batch_max_requests:
        message = f"The batch input file has more than {options.batch_max_requests} requests."
        return [], [_file_error("too_many_tasks", message)]
    lines: list[Line] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if number % LINES_PER_TURN == 0:
            await asyncio.sleep(0)
        try:
            line = _line_of(row, seen, lines[0].body.get("model") if lines else None)
        except RequestError as e:
            problems.append(_file_error(e.code, e.message, number, e.param))
            if len(problems) == MAX_ERRORS:
                break
        else:
            lines.append(line)
            seen.add(line.custom_id)
    return ([], problems) if problems else (lines, [])


def _line_of(row: bytes, seen: set[str], model: Any) -> Line:
    """A checked line. `seen`, `model`: custom_ids and model of the batch's earlier lines."""
    try:
        line = json.loads(row)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise RequestError("This line is not parseable as valid JSON.", code="invalid_json_line")
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if not isinstance(line.get(name), kind) or not line[name]:
            message = f"Missing required parameter: '{name}'."
            raise RequestError(message, name, "missing_required_parameter")
    custom_id, asked = line["custom_id"], line["body"].get("model")
    if custom_id in seen:
        message = f"The custom_id '{custom_id}' is a duplicate: it must be unique in a batch."
        raise RequestError(message, "custom_id", "duplicate_custom_id")
    if line["method"] != "POST":
        raise RequestError("The method must be POST.", "method", "invalid_method")
    if line["url"] != ENDPOINT:
        message = f"The URL '{line['url']}' does not match the batch endpoint '{ENDPOINT}'."
        raise RequestError(message, "url", "url_mismatch")
    if model is not None and asked != model:
        message = f"The model '{asked}' is not that of the batch, '{model}': use one in a file."
        raise RequestError(message, "body.model", "model_mismatch")
    return Line(custom_id, line["body"])


def _file_error(
    code: str | None, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}


def _page(
    request: web.Request, rows: list[dict[str, Any]], default: int, maximum: int
) -> web.Response:
    """Newest rows first, at most `limit` rows, starting after the row with the id `after`."""
    rows = rows[::-1]
    text = request.query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= maximum:
        message = f"'limit' must be an integer from 1 to {maximum}."
        raise RequestError(message, "limit", "invalid_value")
    if (after := request.query.get("after")) is not None:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise RequestError(f"No object found with id '{after}'.", "after", status=404)
        rows = rows[ids.index(after) + 1 :]
    page = rows[: int(text)]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(rows) > len(page),
        }
    )
