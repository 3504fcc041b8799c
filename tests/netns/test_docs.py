"""Run every command in README.md, the guides and the examples, and compare its output.

How pages are read: tests/pages.py.
"""

from __future__ import annotations

import pathlib
import sys

import pages
import pytest
from conftest import Lab

ROOT = pages.ROOT


@pytest.mark.parametrize("page", pages.run_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: pathlib.Path) -> None:
    with Lab(deadline_seconds=300) as lab:
        run(lab, page)


def run(lab: Lab, page: pathlib.Path) -> None:
    wanted = pages.commands(page)
    lab.run("mkdir", "/tmp/clone")
    lab.run("ln", "-s", str(ROOT / "dev"), str(ROOT / "examples"), "/tmp/clone")
    lab.run("ln", "-s", sys.prefix, "/tmp/clone/.venv")
    lab.write("/tmp/page.sh", pages.script(wanted))
    process = lab.popen("bash", "/tmp/page.sh", cwd="/tmp/clone")
    printed, _ = process.communicate(timeout=290)
    found = pages.wrong(wanted, printed)
    assert not found, "\n\n".join(found)
