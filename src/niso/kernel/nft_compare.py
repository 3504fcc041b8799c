"""Compare niso's two tables in the kernel with the text in kernel/nft_tables.py.

The text is loaded in a temporary network namespace, so that the kernel lists both in the same form.
"""

from __future__ import annotations

from niso.base import paths
from niso.base.errors import Conflict, KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import netns, nft_sets, nft_tables
from niso.kernel.libnftables import Nft

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem


def differences() -> tuple[tuple[Problem, str], ...] | None:
    """Return the missing, foreign and different chains, sets and maps, by name.

    Returns None if both tables are missing. For one missing table, only the table is reported.
    """
    # libnftables keeps what it has listed, so it is closed before the next one is opened
    with Nft() as kernel:
        present = _objects(kernel)
    if not present:
        return None
    with netns.unnamed(), Nft() as scratch:
        scratch.run(nft_tables.TABLES)
        expected = _objects(scratch)
    gone = [table for table in nft_sets.CONTAINERS if f"table {table}" not in present]
    expected = {
        name: thing
        for name, thing in expected.items()
        if not any(f" {table} " in f"{name} " for table in gone)
    }
    unlike: list[tuple[Problem, str]] = [
        (
            "missing"
            if name not in present
            else "foreign"
            if name not in expected
            else "different",
            name,
        )
        for name in expected.keys() | present.keys()
        if expected.get(name) != present.get(name)
    ]
    return (*(("missing", f"table {table}") for table in gone), *sorted(unlike))


def _objects(kernel: Nft) -> dict[str, list[str]]:
    """Map names such as ``chain inet niso forward`` to the lines of the definition with its rules.

    ``table inet niso`` has the table's own lines, such as its flags: a dormant table has no effect.
    The definitions are compared as text: JSON would take 2.5 MiB more memory, and longer.
    """
    objects: dict[str, list[str]] = {}
    for table in nft_sets.CONTAINERS:
        try:
            text = kernel.definition(table)
        except KernelError:
            continue
        lines = own = objects.setdefault(f"table {table}", [])
        for line in text.splitlines()[1:-1]:
            if line == "\t}":
                lines = own
            elif line.endswith(" {") and not line.startswith("\t\t"):
                kind, _, name = line[1:-2].rpartition(" ")
                lines = objects.setdefault(f"{kind} {table} {name}", [])
            elif line:
                # later versions of nft write the number of elements after the size of a set
                lines.append(line.partition("\t# count ")[0])
    return objects


def check_owner(table: str, texts: set[str], state_id: str) -> None:
    """Raise Conflict if the marks of a table name another state folder, or none."""
    others = {text[3:] for text in texts if text.startswith("id-")} - {state_id}
    if others or not texts:
        whose = f"the niso state folder with id {min(others)}" if others else "another program"
        raise Conflict(
            f"table {table} in this network namespace belongs to {whose},"
            f" not to {paths.state_dir()}",
            "set NISO_STATE_DIR to that folder; if it is lost, net repair has --sweep, which stops"
            " its services and deletes its objects",
        )
