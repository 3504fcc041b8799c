"""Test what is done with text for people: nothing is decided by it, and it advises no harm."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from test_imports import MODULES, tree

from niso.cli import command as cli_command

PROSE = {"message", "detail", "reason", "words", "hint", "right"}
"""The fields that are text for people."""
DECIDES = {
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "partition",
    "rpartition",
    "split",
    "find",
    "index",
    "count",
}
"""Methods of str that tell one text from another, or take it apart."""

MAY = {
    ("cli.output", "event.describe().split('\\n', 1)"),  # shows the first command of several
}
"""What takes prose apart to show less of it."""


def is_prose(node: ast.expr) -> bool:
    """Whether an expression is text for people: ``error.message``, ``str(error)``, ``step.describe()``."""
    if isinstance(node, ast.Attribute):
        return node.attr in PROSE and not (
            isinstance(node.value, ast.Name) and node.value.id in ("args", "self")
        )
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr == "describe" or (
            node.func.attr in ("text", "words") and not node.args
        )
    return (
        isinstance(node.func, ast.Name)
        and node.func.id == "str"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in ("error", "group", "cause")
    )


def decisions(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions that compare prose, look into it or take it apart."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            empty = any(isinstance(side, ast.Constant) and not side.value for side in sides)
            if any(map(is_prose, sides)) and not empty:
                yield node
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in DECIDES
            and is_prose(node.func.value)
        ):
            yield node
        elif isinstance(node, ast.Assign | ast.AugAssign) and any(
            isinstance(target, ast.Attribute) and target.attr == "message"
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        ):
            yield node  # type: ignore[misc]


def test_nothing_is_decided_by_text_for_people() -> None:
    found = {(module, ast.unparse(node)) for module in MODULES for node in decisions(tree(module))}
    assert found - MAY == set()


@pytest.mark.parametrize(
    "code",
    [
        "if error.message.startswith('a: '): pass",
        "if 'locked' in str(error): pass",
        "x = step.describe() in told",
        "x = finding.detail == BLIND",
        "x = error.message.removeprefix('a: ')",
        "error.message = 'a: ' + error.message",
        "word, _, rest = verdict.path.message.partition(' ')",
    ],
)
def test_such_a_decision_is_seen(code: str) -> None:
    assert list(decisions(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["if isinstance(error, Conflict): pass", "x = error.hint == ''", "print(error.message)"]
)
def test_showing_it_is_none(code: str) -> None:
    assert not list(decisions(ast.parse(code)))


# --- advice ----------------------------------------------------------------------------------------------------------


COMMANDS = {
    command.name: command
    for entry in (cli_command.find(name, "") for name in cli_command.COMMANDS)
    for command in (entry.actions or (entry,))
}
WRITTEN = re.compile(r"niso ((?:net |stack )?[a-z][a-z-]*)([^;]*)")
"""A command in a text, and what follows it to the end of the sentence."""
NOT_ADVICE = ("cli.catalogue", "runtime.units", "change.boot")
"""Modules whose texts are help, niso's words for those of other tools, or units of systemd."""


def ends(text: str) -> bool:
    """Whether a text has a command that ends or deletes something, or an option that does."""
    for name, after in WRITTEN.findall(text):
        command = COMMANDS.get(name)
        if command is None or "--help" in after or "--dry-run" in after:
            continue
        flags = {flag for option in command.options if option.ends for flag in option.flags}
        if command.ends or flags & set(re.findall(r"--?[a-z-]+", after)):
            return True
    return False


def texts(tree: ast.AST) -> Iterator[str]:
    """Strings of a module but docstrings; what an f-string puts in is ``X``."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


def test_no_text_advises_a_command_that_ends_something() -> None:
    advising = [module for module in MODULES if not module.startswith(NOT_ADVICE)]
    found = [(module, text) for module in advising for text in texts(tree(module)) if ends(text)]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "hint = f'niso remove {holder}'",
        "hint = f'choose another port, or niso port-forward {holder} {port} --remove'",
        "hint = 'niso reset --yes'",
        "hint = 'niso stack down first'",
    ],
)
def test_such_advice_is_seen(code: str) -> None:
    assert any(map(ends, texts(ast.parse(code))))


@pytest.mark.parametrize(
    "text", ["niso net repair", "niso deactivate --help", "niso activate X; --take-over takes it"]
)
def test_other_advice_is_harmless(text: str) -> None:
    assert not ends(text)
