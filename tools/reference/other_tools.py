"""Write the table of commands of other tools into its guide."""

from __future__ import annotations

from niso.cli.catalogue.habits import HABITS, Habit

GUIDE = "guide/coming-from-docker.md"
_BEGIN = "<!-- commands: written by ./dev docs -->\n"
_END = "<!-- end of commands -->\n"


def with_commands(guide: str) -> str:
    """Return the text of the guide with the present table between its marks."""
    before, _, text = guide.partition(_BEGIN)
    _, _, after = text.partition(_END)
    rows = "".join(_row(habit) for habit in HABITS)
    table = f"\n| command | niso | remark |\n| --- | --- | --- |\n{rows}\n"
    return f"{before}{_BEGIN}{table}{_END}{after}"


def _row(habit: Habit) -> str:
    theirs = ", ".join(f"`{command}`" for command in habit.theirs)
    return f"| {theirs} | {f'`{habit.ours}`' if habit.ours else 'none'} | {habit.remark} |\n"
