"""The command ``niso`` loads no module of the working folder, nor of PYTHONPATH."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWNED = "import os; os.write(1, b'owned\\n')\n"


@pytest.fixture
def evil(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with modules that Python and niso import."""
    for name in ("sitecustomize", "usercustomize", "encodings", "json", "sqlite3", "signal", "os"):
        (tmp_path / f"{name}.py").write_text(OWNED)
    (tmp_path / "niso").mkdir()
    (tmp_path / "niso" / "__init__.py").write_text(OWNED)
    (tmp_path / "startup.py").write_text(OWNED)
    return tmp_path


def said(evil: pathlib.Path, *argv: str, **environment: str) -> str:
    done = subprocess.run(
        argv,
        cwd=evil,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_command_is_isolated(evil: pathlib.Path) -> None:
    attack = said(evil, sys.executable, "-m", "niso.cli", "version")
    assert "owned" in attack, "a plain -m imports from the working folder"
    command = os.path.join(os.path.dirname(sys.executable), "niso")
    for environment in (
        {},
        {"PYTHONPATH": str(evil)},
        {"PYTHONHOME": str(evil)},
        {"PYTHONSTARTUP": str(evil / "startup.py"), "PYTHONINSPECT": "1"},
        {"PYTHONUSERBASE": str(evil), "PYTHONPLATLIBDIR": "x"},
    ):
        words = said(evil, command, "version", **environment)
        assert words.startswith("niso ") and "owned" not in words, (environment, words)


def test_command_that_pip_wrote_starts_again_isolated(evil: pathlib.Path) -> None:
    """pip drops the option from the first line."""
    script = evil / "bin" / "niso"
    script.parent.mkdir()
    _, _, body = (ROOT / "bin" / "niso").read_text().partition("\n")
    script.write_text(f"#!{sys.executable}\n{body}")
    script.chmod(0o755)
    (evil / "modules").mkdir()
    for name in ("niso", "signal.py"):  # found after Python itself has started
        (evil / name).rename(evil / "modules" / name)
    elsewhere = {"PYTHONPATH": str(evil / "modules")}
    attack = said(evil, sys.executable, "-c", "import niso", **elsewhere)
    assert attack == "owned\n"
    assert said(evil, str(script), "version").startswith("niso ")
    words = said(evil, str(script), "version", **elsewhere)
    assert words.startswith("niso ") and "owned" not in words
