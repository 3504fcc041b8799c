"""Published ports, as results have them."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.plan import records


class Port(NamedTuple):
    """A published port of one address or one family; or ``range`` ports in a row.

    ``anywhere`` is true where the port is published at all addresses of each family of its
    network: then there is one `Port` for each family. It is not in ``--json``.
    """

    host_ip: str
    """the host's address; 0.0.0.0 and :: are all addresses of a family"""
    host_port: int
    """the first of the host's ports"""
    container_port: int
    """the first port inside the service"""
    proto: str
    """tcp, udp or sctp"""
    range: int = 1
    """how many ports in a row; only where they are more than one"""
    anywhere: bool = False

    def left_out(self) -> tuple[str, ...]:
        """Return the fields that JSON does not have."""
        return ("range", "anywhere") if self.range == 1 else ("anywhere",)


def rows(ports: Iterable[records.Port], families: tuple[int, ...]) -> tuple[Port, ...]:
    """Return ports by address: of one at all addresses a row for each family of its network."""
    return tuple(
        Port(address, port.host_port, port.container_port, port.proto, port.count, not port.host_ip)
        for port in ports
        for address in _addresses(port, families)
    )


def _addresses(port: records.Port, families: tuple[int, ...]) -> list[str]:
    if port.host_ip:
        return [port.host_ip]
    return [everywhere for family, everywhere in ((4, "0.0.0.0"), (6, "::")) if family in families]
