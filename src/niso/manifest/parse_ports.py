"""Parse published ports: ``network.ports`` and arguments of the command line.

The forms are Docker's (docs.docker.com/engine/network/port-publishing), with an optional protocol:
``HOST:CONTAINER``, optionally after a host address, and with equally long ranges on both sides.
``PORT`` is the same port on both sides; ``:PORT`` takes a free host port.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import InvalidInput
from niso.manifest import values
from niso.plan.records import ANY, ANY4, ANY6, Port

PROTOCOLS = ("tcp", "udp", "sctp")
RIGHT = "[ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp], ports 1 to 65535 or equally long ranges"
EXAMPLE = '"8080:8080"'
NO_LOOPBACK6 = (
    "the kernel accepts no packets for ::1 from a bridge, so replies would be lost; "
    "publish on 127.0.0.1, or on another address of the host"
)


def parse_port(text: str, key: str) -> Port:
    """Parse a published port; a ``host_port`` of 0 requests a free one. Raises InvalidInput."""
    address, ports = _split_address(text, key)
    ports, slash, proto = ports.partition("/")
    if slash and proto not in PROTOCOLS:
        raise _wrong(text, key, f"{values.shown(proto)} is not a valid protocol")
    host, colon, container = ports.partition(":")
    if colon and not host:
        inner, last_inner = _range(container, text, key)
        return Port(address, 0, inner, proto or "tcp", last_inner - inner + 1)
    first, last = _range(host, text, key)
    inner, last_inner = _range(container if colon else host, text, key)
    if last - first != last_inner - inner:
        raise _wrong(text, key, "the two ranges differ in length")
    return Port(address, first, inner, proto or "tcp", last - first + 1)


def _split_address(text: str, key: str) -> tuple[str, str]:
    """Split off the host address: return (canonical address, ports); `ANY` if there is none."""
    if text.startswith("["):
        address, bracket, ports = text[1:].partition("]:")
        if not (bracket and values.is_ipv6(address)):
            raise _wrong(text, key, "it does not start with an IPv6 address in brackets")
    elif text.count(":") == 2:
        address, _, ports = text.partition(":")
        if not values.is_ipv4(address):
            raise _wrong(text, key, f"{values.shown(address)} is not a valid IPv4 address")
    else:
        return ANY, text
    reason = _not_a_host(address)
    if reason:
        raise _wrong(text, key, reason)
    import ipaddress

    return str(ipaddress.ip_address(address)), ports


def _not_a_host(text: str) -> str | None:
    """Return why no host can be reached at this address; None if one can."""
    import ipaddress  # most ports name no address

    address = ipaddress.ip_address(text)
    if address.version == 6 and address.ipv4_mapped:
        return f"{text} is an IPv4-mapped address, write {address.ipv4_mapped}"
    if address.is_unspecified:
        return None
    if address.version == 6:
        if address.is_loopback:
            return NO_LOOPBACK6
        if address.is_link_local:
            return f"{text} is a link-local address, which means nothing without its link"
    elif text == "255.255.255.255" or text.startswith("0."):
        return f"{text} cannot be an address of a host"
    return f"{text} is a multicast address" if address.is_multicast else None


def _range(part: str, text: str, key: str) -> tuple[int, int]:
    """Parse ``8000-8010`` to the first and last port; ``8080`` means both."""
    low, dash, high = part.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None:
        raise _wrong(text, key, f"{values.shown(part)} is not a valid port")
    if last < first:
        raise _wrong(text, key, f"range {first}-{last} ends before it starts")
    return first, last


def _wrong(text: str, key: str, reason: str) -> InvalidInput:
    return values.wrong(key, text, f"is not a valid port mapping: {reason}", RIGHT, EXAMPLE)


def distinct(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """Remove duplicates from ports, keeping their order.

    A port on all addresses of one family is dropped if it is also published on all addresses.
    """
    known = dict.fromkeys(ports)
    return tuple(
        p for p in known if p.host_ip not in (ANY4, ANY6) or p._replace(host_ip=ANY) not in known
    )


def contradictions(ports: Iterable[Port]) -> list[tuple[int, int]]:
    """Return (index, earlier index) for each port that contradicts an earlier port.

    Two different ports contradict each other if they take the same host port at the same address.
    Each index occurs once. A port on one address does not contradict one on all addresses: it has
    precedence.
    """
    groups: dict[tuple[str, str], list[tuple[int, int, int, Port]]] = {}
    for index, port in enumerate(ports):
        if not port.host_port:
            continue
        for address in (ANY4, ANY6) if port.host_ip == ANY else (port.host_ip,):
            groups.setdefault((port.proto, address), []).append(
                (port.host_port, port.last, index, port)
            )
    pairs: dict[int, int] = {}
    for group in groups.values():
        group.sort()
        reach = group[0]  # of the earlier ports, the one with the highest last port
        for item in group[1:]:
            if item[0] <= reach[1] and item[3]._replace(host_ip="") != reach[3]._replace(
                host_ip=""
            ):
                pairs.setdefault(max(item[2], reach[2]), min(item[2], reach[2]))
            reach = max(reach, item, key=lambda one: one[1])
    return sorted(pairs.items())
