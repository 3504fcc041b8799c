"""Policies: the text of ``network.policy`` as data.

An entry is a peer, then ``:PORT`` or ``:PORT-PORT``, then ``/PROTO``, the last two where wanted: ``frontend:8080/tcp``. A peer
is a service (by its name or hostname, with or without .niso.local), ``network:NAME``, an address or a prefix; an IPv6 one
stands in brackets where ports follow (RFC 3986, 3.2.2). What an entry matches is said in `niso.plan.verdict`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from niso.base.errors import InvalidInput
from niso.base.names import DOMAIN
from niso.manifest import values
from niso.plan.records import Entry, Peer, Policy

PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
ALL_PORTS = (0, 65535)
"""Of an entry that names none: it matches what has no ports too."""
RIGHT = "a service, network:NAME, an address or a prefix, then :PORT or :PORT-PORT and /tcp, /udp, /sctp or /icmp where wanted"
EXAMPLE = '"frontend:8080/tcp"'

_NETWORK = "network:"
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_OF_IPV4 = values.DIGITS | {"."}
_Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse(
    allow_from: Iterable[str] | None,
    deny_from: Iterable[str],
    egress_allow: Iterable[str] | None,
    egress_deny: Iterable[str],
    log: bool,
    parsed: Mapping[str, Entry] | None = None,
) -> Policy:
    """The policy of the four lists of a manifest; None where it has no list. ``parsed`` are the entries of keys that are parsed already.

    Raises `InvalidInput` for the first wrong entry.
    """
    known = parsed or {}

    def entries(texts: Iterable[str], key: str, egress: bool) -> tuple[Entry, ...]:
        keys = ((f"{key}[{place}]", text) for place, text in enumerate(texts))
        return tuple(known.get(each) or parse_entry(text, each, egress) for each, text in keys)

    return Policy(
        None if allow_from is None else entries(allow_from, "network.policy.allow_from", False),
        entries(deny_from, "network.policy.deny_from", False),
        None
        if egress_allow is None
        else entries(egress_allow, "network.policy.egress.allow", True),
        entries(egress_deny, "network.policy.egress.deny", True),
        log,
    )


def parse_ingress(text: str, key: str) -> Entry:
    return parse_entry(text, key, False)


def parse_egress(text: str, key: str) -> Entry:
    return parse_entry(text, key, True)


def parse_entry(text: str, key: str, egress: bool) -> Entry:
    """One entry; ``egress`` says in which direction, for the words of errors. Raises `InvalidInput`."""
    peer, rest = _split(text, key)
    ports, slash, proto = rest[1:].partition("/") if rest.startswith(":") else ("", rest, rest[1:])
    if slash and proto not in PROTOCOLS:
        raise _wrong(
            text, key, f"{values.shown(proto)} is no protocol" if proto else "nothing follows its /"
        )
    if not rest.startswith(":"):
        first, last = ALL_PORTS
    elif proto == "icmp":
        raise _wrong(
            text,
            key,
            "ICMP has no ports",
            f"{values.shown(f'{peer}/icmp')}, or a port of another protocol",
        )
    else:
        first, last = _range(ports, text, key)
    return Entry(key, text, _peer(peer, rest, text, key, egress), first, last, proto)


def _split(text: str, key: str) -> tuple[str, str]:
    """The peer without brackets, and what follows it: nothing, or ``:...`` or ``/...``."""
    if text.startswith("["):
        peer, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in peer or (rest and rest[0] not in ":/"):
            raise _wrong(text, key, "it does not start with an IPv6 address or prefix in brackets")
        return peer, rest
    start = (
        len(_NETWORK)
        if text.startswith(_NETWORK) and text[len(_NETWORK) :][:1] not in values.DIGITS
        else 0
    )
    if start:  # else network:8080 is a service's port
        ends = [place for place in (text.find(":", start), text.find("/", start)) if place >= 0]
        end = min(ends, default=len(text))
        return text[:end], text[end:]
    if text.count(":") == 1:
        peer, _, ports = text.partition(":")
        return peer, f":{ports}"
    peer, slash, tail = text.rpartition("/")
    return (text, "") if not slash or tail[:1] in values.DIGITS else (peer, f"/{tail}")


def _range(ports: str, text: str, key: str) -> tuple[int, int]:
    low, dash, high = ports.partition("-")
    first = values.port_number(low)
    last = values.port_number(high) if dash else first
    if first is None or last is None:
        right = "ports from 1 to 65535"
        raise _wrong(
            text,
            key,
            f"{values.shown(ports)} is no port" if ports else "no port follows its :",
            right,
        )
    if last < first:
        raise _wrong(
            text,
            key,
            f"its range ends before it starts, {first} is more than {last}",
            f"{last}-{first}",
        )
    return first, last


def _peer(peer: str, rest: str, text: str, key: str, egress: bool) -> Peer:
    if not peer:
        all_of_it = f'"0.0.0.0/0{rest}" for all of IPv4 and "[::/0]{rest}" for all of IPv6'
        raise _wrong(text, key, "it names no peer", all_of_it if rest else RIGHT)
    if peer.startswith(_NETWORK) and peer.count(":") == 1:
        return Peer("network", _network(peer.removeprefix(_NETWORK), text, key))
    if ":" in peer or "/" in peer or peer[0] in values.DIGITS:
        return Peer("prefix", str(_prefix(peer, rest, text, key)))
    return Peer("service", _service(peer, text, key, egress))


def _network(name: str, text: str, key: str) -> str:
    if name == "default":
        raise _wrong(
            text, key, "the network of that name is called niso-default", '"network:niso-default"'
        )
    try:
        return values.network_name(name, key)
    except InvalidInput:
        reason = f"{values.shown(name)} is no network's name"
        raise _wrong(
            text, key, reason, f"network: and {values.NETWORK_RIGHT}", '"network:backend"'
        ) from None


def _service(peer: str, text: str, key: str, egress: bool) -> str:
    name = peer.removesuffix(f".{DOMAIN}")
    if "." in name or peer == DOMAIN:
        reason = f"names outside {DOMAIN} are not supported"
        raise _wrong(
            text, key, reason, "a service's name, or addresses or prefixes", '"203.0.113.7:443"'
        )
    if name in ("host", "localhost"):
        if egress:
            reason, right = (
                "the host is no service",
                "addresses of the host, which count as any other",
            )
            raise _wrong(text, key, reason, right, '"192.0.2.1:53"')
        raise _wrong(text, key, "the host may always connect in", "to leave it out")
    try:
        return values.host_label(name, key)
    except InvalidInput:
        reason = f"{values.shown(name)} is no service's name"
        raise _wrong(text, key, reason, RIGHT) from None


def _prefix(peer: str, rest: str, text: str, key: str) -> _Prefix:
    """The prefix that ``peer`` is; of an address that of the address alone."""
    address, slash, length = peer.partition("/")
    if not (values.is_ipv4(address) or values.is_ipv6(address)):
        raise _wrong(text, key, _no_address(address, bool(slash)))
    number = ipaddress.ip_address(address)
    bits = _length(length, number.max_prefixlen) if slash else number.max_prefixlen
    if bits is None:
        if number.version == 6 and ":" in length:
            example = f'"[{address}/{length.replace(":", "]:", 1)}{rest}"'
            raise _wrong(
                text,
                key,
                "its ports follow an IPv6 prefix without brackets",
                "brackets around it",
                example,
            )
        right = f"a length from 0 to {number.max_prefixlen}"
        raise _wrong(
            text, key, f"{values.shown(length)} is no prefix length of IPv{number.version}", right
        )
    prefix = ipaddress.ip_network(f"{number}/{bits}", strict=False)
    if prefix.network_address != number:
        right = (
            f"{_written(str(prefix), rest)}, or {_written(str(number), rest)} for the one address"
        )
        raise _wrong(text, key, "it has host bits set", right, _written(str(prefix), rest))
    if reason := _not_a_peer(prefix):
        raise _wrong(text, key, *reason)
    return prefix


def _no_address(text: str, with_length: bool) -> str:
    shown = values.shown(text)
    if ":" not in text:
        if with_length and not _OF_IPV4.issuperset(text):
            return f"{shown} is no address, and only addresses have a prefix length"
        return f"{shown} is no IPv4 address"
    if "%" in text:
        return f"{shown} has a zone, which says nothing to other machines"
    return f"{shown} is no IPv6 address"


def _length(text: str, most: int) -> int | None:
    if text == "0":
        return 0
    bits = values.port_number(text)
    return bits if bits is not None and bits <= most else None


def _written(peer: str, rest: str) -> str:
    return f'"[{peer}]{rest}"' if ":" in peer and rest.startswith(":") else f'"{peer}{rest}"'


def _not_a_peer(prefix: _Prefix) -> tuple[str, str] | None:
    """Why no packet of a service has an address of it, and what is right; None where it can."""
    if isinstance(prefix, ipaddress.IPv6Network) and prefix.subnet_of(_MAPPED):
        number = ipaddress.IPv4Network(
            (int(prefix.network_address) & 0xFFFFFFFF, prefix.prefixlen - 96)
        )
        plain = str(number.network_address) if number.prefixlen == 32 else str(number)
        return "it is IPv4 written as IPv6", f'"{plain}"'
    if prefix.prefixlen == prefix.max_prefixlen and prefix.network_address.is_unspecified:
        return (
            "it is no host's address",
            f'"{prefix.network_address}/0" for all of IPv{prefix.version}',
        )
    if prefix.is_loopback:
        return (
            "loopback addresses pass between no services, and the host may always connect in",
            "to leave it out",
        )
    return None


def _wrong(text: str, key: str, reason: str, right: str = RIGHT, example: str = "") -> InvalidInput:
    return values.wrong(key, text, reason, right, example or (EXAMPLE if right == RIGHT else ""))
