"""Headless Chromium for tests, driven over the pipe of its DevTools protocol: no dependency.

Messages are JSON that ends with a zero byte; the browser reads descriptor 3 and writes 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One page of a headless browser; a context manager that ends the browser it started."""

    def __init__(self, profile: Path, limit_s: float = 60.0) -> None:
        path = next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            pytest.skip(f"no browser on this machine (looked for {', '.join(NAMES)})")
        fcntl = pytest.importorskip("fcntl")  # Windows has other pipes
        to_browser, self.out = os.pipe()
        self.inward, from_browser = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_browser, from_browser)]

        def wire() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        options = "--headless=new --no-sandbox --disable-gpu --mute-audio --remote-debugging-pipe"
        words = [path, *options.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, preexec_fn=wire, close_fds=False, **quiet)
        for descriptor in (to_browser, from_browser, *high):
            os.close(descriptor)
        self.limit_s, self.number, self.rest, self.session = limit_s, 0, b"", None
        self.events: list[dict] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        self.send("Runtime.enable")  # exceptions of the page arrive as events
        self.send("Page.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.out)
        os.close(self.inward)

    def send(self, method: str, **parameters) -> dict:
        """One command and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.limit_s
        while True:
            if b"\0" not in self.rest:
                left = until - time.monotonic()
                assert left > 0 and select.select([self.inward], [], [], left)[0], method
                part = os.read(self.inward, 1 << 20)
                assert part, f"the browser ended during {method}"
                self.rest += part
                continue
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path | str, width: int = 1200, height: int = 900) -> None:
        """Show a file or an address; returns when its script has run."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.send("Emulation.setDeviceMetricsOverride", **size)
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def run(self, expression: str):
        """The value of a JavaScript expression in the page."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, limit_s: float | None = None):
        """Wait until an expression is true; its value."""
        until = time.monotonic() + (limit_s or self.limit_s)
        while not (value := self.run(expression)):
            assert time.monotonic() < until, f"never came true: {expression}"
            time.sleep(0.05)
        return value

    def click(self, selector: str, at: float = 0.5) -> None:
        """A real click of the mouse in an element, at a share of its width, once it lies still."""
        element = f"document.querySelector({json.dumps(selector)})"
        place = f"(b => [b.x + {at} * b.width, b.y + b.height / 2])"
        place += f"({element}.getBoundingClientRect())"
        box, now = None, ()
        while box != now:
            self.run(f"{element}.scrollIntoView({{block: 'center'}})")
            box = self.run(place)
            time.sleep(0.1)
            now = self.run(place)
        for kind in ("mousePressed", "mouseReleased"):
            where = dict(x=box[0], y=box[1], button="left", clickCount=1)
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A real key press."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key,
                      windowsVirtualKeyCode=code, **more)  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = dict(x=0, y=0, width=width, height=height, scale=1)
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
