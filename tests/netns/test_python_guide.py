"""Run the examples of docs/guide/python.md in order, and compare their output."""

from __future__ import annotations

import subprocess
import sys

import pages
from conftest import Lab

PAGE = pages.ROOT / "docs/guide/python.md"
MARK = "@@"


def examples() -> list[tuple[pages.Block, tuple[str, ...]]]:
    """Each block of Python, and the lines of the text block that follows it: what it prints."""
    blocks = list(pages.blocks(PAGE))
    return [
        (block, after.lines if after is not None and after.kind == "text" else ())
        for block, after in zip(blocks, [*blocks[1:], None], strict=True)
        if block.kind == "python"
    ]


def script() -> str:
    """All examples, each followed by a mark."""
    return "".join("\n".join(block.lines) + f"\nprint({MARK!r})\n" for block, _ in examples())


def test_examples_print_what_the_page_shows(lab: Lab) -> None:
    for block in pages.blocks(PAGE):
        if block.file:
            lab.write(f"/tmp/{block.file}", "\n".join(block.lines) + "\n")
    lab.write("/tmp/guide.py", script())
    done = lab.run(sys.executable, "-u", "/tmp/guide.py", timeout=100)
    printed = done.stdout.split(f"{MARK}\n")
    assert len(printed) == len(examples()) + 1 and printed[-1] == ""
    for (block, expected), found in zip(examples(), printed, strict=False):
        assert pages.matches(expected, found), f"{PAGE.name}:{block.line} printed:\n{found}"


WRONG = """\
import niso

host = niso.connect()
host.services.activate("api", timout=3)
host.nothing()
niso.conect()
port: int = host.networks.ports()[0].host
"""


def test_type_checker_accepts_the_examples_and_refuses_what_is_wrong(tmp_path) -> None:
    (tmp_path / "guide.py").write_text(script())
    (tmp_path / "wrong.py").write_text(WRONG)
    words = ["--strict", "--config-file=", "--no-error-summary", "--cache-dir=cache"]
    command = [sys.executable, "-m", "mypy", *words, "guide.py", "wrong.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = [line.split(": error:")[0] for line in done.stdout.splitlines() if "error:" in line]
    assert lines == [f"wrong.py:{number}" for number in (4, 5, 6, 7)], done.stdout
