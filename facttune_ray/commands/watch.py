"""`facttune watch`: serve the report of a run on loopback while the run is made.

    server = Server(watched, port=0)
    server.url      "http://127.0.0.1:40123/?token=..."
    server.serve_forever()

Only who has the token sees a page: the first request brings it in the URL, later ones in a cookie.
A request for another host name is refused, so that a web page cannot reach the server by a name
that it lets point to 127.0.0.1. The content security policy of the page allows its own scripts by
their hashes, and requests to this server alone.
"""

from __future__ import annotations

import hmac
import http.server
import re
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from facttune_ray.commands.browser import opened
from facttune_ray.commands.watched import Watched
from facttune_ray.errors import UserError
from facttune_ray.evaluation.report.parts import FOLDER
from facttune_ray.secrets import redact
from facttune_ray.storage.folders import outage
from facttune_ray.telemetry import say

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
NEED_TOKEN = "Open the URL that `facttune watch` printed: it holds the token.\n"
POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')
FORBIDDEN = "default-src 'none'"
PART = re.compile(rf"/{FOLDER}/[0-9a-f]+\.js")  # a part of a large report


class Server(http.server.ThreadingHTTPServer):
    """The pages of one run. `port` 0: any free port. UserError if the port is taken."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        self.watched, self.token = watched, secrets.token_hex(24)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or e
            raise UserError(
                f"--port {port}: cannot listen there: {why}: give another port"
            ) from None
        self.cookie = f"facttune-{self.server_port}"  # cookies do not tell ports apart

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def permits(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def handle_error(self, request: object, client_address: object) -> None:
        """Print the traceback of a bug without secrets. A browser that goes away is none."""
        if not isinstance(sys.exception(), ConnectionError):
            print(redact(traceback.format_exc()), file=sys.stderr)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a connection may be idle
    server_version, sys_version = "facttune", ""

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        # at any port: a tunnel may have another one
        if _host(self.headers.get("Host", "")) not in NAMES:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "Unknown host name.\n")
        elif (token := parse_qs(path.query).get("token", [""])[0]) and self.server.permits(token):
            # a cookie from here on: the address of the page, and its history, hold no token
            value = f"{self.server.cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
            headers = {"Set-Cookie": value, "Location": "/"}
            self._answer(HTTPStatus.SEE_OTHER, "", headers)
        elif not self.server.permits(self._cookie()):
            self._answer(HTTPStatus.FORBIDDEN, NEED_TOKEN)
        elif path.path == "/":
            self._show(self.server.watched.page)
        elif path.path == "/live":
            self._show(self.server.watched.fragment)
        elif PART.fullmatch(path.path):
            self._show(lambda: self.server.watched.part(path.path[1:]), "text/javascript")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "No such page.\n")

    do_HEAD = do_GET

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _show(self, make: Callable[[], str | None], kind: str = "text/html") -> None:
        try:
            text = make()
        except Exception as e:
            line = outage(e) if isinstance(e, OSError) else None
            why = f"storage: {line}" if line else "The page could not be made: a bug."
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")
            if not line:
                raise  # `handle_error` prints the traceback
            return
        if text is None:
            self._answer(HTTPStatus.NOT_FOUND, "No such page.\n")
        else:
            self._answer(HTTPStatus.OK, text, kind=kind)

    def _answer(
        self,
        status: HTTPStatus,
        text: str,
        headers: dict[str, str] | None = None,
        kind: str = "text/plain",
    ) -> None:
        body = text.encode()
        policy = found[1] if kind == "text/html" and (found := POLICY.search(text)) else FORBIDDEN
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print no line a request: the line would hold the token."""


def _host(given: str) -> str | None:
    try:
        return urlsplit(f"//{given}").hostname
    except ValueError:
        return None


def watch(watched: Watched, port: int, open_browser: bool = False) -> int:
    """Serve until Ctrl-C. Return the exit code."""
    with Server(watched, port) as server:
        print(server.url, flush=True)
        say("Ctrl-C ends this page, not the run")
        if open_browser:  # in a thread: some browsers end only when they are closed
            threading.Thread(target=opened, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0
