"""Test the form of examples/: the files of each folder, and the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
SCREEN_LINES, SCREEN_COLUMNS = 48, 100
"""Output of commands may be wider."""


def test_the_index_names_each_example_once() -> None:
    linked = re.findall(r"\]\(([\w-]+)/README\.md\)", (EXAMPLES / "README.md").read_text())
    assert sorted(linked) == [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_has_what_niso_reads_and_a_readme_of_one_screen(folder: Path) -> None:
    assert (folder / "manifest.toml").exists() != (folder / "stack.toml").exists()
    text = (folder / "README.md").read_text()
    shown = re.sub(r"^<!-- setup\n.*?^-->\n\n?", "", text, flags=re.MULTILINE | re.DOTALL)
    picture = r"^```mermaid\n.*?^```\n\n?"  # is drawn in its place
    lines = re.sub(picture, "", shown, flags=re.MULTILINE | re.DOTALL).splitlines()
    assert len(lines) <= SCREEN_LINES
    prose = re.sub(r"^```.*?^```$", "", shown, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > SCREEN_COLUMNS] == []
    # a command that is shown is run by tests/netns/test_docs.py
    verb = "stack up" if (folder / "stack.toml").exists() else "activate"
    assert f"$ niso {verb} examples/{folder.name}\n" in text
