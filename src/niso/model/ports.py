"""Published ports: the text of ``network.ports`` and of the command line, as data."""

from __future__ import annotations

from typing import NamedTuple

from niso.errors import InvalidInput
from niso.model import later, values

PROTOCOLS = ("tcp", "udp", "sctp")
ALL_IPV4 = "0.0.0.0"
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
    """The port that ``text`` asks for. Raises `InvalidInput` for what is no port and for forms not supported yet."""
    address, rest = _split_address(text, key)
    rest, slash, proto = rest.partition("/")
    if slash and proto not in PROTOCOLS:
        raise _wrong(text, key, f"{values.shown(proto)} is no protocol")
    host, colon, container = rest.partition(":")
    if colon and not host and address is None:
        inner, last_inner = _range(container, text, key)
        first, last = 0, last_inner - inner
    else:
        first, last = _range(host, text, key)
        inner, last_inner = _range(container if colon or address is not None else host, text, key)
    if last - first != last_inner - inner:
        raise _wrong(text, key, "its ranges are not equally long")
    port = Port(address, first, inner, proto or "tcp", last)
    if later.is_later_port(text, port):
        raise _wrong(text, key, "that form is not supported yet: only HOST:CONTAINER over TCP")
    return port


def _split_address(text: str, key: str) -> tuple[str | None, str]:
    """The host address, None where there is none, and what follows it."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]:")
        if not (bracket and values.is_ipv6(address)):
            raise _wrong(text, key, "it does not start with an IPv6 address in brackets")
        return address, rest
    if text.count(":") == 2:
        address, _, rest = text.partition(":")
        if not values.is_ipv4(address):
            raise _wrong(text, key, f"{values.shown(address)} is no IPv4 address")
        return address, rest
    return None, text


def _range(part: str, text: str, key: str) -> tuple[int, int]:
    """First and last port of ``8000-8010``, or twice the port of ``8080``."""
    low, dash, high = part.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None or last < first:
        raise _wrong(text, key, f"{values.shown(part)} is no port")
    return first, last


def _wrong(text: str, key: str, reason: str) -> InvalidInput:
    return values.wrong(key, text, reason, RIGHT, EXAMPLE)


def distinct(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """Each port once, in order; one on all of IPv4 is left out where the same is published on all addresses."""
    known = dict.fromkeys(ports)
    return tuple(p for p in known if p.host_ip != ALL_IPV4 or p._replace(host_ip=None) not in known)
