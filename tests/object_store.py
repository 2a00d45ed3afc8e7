"""An S3 server on this machine (moto) that can refuse and be slow, as real ones do.

with running() as store:
    store.uri("run")      s3://tests/run?endpoint_override=127.0.0.1:43210&scheme=http&...
    store.fail(5)         the next 5 requests get 503 SlowDown
    store.delay_s = 4     every request takes so long
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Store:
    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.app = DomainDispatcherApplication(create_backend_app)
        self.port, self.delay_s = 0, 0.0
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.refuses: Callable[[int, str, str], bool] = lambda number, method, path: False

    def fail(self, count: int) -> None:
        end = len(self.requests) + count
        self.refuses = lambda number, method, path: number < end

    def uri(self, name: str) -> str:
        there = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://tests/{name}?{there}"

    def __call__(self, environ: dict[str, Any], start: Callable) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        number = len(self.requests)
        self.requests.append((method, path))
        time.sleep(self.delay_s)
        if not self.refuses(number, method, path):
            return self.app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = b"" if method == "HEAD" else REFUSAL
        start("503 Slow Down", [("Content-Length", str(len(body)))])
        return [body]


@contextmanager
def running() -> Iterator[Store]:
    import boto3
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    where = {"endpoint_url": f"http://127.0.0.1:{store.port}", "region_name": "us-east-1"}
    boto3.client("s3", **where).create_bucket(Bucket="tests")
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
