"""Combine an attachment's policy with the administrator's: both must allow a packet.

An engine's user writes the former; the latter are the files in /etc/niso/policies.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import InvalidInput
from niso.plan.records import Entry, Peer, Policy

_ALL_PORTS = (0, 65535)


def combined(policies: Iterable[Policy]) -> Policy:
    """Return the policy that allows what all policies allow.

    Raises InvalidInput if it cannot be written as a list.
    """
    whole = Policy()
    for policy in policies:
        whole = both(whole, policy)
    return whole


def both(one: Policy, other: Policy) -> Policy:
    """Return the policy that allows what both allow.

    Raises InvalidInput if it cannot be written as a list.
    """
    return Policy(
        _meeting(one.allow_from, other.allow_from),
        tuple(dict.fromkeys((*one.deny_from, *other.deny_from))),
        _meeting(one.egress_allow, other.egress_allow),
        tuple(dict.fromkeys((*one.egress_deny, *other.egress_deny))),
        one.log or other.log,
    )


def _meeting(
    one: tuple[Entry, ...] | None, other: tuple[Entry, ...] | None
) -> tuple[Entry, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    met = (_met(first, second) for first in one for second in other)
    return tuple(entry for entry in met if entry is not None)


def _met(one: Entry, other: Entry) -> Entry | None:
    """Return the entry that matches what both entries match; None if that is nothing."""
    peer = _peer(one, other)
    first, last = max(one.first, other.first), min(one.last, other.last)
    proto = one.proto or other.proto
    if peer is None or first > last or (one.proto and other.proto and one.proto != other.proto):
        return None
    if proto == "icmp" and (first, last) != _ALL_PORTS:
        return None
    return one._replace(peer=peer, first=first, last=last, proto=proto)


def prefixes(cidrs: Iterable[str]) -> Peer:
    """Return the peer of these canonical prefixes, of which there is at least one."""
    each = list(dict.fromkeys(cidrs))
    return Peer("prefix" if len(each) == 1 else "prefixes", ",".join(each))


def _peer(one: Entry, other: Entry) -> Peer | None:
    if one.peer == other.peer:
        return one.peer
    kinds = {one.peer.kind, other.peer.kind}
    if kinds <= {"prefix", "prefixes"}:
        import ipaddress

        ours, theirs = (
            [ipaddress.ip_network(cidr) for cidr in entry.peer.name.split(",")]
            for entry in (one, other)
        )
        met = [
            str(a if a.prefixlen >= b.prefixlen else b)
            for a in ours
            for b in theirs
            if a.version == b.version and a.overlaps(b)
        ]
        return prefixes(met) if met else None
    if len(kinds) == 1:  # names of two services; a common address of them is ignored
        return None
    raise InvalidInput(
        f"{one.key} ({one.text!r}) and {other.key} ({other.text!r}) cannot be combined: one names "
        "a service or network, the other something else",
        "name the same in both, or say in the file what is denied",
    )
