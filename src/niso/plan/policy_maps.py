"""Translate policies to elements of static maps. The kernel needs nothing else for a policy.

One direction of a service's policy is a function from (peer, protocol, port) to a verdict. It is
split into parts, each of which is one map lookup. A part is looked up only if no earlier part has
an answer:

    port         own address, peer, protocol, port     a listed peer, by its address
    ports        own address, peer, protocol, ports
    peer         own address, peer                     everything else of this peer
    prefix_ports own address, prefix, protocol, ports  a peer in a listed prefix or network
    prefix       own address, prefix
    any_port     own address, protocol, port           any other peer
    any_ports    own address, protocol, ports
    rest         own address

The precedence of deny over allow, and overlapping entries, are resolved here: no two elements of a
part match the same packet. The element of a peer covers all entries that match this peer, also
those of prefixes that contain it.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import NamedTuple
from niso.kernel import nft_audit
from niso.kernel.kinds.element import Element
from niso.kernel.nft_policies import POLICY_PARTS
from niso.kernel.nft_sensor import REFUSE
from niso.kernel.nft_tables import INET
from niso.plan.records import Entry, Member, Policed, Policy

ALL_PORTS = (0, 65535)
PORTED = ("tcp", "udp", "sctp")
PASSES = "return"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Decision(NamedTuple):
    """The verdict of a policy. ``key`` is the manifest line that decides, "" if none does."""

    passes: bool
    key: str


class _Ports(NamedTuple):
    """The ports of one protocol, from ``first`` to ``last``."""

    proto: str
    first: int
    last: int
    decision: Decision


class _Direction(NamedTuple):
    """One direction of one policy, for one address of its service."""

    service: str
    ingress: bool
    own: str
    deny: tuple[Entry, ...]
    allow: tuple[Entry, ...] | None
    denied: frozenset[str]  # the keys of ``deny``
    log: bool
    audit: bool

    @property
    def family(self) -> int:
        return family_of(self.own)

    @property
    def free(self) -> Decision:
        """Return the decision for a peer that no entry matches."""
        if self.allow is None:
            return Decision(True, "")
        return Decision(
            False, "network.policy.allow_from" if self.ingress else "network.policy.egress.allow"
        )

    def element(self, part: str, key: str, decision: Decision) -> Element:
        verdict = (
            PASSES
            if decision.passes
            else f"goto {nft_audit.chain(self.ingress, self.log)}"
            if self.audit
            else f"goto log_{_word(self.ingress)}"
            if self.log
            else f"goto {REFUSE}"
        )
        return Element(
            INET,
            container(self.ingress, self.family, part),
            key,
            verdict,
            f"{self.service} {decision.key}".rstrip(),
        )


def container(ingress: bool, family: int, part: str) -> str:
    """Return the name of the map of a part of one direction: ``in4_port``, ``out6_rest``."""
    return f"{_word(ingress)}{family}_{part}"


def _word(ingress: bool) -> str:
    return "in" if ingress else "out"


def elements(policed: Policed, members: Iterable[Member]) -> list[Element]:
    """Return the elements of one service's policy.

    With ``policed.only``, return those that depend on the peers with these addresses.
    """
    meaning = _Meaning(members)
    result: list[Element] = []
    for own in policed.addresses:
        family = family_of(own)
        if policed.only is None:
            result += [
                Element(INET, f"no_start_{way}{family}", own, "", policed.service)
                for way in ("in", "out")
            ]
            result += _audit(policed, own)
        for direction in _directions(policed, own):
            if policed.only is None:
                result.append(
                    Element(
                        INET,
                        f"{'in' if direction.ingress else 'e'}gress{family}",
                        own,
                        "",
                        policed.service,
                    )
                )
            result += _elements(direction, policed, meaning)
    return result


def _audit(policed: Policed, own: str) -> list[Element]:
    """Return the elements that let pass what a policy in audit denies. The time is not checked."""
    audit = policed.policy.audit
    if audit is None or not audit.since:
        return []
    text = nft_audit.comment(policed.service, audit.since, audit.until)
    names = (f"audit_{way}{family_of(own)}" for way in ("in", "out"))
    return [Element(INET, name, own, "", text) for name in names]


def decides(
    policed: Policed,
    members: Iterable[Member],
    ingress: bool,
    own: str,
    peer: str,
    proto: str,
    port: int | None,
) -> Element | None:
    """Return the element that decides on a packet between ``own`` and ``peer``; None if none does.

    ``own`` is an address of the service. ``proto`` is a protocol as in an Entry, or any other name.
    """
    by_place = {
        (element.container, element.element): element
        for element in elements(policed._replace(only=None), members)
    }
    family = family_of(own)
    number = ipaddress.ip_address(peer)
    for part in POLICY_PARTS:
        name = container(ingress, family, part)
        for (held, key), element in by_place.items():
            if held == name and _holds(part, key, own, number, proto, port):
                return element
    return None


def _holds(part: str, key: str, own: str, peer: _Address, proto: str, port: int | None) -> bool:
    fields = key.split(" . ")
    if fields.pop(0) != own:
        return False
    if part in ("port", "ports", "peer", "prefix_ports", "prefix"):
        first, last = _ends(fields.pop(0))
        if not first <= int(peer) <= last:
            return False
    if fields:
        if fields[0] != ("ipv6-icmp" if proto == "icmp" and peer.version == 6 else proto):
            return False
        low, _, high = fields[1].partition("-")
        # a protocol without ports has other bytes at the place of the port, so all must lead to one
        # verdict
        return int(low) <= (port or 0) <= int(high or low)
    return True


def _ends(text: str) -> tuple[int, int]:
    if "/" in text:
        network = ipaddress.ip_network(text)
        return int(network[0]), int(network[-1])
    low, _, high = text.partition("-")
    return int(ipaddress.ip_address(low)), int(ipaddress.ip_address(high or low))


def _directions(policed: Policed, own: str) -> list[_Direction]:
    """Return the directions for which a policy has entries."""
    policy: Policy = policed.policy
    sides = (
        (True, policy.deny_from, policy.allow_from),
        (False, policy.egress_deny, policy.egress_allow),
    )
    both = [
        _Direction(
            policed.service,
            ingress,
            own,
            deny,
            allow,
            frozenset(entry.key for entry in deny),
            policy.log,
            policy.audit is not None,
        )
        for ingress, deny, allow in sides
    ]
    return [direction for direction in both if direction.deny or direction.allow is not None]


class _Meaning:
    """The addresses that the names in policies stand for now."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, set[str]] = {}  # address -> names of the services that hold it
        self.outside: dict[str, tuple[str, ...]] = {}  # name -> its addresses
        self.networks: dict[str, Member] = {}
        for member in members:
            if member.kind == "network":
                self.networks[member.name] = member
                continue
            if member.kind == "outside":
                self.outside[member.name] = member.values
                continue
            self.addresses[member.name] = member.values
            for value in member.values:
                self.names.setdefault(value, set()).add(member.name)


def _elements(direction: _Direction, policed: Policed, meaning: _Meaning) -> list[Element]:
    """Return the elements of one direction for one address of the service."""
    entries = (*direction.deny, *(direction.allow or ()))
    wide, everybody = [], []
    for entry in entries:
        if entry.peer.kind == "network":
            wide.append(entry)
        elif entry.peer.kind == "prefix" and family_of(entry.peer.name) == direction.family:
            length = entry.peer.name.rpartition("/")[2]
            if length == "0":
                everybody.append(entry)
            elif not _is_one(entry):
                wide.append(entry)
    result: list[Element] = []
    # no element of its own needed: the decision is the same as for all other peers
    otherwise = _decision(direction, everybody, "", None)
    for peer in _peers(direction, policed, meaning):
        matching = [entry for entry in entries if _matches(entry, peer, meaning)]
        if peer in policed.addresses:  # a service may always reach itself
            result.append(
                direction.element("peer", f"{direction.own} . {peer}", Decision(True, "itself"))
            )
            continue
        result += _parts(direction, ("port", "ports", "peer"), f"{peer} . ", matching, otherwise)
    if policed.only is not None:
        return result
    result += _prefixes(direction, wide, everybody, meaning)
    return result + _parts(direction, ("any_port", "any_ports", "rest"), "", everybody, None)


def _peers(direction: _Direction, policed: Policed, meaning: _Meaning) -> list[str]:
    """Return the peer addresses that need elements of their own."""
    entries = (*direction.deny, *(direction.allow or ()))
    # addresses in the manifest apply to any holder
    named = {
        entry.peer.name.partition("/")[0]
        for entry in entries
        if entry.peer.kind == "prefix" and _is_one(entry)
    }
    for entry in entries:
        if entry.peer.kind == "service":
            addresses = meaning.addresses.get(entry.peer.name, ())
            named.update(a for a in addresses if policed.only is None or a in policed.only)
        elif entry.peer.kind == "outside":
            named.update(meaning.outside.get(entry.peer.name, ()))
    if policed.only is None:
        named.update(policed.addresses)
    return sorted(peer for peer in named if family_of(peer) == direction.family)


def _is_one(entry: Entry) -> bool:
    """Return whether a prefix is a single address."""
    address, _, length = entry.peer.name.partition("/")
    return length == ("128" if family_of(address) == 6 else "32")


def _matches(entry: Entry, address: str, meaning: _Meaning) -> bool:
    """Return whether an entry includes the peer with this address."""
    peer = entry.peer
    if peer.kind == "service":
        return peer.name in meaning.names.get(address, ())
    if peer.kind == "prefix":
        return _within(address, (peer.name,))
    if peer.kind == "outside":
        return address in meaning.outside.get(peer.name, ())
    member = meaning.networks.get(peer.name)
    return member is not None and _within(address, member.values) and address not in member.gateways


def _within(address: str, prefixes: Iterable[str]) -> bool:
    number = ipaddress.ip_address(address)
    return any(number in ipaddress.ip_network(prefix) for prefix in prefixes)


# --- prefixes ------------------------------------------------------------------------------------


def _prefixes(
    direction: _Direction, wide: list[Entry], everybody: list[Entry], meaning: _Meaning
) -> list[Element]:
    """Return the elements for peers in prefixes, split where the matching entries change."""
    spans = [(span, entry) for entry in wide for span in _spans(entry, direction.family, meaning)]
    cuts = sorted({first for (first, _), _ in spans} | {last + 1 for (_, last), _ in spans})
    runs: list[tuple[int, int, set[str]]] = []  # first, last, keys of the entries that match
    for first, end in itertools.pairwise(cuts):
        matching = {entry.key for (low, high), entry in spans if low <= first <= high}
        if runs and runs[-1][1] == first - 1 and runs[-1][2] == matching:
            runs[-1] = (runs[-1][0], end - 1, matching)
        else:
            runs.append((first, end - 1, matching))
    result: list[Element] = []
    for first, last, matching in runs:
        if matching:
            keys = matching | {entry.key for entry in everybody}
            both = [
                entry for entry in (*direction.deny, *(direction.allow or ())) if entry.key in keys
            ]
            result += _parts(
                direction,
                ("", "prefix_ports", "prefix"),
                f"{_span(first, last, direction.family)} . ",
                both,
                None,
            )
    return result


def _spans(entry: Entry, family: int, meaning: _Meaning) -> list[tuple[int, int]]:
    """Return the addresses of one family in a prefix or network, as (first, last) numbers.

    The host is not a member of a network, so its gateways are left out.
    """
    member = meaning.networks.get(entry.peer.name) if entry.peer.kind == "network" else None
    cidrs = (entry.peer.name,) if entry.peer.kind == "prefix" else member.values if member else ()
    spans = [_ends(cidr) for cidr in cidrs if family_of(cidr) == family]
    for gateway in member.gateways if member else ():
        if family_of(gateway) == family:
            at = int(ipaddress.ip_address(gateway))
            spans = [
                part
                for low, high in spans
                for part in (
                    ((low, at - 1), (at + 1, high)) if low <= at <= high else ((low, high),)
                )
                if part[0] <= part[1]
            ]
    return spans


def _span(first: int, last: int, family: int) -> str:
    """Return a range of addresses in nft's syntax, as a prefix if possible."""
    kind = ipaddress.IPv6Address if family == 6 else ipaddress.IPv4Address
    size = last - first + 1
    if size & (size - 1) == 0 and first % size == 0:
        length = (128 if family == 6 else 32) - (size.bit_length() - 1)
        return str(kind(first)) if size == 1 else f"{kind(first)}/{length}"
    return f"{kind(first)}-{kind(last)}"


# --- protocols and ports -------------------------------------------------------------------------


def _parts(
    direction: _Direction,
    parts: tuple[str, str, str],
    peer: str,
    entries: list[Entry],
    otherwise: Decision | None,
) -> list[Element]:
    """Return the decisions of ``entries``, all of which match the peer, per protocol and port.

    ``parts`` are the parts for one port, for several, and for everything else. The last is left out
    if its decision is ``otherwise``, which applies without it. ``peer`` is the peer's field of the
    key, with its separator.
    """
    base = _decision(direction, entries, "", None)
    own = f"{direction.own} . {peer}"
    result = []
    for ports in _deviations(direction, entries, base):
        part = parts[0] if ports.first == ports.last and parts[0] else parts[1]
        number = str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}"
        result.append(direction.element(part, f"{own}{ports.proto} . {number}", ports.decision))
    if base != otherwise:
        result.append(direction.element(parts[2], own.removesuffix(" . "), base))
    return result


def _deviations(direction: _Direction, entries: list[Entry], base: Decision) -> list[_Ports]:
    """Return the ports of each protocol whose decision differs from ``base``.

    The same verdict by another manifest line also differs, so that each line has its counter.
    """
    result: list[_Ports] = []
    if all(entry.proto == "" and (entry.first, entry.last) == ALL_PORTS for entry in entries):
        return result
    icmp = _decision(direction, entries, "icmp", None)
    if icmp != base:
        result.append(_Ports("ipv6-icmp" if direction.family == 6 else "icmp", *ALL_PORTS, icmp))
    for proto in PORTED:
        concerned = [entry for entry in entries if entry.proto in ("", proto)]
        cuts = sorted({0, 65536} | {e.first for e in concerned} | {e.last + 1 for e in concerned})
        runs: list[_Ports] = []
        for first, end in itertools.pairwise(cuts):
            decision = _decision(direction, concerned, proto, first)
            if runs and runs[-1].decision == decision:
                runs[-1] = runs[-1]._replace(last=end - 1)
            else:
                runs.append(_Ports(proto, first, end - 1, decision))
        result += [run for run in runs if run.decision != base]
    return result


def _decision(
    direction: _Direction, entries: list[Entry], proto: str, port: int | None
) -> Decision:
    """Return the decision for a peer that all ``entries`` match; deny entries have precedence.

    ``proto`` "" stands for a protocol that no entry names.
    """
    for entry in entries:
        if entry.proto and entry.proto != proto:
            continue
        if (entry.first, entry.last) != ALL_PORTS and (
            port is None or not entry.first <= port <= entry.last
        ):
            continue
        return Decision(entry.key not in direction.denied, entry.key)
    return direction.free
