"""Run ruff, mypy and shellcheck."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import LONG

ROOT = Path(__file__).resolve().parents[2]
CODE = (".ci", "examples", "src", "tests", "tools", "dev")
FETCHED = {"server", "venv", "__pycache__"}
"""Folders of the examples with what ./dev fetches, and of compiled files."""


def scripts(word: bytes) -> list[str]:
    """Files of the project that start with ``#!`` and name ``word`` there, below ROOT."""
    found = []
    for top in CODE:
        files = [top] if (ROOT / top).is_file() else []
        for folder, folders, names in os.walk(ROOT / top):
            folders[:] = sorted({*folders} - FETCHED)
            below = os.path.relpath(folder, ROOT)
            files += [f"{below}/{name}" for name in sorted(names) if not name.endswith(".py")]
        for file in files:
            if not os.path.isfile(ROOT / file) or not os.access(ROOT / file, os.X_OK):
                continue
            with (ROOT / file).open("rb") as stream:
                first = stream.readline()
            if first.startswith(b"#!") and word in first:
                found.append(file)
    return found


PACKAGES = [*(ROOT / "debian").glob("*.prerm"), ROOT / "debian/removal.sh"]
SHELL = [*scripts(b"sh"), *(str(file.relative_to(ROOT)) for file in PACKAGES)]
PYTHON = ["examples", "src", "tests", "tools", *scripts(b"python")]

LATEST = ("--python-version", "3.14")
NEWER = ("--target-version", "py314", "--ignore", "B911,B912,UP043")  # what 3.12 does not have
COMMANDS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", *PYTHON],
    "ruff check of Python 3.14": [sys.executable, "-m", "ruff", "check", *NEWER, *PYTHON],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", *PYTHON],
    "mypy": [sys.executable, "-m", "mypy"],
    **({"mypy of Python 3.14": [sys.executable, "-m", "mypy", *LATEST]} if LONG else {}),
    "shellcheck": ["shellcheck", *SHELL],
}


@pytest.mark.first
@pytest.mark.parametrize("name", COMMANDS)
def test_lint_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(COMMANDS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"


def test_lint_sees_the_scripts() -> None:
    assert {"dev", ".ci/run", "examples/shop/demo", "examples/shop/postgres/bin/start"} <= set(
        SHELL
    )
    assert "examples/shop/api/bin/api" in PYTHON
