"""List the kinds of kernel objects in the order of their creation; deletion is in reverse.

Rules are created before anything that could carry a packet, and deleted after it, so that a partial
state is never wider than declared. A kind is the file of its name in this folder.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.kinds.kind import Kind

NAMES = (
    "ruleset",
    "element",
    "routing_rule",
    "wireguard",
    "bridge",
    "vxlan",
    "namespace",
    "named",
    "setting",
    "fdb",
    "veth",
    "shaper",
    "address",
    "route",
    "peer",
    "attached",
    "neighbour",
    "hosts_file",
    "hosts_leftover",
    "hosts_line",
)

KINDS: tuple[Kind[Any], ...] = tuple(
    __import__(f"niso.kernel.kinds.{name}", fromlist=["KIND"]).KIND for name in NAMES
)
