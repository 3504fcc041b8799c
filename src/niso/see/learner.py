"""Derive policies from recorded flows. Pure.

Flows that passed become allow entries by port and protocol, with names rather than addresses. A
published port that other machines used is allowed for all addresses, because clients have no
lasting addresses. Refused flows only become comments. An existing allow list is narrowed, never
widened: a used entry that names a service is narrowed to the ports that were used; any other used
entry stays as it is written.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence

from niso.base.addresses import bracketed, family_of
from niso.base.lite_typing import NamedTuple
from niso.plan import known_world, verdict
from niso.plan.known_world import Known, World
from niso.plan.records import Entry
from niso.see.seen import Seen

MOST_OUTSIDE = 8
"""The most outside addresses, of one port and family, with an entry each; more are merged."""
# from so many services of a network on that all use a port, suggest the network's name
_LEAST_MEMBERS = 8
_EVERYBODY = {4: "0.0.0.0/0", 6: "::/0"}
_DNS = 53

Name = Callable[[str], str | None]
"""Function service -> the name by which the policy can mean the service, or None."""


class Line(NamedTuple):
    """A line of an allow list: an entry, or only a comment.

    ``note`` says why; keep it for as long as the entry exists. ``new``, ``ago`` and ``open`` are
    the figures of its flows, as in `Seen`.
    """

    text: str
    allowed: bool
    note: str = ""
    new: int = 0
    ago: float | None = None
    open: int = 0


class Learned(NamedTuple):
    """The learned allow lists of a service. ``egress`` is None if it was not requested."""

    service: str
    ingress: tuple[Line, ...]
    egress: tuple[Line, ...] | None


def learn(
    world: World,
    seen: Iterable[Seen],
    service: str,
    name: Name,
    with_egress: bool,
    network: Callable[[str], str] = str,
) -> Learned:
    """Derive the policy of an existing service from its flows.

    ``network`` maps a network to the name by which the policy means it.
    """
    world = world._replace(outside=world.outside_ever)
    known = world.services[service]
    others = [s for s in seen if s.source.service != s.destination.service]
    incoming = [
        s for s in others if s.destination.service == service and not s.source.is_host
    ]  # flows from the host are left out: the host may always connect
    outgoing = [s for s in others if s.source.service == service]
    learner = _Learner(world, known, name, network)
    return Learned(
        service,
        tuple(learner.lines(incoming, egress=False)),
        tuple(learner.lines(outgoing, egress=True)) if with_egress else None,
    )


class _Group(NamedTuple):
    """The flows of one entry: of a peer, on a port and protocol."""

    peer: str  # as written in a manifest: in brackets where ports follow
    first: int
    last: int
    proto: str
    note: str = ""

    @property
    def text(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.peer}:{ports}/{self.proto}"


class _Learner:
    """Derives the policy of one service."""

    def __init__(
        self, world: World, known: Known, name: Name, network: Callable[[str], str]
    ) -> None:
        self._world, self._known, self._name, self._network = world, known, name, network

    def lines(self, seen: Sequence[Seen], egress: bool) -> Iterator[Line]:
        """Yield the lines of one direction: entries, then comments."""
        passed = [s for s in seen if s.passes and s.agrees and not s.audited]
        before = {s.key for s in passed}
        refused = [
            s
            for s in seen
            if s.key not in before
            and s.reason is not None
            and s.reason.key
            and (s.audited or s.passes != s.agrees)
        ]
        policy = self._known.policy
        listed = policy.egress_allow if egress else policy.allow_from
        kept: dict[str, list[Seen]] = {}
        fresh: list[Seen] = []
        used: set[str] = set()
        for flow in passed:
            entry = self._entry(listed, flow, egress)
            if entry is not None:
                used.add(entry.key)
            elif listed is not None and flow.gone:
                continue
            if entry is None or entry.peer.kind == "service":
                fresh.append(flow)
            else:
                kept.setdefault(entry.text, []).append(flow)
        yield from (_line(text, rows) for text, rows in kept.items())
        groups, gone = self._groups(fresh, egress)
        yield from (
            _line(group.text, rows, note=group.note)
            for group, rows in _joined(groups)
            if group.text not in kept
        )
        yield from self._comments(groups, refused, gone, egress)
        for entry in listed or ():
            if entry.key not in used:
                yield Line(entry.text, False, "in the manifest; nothing used it")

    def _entry(self, listed: tuple[Entry, ...] | None, seen: Seen, egress: bool) -> Entry | None:
        """Return the entry of the present allow list that lets a flow pass; None without a list.

        If several match, an entry that names the service is preferred, because it is the narrowest.
        """
        if listed is None:
            return None
        peer = seen.destination if egress else seen.source
        holders = [self._world.services[peer.service]] if peer.service else []
        world = self._world._replace(services={holder.name: holder for holder in holders})
        matching = [
            e for e in listed if verdict.matches(e, world, peer.address, seen.port, seen.proto)
        ]
        return min(matching, key=lambda e: e.peer.kind != "service", default=None)

    def _groups(
        self, rows: Iterable[Seen], egress: bool
    ) -> tuple[dict[_Group, list[Seen]], list[Seen]]:
        """Group flows by entry; return separately those of service addresses no longer in use."""
        groups: dict[_Group, list[Seen]] = {}
        outside: dict[tuple[int, str, int], list[Seen]] = {}
        gone = []
        for flow in rows:
            peer = flow.destination if egress else flow.source
            family = family_of(peer.address)
            if peer.service:
                group = self._named(peer.service, peer.address, flow)
                groups.setdefault(group, []).append(flow)
            elif peer.is_host:
                group = _of(peer.address, flow, "the host")
                groups.setdefault(group, []).append(flow)
            elif flow.gone:
                gone.append(flow)  # whoever gets the address next is another service
            elif not egress and flow.published is not None:
                first, last = self._ports_of(flow)
                note = f"everybody: published as {flow.published.host_port}"
                if first != last:
                    note = "everybody: published"
                peer_text = bracketed(_EVERYBODY[family])
                group = _Group(peer_text, first, last, flow.proto, note)
                groups.setdefault(group, []).append(flow)
            else:
                outside.setdefault((flow.port, flow.proto, family), []).append(flow)
        for some in outside.values():
            for group, its in _outside(some, egress, self._inside(family_of(some[0].key[0]))):
                groups.setdefault(group, []).extend(its)
        self._add_families(groups)
        return groups, gone

    def _inside(self, family: int) -> list[_Prefix]:
        """Return the prefixes for present and future services, and the addresses of the host."""
        world = self._world
        subnets = (subnet.cidr for on in world.networks.values() for subnet in on.subnets)
        texts = (*world.host, *world.pools, *subnets)
        return [ipaddress.ip_network(text) for text in texts if family_of(text) == family]

    def _add_families(self, groups: dict[_Group, list[Seen]]) -> None:
        """Allow a published port for its other family too: clients use either."""
        for group in list(groups):
            for family, prefix in _EVERYBODY.items():
                own = bracketed(prefix)
                other = group._replace(peer=own)
                is_everybody = group.peer in map(bracketed, _EVERYBODY.values())
                if is_everybody and family in self._published(group.proto, group.first):
                    groups.setdefault(other, [])

    def _published(self, proto: str, port: int) -> set[int]:
        """Return the families in which a port of the service is published to other machines."""
        own = {family_of(address) for address in known_world.addresses_of(self._known)}
        families: set[int] = set()
        for published in self._known.ports:
            inside = published.container_port <= port < published.container_port + published.count
            local = published.host_ip and ipaddress.ip_address(published.host_ip).is_loopback
            if published.proto == proto and inside and not local:
                families.update(published.families)
        return families & own

    def _ports_of(self, seen: Seen) -> tuple[int, int]:
        """Return the first and last port of the published range that contains the flow's port."""
        for port in self._known.ports:
            last = port.container_port + port.count - 1
            if port.proto == seen.proto and port.container_port <= seen.port <= last:
                return port.container_port, last
        return seen.port, seen.port

    def _named(self, service: str, address: str, seen: Seen) -> _Group:
        name = self._name(service)
        if name is None:
            return _of(address, seen, f"{service}: its name is ambiguous here")
        dns = "DNS" if seen.port == _DNS else ""
        return _Group(name, seen.port, seen.port, seen.proto, dns)

    def _comments(
        self,
        groups: dict[_Group, list[Seen]],
        refused: Sequence[Seen],
        gone: Sequence[Seen],
        egress: bool,
    ) -> Iterator[Line]:
        """Yield comments: refused peers, unused ports, networks that could replace entries."""
        entries = {group.text for group in groups}
        others: dict[_Group, list[Seen]] = {}
        for flow in refused:
            peer = flow.destination if egress else flow.source
            in_audit = flow.audited and flow.agrees
            denied = "would be denied" if in_audit else "denied"
            if peer.service:
                group = self._named(peer.service, peer.address, flow)._replace(note=denied)
            elif egress:
                group = _of(peer.address, flow, denied)
            else:  # any number of outside addresses may have tried
                everybody = bracketed(_EVERYBODY[family_of(peer.address)])
                note = f"other machines {'would be' if in_audit else 'were'} denied"
                group = _Group(everybody, flow.port, flow.port, flow.proto, note)
            others.setdefault(group, []).append(flow)
        for group, rows in sorted(others.items()):
            if group.text not in entries:
                yield _line(group.text, rows, False, group.note)
        for flow in gone:
            peer = flow.destination if egress else flow.source
            yield _line(_of(peer.address, flow).text, [flow], False, "no service has it any more")
        if not egress:
            if self._known.policy.allow_from is None:
                yield from self._unused(entries)
            yield from self._whole(groups)

    def _unused(self, entries: set[str]) -> Iterator[Line]:
        """Yield the published ports that no other machine has used."""
        unused: dict[str, None] = {}  # several host ports may lead to one port
        for port in self._known.ports:
            last = port.container_port + port.count - 1
            for family in sorted(self._published(port.proto, port.container_port)):
                peer = bracketed(_EVERYBODY[family])
                text = _Group(peer, port.container_port, last, port.proto).text
                if text not in entries and family in port.families:
                    unused[text] = None
        for text in unused:
            yield Line(text, False, "published; no other machine used it")

    def _whole(self, groups: dict[_Group, list[Seen]]) -> Iterator[Line]:
        """Yield networks most of whose services use a port: the name could replace the entries."""
        used: dict[tuple[int, str], set[str]] = {}
        for group, rows in groups.items():
            for flow in rows:
                if flow.source.service:
                    used.setdefault((group.first, group.proto), set()).add(flow.source.service)
        for endpoint in self._known.endpoints:
            members = {
                name
                for name, known in self._world.services.items()
                if any(e.network == endpoint.network for e in known.endpoints)
            } - {self._known.name}
            for (port, proto), services in sorted(used.items()):
                count = len(services & members)
                if count >= _LEAST_MEMBERS and 3 * count >= 2 * len(members):
                    text = f"network:{self._network(endpoint.network)}:{port}/{proto}"
                    yield Line(text, False, f"in place of {count} of its {len(members)} services")


def _of(address: str, seen: Seen, note: str = "") -> _Group:
    if seen.port == _DNS:
        note = f"{note}, DNS" if note else "DNS"
    return _Group(bracketed(address), seen.port, seen.port, seen.proto, note)


def _outside(
    rows: Sequence[Seen], egress: bool, inside: Sequence[_Prefix]
) -> Iterator[tuple[_Group, list[Seen]]]:
    """Yield entries for outside addresses, of one port and family.

    The nearest addresses are merged into the smallest prefix that contains them, until few are
    left. No such prefix contains an address of ``inside``, the prefixes of services and of the
    host.
    """
    by_number: dict[int, list[Seen]] = {}
    for flow in rows:
        address = (flow.destination if egress else flow.source).address
        by_number.setdefault(int(known_world.parsed(address)), []).append(flow)
    numbers = sorted(by_number)
    kind = type(ipaddress.ip_network((flow.destination if egress else flow.source).address))
    bits = kind(0).max_prefixlen

    def around(first: int, last: int) -> _Prefix:
        free = (first ^ last).bit_length()
        return kind((first >> free << free, bits - free))

    # all addresses between two that share more bits are merged already
    order = sorted(
        range(len(numbers) - 1), key=lambda at: (numbers[at] ^ numbers[at + 1]).bit_length()
    )
    joined: set[int] = set()  # positions of addresses that are merged with the next one
    for at in order:
        if len(numbers) - len(joined) <= MOST_OUTSIDE:
            break
        prefix = around(numbers[at], numbers[at + 1])
        if not any(prefix.overlaps(other) for other in inside):
            joined.add(at)
    start = 0
    for at, last in enumerate(numbers):
        if at in joined:
            continue
        some, start = numbers[start : at + 1], at + 1
        its = [flow for number in some for flow in by_number[number]]
        if len(some) == 1:
            yield _of(str(around(last, last).network_address), its[0]), its
        else:
            note = f"the smallest prefix of {len(some)} addresses"
            yield _of(str(around(some[0], last)), its[0], note), its


_Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def _joined(groups: dict[_Group, list[Seen]]) -> Iterator[tuple[_Group, list[Seen]]]:
    """Yield entries in order; consecutive ports of one peer become a range."""
    order = sorted(groups, key=lambda g: (g.peer, g.proto, g.first))
    last: tuple[_Group, list[Seen]] | None = None
    for group in order:
        rows = groups[group]
        if last is not None and last[0]._replace(first=group.first) == group._replace(
            last=group.first - 1
        ):
            last = last[0]._replace(last=group.last), [*last[1], *rows]
            continue
        if last is not None:
            yield last
        last = group, list(rows)
    if last is not None:
        yield last


def _line(text: str, rows: Sequence[Seen], allowed: bool = True, note: str = "") -> Line:
    ages = [flow.ago for flow in rows if flow.ago is not None]
    new, opened = (sum(getattr(flow, key) for flow in rows) for key in ("new", "open"))
    return Line(text, allowed, note, new, min(ages, default=None), opened)
