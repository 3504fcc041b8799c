"""Build the documentation site, and read it in Debian's Chromium."""

from __future__ import annotations

import sys

import pages
import pytest
from chromium import Chromium
from conftest import Lab

pytest.importorskip("sphinx")

URL = "file:///tmp/site/"
RESULTS = "[...document.querySelectorAll('#search-results .search > li > a')].map(a => a.innerText)"


def build(lab: Lab) -> str:
    """Run what ``./dev site`` runs in a lab; the warnings, of which a dead link or anchor is one."""
    dev = (pages.ROOT / "dev").read_text().splitlines()
    line = next(line.strip() for line in dev if "-m sphinx" in line)
    places = f"root={pages.ROOT} venv={sys.prefix}; {line.replace('$root/build', '/tmp')}"
    return str(lab.run("bash", "-c", places, check=False).stderr)


def test_the_site_has_no_dead_link_and_can_be_searched_at_two_sizes(lab: Lab) -> None:
    assert build(lab) == ""
    browser = Chromium(lab)
    for width, height in ((1440, 900), (390, 844)):
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        for page in ("index.html", "docs/guide/ports.html", "docs/reference/manifest.html"):
            browser.open(URL + page)
            browser.wait(
                "document.readyState === 'complete' && document.querySelector('h1').innerText"
            )
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), (page, width)
        menu = browser.ask(
            "[...document.querySelectorAll('.sidebar-tree .caption')].map(e => e.textContent)"
        )
        assert menu == ["Start", "How-to", "Reference", "Explanation", "Project"]
        browser.open(f"{URL}search.html?q=publish+a+port")
        browser.wait(f"{RESULTS}.length > 3")
        assert browser.ask(RESULTS)[0] == "Published ports"
    assert [
        each for each in browser.requests if not each.startswith((URL, "data:", "about:"))
    ] == []
    browser.close()
