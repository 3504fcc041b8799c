"""Published ports: the text of ``network.ports`` and of the command line, as data.

The forms are Docker's (docs.docker.com/engine/network/port-publishing) with an optional protocol: ``HOST:CONTAINER``, with a
host address before it, ranges of equal length on both sides, ``PORT`` for the same on both sides, ``:PORT`` for a free host
port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from niso.base.errors import InvalidInput
from niso.manifest import values
from niso.plan.records import ANY, ANY4, ANY6, Port

PROTOCOLS = ("tcp", "udp", "sctp")
RIGHT = "[ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp] with ports from 1 to 65535 or equally long ranges of them"
EXAMPLE = '"8080:8080"'
NO_LOOPBACK6 = (
    "the kernel takes packets for ::1 from no bridge, so no answer would come back: publish it on 127.0.0.1, or on an"
    " address of the host"
)


def parse_port(text: str, key: str) -> Port:
    """The port that ``text`` asks for; ``host_port`` 0 asks for free ones. Raises `InvalidInput`."""
    address, rest = _split_address(text, key)
    rest, slash, proto = rest.partition("/")
    if slash and proto not in PROTOCOLS:
        raise _wrong(text, key, f"{values.shown(proto)} is no protocol")
    host, colon, container = rest.partition(":")
    if colon and not host:
        inner, last_inner = _range(container, text, key)
        return Port(address, 0, inner, proto or "tcp", last_inner - inner + 1)
    first, last = _range(host, text, key)
    inner, last_inner = _range(container if colon else host, text, key)
    if last - first != last_inner - inner:
        raise _wrong(text, key, "its ranges are not equally long")
    return Port(address, first, inner, proto or "tcp", last - first + 1)


def _split_address(text: str, key: str) -> tuple[str, str]:
    """The host address in its canonical form, `ANY` where there is none, and what follows it."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]:")
        if not (bracket and values.is_ipv6(address)):
            raise _wrong(text, key, "it does not start with an IPv6 address in brackets")
    elif text.count(":") == 2:
        address, _, rest = text.partition(":")
        if not values.is_ipv4(address):
            raise _wrong(text, key, f"{values.shown(address)} is no IPv4 address")
    else:
        return ANY, text
    reason = _not_a_host(address)
    if reason:
        raise _wrong(text, key, reason)
    return str(ipaddress.ip_address(address)), rest


def _not_a_host(text: str) -> str | None:
    """Why no host can have this address and be reached by it; None if one can."""
    address = ipaddress.ip_address(text)
    if address.version == 6 and address.ipv4_mapped:
        return f"{text} is an IPv4 address: write {address.ipv4_mapped}"
    if address.is_unspecified:
        return None
    if address.version == 6:
        if address.is_loopback:
            return NO_LOOPBACK6
        if address.is_link_local:
            return f"{text} is a link-local address, which says nothing without its link"
    elif text == "255.255.255.255" or text.startswith("0."):
        return f"{text} is no address that a host can have"
    return f"{text} is a multicast address" if address.is_multicast else None


def _range(part: str, text: str, key: str) -> tuple[int, int]:
    """First and last port of ``8000-8010``, or twice the port of ``8080``."""
    low, dash, high = part.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None:
        raise _wrong(text, key, f"{values.shown(part)} is no port")
    if last < first:
        raise _wrong(text, key, f"its range ends before it starts, {first} is more than {last}")
    return first, last


def _wrong(text: str, key: str, reason: str) -> InvalidInput:
    return values.wrong(key, text, reason, RIGHT, EXAMPLE)


def distinct(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """Each port once, in order; one on all of a family is left out where the same is published on all addresses."""
    known = dict.fromkeys(ports)
    return tuple(
        p for p in known if p.host_ip not in (ANY4, ANY6) or p._replace(host_ip=ANY) not in known
    )


def contradictions(ports: Iterable[Port]) -> list[tuple[int, int]]:
    """Places of ports that take the same host port at the same address as an earlier one and are not equal to it.

    Each later place once, with an earlier one. All addresses and one address do not contradict: the one wins there.
    """
    groups: dict[tuple[str, str], list[tuple[int, int, int, Port]]] = {}
    for place, port in enumerate(ports):
        if not port.host_port:
            continue
        for where in (ANY4, ANY6) if port.host_ip == ANY else (port.host_ip,):
            groups.setdefault((port.proto, where), []).append(
                (port.host_port, port.last, place, port)
            )
    found: dict[int, int] = {}
    for group in groups.values():
        group.sort()
        reach = group[0]  # of those before, the one that ends last
        for each in group[1:]:
            if each[0] <= reach[1] and each[3]._replace(host_ip="") != reach[3]._replace(
                host_ip=""
            ):
                found.setdefault(max(each[2], reach[2]), min(each[2], reach[2]))
            reach = max(reach, each, key=lambda one: one[1])
    return sorted(found.items())
