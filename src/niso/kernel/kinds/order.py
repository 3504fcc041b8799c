"""List the kinds of kernel objects in the order of their creation; deletion is in reverse.

Rules are created before anything that could carry a packet, and deleted after it, so that a partial
state is never wider than declared. Each kind is defined in the file of its name in this folder.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.kinds.kind import Kind

ORDER = (
    "Ruleset",
    "Element",
    "RoutingRule",
    "WireGuard",
    "Bridge",
    "Vxlan",
    "Netns",
    "Named",
    "Sysctl",
    "Fdb",
    "Veth",
    "Shaper",
    "Address",
    "Route",
    "Peer",
    "Attached",
    "Neighbour",
    "HostsFile",
    "HostsLeftover",
    "HostsLine",
)
"""Class names of the things, in the order of their creation; deletion is in reverse."""

KINDS: list[Kind[Any]] = []
"""The loaded kinds, in order. No State has an object of another kind."""


def register(kind: Kind[Any]) -> None:
    """Add a kind to `KINDS` when its file is loaded."""
    KINDS.append(kind)
    KINDS.sort(key=lambda one: ORDER.index(one.thing.__name__))
