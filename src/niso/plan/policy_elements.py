"""Translate policies to elements of nftables maps. The rules and maps themselves never change.

One direction of a service's policy assigns a verdict to each (peer, protocol, port). It is split
into parts, each of which is one map lookup. A part is looked up only if no earlier part has a
matching element. Each line shows a part, the fields of its key, and the packets that it is for:

port         own address, peer, protocol, port      a listed peer, by its address
    ports        own address, peer, protocol, ports
    peer         own address, peer                      everything else of this peer
    outer        own address, prefix                    for a peer outside: the class of the prefix
    class        own address, prefix                    no verdict, but the class of the prefix
    class_ports  own address, class, protocol, ports    a peer in a listed prefix or network
    class_all    own address, class
    any_port     own address, protocol, port            any other peer
    any_ports    own address, protocol, ports
    class_rest   own address, class
    rest         own address

Only policies with the peer ``outside`` have elements in ``outer``. Their prefixes cover all
addresses. Whether a peer is outside depends on the packet's interface, not on the peer's address.

All prefixes with the same decisions form one class. Without classes, each combination of a prefix
and a port would need an element. ``class_all`` has the decision on all other ports of a class. If
this needs far fewer elements, a class has no element in ``class_all``: its other ports are looked
up in ``any_port`` and ``any_ports``, and ``class_rest`` decides on the ports that these do not
contain.

Entries can overlap, and deny entries have precedence over allow entries. This module resolves both,
so that within one part at most one element matches a packet. The element of a peer therefore
includes the decisions of all entries that match this peer. Among these are entries for prefixes
that contain the peer's address.
"""

from __future__ import annotations

import bisect
import ipaddress
import itertools
from collections.abc import Iterable, Iterator

from niso.base.named_tuples import NamedTuple
from niso.base.names import family_of
from niso.kernel import policy_rules
from niso.kernel.nft_elements import Atoms, Element
from niso.kernel.policy_rules import (
    CLASS,
    CLASSES,
    FIRST_CLASS,
    OUTER,
    PASSES,
    POLICY_PARTS,
    REFUSE,
)
from niso.kernel.ruleset import BRIDGE, INET
from niso.plan.records import OUTSIDE, PORTED, Entry, Member, Peer, Policed, Policy

ALL_PORTS = (0, 65535)

_SINGLE = ("port", "any_port")
"""The parts whose keys end with a single port. The keys of other parts with ports end with a range.
"""

_WORTH = 16
"""How many elements must be saved before a peer or class relies on the entries for wider peers.

This needs fewer elements but more lookups for each packet.
"""
_MOST_WORK = 100_000
"""The maximum number of pairs of an entry and a peer that `cost` handles for one direction."""
_MOST_PAIRS = 1000
"""The maximum number of pairs of a single address in the manifest and a port for everybody.

With more pairs, single addresses become classes, as prefixes are.
"""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


Decision = tuple[bool, str]
"""Whether a policy lets a packet pass, and the manifest key of the entry that decides or ""."""
_Ports = tuple[str, int, int, Decision]
"""A protocol, its first and last port, and the decision on these ports."""
_Meaning = tuple[dict[Peer, Member], dict[str, set[Peer]]]
"""The addresses of each name in policies, and the names that stand for each address."""


def _meaning(members: Iterable[Member]) -> _Meaning:
    by_name = {Peer(member.kind, member.name): member for member in members}
    peers: dict[str, set[Peer]] = {}
    for peer, member in by_name.items():
        for value in member.values if peer.kind != "network" else ():
            peers.setdefault(value, set()).add(peer)
    return by_name, peers


class _Direction(NamedTuple):
    """One direction (ingress or egress) of a service's policy, for one address of the service."""

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
        if self.allow is None:
            return True, ""
        name = "allow_from" if self.ingress else "egress.allow"
        return False, f"network.policy.{name}"

    def of(self, entry: Entry) -> Decision:
        return entry.key not in self.denied, entry.key

    def element(self, part: str, key: Atoms, decision: Decision) -> Element:
        passes, entry = decision
        verdict: Atoms = PASSES
        if not passes and self.audit:
            verdict = ("goto", policy_rules.chain(self.ingress, self.log))
        elif not passes:
            log = "log_in" if self.ingress else "log_out"
            verdict = ("goto", log if self.log else REFUSE)
        name = container(self.ingress, self.family, part)
        return Element(INET, name, key, verdict, self.service, entry)

    def of_ports(
        self, single: str, ranged: str, key: Atoms, found: Iterable[_Ports]
    ) -> Iterator[Element]:
        for proto, first, last, decision in found:
            part = single if first == last else ranged
            ports = first if part in _SINGLE else (first, last)
            yield self.element(part, (*key, proto, ports), decision)


def container(ingress: bool, family: int, part: str) -> str:
    """Return the name of the nftables map for one part of a policy look-up (see the module), one
    direction (ingress or egress) and one IP version, such as ``in4_port``.
    """
    return f"{'in' if ingress else 'out'}{family}_{part}"


def elements(policed: Policed, members: Iterable[Member]) -> list[Element]:
    """Return the nftables elements of one service's policy. ``members`` has the addresses of the
    names in the policy. If ``policed.only`` is not None, it is a set of addresses, and only
    elements for peers with these addresses are returned.
    """
    meaning = _meaning(members)
    result: list[Element] = []
    for own in policed.addresses:
        family = family_of(own)
        if policed.only is None:
            result += [
                Element(INET, f"no_start_{way}{family}", (own,), (), policed.service)
                for way in ("in", "out")
            ]
            result += _audit(policed, own)
        for direction in _directions(policed, own):
            if policed.only is None:
                result.append(gate(policed.service, direction.ingress, own))
            result += _elements(direction, policed, meaning)
    return result


def heard(policed: Policed, elements: Iterable[Element]) -> Iterator[Element]:
    """Yield the elements of the bridge table that apply a service's ingress policy to multicast and
    broadcast packets. ``elements`` is the result of `elements` for the policy. During its audit
    period, a policy still denies these packets.
    """
    ports = dict(policed.hears)
    for element in elements if ports else ():
        kind = element.container.partition("_")[0]
        if kind[:-1] not in ("in", "ingress") or element.fields[0] not in ports:
            continue
        if element.container.endswith(f"_{OUTER}"):
            continue  # no frame comes from outside
        value = element.value
        if value and value != PASSES and not element.container.endswith(CLASS):
            value = ("goto", policy_rules.UNHEARD)
        name = policy_rules.HEARS + element.container.removeprefix(kind[:-1])
        key = (ports[element.fields[0]], *element.fields[1:])
        yield Element(BRIDGE, name, key, value, element.owner, element.entry)


def gate(service: str, ingress: bool, own: str) -> Element:
    """Return the nftables element that activates a policy for packets to the address ``own``
    (``ingress``) or from this address.
    """
    name = f"{'in' if ingress else 'e'}gress{family_of(own)}"
    return Element(INET, name, (own,), (), service)


def cost(policy: Policy, most: int) -> int:
    """Estimate how many elements a policy needs for a service with an IPv4 and an IPv6 address.
    Each name in the policy counts as one address of each version. Counting stops above ``most``, so
    a larger result only means "more than ``most``".
    """
    names = sorted({e.peer.name for e in policy.entries() if e.peer.kind == "service"})
    members = [
        Member("service", name, (f"127.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", f"::1:{n:x}"))
        for n, name in enumerate(names)
    ]
    count, meaning = 0, _meaning(members)
    try:
        for own in ("127.255.255.255", "::1"):
            policed = Policed("", (own,), policy)
            for direction in _directions(policed, own):
                for _ in _elements(direction, policed, meaning, _MOST_WORK):
                    count += 1
                    if count > most:
                        return count
    except OverflowError:
        return most + 1
    return count


def _audit(policed: Policed, own: str) -> list[Element]:
    # elements that let denied packets pass, also after the end of the audit period that they
    # contain
    audit = policed.policy.audit
    if audit is None or not audit.since:
        return []
    names = (f"audit_{way}{family_of(own)}" for way in ("in", "out"))
    term = (audit.since, audit.until)
    return [Element(INET, name, (own,), term, policed.service) for name in names]


def looked_up(
    policed: Policed,
    members: Iterable[Member],
    ingress: bool,
    own: str,
    peer: str,
    proto: str,
    port: int | None,
    outside: bool = False,
) -> list[Element]:
    """Return the elements of a policy that a packet matches, in the order in which the rules look
    them up. The last element decides. If the peer is in a class of prefixes, an element with the
    class precedes the last one. ``own`` is an address of the service. ``proto`` is a protocol as in
    an Entry, or any other name. ``port`` is None if the protocol has no ports. With ``outside``,
    the peer's address belongs neither to a service nor to the host.
    """
    by_part: dict[str, list[Element]] = {}
    for element in elements(policed._replace(only=None), members):
        by_part.setdefault(element.container, []).append(element)
    family = family_of(own)
    number, its_class, found = ipaddress.ip_address(peer), 0, list[Element]()
    for part in POLICY_PARTS:
        if (part == OUTER and not outside) or (part == CLASS and its_class):
            continue
        for element in by_part.get(container(ingress, family, part), ()):
            if _holds(part, element.fields, own, number, its_class, proto, port):
                found.append(element)
                if part not in CLASSES:
                    return found
                (its_class,) = element.value
    return found


def _holds(
    part: str, key: Atoms, own: str, peer: _Address, its_class: int, proto: str, port: int | None
) -> bool:
    fields = list(key)
    if fields.pop(0) != own:
        return False
    if part.startswith("class_"):
        if fields.pop(0) != its_class:
            return False
    elif part in CLASSES:
        first, last = fields.pop(0)
        if not first <= int(peer) <= last:
            return False
    elif part in ("port", "ports", "peer") and ipaddress.ip_address(fields.pop(0)) != peer:
        return False
    if fields:
        if fields[0] != ("ipv6-icmp" if proto == "icmp" and peer.version == 6 else proto):
            return False
        low, high = (fields[1], fields[1]) if part in _SINGLE else fields[1]
        # a protocol without ports has other bytes at the place of the port, so all must lead to one
        # verdict
        return bool(low <= (port or 0) <= high)
    return True


def _ends(cidr: str) -> tuple[int, int]:
    network = ipaddress.ip_network(cidr)
    return int(network[0]), int(network[-1])


def _directions(policed: Policed, own: str) -> list[_Direction]:
    policy = policed.policy
    sides = (
        (True, policy.deny_from, policy.allow_from),
        (False, policy.egress_deny, policy.egress_allow),
    )
    both = []
    for ingress, deny, allow in sides:
        if deny or allow is not None:
            denied = frozenset(entry.key for entry in deny)
            rules = (own, deny, allow, denied, policy.log, policy.audit is not None)
            both.append(_Direction(policed.service, ingress, *rules))
    return both


class _Entries:
    """The entries of one direction of a policy, indexed by peer. An entry is identified by its
    position in ``all``. ``most`` limits how often all methods together may compare an entry with a
    peer; above it they raise OverflowError. None means no limit.
    """

    def __init__(self, direction: _Direction, meaning: _Meaning, most: int | None) -> None:
        self.direction = direction
        self.by_name, self.peers = meaning
        self._left = most
        self.all = (*direction.deny, *(direction.allow or ()))
        self.of_peer: dict[Peer, list[int]] = {}
        for number, entry in enumerate(self.all):
            self.of_peer.setdefault(entry.peer, []).append(number)
        self.everybody: list[int] = []
        self.singles: dict[str, list[int]] = {}  # by address
        spans: list[tuple[int, int, Peer]] = []
        for peer, numbers in self.of_peer.items():
            cidr = peer.name if peer.kind == "prefix" else ""
            if cidr and family_of(cidr) != direction.family:
                continue
            if cidr.endswith("/0"):
                self.everybody += numbers
            elif cidr.endswith("/128" if direction.family == 6 else "/32"):
                self.singles[cidr.partition("/")[0]] = numbers
            else:
                spans += [(*span, peer) for span in self._spans(peer)]
        self.everybody.sort()
        self.wide = _table(direction, [self.all[number] for number in self.everybody])
        ported = sum((self.all[n].first, self.all[n].last) != ALL_PORTS for n in self.everybody)
        # an address outside needs the decisions of OUTSIDE too, and may later be a service's
        if len(self.singles) * ported > _MOST_PAIRS or OUTSIDE in self.of_peer:
            for address in self.singles:
                at, length = int(ipaddress.ip_address(address)), "128" if ":" in address else "32"
                spans.append((at, at, Peer("prefix", f"{address}/{length}")))
            self.singles = {}
        self.runs = self._runs(spans)
        last = (1 << (32 if direction.family == 4 else 128)) - 1
        self.outer = self._runs([*spans, (0, last, OUTSIDE)]) if OUTSIDE in self.of_peer else []
        self._starts = [first for first, _, _ in self.runs]
        self._tables: dict[frozenset[Peer], _Table] = {frozenset(): self.wide}

    def table_of(self, peers: frozenset[Peer]) -> _Table:
        known = self._tables.get(peers)
        if known is None:
            numbers = itertools.chain(*(self.of_peer[peer] for peer in peers))
            known = self._tables[peers] = self.table(numbers)
        return known

    def table(self, numbers: Iterable[int]) -> _Table:
        both = sorted({*numbers, *self.everybody})
        self._take(len(both))
        return _table(self.direction, [self.all[number] for number in both])

    def _take(self, pairs: int) -> None:
        if self._left is not None:
            self._left -= pairs
            if self._left < 0:
                raise OverflowError

    def _runs(self, spans: list[tuple[int, int, Peer]]) -> list[_Run]:
        """Split ranges of addresses into runs, so that all addresses of a run are in the same
        prefixes and networks. ``spans`` are (first address, last address, peer), with addresses as
        integers.
        """
        changes: dict[int, list[tuple[int, Peer]]] = {}
        for first, last, peer in spans:
            changes.setdefault(first, []).append((1, peer))
            changes.setdefault(last + 1, []).append((-1, peer))
        runs: list[_Run] = []
        now: dict[Peer, int] = {}  # how often: a network may contain an address twice
        peers: frozenset[Peer] = frozenset()
        begin = 0
        for at in sorted(changes):
            if peers:
                if runs and runs[-1][1] == begin - 1 and runs[-1][2] == peers:
                    runs[-1] = (runs[-1][0], at - 1, peers)
                else:
                    runs.append((begin, at - 1, peers))
            for step, peer in changes[at]:
                now[peer] = now.get(peer, 0) + step
                if not now[peer]:
                    del now[peer]
            self._take(len(now))
            begin, peers = at, frozenset(now)
        return runs

    def _spans(self, peer: Peer) -> list[tuple[int, int]]:
        """Return the address ranges of a prefix or network as integers (first, last), for the IP
        version of this direction. Gateways are left out, because they are addresses of the host.
        """
        family = self.direction.family
        if peer.kind in ("prefix", "prefixes"):
            return [_ends(cidr) for cidr in peer.name.split(",") if family_of(cidr) == family]
        member = self.by_name.get(peer)
        if member is None or peer.kind != "network":
            return []
        spans = [_ends(cidr) for cidr in member.values if family_of(cidr) == family]
        for gateway in member.gateways:
            if family_of(gateway) == family:
                at = int(ipaddress.ip_address(gateway))
                below = [(low, min(high, at - 1)) for low, high in spans if low < at]
                above = [(max(low, at + 1), high) for low, high in spans if high > at]
                spans = [*below, *above]
        return spans

    def around(self, address: str) -> frozenset[Peer]:
        """Return the prefixes and networks in the entries that contain an address."""
        number = int(ipaddress.ip_address(address))
        at = bisect.bisect_right(self._starts, number) - 1
        if at < 0 or number > self.runs[at][1]:
            return frozenset()
        return self.runs[at][2]

    def named(self, address: str) -> Iterator[int]:
        yield from self.singles.get(address, ())
        for peer in self.peers.get(address, ()):
            yield from self.of_peer.get(peer, ())
            if peer.kind == "outside":
                yield from self.of_peer.get(OUTSIDE, ())

    def addresses(self, only: frozenset[str] | None) -> set[str]:
        """Return the peers' addresses, of this direction's IP version, that need separate elements.
        If ``only`` is not None, addresses of services that are not in ``only`` are left out.
        """
        found = set(self.singles)  # no matter which service has them
        for peer in self.of_peer:
            member = self.by_name.get(peer)
            if member is not None and peer.kind != "network":
                limit = only if peer.kind == "service" else None
                found.update(a for a in member.values if limit is None or a in limit)
        return {address for address in found if family_of(address) == self.direction.family}


def _elements(
    direction: _Direction, policed: Policed, meaning: _Meaning, most: int | None = None
) -> Iterator[Element]:
    entries = _Entries(direction, meaning, most)
    addresses = entries.addresses(policed.only)
    if policed.only is None:
        addresses.update(a for a in policed.addresses if family_of(a) == direction.family)
    for address in sorted(addresses):
        key = (direction.own, address)
        if address in policed.addresses:  # a service may always reach itself
            yield direction.element("peer", key, (True, "itself"))
        else:
            yield from _of_peer(entries, address, key)
    if policed.only is not None:
        return
    yield from _of_classes(entries)
    own = (direction.own,)
    found = _deviations(entries.wide, direction.family)
    yield from direction.of_ports("any_port", "any_ports", own, found)
    yield direction.element("rest", own, entries.wide.base)


def _of_peer(entries: _Entries, address: str, key: Atoms) -> Iterator[Element]:
    direction, around = entries.direction, entries.around(address)
    numbers = set(entries.named(address))
    numbers.update(itertools.chain(*(entries.of_peer[peer] for peer in around)))
    table, wider = entries.table(numbers), entries.table_of(around)
    found = _deviations(table, direction.family)
    # no element of its own needed: the decision is the same as for all other peers
    falls = table.base == entries.wide.base
    if table.base == wider.base:
        apart = _deviations(table, direction.family, wider)
        if len(apart) + _WORTH < len(found):
            found, falls = apart, True
    yield from direction.of_ports("port", "ports", key, found)
    if not falls:
        yield direction.element("peer", key, table.base)


_Run = tuple[int, int, frozenset[Peer]]
"""(first address, last address, peers): all addresses from first to last are in the same peers.

The addresses are integers, and the peers are prefixes and networks.
"""


def _of_classes(entries: _Entries) -> Iterator[Element]:
    """Yield the elements for peers that are prefixes or networks. They map ranges of addresses to
    classes, and classes to verdicts.
    """
    direction, wide = entries.direction, entries.wide
    numbers: dict[_Table, int] = {}
    for part, runs in ((CLASS, entries.runs), (OUTER, entries.outer)):
        for first, last, peers in runs:
            table = entries.table_of(peers)
            if table == wide and part == CLASS:
                continue
            number = numbers.get(table)
            if number is None:
                number = numbers[table] = FIRST_CLASS + 16 * (len(numbers) + 1)
                yield from _of_class(direction, number, table, wide)
            name = container(direction.ingress, direction.family, part)
            yield Element(INET, name, (direction.own, (first, last)), (number,), direction.service)


def _of_class(direction: _Direction, number: int, table: _Table, wide: _Table) -> Iterator[Element]:
    key = (direction.own, number)
    found, part = _deviations(table, direction.family), "class_all"
    if len(found) > _WORTH:
        apart = _deviations(table, direction.family, wide)
        if len(apart) + _WORTH < len(found):
            found, part = apart, "" if table.base == wide.base else "class_rest"
    yield from direction.of_ports("class_ports", "class_ports", key, found)
    if part:
        yield direction.element(part, key, table.base)


_Runs = tuple[tuple[int, int, Decision], ...]
"""The decisions on all ports of a protocol, in order: first port, last port, decision."""


class _Table(NamedTuple):
    """The decisions (accept or deny, manifest entry) on one peer, by protocol and port."""

    base: Decision  # the decision on protocols that no entry names
    icmp: Decision
    ported: tuple[_Runs, ...]  # the decisions on ports, for each protocol of `PORTED`


def _table(direction: _Direction, entries: list[Entry]) -> _Table:
    base = _decision(direction, entries, "")
    if all(entry.proto == "" and (entry.first, entry.last) == ALL_PORTS for entry in entries):
        return _Table(base, base, (((*ALL_PORTS, base),),) * len(PORTED))
    return _Table(
        base,
        _decision(direction, entries, "icmp"),
        tuple(_by_port(direction, entries, proto) for proto in PORTED),
    )


def _decision(direction: _Direction, entries: list[Entry], proto: str) -> Decision:
    # ``proto`` "" stands for all protocols that no entry names
    for entry in entries:
        if entry.proto in ("", proto) and (entry.first, entry.last) == ALL_PORTS:
            return direction.of(entry)
    return direction.free


def _by_port(direction: _Direction, entries: list[Entry], proto: str) -> _Runs:
    concerned = [entry for entry in entries if entry.proto in ("", proto)]
    cuts = sorted({0, 65536} | {e.first for e in concerned} | {e.last + 1 for e in concerned})
    position = {cut: at for at, cut in enumerate(cuts)}
    decisions = [direction.free] * (len(cuts) - 1)
    # the next stretch that no entry has decided on: the first entry decides
    after = list(range(len(cuts)))
    for entry in concerned:
        decision = direction.of(entry)
        at, end = position[entry.first], position[entry.last + 1]
        while True:
            while after[at] != at:
                after[at] = after[after[at]]
                at = after[at]
            if at >= end:
                break
            decisions[at] = decision
            after[at] = at + 1
    runs: list[tuple[int, int, Decision]] = []
    for (first, end), decision in zip(itertools.pairwise(cuts), decisions, strict=True):
        if runs and runs[-1][2] == decision:
            runs[-1] = (runs[-1][0], end - 1, decision)
        else:
            runs.append((first, end - 1, decision))
    return tuple(runs)


def _deviations(table: _Table, family: int, wider: _Table | None = None) -> list[_Ports]:
    # Find the port ranges that need elements: without them, the rules would find another decision.
    # This is the decision in ``wider``, the table that is looked up next, if it is special for the
    # port, otherwise ``table.base``. The same verdict by another manifest entry counts as
    # different, so that each entry has its own counter.
    result: list[_Ports] = []
    expected = table.base
    if wider is not None and wider.icmp != wider.base:
        expected = wider.icmp
    if table.icmp != expected:
        name = "ipv6-icmp" if family == 6 else "icmp"
        result.append((name, *ALL_PORTS, table.icmp))
    for at, proto in enumerate(PORTED):
        found: list[_Ports] = []
        for first, last, decision, expected in _beside(table, wider, at):
            if decision == expected:
                continue
            extends = found and found[-1][2:] == (first - 1, decision)
            found.append((proto, found.pop()[1] if extends else first, last, decision))
        result += found
    return result


def _beside(
    table: _Table, wider: _Table | None, at: int
) -> Iterator[tuple[int, int, Decision, Decision]]:
    if wider is None:
        yield from ((*run, table.base) for run in table.ported[at])
        return
    others = iter(wider.ported[at])
    _, end, said = next(others)
    for first, last, decision in table.ported[at]:
        at_port = first
        while at_port <= last:
            while end < at_port:
                _, end, said = next(others)
            upto = min(last, end)
            yield at_port, upto, decision, table.base if said == wider.base else said
            at_port = upto + 1
