"""Parse the addresses and name servers of [network]: ip, extra_hosts, dns and dns_search."""

from __future__ import annotations

from collections.abc import Iterator

from niso.base.addresses import family_of
from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan.records import HOST_GATEWAY

if TYPE_CHECKING:
    from typing import Any

IP = "network.ip"
MAX_SERVERS = 3
"""MAXNS of resolv.conf(5)."""
_HOST_CHARACTERS = values.NAME_CHARACTERS | {"_"}


def static_address(text: str, key: str) -> str:
    """Return ``text`` if it is a unicast address that a service can have.

    Whether the network contains the address is checked later, by IPAM. Raises InvalidInput.
    """
    example = '"10.99.1.10"'
    if values.is_ipv6(text):
        if why := _not_unicast6(text):
            raise values.wrong(key, text, why, "an address in the network", example)
        return text
    octets = values.ipv4_octets(text)
    why = "is not a valid IPv4 or IPv6 address" if octets is None else values.not_unicast(octets)
    if why:
        raise values.wrong(key, text, why, "an address in the network", example)
    return text


def _not_unicast6(text: str) -> str | None:
    """Return why a host of a network cannot have this IPv6 address; None if it can."""
    import ipaddress

    address = ipaddress.IPv6Address(text)
    if address.is_unspecified or address.is_loopback:
        return "is an address of the machine itself"
    if address.is_link_local or address.is_multicast:
        return f"is a {'multicast' if address.is_multicast else 'link-local'} address"
    return "is an IPv4-mapped address" if address.ipv4_mapped else None


def server_address(text: str, key: str) -> str:
    """Return ``text`` if it is a valid address for a name server. Raises InvalidInput."""
    if not (values.is_ipv4(text) or values.is_ipv6(text)):
        raise values.wrong(
            key, text, "is not a valid address", "an IPv4 or IPv6 address", '"192.0.2.53"'
        )
    return text


def _is_domain(text: str) -> bool:
    labels = text.split(".")
    return len(text) <= 253 and all(
        label and len(label) <= values.MAX_NAME and _HOST_CHARACTERS.issuperset(label.lower())
        for label in labels
    )


def domain(text: str, key: str) -> str:
    """Return ``text`` if it is a domain name (RFC 1035, 2.3.1), ``_`` allowed.

    Raises InvalidInput.
    """
    if not _is_domain(text):
        right = "labels of letters, digits, - and _, with dots between them"
        raise values.wrong(key, text, "is not a valid domain", right, '"example.com"')
    return text


def extra_host(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name for extra_hosts: a lower-case domain name.

    ``localhost`` and names of the host are reserved. Raises InvalidInput.
    """
    right, example = "labels of a-z, 0-9, - and _, with dots between them", "db.example.com"
    if not _is_domain(text) or text != text.lower() or values.is_ipv4(text):
        raise values.wrong(key, text, "is not a valid name", right, example)
    if text in ("localhost", "host.niso.local") or text.startswith("ip6-"):
        raise values.wrong(key, text, "is not a valid name: it is reserved", right, example)
    return text


def extra_address(text: str, key: str) -> str:
    """Return ``text`` if it is an address or ``host-gateway``. Raises InvalidInput."""
    if text != HOST_GATEWAY and not (values.is_ipv4(text) or values.is_ipv6(text)):
        right = 'an IPv4 or IPv6 address, or "host-gateway"'
        raise values.wrong(key, text, "is not a valid address", right, '"192.0.2.7"')
    return text


def problems(network: dict[str, Any], parsed: dict[str, Any]) -> Iterator[InvalidInput]:
    """Yield an error for each invalid address or name in ``network``, the [network] of tomllib.

    Single addresses and arrays are checked by `niso.manifest.validate`. Values of a wrong type are
    skipped. Valid values are added to ``parsed`` under their keys.
    """
    from niso.manifest.validate import join, texts

    ip, hosts, dns = network.get("ip"), network.get("extra_hosts"), network.get("dns")
    checks = [(static_address, *one) for one in texts(ip if isinstance(ip, dict) else None, IP)]
    for name, items in ip.items() if isinstance(ip, dict) else ():
        checks += [(static_address, *one) for one in texts(items, join(IP, name))]
    if isinstance(hosts, dict):
        checks += [(extra_host, join("network.extra_hosts", name), name) for name in hosts]
        checks += [(extra_address, *one) for one in texts(hosts, "network.extra_hosts")]
    for rule, path, text in checks:
        try:
            parsed[path] = rule(text, path)
        except InvalidInput as error:
            yield error
    yield from _families(ip, IP)
    if isinstance(dns, list) and len(dns) > MAX_SERVERS:
        reason = f"has {len(dns)} name servers, of which resolvers use {MAX_SERVERS}"
        yield values.wrong("network.dns", dns, reason, f"at most {MAX_SERVERS}")
    if dns == []:
        right = "one or more addresses, or leave it out for the host's name servers"
        yield values.wrong("network.dns", dns, "is empty", right)


def _families(ip: object, key: str) -> Iterator[InvalidInput]:
    """Yield an error for each second address of a family, and for an empty array."""
    from niso.manifest.validate import join, texts

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
