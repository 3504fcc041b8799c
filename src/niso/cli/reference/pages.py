"""Every page of the reference, by its place below docs."""

from __future__ import annotations

from niso import __version__
from niso.cli.reference import commands, results, toml_files
from niso.cli.reference.document import man, markdown


def pages() -> dict[str, str]:
    found = {
        "reference/commands.md": markdown("Commands", commands.page_blocks()),
        "reference/json.md": markdown("What --json prints", results.page_blocks()),
        "reference/manifest.md": markdown("manifest.toml", toml_files.manifest_blocks()),
        "reference/stack.md": markdown("stack.toml", toml_files.stack_blocks()),
    }
    for page in (*commands.manuals(), *toml_files.manuals()):
        found[f"man/{page.name}.{page.section}"] = man(page, __version__)
    return found
