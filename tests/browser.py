"""A headless Chromium, spoken to in its DevTools protocol over two pipes: JSON messages that each end with a
zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-sync",
        "--disable-component-update",
    ),
    *(
        "--no-first-run",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
    ),
)


class Browser:
    """One page in a Chromium of its own. `requests` and `complaints` hold the addresses asked for and what
    the console said since `open`.

    Chromium reads commands from file descriptor 3 and answers on 4 (`--remote-debugging-pipe`); methods are
    named in https://chromedevtools.github.io/devtools-protocol/.
    """

    def __init__(self, profile: Path, timeout_s: float = 60.0) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._timeout_s, self._last_id, self._buffer, self._session = timeout_s, 0, b"", None
        their_commands, self._commands = os.pipe()
        self._answers, their_answers = os.pipe()
        redirected = f'exec "$@" 3<&{their_commands} 4>&{their_answers}'
        words = [
            "bash",
            "-c",
            redirected,
            "bash",
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        passed = (their_commands, their_answers)
        self._process = subprocess.Popen(
            words, pass_fds=passed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for descriptor in passed:
            os.close(descriptor)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._commands)  # Chromium ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file at `width` CSS pixels, with the scheme of colours that the reader's system asks for."""
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            screenWidth=width,
            screenHeight=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.requests, self.complaints = [], []
        self.send("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + self._timeout_s
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{page} did not load")
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is waited for) in the page, whatever policy the
        page has.
        """
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(reply["exceptionDetails"])
        return reply["result"].get("value")

    def pdf(self, path: Path) -> None:
        """The page as printed on A4."""
        path.write_bytes(
            base64.b64decode(
                self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)[
                    "data"
                ]
            )
        )

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; events that arrive before it are kept."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next_message()
            if reply.get("id") == self._last_id:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self._note(reply)

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], self._timeout_s)[0]:
                raise TimeoutError("Chromium does not answer")
            read = os.read(self._answers, 1 << 20)
            if not read:
                raise RuntimeError(f"Chromium ended with {self._process.wait()}")
            self._buffer += read
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        what, values = event.get("method"), event.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif what == "Runtime.consoleAPICalled":
            self.complaints.append(str(values["args"]))
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(str(values["exceptionDetails"]))
        elif what == "Log.entryAdded":
            self.complaints.append(values["entry"]["text"])
