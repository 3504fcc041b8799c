"""Test that tests/unit and tests/golden need neither root nor a lab."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MAKE_NAMESPACES = {"conftest", "kernel_world"}
"""Modules that make labs and namespaces: `conftest.Lab` and `kernel_world.throw_away_host`."""


def imported(tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_no_test_without_root_makes_a_lab() -> None:
    paths = [path for folder in ("unit", "golden") for path in (TESTS / folder).glob("*.py")]
    assert len(paths) > 60
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not imported(tree) & MAKE_NAMESPACES, path.name
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert "lab" not in arguments, f"{path.name} uses the fixture lab"
