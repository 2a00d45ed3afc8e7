"""A metadata server like those of AWS, Google and Azure, which a test tells what to say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token-of-the-session"
# A path that begins so is refused without this header: clouds do so against forged requests.
NEEDED = {
    "/latest/meta-data/": ("X-aws-ec2-metadata-token", TOKEN, 401),
    "/computeMetadata/": ("Metadata-Flavor", "Google", 403),
    "/metadata/": ("Metadata", "true", 400),
}
GOOGLE = "/computeMetadata/v1/instance"
PREEMPTED, MAINTENANCE = f"{GOOGLE}/preempted", f"{GOOGLE}/maintenance-event"
SPOT = "/latest/meta-data/spot/instance-action"
NAME, EVENTS = "/metadata/instance/compute/name", "/metadata/scheduledevents"
# What a cloud says as long as there is no notice. AWS has no page then.
QUIET = {
    "aws": {"/latest/api/token": TOKEN},
    "google": {PREEMPTED: "FALSE", MAINTENANCE: "NONE"},
    "azure": {NAME: "vm_1", EVENTS: '{"DocumentIncarnation": 1, "Events": []}'},
}


@dataclass
class Metadata:
    """What the server says. `pages`: path -> text; any other path is not found."""

    url: str
    pages: dict[str, str]
    down: bool = False
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running(cloud: str, host: str = "127.0.0.1") -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            metadata.asked.append(f"{self.command} {path}")
            name, value, refusal = next(
                (need for start, need in NEEDED.items() if path.startswith(start)), ("", "", 0)
            )
            token = path == "/latest/api/token"
            if metadata.down:
                self.answer(503)
            elif refusal and self.headers[name] != value:
                self.answer(refusal)
            elif path not in metadata.pages:
                self.answer(404)
            elif token != (self.command == "PUT"):
                self.answer(405)
            elif token and not self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
                self.answer(400)
            else:
                self.answer(200, metadata.pages[path])

        do_PUT = do_GET

        def answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        url = f"http://{host}:{server.server_address[1]}"
        metadata = Metadata(url, dict(QUIET[cloud]))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield metadata
        finally:
            server.shutdown()
