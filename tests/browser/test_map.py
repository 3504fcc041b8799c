"""Test that the map is legible and answers to pointer and keyboard, with 13, 60 and 200 services.

Axe-core comes from the lock file of this folder by npm, so its part needs ``./dev test-long``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium, is_installed
from gallery import COUNTS, GEOMETRY, PAINTED, SIZES, Here, resize, served
from netns.web_states import world_of

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(not is_installed(), reason="no chromium-headless-shell")

LEAST_LABELS = {13: 10, 60: 2, 200: 5}
"""Labels at 1280x800; on a larger window there are more."""
TIED = "[...document.querySelectorAll('.node:not(.dim)')].map(n => n.dataset.key).sort()"
ALL_DIM = "document.querySelectorAll('.node.dim').length"
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
CARD = "document.getElementById('card').hidden ? '' : document.getElementById('card').innerText"
SIDE = "document.getElementById('side').innerText"
FILTERS = "document.getElementById('filters').innerText"
AXE = (
    "axe.run(document, {runOnly: {type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}})"
    ".then(r => r.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)]))"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    program = Chromium(Here(), f"--user-data-dir={tmp_path}/chromium", size=(1280, 800))  # type: ignore[arg-type]
    program.call("Page.addScriptToEvaluateOnNewDocument", source=PAINTED)
    yield program
    program.close()


def opened(browser: Chromium, address: str) -> None:
    browser.open("about:blank")
    browser.open(address)
    browser.wait("window.painted && document.getElementById('live').innerText === 'live'")


def middle(browser: Chromium, selector: str) -> tuple[float, float]:
    r = browser.ask(
        f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    return r[0], r[1]


def point(browser: Chromium, x: float, y: float) -> None:
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


def click(browser: Chromium, x: float, y: float) -> None:
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def write(browser: Chromium, text: str) -> None:
    for letter in text:
        browser.press(letter)


def test_text_labels_and_boxes_are_legible(browser: Chromium) -> None:
    for count in COUNTS:
        with served(world_of(count)) as address:
            for kind, size in SIZES.items():
                where = f"{count} services, {kind}"
                resize(browser, size)
                opened(browser, address)
                if kind == "phone":
                    first = browser.ask(GEOMETRY)
                    assert first["small"] == [] and first["crossed"] == [], (where, first)
                    assert first["texts"] > 15 and first["wide"] <= 0, (where, first)
                    browser.press("0")  # everything, with the titles of networks alone
                found = browser.ask(GEOMETRY)
                assert found["small"] == [] and found["crossed"] == [], (where, found)
                assert found["outside"] == [] and found["wide"] <= 0, (where, found)
                if kind != "phone":
                    assert found["labels"] >= LEAST_LABELS[count], (where, found)
                    assert found["height"] > 0.7, (where, found)
    # a folded box and its published port say which
    ports = browser.ask("[...document.querySelectorAll('.door .name')].map(t => t.textContent)")
    assert len(ports) == 20 and all(port.startswith("*:80") for port in ports), ports


def test_the_map_answers(browser: Chromium) -> None:
    resize(browser, SIZES["laptop"])
    with served(world_of(60)) as address:
        opened(browser, address)
        assert "54 of 60 up" in browser.ask("document.getElementById('figures').innerText")
        bundles = browser.ask("document.querySelectorAll('.edge.bundle').length")
        assert 5 < bundles < 20
        # pointing at a service dims the others, opens its bundles and shows its card
        at = middle(browser, '.node[data-key="s shop-web"]')
        point(browser, *at)
        tied = browser.wait(f"{ALL_DIM} > 0 && {TIED}")
        assert {"s shop-web", "s shop-api", "s blog-web", "d *:8080", "o client 192.0.2.7"} < {
            *tied
        }
        assert "s shop-redis" not in tied and "s wiki-api" not in tied
        open_ = browser.ask(
            "document.querySelectorAll('.edge:not(.dim)[data-key*=\"s shop-web\"]').length"
        )
        assert open_ >= 8
        card = browser.ask(CARD)
        for words in ("shop-web", "10.99.0.2", "edge, shop", "b/s", "MiB", "% of one"):
            assert words in card, (words, card)
        assert browser.ask(GEOMETRY)["crossed"] == []
        point(browser, 20, 780)
        browser.wait(f"{ALL_DIM} === 0")
        assert browser.ask(CARD) == ""
        # the card of a denied service says who was denied
        point(browser, *middle(browser, '.node[data-key="s shop-redis"]'))
        assert "shop-search → shop-redis:6379/tcp denied" in browser.wait(CARD)
        # a line has a card too, and a click keeps it
        x, y = browser.ask(
            "(l => { const p = l.getPointAtLength(l.getTotalLength() / 2).matrixTransform(l.getScreenCTM());"
            " return [p.x, p.y] })(document.querySelector('[data-key=\"s shop-metrics|s shop-auth|audit\"] .line'))"
        )
        point(browser, x, y)
        assert "shop-auth:9100/tcp would be denied" in browser.wait(CARD)
        click(browser, x, y)
        point(browser, 20, 780)
        assert "1 flow: 1 in audit" in browser.wait(SIDE)
        assert browser.ask(TIED) == ["s shop-auth", "s shop-metrics"]
        browser.press("Escape")
        browser.wait(f"{ALL_DIM} === 0")
        # a click on a service keeps it; the address has it, and a reload shows it again
        click(browser, *at)
        point(browser, 20, 780)
        assert browser.wait("document.querySelector('#side h2').innerText") == "shop-web"
        assert browser.ask(f"{ALL_DIM} > 0")
        browser.ask("document.getElementById('theme').click()")
        browser.ask("document.getElementById('theme').click()")
        assert browser.ask("document.documentElement.dataset.theme") == "dark"
        browser.press("d")
        fragment = browser.ask("location.hash")
        assert "show=s+shop-web" in fragment and "theme=dark" in fragment, fragment
        assert "only=denied" in fragment and "token" not in fragment
        # while nothing comes, a reload shows the last state, dimmed
        browser.call("Network.setBlockedURLs", urls=["*states.jsonl"])
        browser.call("Page.reload")
        browser.wait(
            "document.body.className === 'old' && document.querySelectorAll('.node').length > 60"
        )
        assert browser.wait("document.querySelector('#side h2').innerText") == "shop-web"
        browser.call("Network.setBlockedURLs", urls=[])
        browser.wait("document.getElementById('live').innerText === 'live'")
        assert browser.ask("document.documentElement.dataset.theme") == "dark"
        assert browser.ask("document.getElementById('skeleton').hasAttribute('hidden')")
        # the filter says that it filters; the counts agree
        assert "18 of 101 flows shown" in browser.ask(FILTERS)
        browser.ask("document.querySelector('#filters button').click()")
        browser.press("Escape")
        browser.press("Escape")
        assert browser.ask(FILTERS) == ""
        assert "101 flows" in browser.ask("document.getElementById('figures').innerText")
        side = browser.ask(SIDE)
        for words in ("Not allowed (12)", "would be denied (6)", "Passed (83)"):
            assert words in side
        browser.press("t")
        caption = browser.ask("document.querySelector('#tables caption').innerText")
        assert caption == "Flows (101): 83 passed, 12 denied, 6 in audit"
        browser.press("m")
        # what is searched for is lit; Enter shows the first; no match says so
        browser.press("/")
        write(browser, "postgres")
        lit = browser.ask("[...document.querySelectorAll('.node.lit')].map(n => n.dataset.key)")
        assert len(lit) == 6 and "6 services match" in browser.ask(FILTERS)
        browser.press("Enter")
        assert browser.wait("document.querySelector('#side h2').innerText") == "shop-postgres"
        browser.press("Escape")
        browser.press("/")
        write(browser, "x")
        browser.wait(f"{FILTERS}.includes('no service matches')")
    assert browser.logged == []


def test_200_services_are_fast(browser: Chromium) -> None:
    resize(browser, SIZES["laptop"])
    with served(world_of(200)) as address:
        # the processor's time, because other tests run at the same time
        browser.call("Performance.enable", timeDomain="threadTicks")

        def spent(what: str = "TaskDuration") -> float:
            metrics = browser.call("Performance.getMetrics")["metrics"]
            return float(next(m["value"] for m in metrics if m["name"] == what))

        opened(browser, address)
        first = spent()
        assert first < 1.5, first
        for is_folded in (True, False):
            if not is_folded:
                browser.ask(
                    "document.querySelectorAll('.fold').forEach(f => f.dispatchEvent(new MouseEvent('click', {bubbles: true})))"
                )
                browser.wait("document.querySelectorAll('.node.service').length === 200")
            frames = []
            laid_out = spent("LayoutDuration")
            moves = 30
            mouse: dict[str, Any] = {"button": "left", "buttons": 1}
            browser.call("Input.dispatchMouseEvent", type="mousePressed", x=600, y=735, **mouse)
            for i in range(1, moves + 1):
                before = spent()
                browser.call(
                    "Input.dispatchMouseEvent",
                    type="mouseMoved",
                    x=600 - 5 * i,
                    y=735 - 6 * i,
                    **mouse,
                )
                browser.ask(FRAME)
                frames.append(spent() - before)
            assert max(frames) < 0.05, (is_folded, frames)
            # the text of the picture is not laid out again, which took most of a frame
            assert spent("LayoutDuration") - laid_out < 0.001 * moves
            box = browser.ask("document.getElementById('sheet').style.transform")
            assert box == "translate(-150px, -180px)", box
            browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=450, y=555, **mouse)
            assert browser.ask("document.getElementById('sheet').style.transform") == ""
            browser.press("0")


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_axe_finds_no_violation(browser: Chromium, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(Path(__file__).parent / name, tmp_path)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=tmp_path, check=True)
    source = (tmp_path / "node_modules/axe-core/axe.min.js").read_text()
    with served(world_of(60)) as address:
        for kind, scheme in (("laptop", "light"), ("phone", "dark")):
            resize(browser, SIZES[kind])
            browser.prefer(prefers_color_scheme=scheme)
            opened(browser, address)
            browser.ask(f"{source};0")
            for step in (
                "0",
                "document.querySelector('.node.bad').dispatchEvent(new MouseEvent('click', {bubbles: true}))",
                "document.getElementById('denied').click()",
                "document.getElementById('show-table').click()",
            ):
                browser.ask(f"{step};0")
                assert browser.ask(AXE) == [], (kind, scheme, step)
