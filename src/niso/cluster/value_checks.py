"""Check values of the cluster before they reach the store and the kernel.

Other hosts are trusted to claim what is free, not to be without faults. In an etcd that others use
too, anybody may have written a key.
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
"""Names of a service: etcd takes 128 operations in a transaction, and each is a key of a claim."""
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", re.ASCII)


def is_address(text: str) -> bool:
    """Return whether a text is one IP address in its usual form, without a zone."""
    try:
        return str(ipaddress.ip_address(text)) == text and "%" not in text
    except ValueError:
        return False


def is_name(text: str) -> bool:
    """Return whether a text may be the name of a service or of a host."""
    try:
        values.host_label(text, "")
    except InvalidInput:
        return False
    return True


def is_number(value: object, most: int = 1 << 53) -> bool:
    """Return whether a value is a whole number from 1 to less than ``most``."""
    return type(value) is int and 0 < value < most


def version(text: object) -> str:
    """Return the version of niso that a host has, for people; "" if it is not valid."""
    good = isinstance(text, str) and len(text) <= _LONGEST_VERSION and text.isprintable()
    return str(text) if good else ""


def is_public_key(text: str) -> bool:
    """Return whether a text is a key of WireGuard: 32 bytes in base64."""
    return _PUBLIC_KEY.fullmatch(text) is not None


def is_usable(address: str, networks: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a service can have an address in one of these subnets (CIDR, gateway)."""
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
    """Return whether a text is an address by which hosts can reach another one."""
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


_KINDS = ("service", "network", "prefix", "outside")
_PROTOCOLS = ("", "tcp", "udp", "sctp", "icmp")


def policy(text: str) -> Policy:
    """Return the policy of a service of another host. Raises ValueError if it is not valid."""
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
    """Return whether an entry of a policy is one that a manifest can have."""
    texts = (entry.key, entry.text, entry.peer.kind, entry.peer.name, entry.proto)
    if not all(type(text) is str for text in texts):
        return False
    if entry.peer.kind == "prefix":
        ipaddress.ip_network(entry.peer.name)  # raises ValueError
    known = entry.peer.kind in _KINDS and entry.proto in _PROTOCOLS
    numbers = (entry.first, entry.last)
    return known and all(type(number) is int and 0 <= number <= 65535 for number in numbers)
