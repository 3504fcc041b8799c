#!/usr/bin/env python3
"""Write docs/guide/web.png: the shop of examples/ in a lab, with a client and a service that is denied.

Run it as root: ``.venv/bin/python tests/browser/picture.py [FILE [dark]]``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "netns")]

from chromium import Chromium  # noqa: E402
from conftest import Lab  # noqa: E402
from services import idle, on  # noqa: E402

SIZE = (1280, 620)
CLIENT = "while :; do curl -s -m 5 http://192.0.2.1:8080/ > /dev/null; sleep 0.3; done"
GUEST = "while :; do busybox nc -w 1 10.99.1.2 5432 < /dev/null; sleep 1; done"


def main(path: Path, scheme: str) -> None:
    with Lab(110) as lab:
        lab.run("cp", "-r", str(TESTS.parent / "examples" / "shop"), "/srv")
        lab.niso("stack", "up", "/srv/shop")
        lab.niso("activate", idle(lab, "guest", network=on("backend")))
        lab.popen("sh", "-c", CLIENT, netns="client")
        lab.popen("sh", "-c", GUEST, netns="niso-guest")
        web = lab.popen("niso", "web")
        assert web.stdout is not None
        browser = Chromium(lab)
        browser.prefer(prefers_color_scheme=scheme)
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(web.stdout.readline().decode().strip())
        browser.wait("document.querySelectorAll('.node.service').length === 4")
        end = time.monotonic() + 45
        while time.monotonic() < end:
            browser._receive(1)
        browser.ask("document.getElementById('arrange').click()")
        browser.shot(path)


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    main(Path(words.get(1, TESTS.parent / "docs/guide/web.png")), words.get(2, "light"))
