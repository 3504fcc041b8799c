#!/usr/bin/env python3
"""Draw pictures of the map with 13, 60 and 200 services, light and dark, at three sizes.

Run it as ``.venv/bin/python tests/browser/gallery.py [FOLDER]``; the default is build/gallery. It
needs no root: the page gets made-up states. index.html in the folder shows all pictures.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

from chromium import Chromium  # noqa: E402
from netns.web_states import world_of  # noqa: E402

COUNTS = (13, 60, 200)
SIZES = {"laptop": (1280, 800), "desktop": (1920, 1080), "phone": (390, 844)}


GEOMETRY = """(() => {
  const seen = (e) => e.getClientRects().length > 0 && getComputedStyle(e).display !== "none";
  const all = (s) => [...document.querySelectorAll("#picture " + s)].filter(seen);
  const stage = document.getElementById("stage").getBoundingClientRect();
  const size = (t) => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a;
  const texts = all("text").map((t) => [t.textContent, size(t)]);
  const lines = all(".edge:not(.dim) .line").map((l) => {
    const [m, points] = [l.getScreenCTM(), []];
    for (let at = 0; at <= l.getTotalLength(); at += 3) points.push(l.getPointAtLength(at).matrixTransform(m));
    return { key: l.parentNode.dataset.key, points };
  });
  const crossed = all(".label").filter((label) => {
    const r = label.querySelector("rect").getBoundingClientRect();
    const inside = (p) => r.left < p.x && p.x < r.right && r.top < p.y && p.y < r.bottom;
    return lines.some((l) => l.key !== label.dataset.key && l.points.some(inside));
  }).map((label) => label.textContent);
  const over = (r) => r.left < stage.left - 1 || r.right > stage.right + 1 || r.top < stage.top - 1 || r.bottom > stage.bottom + 1;
  const boxes = [...all(".node .box"), ...all(".frame > rect"), ...all(".wall > rect"), ...all(".label rect")];
  const outside = boxes.filter((b) => over(b.getBoundingClientRect())).map((b) => b.parentNode.dataset.key ?? "wall");
  const lost = lines.filter((l) => l.points.some((p) => over({ left: p.x, right: p.x, top: p.y, bottom: p.y }))).map((l) => l.key);
  const rects = boxes.map((b) => b.getBoundingClientRect());
  const high = Math.max(...rects.map((r) => r.bottom)) - Math.min(...rects.map((r) => r.top));
  return {
    small: texts.filter(([, px]) => px < 10.99), crossed, outside: [...outside, ...lost],
    labels: all(".label").length, denied: all(".label.drop").length,
    texts: texts.length, height: high / stage.height, wide: document.documentElement.scrollWidth - innerWidth,
  };
})()"""
"""What is measured of the map: texts under 11 px, labels that another line crosses, what is out of view."""


PAINTED = """addEventListener("DOMContentLoaded", () => {
  const seen = () => document.querySelectorAll(".node").length > 1;
  const after = () => requestAnimationFrame(() => requestAnimationFrame(() => (window.painted = performance.now())));
  if (seen()) after(); // the last state of this tab
  else new MutationObserver((_, own) => seen() && (own.disconnect(), after())).observe(document, { childList: true, subtree: true });
});"""
"""Sets window.painted after the first frame with services."""


class Here:
    """Start programs as a lab does, but on this host."""

    def popen(self, *argv: str, stdin: int, **_: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, start_new_session=True)


SERVE = """
import asyncio, socket, sys, uvicorn
from niso.web import page_server
listener = socket.create_server(("127.0.0.1", 0))
line = sys.stdin.buffer.readline()
states = page_server.States(lambda said: said == page_server.WATCHED and states.put(line))
page = page_server.application(states, "gallery", page_server.files())
print(f"http://127.0.0.1:{listener.getsockname()[1]}/#token=gallery", flush=True)
config = uvicorn.Config(page, log_config=None, lifespan="off")
asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
"""


@contextlib.contextmanager
def served(state: dict[str, Any]) -> Iterator[str]:
    """Serve the page with one state on a free port of 127.0.0.1. Yields the address with token."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVE], stdin=pipe, stdout=pipe)
    assert server.stdin is not None and server.stdout is not None
    try:
        server.stdin.write(json.dumps({"state": state}).encode() + b"\n")
        server.stdin.close()
        yield server.stdout.readline().decode().strip()
    finally:
        server.kill()
        server.wait()


def resize(browser: Chromium, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    browser.call("Emulation.setDeviceMetricsOverride", **metrics)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    profile = tempfile.mkdtemp(prefix="niso-gallery-")
    browser = Chromium(Here(), f"--user-data-dir={profile}", size=(1280, 800))  # type: ignore[arg-type]
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=PAINTED)
    for count in COUNTS:
        with served(world_of(count)) as address:
            for kind, size in SIZES.items():
                resize(browser, size)
                for scheme in ("light", "dark"):
                    browser.prefer(prefers_color_scheme=scheme)
                    browser.open("about:blank")
                    browser.open(address)
                    browser.wait(
                        "window.painted && document.getElementById('live').innerText === 'live'"
                    )
                    pictures.append(f"{count}-{kind}-{scheme}.png")
                    browser.shot(folder / pictures[-1])
    browser.close()
    shutil.rmtree(profile, ignore_errors=True)
    shown = "".join(f'<p>{name}<p><img src="{name}" alt="">' for name in pictures)
    (folder / "index.html").write_text(f"<!DOCTYPE html><title>gallery</title>{shown}\n")
    print(folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else TESTS.parent / "build/gallery"))
