"""Parse the keys of [network] with addresses or ports: ip, extra_hosts, dns, dns_search and ports.

A published port is written as in Docker (docs.docker.com/engine/network/port-publishing):
``[ADDRESS:]HOST:CONTAINER[/PROTO]``. HOST and CONTAINER can also be two ranges of the same length.
``PORT`` publishes a port under the same number. ``:PORT`` publishes it at a free host port that
niso chooses. `niso port-forward` accepts the same forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of, ip_address
from niso.base.text import shown
from niso.manifest import values
from niso.manifest.values import join, texts
from niso.plan.records import ANY, ANY4, ANY6, HOST_GATEWAY, PortMapping

if TYPE_CHECKING:
    from typing import Any


MAX_SERVERS = 3
"""The maximum number of name servers that resolvers use: MAXNS of resolv.conf(5)."""
_HOST_CHARACTERS = values.NAME_CHARACTERS | {"_"}


def static_address(text: str, key: str) -> str:
    """Return ``text`` if a service can have this static address. Raises InvalidInput."""
    if values.is_ipv6(text):
        why = _not_unicast6(text)
    elif (octets := values.ipv4_octets(text)) is None:
        why = "is not a valid IPv4 or IPv6 address"
    else:
        why = values.not_unicast(octets)
    return values.require(text, key, why, "an address in the network", '"10.99.1.10"')


def _not_unicast6(text: str) -> str | None:
    address = ip_address(text)
    if address.is_unspecified or address.is_loopback:
        return "is an address of the machine itself"
    if address.is_link_local or address.is_multicast:
        return f"is a {'multicast' if address.is_multicast else 'link-local'} address"
    is_mapped = address.version == 6 and address.ipv4_mapped
    return "is an IPv4-mapped address" if is_mapped else None


def _address_reason(text: str) -> str | None:
    is_address = values.is_ipv4(text) or values.is_ipv6(text)
    return None if is_address else "is not a valid address"


def server_address(text: str, key: str) -> str:
    right = "an IPv4 or IPv6 address"
    return values.require(text, key, _address_reason(text), right, '"192.0.2.53"')


def _is_domain(text: str) -> bool:
    labels = text.split(".")
    return len(text) <= 253 and all(
        label and len(label) <= values.MAX_NAME and _HOST_CHARACTERS.issuperset(label.lower())
        for label in labels
    )


def domain(text: str, key: str) -> str:
    """Return ``text`` if it is a domain name (RFC 1035, 2.3.1), possibly with underscores."""
    reason = None if _is_domain(text) else "is not a valid domain"
    right = "labels of letters, digits, - and _, with dots between them"
    return values.require(text, key, reason, right, '"example.com"')


def extra_host(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name in extra_hosts. Raises InvalidInput."""
    reason = None
    if not _is_domain(text) or text != text.lower() or values.is_ipv4(text):
        reason = "is not a valid name"
    elif text in ("localhost", "host.niso.local") or text.startswith("ip6-"):
        reason = "is not a valid name: it is reserved"
    right = "labels of a-z, 0-9, - and _, with dots between them"
    return values.require(text, key, reason, right, "db.example.com")


def extra_address(text: str, key: str) -> str:
    """Return the canonical form of an address in extra_hosts. ``host-gateway`` is unchanged."""
    if text == HOST_GATEWAY:
        return text
    right = 'an IPv4 or IPv6 address, or "host-gateway"'
    values.require(text, key, _address_reason(text), right, '"192.0.2.7"')
    return str(ip_address(text))


def problems(network: dict[str, Any]) -> Iterator[InvalidInput]:
    """Check the lists ``ip`` and ``dns`` of the table [network] for their lengths.

    Yields an error for a second address of an IP version in ``ip``, and for a list ``dns`` that is
    empty or has more name servers than resolvers use.
    """
    yield from _families(network.get("ip"), "network.ip")
    dns = network.get("dns")
    if isinstance(dns, list) and len(dns) > MAX_SERVERS:
        reason = f"has {len(dns)} name servers, of which resolvers use {MAX_SERVERS}"
        yield values.wrong("network.dns", dns, reason, f"at most {MAX_SERVERS}")
    if dns == []:
        right = "one or more addresses, or leave it out for the host's name servers"
        yield values.wrong("network.dns", dns, "is empty", right)


def _families(ip: object, key: str) -> Iterator[InvalidInput]:
    if isinstance(ip, dict):
        for name, items in ip.items():
            yield from _families(items, join(key, name))
    if ip == []:
        yield values.wrong(key, ip, "is empty", "an address, or leave it out")
    first: dict[int, str] = {}
    for path, text in texts(ip if isinstance(ip, list) else None, key):
        if first.setdefault(family_of(text), path) != path:
            reason = f"is a second IPv{family_of(text)} address beside {first[family_of(text)]}"
            yield values.wrong(path, text, reason, "one address of each family")


PROTOCOLS = ("tcp", "udp", "sctp")
RIGHT = "[ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp], ports 1 to 65535 or equally long ranges"
EXAMPLE = '"8080:8080"'
NO_LOOPBACK6 = (
    "the kernel accepts no packets for ::1 from a bridge, so replies would be lost; "
    "publish on 127.0.0.1, or on another address of the host"
)


def parse_port(text: str, key: str) -> PortMapping:
    """Parse a published port. Raises InvalidInput. Host port 0 means that niso chooses one."""
    address, ports = _split_address(text, key)
    ports, slash, proto = ports.partition("/")
    if slash and proto not in PROTOCOLS:
        raise _wrong(text, key, f"{shown(proto)} is not a valid protocol")
    host, colon, container = ports.partition(":")
    if colon and not host:
        inner, last_inner = _range(container, text, key)
        return PortMapping(address, 0, inner, proto or "tcp", last_inner - inner + 1)
    first, last = _range(host, text, key)
    inner, last_inner = _range(container if colon else host, text, key)
    if last - first != last_inner - inner:
        raise _wrong(text, key, "the two ranges differ in length")
    return PortMapping(address, first, inner, proto or "tcp", last - first + 1)


def _split_address(text: str, key: str) -> tuple[str, str]:
    """Split a published port into (host address, rest). Without an address, returns `ANY`."""
    if text.startswith("["):
        address, bracket, ports = text[1:].partition("]:")
        if not (bracket and values.is_ipv6(address)):
            raise _wrong(text, key, "it does not start with an IPv6 address in brackets")
    elif text.count(":") == 2:
        address, _, ports = text.partition(":")
        if not values.is_ipv4(address):
            raise _wrong(text, key, f"{shown(address)} is not a valid IPv4 address")
    else:
        return ANY, text
    reason = _not_a_host(address)
    if reason:
        raise _wrong(text, key, reason)
    return str(ip_address(address)), ports


def _not_a_host(text: str) -> str | None:
    """Return why no port can be published on a host address, or None if that is possible."""
    address = ip_address(text)
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
    """Parse a port ``80`` to (80, 80), and a range ``8000-8010`` to (8000, 8010)."""
    low, dash, high = part.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None:
        raise _wrong(text, key, f"{shown(part)} is not a valid port")
    if last < first:
        raise _wrong(text, key, f"range {first}-{last} ends before it starts")
    return first, last


def _wrong(text: str, key: str, reason: str) -> InvalidInput:
    return values.wrong(key, text, f"is not a valid port mapping: {reason}", RIGHT, EXAMPLE)


def distinct(ports: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
    """Return published ports without duplicates. A port on all addresses of one IP version is a
    duplicate if it is also published on all addresses of both versions.
    """
    known = dict.fromkeys(ports)
    return tuple(
        p for p in known if p.host_ip not in (ANY4, ANY6) or p._replace(host_ip=ANY) not in known
    )


def contradictions(ports: Iterable[PortMapping]) -> list[tuple[int, int]]:
    """Return (index, earlier index) for each published port that contradicts an earlier one.

    Two ports contradict each other if they differ but publish the same host port on the same
    address. If a port contradicts several earlier ports, only one pair is returned. A port on one
    address does not contradict a port on all addresses, because the port on one address has
    precedence.
    """
    groups: dict[tuple[str, str], list[tuple[int, int, int, PortMapping]]] = {}
    for index, port in enumerate(ports):
        if not port.host_port:
            continue
        for address in (ANY4, ANY6) if port.host_ip == ANY else (port.host_ip,):
            item = port.host_port, port.last, index, port._replace(host_ip="")
            groups.setdefault((port.proto, address), []).append(item)
    pairs: dict[int, int] = {}
    for group in groups.values():
        group.sort()
        reach = group[0]  # of the earlier ports, the one with the highest last port
        for item in group[1:]:
            if item[0] <= reach[1] and item[3] != reach[3]:
                pairs.setdefault(max(item[2], reach[2]), min(item[2], reach[2]))
            reach = max(reach, item, key=lambda one: one[1])
    return sorted(pairs.items())
