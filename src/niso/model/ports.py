"""Published ports: the text of ``network.ports`` and of the command line, as data."""

from __future__ import annotations

from typing import NamedTuple

from niso.errors import InvalidInput
from niso.model import later, values

PROTOCOLS = ("tcp", "udp", "sctp")
ALL_IPV4 = "0.0.0.0"  # noqa: S104
RIGHT = "HOST:CONTAINER or 0.0.0.0:HOST:CONTAINER with ports from 1 to 65535, /tcp where you like"
EXAMPLE = '"8080:8080"'


class Port(NamedTuple):
    """A host port, or a range of them, that is DNATed to a port, or an equally long range, of a service.

    ``host_ip`` is None for all addresses of each family that the network has, ``0.0.0.0`` for all of IPv4.
    ``host_port`` 0 asks for a free one. A single port has ``last_host_port == host_port``.
    """

    host_ip: str | None
    host_port: int
    container_port: int
    proto: str
    last_host_port: int


def parse_port(text: str, key: str) -> Port:
    """The port that ``text`` asks for. Raises `InvalidInput` for what is no port form and for forms not supported yet."""
    rest, slash, proto = text.partition("/")
    host_ip: str | None = None
    if rest.startswith("["):
        host_ip, bracket, rest = rest[1:].partition("]:")
        if not (bracket and ":" in rest and values.is_ipv6(host_ip)):
            raise _wrong(text, key, "it has no IPv6 address in brackets before HOST:CONTAINER")
    elif rest.count(":") == 2:
        host_ip, _, rest = rest.partition(":")
        if not values.is_ipv4(host_ip):
            raise _wrong(text, key, f"{values.shown(host_ip)} is no IPv4 address")
    host, colon, container = rest.partition(":")
    if slash and proto not in PROTOCOLS:
        raise _wrong(text, key, f"{values.shown(proto)} is no protocol")
    first, last = _range(host or "0", text, key) if host_ip is None and colon and not host else _ports(host, text, key)
    inner, inner_last = _ports(container, text, key) if colon else (first, last)
    if first and last - first != inner_last - inner or not first and inner != inner_last:
        raise _wrong(text, key, "its ranges are not equally long")
    port = Port(host_ip, first, inner, proto or "tcp", last)
    if later.is_later_port(text, port):
        raise _wrong(text, key, "that form is not supported yet: only HOST:CONTAINER over TCP")
    return port
