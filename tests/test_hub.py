"""Loading from the Hugging Face hub, against a server on loopback that plays it; and what is said when there
is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.data.transforms import Preprocessing

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_backbone: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that has one model, someone/tiny-beit, with another preprocessing."""
    Preprocessing(40, 40, mean=(0.1, 0.2, 0.3)).save(tmp_path / "rule")
    files = {
        path.name: path.read_bytes()
        for path in [*tiny_backbone.iterdir(), tmp_path / "rule" / "preprocessor_config.json"]
    }

    class Hub(BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            prefix, _, name = self.path.partition("/resolve/")
            body = files.get(name.partition("/")[2]) if prefix == "/someone/tiny-beit" else None
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header(
                    "X-Error-Code", "EntryNotFound" if prefix == "/someone/tiny-beit" else "RepoNotFound"
                )
                body = b""
            else:
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# Commands one after the other in a process whose libraries have read the hub's address
COMMANDS = """
import json, sys
import train
from pipeline.errors import run_command
*flags, names = sys.argv[1:]
codes = [run_command(lambda: train.main([*flags, "--backbone", name])) for name in json.loads(names)]
print(codes)
"""


def dry_run(competition: Path, tmp_path: Path, endpoint: str, *backbones: str) -> tuple[list[int], str, str]:
    """The exit codes of a dry run with each backbone, what they printed, and their messages."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub_cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    flags = ["--data", str(competition), "--output", str(tmp_path / "run"), "--dry-run"]
    command = [sys.executable, "-c", COMMANDS, *flags, json.dumps(backbones)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stdout, result.stderr


def test_an_unknown_hub_id_is_one_message_and_a_known_one_is_fetched_with_its_preprocessing_and_cached(
    hub: str, competition: Path, tmp_path: Path
) -> None:
    codes, printed, messages = dry_run(competition, tmp_path, hub, "someone/else", "someone/tiny-beit")
    assert codes == [2, 0] and "Traceback" not in messages, messages
    assert "--backbone someone/else: not in this machine's cache" in messages
    assert "--backbone finetuned_model/model_beit" in messages
    assert "input 40 x 40 px; new head for 3 classes" in printed
    cached = {path.name for path in (tmp_path / "hub_cache").rglob("snapshots/*/*")}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= cached


def test_a_silent_hub_is_asked_once_and_is_one_message(competition: Path, tmp_path: Path) -> None:
    """Its client alone would try five times for each file."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with suppress(OSError):  # the server is closed
                while True:
                    connection, address = server.accept()
                    asked.append(address)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        backbone = "microsoft/beit-large-patch16-384"
        codes, printed, messages = dry_run(competition, tmp_path, endpoint, backbone)
    errors = [line for line in messages.splitlines() if "img/s" not in line and line.strip()]
    assert codes == [2] and len(errors) == 2
    assert errors[0].startswith("error: --backbone microsoft/beit-large-patch16-384")
    assert f"{endpoint} does not answer" in printed and len(asked) == 1
