"""A real browser without a package for it: headless Chromium, driven over a pair of pipes by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")
PATH = next((found for name in NAMES if (found := shutil.which(name))), None)

# The protocol is spoken over file descriptors 3 and 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for to, end in enumerate(ends, 3):
    os.dup2(end, to)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page at a time.

    >>> with Browser() as browser:                      # doctest: +SKIP
    ...     browser.open(Path("report.html"))
    ...     browser.value("document.title")
    """

    def __init__(self, width: int = 1200, height: int = 900, seconds: float = 60.0) -> None:
        assert PATH is not None, "no Chromium on this machine"
        self.seconds, self._number = seconds, 0
        self.errors: list[str] = []
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self.folder.name}", f"--window-size={width},{height}"]
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(commands), str(answers), PATH, *flags, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._read)
        os.close(self._write)
        self.folder.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (got := self._next()).get("id") != self._number:
            self._events.append(got)
        assert "error" not in got, f"{method}: {got}"
        return dict(got["result"])

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, "the browser does not answer"
            self._rest += chunk
        text, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(text))

    def wait(self, event: str) -> dict[str, Any]:
        """The next event of a name; what came before it is dropped."""
        while True:
            got = self._events.pop(0) if self._events else self._next()
            self._note(got)
            if got.get("method") == event:
                return dict(got.get("params", {}))

    def _note(self, got: dict[str, Any]) -> None:
        if got.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(json.dumps(got["params"])[:400])

    def open(self, page: Path) -> None:
        """Load a file and wait until it is there."""
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key: Tab, ArrowRight, Space, Escape ..."""
        codes = {"Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Space": 32, "Escape": 27, "Home": 36, "End": 35}
        name, text = (" ", " ") if key == "Space" else (key, "")
        common = {"key": name, "code": key, "windowsVirtualKeyCode": codes[key]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, file: Path, *, whole: bool = True, clip: str | None = None) -> None:
        """A screenshot: of the window, the whole page, or the element that a selector finds."""
        params: dict[str, Any] = {"captureBeyondViewport": whole or clip is not None}
        if clip is not None:
            rectangle = f"document.querySelector({clip!r}).getBoundingClientRect()"
            box = f"(b => [b.left + scrollX, b.top + scrollY, b.width, b.height])({rectangle})"
            x, y, width, height = self.value(box)
            params["clip"] = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **params)["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it is printed on A4."""
        got = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        file.write_bytes(base64.b64decode(got["data"]))
