"""What the manifest will know and does not know yet: refused by name, so that nothing is accepted and ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.model.ports import Port

KEYS = frozenset({"healthcheck", "volumes", "isolation.resources", "network.share", "network.policy"})
MODES = frozenset({"host", "none", "share"})
IPV6 = "IPv6 is not supported yet"


def is_later_port(text: str, port: Port) -> bool:
    """True for a published port whose form is right but is not supported yet."""
    return (
        port.proto != "tcp"
        or port.last_host_port != port.host_port
        or port.host_ip not in (None, "0.0.0.0")
        or port.host_port == 0
        or ":" not in text
    )
