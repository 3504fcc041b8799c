"""Drive Debian's Chromium in a lab by the DevTools protocol, through a pipe (--remote-debugging-pipe).

The protocol has what tests of a page need and WebDriver does not: every request, what the page's policy stopped, media
features and keys as a keyboard sends them. https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import json
import select
import shutil
import time
from pathlib import Path
from typing import Any

from conftest import Lab

PROGRAM = "chromium-headless-shell"
OPTIONS = (
    "--no-sandbox",  # a lab's root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--user-data-dir=/tmp/chromium",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


class Chromium:
    """One page. ``requests`` are the addresses that it asked for, ``logged`` what the browser reported."""

    def __init__(self, lab: Lab, *options: str, size: tuple[int, int] = (1440, 900)) -> None:
        words = " ".join((PROGRAM, *OPTIONS, *options, f"--window-size={size[0]},{size[1]}"))
        # the pipe is descriptors 3 and 4 of Chromium
        shell = f"exec {words} about:blank 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null"
        self._process = lab.popen("/bin/sh", "-c", shell, stdin=-1)
        self._number = 0
        self._partial = b""
        self.requests: list[str] = []
        self.statuses: dict[str, int] = {}
        self.logged: list[str] = []
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        end = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(end - time.monotonic())
            assert answer is not None, f"no answer to {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while b"\0" not in self._partial:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            block = self._process.stdout.read1(1 << 20)
            assert block, "Chromium has ended"
            self._partial += block
        line, _, self._partial = self._partial.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.responseReceived":
            self.statuses[params["response"]["url"]] = params["response"]["status"]
        elif method == "Log.entryAdded":
            self.logged.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.logged.append(json.dumps(params["exceptionDetails"]))

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript, also of a promise."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Its first value that is true; while a page loads, it may fail."""
        tried = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if value := self.ask(tried):
                return value
            self._receive(0.05)
        text = self.ask("document.body.innerText.slice(0, 2000)")
        raise AssertionError(f"never true: {expression}\n{text}\n{self.logged}")

    def wait_logged(self, words: str) -> None:
        """Wait until the browser reports something with these words."""
        end = time.monotonic() + PATIENCE_S
        while not any(words in each for each in self.logged):
            assert time.monotonic() < end, self.logged
            self._receive(0.05)

    def press(self, key: str) -> None:
        """Press a key: a character, or a name such as Enter."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38}
        codes |= {"ArrowRight": 39, "ArrowDown": 40}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        code = codes.get(key, ord(key[0].upper()))
        named = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def prefer(self, media: str = "", **features: str) -> None:
        """Emulate a medium (print) and features: ``prefers_color_scheme="dark"``."""
        listed = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=listed)

    def shot(self, path: Path, scale: float = 1) -> None:
        """Write a picture of what is seen."""
        size = self.ask("[innerWidth, innerHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": scale}
        done = self.call("Page.captureScreenshot", format="png", clip=clip)
        path.write_bytes(base64.b64decode(done["data"]))
