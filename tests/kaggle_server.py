"""A server on loopback that plays the part of Kaggle's API which the real `kaggle` command needs."""

from __future__ import annotations

import atexit
import base64
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from warm_kaggle import NAME

from pipeline.kaggle import cli

USER, KEY = "someone", "0123456789abcdef0123456789abcdef"
API_TOKEN = "KGAT_fedcba9876543210fedcba9876543210"
SECRETS = (KEY, API_TOKEN, base64.b64encode(f"{USER}:{KEY}".encode()).decode())

Answer = tuple[int, dict[str, Any], dict[str, str]]


class KaggleServer(ThreadingHTTPServer):
    """What Kaggle knows (`submissions`, newest first; `archive`), what it shall answer, and what it was asked
    (`calls`, `uploads`).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.submissions: list[dict[str, Any]] = []
        self.archive: bytes | None = None
        # What happens to a new submission, one step for every list taken after it was sent; None = not listed
        # yet.
        self.scoring: list[dict[str, Any] | None] = [{"status": "COMPLETE", "publicScore": "0.5"}]
        self.refusals: dict[str, Answer] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploads: list[bytes] = []
        self.created: dict[str, Any] | None = None
        self.upload_status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method: str) -> list[dict[str, Any]]:
        return [body for name, body in self.calls if name == method]

    def refuse(self, method: str, status: int, message: str = "", **headers: str) -> None:
        """Answer `method` with a failure from now on."""
        body = {"code": status, "message": message} if message else {}
        self.refusals[method] = (
            status,
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )

    def answer(self, method: str, body: dict[str, Any]) -> Answer:
        self.calls.append((method, body))
        if method in self.refusals:
            if method == "CreateSubmission" and self.refusals[method][0] == 502:
                self._create(body)
            return self.refusals[method]
        known = {
            "IntrospectToken": lambda: {"active": body.get("token") == API_TOKEN, "username": USER},
            "StartSubmissionUpload": lambda: {"token": "blob", "createUrl": "http://localhost/upload/blob"},
            "CreateSubmission": lambda: self._create(body),
            "GetSubmissionLimits": lambda: {"numAllowedNow": 4, "numToday": 1},
            "ListSubmissions": self._list,
        }
        return (200, known[method](), {}) if method in known else self.other(method, body)

    def other(self, method: str, body: dict[str, Any]) -> Answer:
        """What only some servers know."""
        return 404, {"code": 404, "message": f"no {method}"}, {}

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created = {
            "ref": 7000 + len(self.uploads),
            "fileName": self.asked("StartSubmissionUpload")[-1]["fileName"],
            "date": "2026-03-01T12:00:00.123Z",
            "description": body.get("submissionDescription", ""),
            "status": "PENDING",
        }
        return {"message": "Successfully submitted to Glyphs in the Wild", "ref": self.created["ref"]}

    def _list(self) -> dict[str, Any]:
        if self.created:
            step = self.scoring.pop(0) if len(self.scoring) > 1 else self.scoring[0]
            if step is not None:
                self.created |= step
                if self.created not in self.submissions:
                    self.submissions.insert(0, self.created)
        return {"submissions": self.submissions}


class _Handler(BaseHTTPRequestHandler):
    server: KaggleServer

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output free of request lines."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        method = urlsplit(self.path).path.rpartition("/")[2]
        allowed = (f"Basic {SECRETS[2]}", f"Bearer {API_TOKEN}")
        if method != "IntrospectToken" and self.headers.get("Authorization") not in allowed:
            self._send_json(401, {"code": 401, "message": "Unauthorized"}, {})
        elif (
            method == "DownloadDataFiles"
            and method not in self.server.refusals
            and self.server.archive is not None
        ):
            self.server.calls.append((method, body))
            self._send(302, b"", {"Location": "http://localhost/bundle/archive.zip?signed=1"})
        else:
            self._send_json(*self.server.answer(method, body))

    def _send_json(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | headers)

    def do_PUT(self) -> None:
        self.server.uploads.append(self._body())
        self._send(self.server.upload_status, b"", {})

    def do_GET(self) -> None:
        headers = {"Content-Type": "application/zip", "Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT"}
        self._send(200, self.server.archive or b"", headers)


@functools.cache
def warm_command() -> Path:
    """The installed `kaggle` command as an executable that starts quickly, see warm_kaggle.py."""
    if not hasattr(os, "fork") or find_spec("kaggle") is None:
        return cli.find_command()
    folder = Path(tempfile.mkdtemp(prefix="kaggle-"))  # short, as a socket's path must be
    script = str(Path(__file__).with_name("warm_kaggle.py"))
    null = subprocess.DEVNULL
    serving = subprocess.Popen(
        [sys.executable, "-X", "utf8", script, "serve", str(folder)],
        stdin=subprocess.PIPE,
        stdout=null,
        stderr=null,
    )
    atexit.register(serving.communicate)  # which ends it; so does the end of this process, however it comes
    while not (folder / NAME).exists():
        assert serving.poll() is None, f"{script} ended"
        time.sleep(0.01)
    command = folder / "kaggle"
    words = shlex.join([sys.executable, "-IS", script, "call", str(folder)])
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    command.chmod(0o700)
    return command


@contextmanager
def kaggle(
    monkeypatch: pytest.MonkeyPatch, home: Path, make: type[KaggleServer] = KaggleServer
) -> Iterator[KaggleServer]:
    """A running server that every `kaggle` command started inside talks to, as USER with KEY."""
    server = make()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    (home / ".kaggle").mkdir(parents=True)
    for name in tuple(
        (
            "NO_PROXY no_proxy ALL_PROXY all_proxy KAGGLE_API_TOKEN KAGGLE_CONFIG_DIR KAGGLE_KERNEL_RUN_TYPE"
        ).split()
    ):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HOME": str(home),
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": KEY,
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
    }
    command = warm_command()
    monkeypatch.setattr(cli, "find_command", lambda: command)
    for name, value in (settings | {"HTTP_PROXY": server.address, "http_proxy": server.address}).items():
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
