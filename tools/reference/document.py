"""Render pages of the reference as Markdown for docs/reference and as roff for man(1).

Texts mark code with backquotes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from niso.base.named_tuples import NamedTuple


class Heading(NamedTuple):
    """A heading of level 1 or 2."""

    text: str
    level: int = 1


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """A block of code."""

    text: str
    language: str = ""


class Terms(NamedTuple):
    """A list of (term, description)."""

    rows: tuple[tuple[str, str], ...]


Block = Heading | Text | Code | Terms


class Page(NamedTuple):
    """A man page.

    ``does`` completes ``name - ``; ``also`` are other pages, such as ``niso-net(1)``.
    """

    name: str
    section: int
    does: str
    blocks: tuple[Block, ...]
    also: tuple[str, ...] = ()


GENERATED = "generated from the code by ./dev docs"


# --- Markdown --------------------------------------------------------------------------------


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """Return a page as Markdown."""
    parts = [f"<!-- {GENERATED} -->", f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * (level + 1)} {text}")
            case Text(text):
                parts.append(
                    textwrap.fill(
                        _marked(text), 100, break_on_hyphens=False, break_long_words=False
                    )
                )
            case Code(text, language):
                parts.append(f"```{language}\n{text}\n```")
            case Terms(rows):
                parts.append(
                    "\n".join(
                        [
                            "| | |",
                            "| --- | --- |",
                            *(f"| {_cell(a)} | {_marked(b)} |" for a, b in rows),
                        ]
                    )
                )
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _marked(text: str) -> str:
    """Escape Markdown characters outside code."""
    pieces = text.split("`")
    plain = [
        re.sub(r"([*<>\[\]|])", r"\\\1", piece) if i % 2 == 0 else piece
        for i, piece in enumerate(pieces)
    ]
    return "`".join(plain)


# --- roff ------------------------------------------------------------------------------------


def man(page: Page, version: str) -> str:
    """Return a page as roff."""
    parts = [
        f'.\\" {GENERATED}',
        f'.TH {page.name.upper()} {page.section} "" "niso {version}"',
        ".SH NAME",
        f"{_roff(page.name)} \\- {_roff(page.does)}",
    ]
    for block in page.blocks:
        match block:
            case Heading(text, level):
                macro, title = (".SH", text.upper()) if level == 1 else (".SS", text)
                parts.append(f"{macro} {_roff(title)}")
            case Text(text):
                parts += [".PP", _lines(_bold(text))]
            case Code(text, _):
                parts += [
                    ".PP",
                    ".RS 4",
                    ".nf",
                    *(_line(_roff(line)) for line in text.split("\n")),
                    ".fi",
                    ".RE",
                ]
            case Terms(rows):
                for term, meaning in rows:
                    parts += [".TP", f"\\fB{_roff(term)}\\fR", _lines(_bold(meaning)) or "\\&"]
    if page.also:
        names = [_roff(name) for name in page.also]
        parts += [".SH SEE ALSO", ",\n".join(f"\\fB{name[:-3]}\\fR{name[-3:]}" for name in names)]
    # the first paragraph of a section needs no macro
    return re.sub(r"(\n\.S[HS] [^\n]*)\n\.PP\n", r"\1\n", "\n".join(parts)) + "\n"


def _roff(text: str) -> str:
    """Escape characters that troff interprets or replaces."""
    for letter, shown in (
        ("\\", "\\e"),
        ("-", "\\-"),
        ("'", "\\(aq"),
        ("`", "\\(ga"),
        ("^", "\\(ha"),
        ("~", "\\(ti"),
    ):
        text = text.replace(letter, shown)
    return text.replace("→", "\\(->")


def _bold(text: str) -> str:
    pieces = [_roff(piece) for piece in text.split("`")]
    return "".join(f"\\fB{piece}\\fR" if i % 2 else piece for i, piece in enumerate(pieces))


def _lines(text: str) -> str:
    folded = textwrap.wrap(text, 80, break_on_hyphens=False, break_long_words=False)
    return "\n".join(_line(line) for line in folded)


def _line(text: str) -> str:
    return f"\\&{text}" if text.startswith((".", "'")) else text
