"""Write the table of commands of other tools into its guide."""

from __future__ import annotations

from niso.cli.catalogue.general import HABITS

GUIDE = "guide/coming-from-docker.md"
_BEGIN = "<!-- commands: written by ./dev docs -->\n"
_END = "<!-- end of commands -->\n"


def with_commands(guide: str) -> str:
    """Return the text of the guide with the present table between its marks."""
    before, _, text = guide.partition(_BEGIN)
    _, _, after = text.partition(_END)
    rows = "".join(_row(*habit) for habit in HABITS.items())
    table = f"\n| command | niso | remark |\n| --- | --- | --- |\n{rows}\n"
    return f"{before}{_BEGIN}{table}{_END}{after}"


def _row(theirs: str, hint: str) -> str:
    ours, _, remark = hint.partition(": ") if hint.startswith("niso ") else ("", "", hint)
    commands = ", ".join(f"`{command}`" for command in theirs.split(", "))
    return f"| {commands} | {f'`{ours}`' if ours else 'none'} | {remark} |\n"
