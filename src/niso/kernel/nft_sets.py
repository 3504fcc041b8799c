"""Derive the types of each set and map from the ruleset's text, and group the sets."""

from __future__ import annotations

from collections.abc import Iterator

from niso.kernel.nft_limits import ARP, FRAGMENTS
from niso.kernel.nft_policies import CLASS, POLICY_PARTS
from niso.kernel.nft_tables import BRIDGE, INET, TABLES


def _declared() -> Iterator[tuple[tuple[str, str], tuple[str, str | None, bool]]]:
    """Yield the entries of `DECLARED`.

    Sets that the rules themselves fill are left out; they are recognised by longer declarations.
    """
    table = ""
    for line in TABLES.splitlines():
        if line.startswith("table "):
            table = line[6:-2]
        elif line.startswith(("\tset ", "\tmap ")):
            name, _, body = line[5:].removesuffix("; }").partition(" { ")
            types, *more = body.split("; ")
            key, _, value = types.partition(" ")[2].partition(" : ")
            if more and more[0].startswith("limit "):
                yield (table, name), (key, "limit", False)
            elif {"flags interval", "flags timeout", "counter", "last"}.issuperset(more):
                yield (table, name), (key, value or None, "flags interval" in more)


DECLARED = dict(_declared())
"""Maps (table, set or map) to (type of its keys, type of its values, whether it has intervals).

The value type of a set with limits is "limit".
"""

CONTAINERS = {
    table: tuple(name for at, name in DECLARED if at == table) for table in (INET, BRIDGE)
}
"""All sets and maps whose elements niso writes, by table."""

POLICIES = frozenset(
    (
        *(
            f"{kind}{family}"
            for kind in ("ingress", "egress", "no_start_in", "no_start_out")
            for family in (4, 6)
        ),
        *(
            f"{way}{family}_{part}"
            for way in ("in", "out")
            for family in (4, 6)
            for part in POLICY_PARTS
        ),
    )
)
"""The sets and maps of policies."""

COUNTED = frozenset(
    name
    for name in POLICIES
    if not name.startswith(("ingress", "egress")) and not name.endswith(f"_{CLASS}")
)
"""The sets and maps whose elements have counters."""

_GUARDS = f"""
owner bridges same_bridge ports subnets4 subnets6 internal closed before
sources4 sources6 quoted4 quoted6 links broadcasts own4 own6 host_macs gateways4 gateways6
flows4 flows6 askers4 askers6 {FRAGMENTS} {ARP} vxlans wire sealed
"""
LATE = frozenset(_GUARDS.split())
"""Sets whose elements protect another object, and are deleted after that object.

See kinds/element.py for policies.
"""


def rules_of(table: str, chain: str) -> list[str]:
    """Return the rules of a chain of the ruleset, in order."""
    body = (
        TABLES.partition(f"table {table} {{")[2]
        .partition(f"chain {chain} {{\n")[2]
        .partition("\n\t}")[0]
    )
    lines = [line.strip() for line in body.splitlines()]
    return [line for line in lines if not line.startswith("type ")]
