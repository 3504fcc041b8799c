"""List the pages of the reference."""

from __future__ import annotations

import json

from niso import __version__
from niso.api import without_host
from reference import commands, plugins, python_calls, results, toml_files
from reference.document import man, markdown


def pages() -> dict[str, str]:
    """Return the text of each generated page by its path below docs."""
    texts = {
        "reference/commands.md": markdown("Commands", commands.page_blocks()),
        "reference/json.md": markdown("JSON output", results.page_blocks()),
        "reference/manifest.md": markdown("manifest.toml", toml_files.manifest_blocks()),
        "reference/stack.md": markdown("stack.toml", toml_files.stack_blocks()),
        "reference/python.md": markdown("Python calls", python_calls.page_blocks()),
        "reference/manifest.schema.json": _json(without_host.manifest_schema()),
        "reference/stack.schema.json": _json(without_host.stack_schema()),
    }
    for page in (*commands.manuals(), *toml_files.manuals(), *plugins.manuals()):
        texts[f"man/{page.name}.{page.section}"] = man(page, __version__)
    return texts


def _json(schema: object) -> str:
    return f"{json.dumps(schema, indent=2)}\n"
