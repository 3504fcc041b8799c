"""Configure the site that ``./dev site`` builds from the Markdown files of this clone.

The files are read where they are, with the anchors that GitHub gives to headings. The menu has the
sections and links of docs/README.md. The pages load nothing from another host.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MENU = "docs/README"

project = "niso"
html_title = "niso"
author = copyright = "the niso authors"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/*.md", "examples/*/README.md"]
exclude_patterns = ["docs/man"]
myst_heading_anchors = 6
myst_enable_extensions = ["html_image"]
html_theme = "furo"
html_search_scorer = str(ROOT / "tools/website/scorer.js")
html_show_sphinx = False
html_copy_source = html_show_sourcelink = False
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]  # a part of a file need not be one
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\[([^\]]+)\]\(([\w./-]+)\.md(?:#[\w-]*)?\)")


def _menu() -> str:
    """Return a hidden table of contents for each section of docs/README.md."""
    text = (ROOT / f"{MENU}.md").read_text()
    pieces = _SECTION.split(text)[1:]
    seen = {root_doc}
    trees = []
    for title, body in zip(pieces[::2], pieces[1::2], strict=True):
        new = []
        for words, path in _PAGE.findall(body):
            page = str((ROOT / MENU).parent.joinpath(path).resolve().relative_to(ROOT))
            if page not in seen:
                seen.add(page)
                label = " ".join(words.split())
                new.append(f"{label[0].upper()}{label[1:]} </{page}>")
        trees.append("\n".join([f"```{{toctree}}\n:hidden:\n:caption: {title}\n", *new, "```"]))
    return "\n\n".join(trees)


def _add_menu(app: Sphinx, name: str, source: list[str]) -> None:
    if name == "examples/README":
        source[0] += "\n\n```{toctree}\n:hidden:\n:glob:\n\n*/README\n```\n"
    if name == root_doc:
        contents = f"```{{toctree}}\n:hidden:\n\n/{MENU}\n```"
        source[0] += f"\n\n{contents}\n\n{_menu()}\n"


def _mark_code(app: Sphinx, tree: nodes.document) -> None:
    """Show a diagram's text, and blocks without a language, as plain text."""
    for block in tree.findall(nodes.literal_block):
        if block.get("language") in ("nft", "mermaid", "none"):
            block["language"] = "text"


def _write_index(app: Sphinx, error: Exception | None) -> None:
    """Lead from the folder to the first page."""
    if error is None:
        (pathlib.Path(app.outdir) / "index.html").write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", _add_menu)
    app.connect("doctree-read", _mark_code)
    app.connect("build-finished", _write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
