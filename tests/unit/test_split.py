"""How the tests are split: those of tests/unit and tests/golden need neither root nor a lab."""

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


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}
IMPORTS = {path.stem: imported(tree) for path, tree in TREES.items()}
WITHOUT_ROOT = [path for path in TREES if path.parent.name in ("unit", "golden")]


def reached(module: str) -> set[str]:
    """Return the modules of the tests that a module imports, at any depth."""
    seen: set[str] = set()
    left = [module]
    while left:
        for name in IMPORTS[left.pop()] & IMPORTS.keys() - seen:
            seen.add(name)
            left.append(name)
    return seen


def test_no_test_without_root_makes_a_lab() -> None:
    assert len(WITHOUT_ROOT) > 60
    for path in WITHOUT_ROOT:
        assert not reached(path.stem) & MAKE_NAMESPACES, path.name
        arguments = {node.arg for node in ast.walk(TREES[path]) if isinstance(node, ast.arg)}
        assert "lab" not in arguments, f"{path.name} uses the fixture lab"
