"""Check values from the cluster before they reach the store and the kernel.

Other hosts are trusted to claim only what is free, but they may have bugs. In a shared etcd, anyone
may have written a key.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan import subnets

if TYPE_CHECKING:
    from niso.plan.records import Entry, Policy

_KEPT = 1 << 16
_LONGEST_VERSION = 40
MOST_NAMES = 120
"""The most names of a service: each is a key of its claim (`niso.cluster.claims.MOST_KEYS`).

etcd accepts 128 operations per transaction.
"""
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", re.ASCII)


def is_address(text: str) -> bool:
    """Return whether a text is one IP address in canonical form, without a zone."""
    try:
        return str(ipaddress.ip_address(text)) == text and "%" not in text
    except ValueError:
        return False


def is_name(text: str) -> bool:
    """Return whether a text is a valid name of a service or host."""
    try:
        values.host_label(text, "")
    except InvalidInput:
        return False
    return True


def is_number(value: object, most: int = 1 << 53) -> bool:
    """Return whether a value is an integer from 1 to below ``most``."""
    return type(value) is int and 0 < value < most


def version(text: object) -> str:
    """Return a host's version of niso for display; "" if it is not valid."""
    good = isinstance(text, str) and len(text) <= _LONGEST_VERSION and text.isprintable()
    return str(text) if good else ""


def is_public_key(text: str) -> bool:
    """Return whether a text is a WireGuard public key: 32 bytes in base64."""
    return _PUBLIC_KEY.fullmatch(text) is not None


def is_usable(address: str, networks: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a service can have this address in one of the subnets (CIDR, gateway)."""
    number = ipaddress.ip_address(address)
    for cidr, gateway in networks:
        net = ipaddress.ip_network(cidr)
        if number in net:
            base = int(net.network_address)
            own = int(ipaddress.ip_address(gateway)) - base
            return subnets.refusal(net, own, int(number) - base) is None
    return False


@lru_cache(_KEPT)
def is_host_address(text: str) -> bool:
    """Return whether a text is an address by which another host can be reached."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text and not (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or text == "255.255.255.255"
    )


_KINDS = ("service", "network", "prefix", "prefixes", "outside")
_PROTOCOLS = ("", "tcp", "udp", "sctp", "icmp")


def policy(text: str) -> Policy:
    """Parse the policy of another host's service. Raises ValueError if it is not valid."""
    from niso.store.policy_rows import policy_of
    from niso.store.sqlite import decoded

    try:
        made = policy_of(decoded(text))
        sound = all(map(_is_entry, made.entries()))
        if made.audit is not None:
            sound = sound and all(type(number) is int for number in made.audit[1:])
    except (TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(text)
    return made


def _is_entry(entry: Entry) -> bool:
    """Return whether a policy entry is one that a manifest can contain."""
    texts = (entry.key, entry.text, entry.peer.kind, entry.peer.name, entry.proto)
    if not all(type(text) is str for text in texts):
        return False
    if entry.peer.kind in ("prefix", "prefixes"):
        many = entry.peer.kind == "prefixes"
        for cidr in entry.peer.name.split(",") if many else (entry.peer.name,):
            ipaddress.ip_network(cidr)  # raises ValueError
    known = entry.peer.kind in _KINDS and entry.proto in _PROTOCOLS
    numbers = (entry.first, entry.last)
    return known and all(type(number) is int and 0 <= number <= 65535 for number in numbers)
