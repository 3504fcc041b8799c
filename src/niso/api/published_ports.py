"""Describe published ports in results."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.plan import records


class Port(NamedTuple):
    """A published port, or a range of ``range`` ports, on one address or one family.

    ``anywhere`` is true if the port is published on all addresses of its network's families: there
    is one `Port` per family then. It is left out of ``--json``.
    """

    host_ip: str
    """host address; 0.0.0.0 and :: are all addresses of a family"""
    host_port: int
    """first port on the host"""
    container_port: int
    """first port inside the service"""
    proto: str
    """tcp, udp or sctp"""
    range: int = 1
    """number of ports; only for ranges"""
    anywhere: bool = False

    def left_out(self) -> tuple[str, ...]:
        """Return the fields to leave out of JSON."""
        return ("range", "anywhere") if self.range == 1 else ("anywhere",)


def rows(ports: Iterable[records.Port], families: tuple[int, ...]) -> tuple[Port, ...]:
    """Return a `Port` per address; a port on all addresses becomes one per family."""
    return tuple(
        Port(address, port.host_port, port.container_port, port.proto, port.count, not port.host_ip)
        for port in ports
        for address in _addresses(port, families)
    )


def _addresses(port: records.Port, families: tuple[int, ...]) -> list[str]:
    if port.host_ip:
        return [port.host_ip]
    return [everywhere for family, everywhere in ((4, "0.0.0.0"), (6, "::")) if family in families]
