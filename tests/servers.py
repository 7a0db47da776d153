"""A web server on loopback that plays what a test tells it to, Google Drive included."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import requests


@dataclass
class Reply:
    """One answer. `cut_at`: the connection ends after that many bytes of the body; `ranges`: whether Range is
    honoured.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    ranges: bool = True


class Server:
    """`replies[path]` are given in order, the last one again and again; `seen` holds each request's path with
    query, and headers.
    """

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.replies: dict[str, list[Reply]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []

    def next_reply(self, path: str) -> Reply:
        replies = self.replies.get(urlsplit(path).path, [Reply(b"no such page", 404)])
        return replies.pop(0) if len(replies) > 1 else replies[0]


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of loopback, stopped when the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append((self.path, asked))
            reply = server.next_reply(self.path)
            start, status, headers = 0, reply.status, dict(reply.headers)
            same_version = asked.get("if-range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
            if reply.ranges and same_version and status == 200 and "range" in asked:
                start = int(asked["range"].removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(reply.body) else 416
                part = f"{start}-{len(reply.body) - 1}" if status == 206 else "*"
                headers["Content-Range"] = f"bytes {part}/{len(reply.body)}"
            body = reply.body[start:]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client may have had enough
                self.wfile.write(
                    body if reply.cut_at is None else reply.body[start : max(start, reply.cut_at)]
                )

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(httpd.server_address[1])
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def play_drive(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what the real gdown asks of Google Drive to `server` (paths /uc and /download), and nothing else
    anywhere else.
    """
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, **options):
        parts = urlsplit(request.url)
        if (parts.hostname or "").endswith(".google.com"):
            request.url = f"{server.url}{parts.path}?{parts.query}"
        assert request.url.startswith(server.url)
        return send(self, request, **options | {"proxies": {}})

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
