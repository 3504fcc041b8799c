"""Derive policies from recorded flows (`niso net learn`), and write them into manifests.

Flows that passed become allow entries by port and protocol, with names rather than addresses. A
published port that other machines used is allowed for `outside`, because the addresses of
clients change. Refused flows only become comments.

An existing allow list is narrowed, never widened. An entry that matched no flow becomes a comment.
An entry that names a service and matched flows is limited to the ports of these flows. If flows are
missing, because a set of the kernel was full or a source has used up its share, the entries that
these flows may have used are left unchanged. Any other entry that matched flows is left unchanged.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from niso.base.errors import Conflict, Error, InvalidInput, UsageError
from niso.base.named_tuples import NamedTuple
from niso.base.names import DEFAULT_NETWORK, bracketed, family_of, owner
from niso.kernel.policy_rules import DENIED, KEPT_S
from niso.look import flows
from niso.look.flows import Flow
from niso.look.session import Session, callers
from niso.manifest import toml
from niso.manifest.policy import parse_entry
from niso.manifest.stack import applies, long_name, outline
from niso.plan import verdict
from niso.plan.records import OUTSIDE, Entry, Peer, Policy
from niso.plan.verdict import KnownService, PolicyContext
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

MOST_OUTSIDE = 8
"""The maximum number of entries for outside addresses of one port and IP version.

If there are more addresses, they are merged into prefixes.
"""
# if at least this many services of a network use a port, the network's name is suggested
_LEAST_MEMBERS = 8
_DNS = 53
NOT_ALL = "not all flows are recorded"  # why an entry that no recorded flow used is not left out

Name = Callable[[str], str | None]
"""Returns the name by which a policy can refer to a service, or None."""


class LearnedEntry(NamedTuple):
    """An entry of a learned allow list, or a comment in the list about a possible entry."""

    text: str  # the entry
    allowed: bool  # false: only a comment, for example for a peer that was denied
    note: str  # the reason for the entry; can be empty
    new: int  # new flows, or attempts that were dropped
    last: str | None  # time of the last new flow or attempt, to the millisecond
    ago: float | None  # seconds since the last new flow or attempt
    open: int  # flows that are open now


class LearnedPolicy(NamedTuple):
    """A policy for a service, derived from its recorded flows so that it allows these flows."""

    service: str  # the service's name
    file: str | None  # the manifest or stack.toml with the service's policy; null without one
    table: str  # the table of the file in which the policy is
    watched: float | None
    """seconds for which the service's flows have been recorded, at most a week; null if inactive"""
    allow_from: tuple[LearnedEntry, ...]  # entries for the peers that connected to the service
    egress: tuple[LearnedEntry, ...] | None  # the service's destinations; null without --egress


def learn_flows(
    context: PolicyContext,
    seen: Iterable[Flow],
    service: str,
    name: Name,
    with_egress: bool,
    network: Callable[[str], str],
    gap: str,
    hidden: Collection[str],
) -> LearnedPolicy:
    """Derive a policy for a service that allows its recorded flows.

    ``name`` and ``network`` return the names by which the policy refers to services and networks.
    ``gap`` is the reason why flows may be missing, or "". With a reason, entries of the present
    policy stay even if no recorded flow used them. ``hidden`` are sources of which some flows were
    not recorded: entries that allow their flows stay unchanged.
    """
    context = context._replace(outside=context.outside_ever)
    others = [s for s in seen if s.from_.service != s.to.service]
    # flows from the host are left out: the host may always connect
    incoming = [s for s in others if s.to.service == service and not s.from_.is_host]
    outgoing = [s for s in others if s.from_.service == service]
    learner = _Learner(context, context.services[service], name, network, gap, hidden)
    return LearnedPolicy(
        service,
        None,
        "",
        None,
        tuple(learner.lines(incoming, egress=False)),
        tuple(learner.lines(outgoing, egress=True)) if with_egress else None,
    )


class _PeerPorts(NamedTuple):
    """A peer, a range of ports and a protocol. One policy entry allows all flows of this group."""

    peer: str  # as in a manifest, so an IPv6 address is in brackets
    first: int
    last: int
    proto: str
    note: str = ""

    @property
    def text(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.peer}:{ports}/{self.proto}"


class _Learner:
    """A builder of the policy that allows the recorded flows of one service."""

    def __init__(
        self,
        context: PolicyContext,
        known: KnownService,
        name: Name,
        network: Callable[[str], str],
        gap: str,
        hidden: Collection[str],
    ) -> None:
        self._context, self._known, self._name, self._network = context, known, name, network
        self._gap, self._hidden = gap, hidden

    def lines(self, seen: Sequence[Flow], egress: bool) -> Iterator[LearnedEntry]:
        """Yield the entries for ingress or egress, followed by entries that are only comments."""
        passed = [s for s in seen if s.passes and s.agrees and not s.audited]
        before = {s.id for s in passed}
        refused = {
            s: also
            for s in seen
            if s.id not in before
            and (s.audited or s.passes != s.agrees)
            and (also := self._other_denial(s, egress)) is not None
        }
        policy = self._known.policy
        listed = policy.egress_allow if egress else policy.allow_from
        kept: dict[str, list[Flow]] = {}
        fresh: list[Flow] = []
        used: set[str] = set()
        for flow in passed:
            entry = self._entry(listed, flow, egress)
            if entry is not None:
                used.add(entry.key)
            elif listed is not None and flow.gone:
                continue
            # narrowed to the recorded ports, if all flows are recorded
            if entry is None or (entry.peer.kind == "service" and not self._may_use(entry, egress)):
                fresh.append(flow)
            else:
                kept.setdefault(entry.text, []).append(flow)
        whole = {e.text for e in listed or () if e.peer.kind == "service"}
        yield from (
            _line(text, rows, note=NOT_ALL if text in whole else "") for text, rows in kept.items()
        )
        groups, gone = self._groups(fresh, egress)
        yield from (
            _line(group.text, rows, note=group.note)
            for group, rows in _joined(groups)
            if group.text not in kept
        )
        yield from self._comments(groups, refused, gone, egress)
        for entry in listed or ():
            gap = self._gap or (NOT_ALL if self._may_use(entry, egress) else "")
            if entry.key not in used and gap:
                yield _line(entry.text, (), note=f"in the manifest; {gap}")
            elif entry.key not in used:
                yield _line(entry.text, (), False, "in the manifest; nothing used it")

    def _may_use(self, entry: Entry, egress: bool) -> bool:
        """Return whether flows that were not recorded may have used an entry of the policy."""
        if self._gap == NOT_ALL:
            return True
        if egress:
            holders = (verdict.holder_of(self._context, source) for source in self._hidden)
            return any(h is not None and owner(h[0].name) == self._known.name for h in holders)
        everything = entry._replace(first=0, last=65535, proto="")
        return any(
            # which address of a /64 outside it was is unknown
            entry.peer.kind not in ("service", "network")
            if "/" in source
            else verdict.matches(everything, self._context, source, None, "")
            for source in self._hidden
        )

    def _other_denial(self, seen: Flow, egress: bool) -> str | None:
        """Find out whether an allow entry for ingress, or with ``egress`` for egress, would help a
        denied flow. Return None if not. Return "" if the entry suffices, or else the other
        service's entry that also denies the flow.
        """
        ends = seen.id[:2]
        if seen.gone or flows.closed(self._context, *ends, seen.proto, seen.port, across=True):
            return None
        reasons = verdict.evaluate(self._context, *ends, seen.port, seen.proto)
        own, other = _denying(reasons[not egress]), _denying(reasons[egress])
        if not own or own.endswith("]"):  # a deny entry has precedence over an allow entry
            return None
        return f"{reasons[egress].service} {other}" if other else ""

    def _entry(self, listed: tuple[Entry, ...] | None, seen: Flow, egress: bool) -> Entry | None:
        if listed is None:
            return None
        peer = seen.to if egress else seen.from_
        holders = [self._context.services[peer.service]] if peer.service else []
        context = self._context._replace(services={holder.name: holder for holder in holders})
        matching = [
            e for e in listed if verdict.matches(e, context, peer.address, seen.port, seen.proto)
        ]
        return min(matching, key=lambda e: e.peer.kind != "service", default=None)

    def _groups(
        self, rows: Iterable[Flow], egress: bool
    ) -> tuple[dict[_PeerPorts, list[Flow]], list[Flow]]:
        """Group flows by the policy entry that would allow them. Returns (groups, other flows). No
        entry can allow the other flows: their service was deleted, or their port is no longer
        published.
        """
        groups: dict[_PeerPorts, list[Flow]] = {}
        outside: dict[tuple[int, str, int], list[Flow]] = {}
        gone = []
        for flow in rows:
            peer = flow.to if egress else flow.from_
            family = family_of(peer.address)
            if peer.service:
                group = self._named(peer.service, peer.address, flow)
            elif peer.is_host:
                group = _of(peer.address, flow, "the host")
            elif flow.gone:
                gone.append(flow)  # the next service with this address is another service
                continue
            elif not egress and flow.published is not None:
                # which of several host ports a client used is not recorded
                hosts = [
                    str(port.host_port)
                    for port in flows.mappings(self._known, flow.proto, flow.port)
                    if port.count == 1 and not port.host_ip.startswith("127.")
                ]
                note = f" as {', '.join(dict.fromkeys(hosts))}" if hosts else ""
                note = f"other machines: published{note}"
                group = _PeerPorts(OUTSIDE.name, flow.port, flow.port, flow.proto, note)
            elif not egress:
                gone.append(flow)  # a client outside used a port that is not published now
                continue
            else:
                outside.setdefault((flow.port, flow.proto, family), []).append(flow)
                continue
            groups.setdefault(group, []).append(flow)
        for (_, _, family), some in outside.items():
            for group, its in _outside(some, egress, self._inside(family)):
                groups.setdefault(group, []).extend(its)
        return groups, gone

    def _inside(self, family: int) -> list[_Prefix]:
        """Return niso's prefixes (networks and address pools) and the host's addresses."""
        context = self._context
        subnets = (subnet.cidr for on in context.networks.values() for subnet in on.subnets)
        texts = (*context.host, *context.pools, *subnets)
        return [ipaddress.ip_network(text) for text in texts if family_of(text) == family]

    def _named(self, service: str, address: str, seen: Flow) -> _PeerPorts:
        name = self._name(service)
        if name is None:
            return _of(address, seen, f"{service}: its name is ambiguous here")
        dns = "DNS" if seen.port == _DNS else ""
        return _PeerPorts(name, seen.port, seen.port, seen.proto, dns)

    def _comments(
        self,
        groups: dict[_PeerPorts, list[Flow]],
        refused: Mapping[Flow, str],
        gone: Sequence[Flow],
        egress: bool,
    ) -> Iterator[LearnedEntry]:
        """Yield the comments of a learned policy: denied peers, ports that were never used, and
        networks that could replace the entries of several services.
        """
        entries = {group.text for group in groups}
        others: dict[_PeerPorts, list[Flow]] = {}
        for flow, also in refused.items():
            peer = flow.to if egress else flow.from_
            in_audit = flow.audited and flow.agrees
            denied = "would be denied" if in_audit else "denied"
            denied += f", also by {also}" if also else ""
            if peer.service:
                group = self._named(peer.service, peer.address, flow)._replace(note=denied)
            elif egress:
                group = _of(peer.address, flow, denied)
            else:  # any number of outside addresses may have tried
                note = f"other machines {'would be' if in_audit else 'were'} denied"
                group = _PeerPorts(OUTSIDE.name, flow.port, flow.port, flow.proto, note)
            others.setdefault(group, []).append(flow)
        for group, rows in sorted(others.items()):
            if group.text not in entries:
                yield _line(group.text, rows, False, group.note)
        former: dict[_PeerPorts, list[Flow]] = {}
        for flow in gone:
            peer = flow.to if egress else flow.from_
            note = "no service has it any more"
            group = _of(peer.address, flow)._replace(note=note)
            if not flow.gone:
                note = "other machines; no longer published"
                group = _PeerPorts(OUTSIDE.name, flow.port, flow.port, flow.proto, note)
            former.setdefault(group, []).append(flow)
        for group, rows in former.items():
            if group.text not in entries:
                yield _line(group.text, rows, False, group.note)
        if not egress:
            if self._known.policy.allow_from is None:
                yield from self._unused(groups)
            yield from self._whole(groups)

    def _unused(self, groups: Iterable[_PeerPorts]) -> Iterator[LearnedEntry]:
        """Yield a comment for each published port that no other machine has used."""
        used = {(group.proto, group.first) for group in groups if group.peer == OUTSIDE.name}
        unused: dict[str, str] = {}  # several host ports may lead to one port
        for port in self._known.ports:
            ports = range(port.container_port, port.container_port + port.count)
            count = sum((port.proto, one) in used for one in ports)
            if count < port.count and not port.host_ip.startswith("127."):
                text = _PeerPorts(OUTSIDE.name, ports[0], ports[-1], port.proto).text
                which = f"{port.count - count} of its ports" if count else "it"
                unused[text] = f"published; no other machine used {which}"
        for text, note in unused.items():
            yield _line(text, (), False, note)

    def _whole(self, groups: dict[_PeerPorts, list[Flow]]) -> Iterator[LearnedEntry]:
        """Yield a comment for each network that could replace the entries of its services."""
        used: dict[tuple[int, str], set[str]] = {}
        for group, rows in groups.items():
            for flow in rows:
                if flow.from_.service:
                    used.setdefault((group.first, group.proto), set()).add(flow.from_.service)
        for endpoint in self._known.endpoints:
            members = {
                name
                for name, known in self._context.services.items()
                if any(e.network == endpoint.network for e in known.endpoints)
            } - {self._known.name}
            for (port, proto), services in sorted(used.items()):
                count = len(services & members)
                if count >= _LEAST_MEMBERS and 3 * count >= 2 * len(members):
                    text = f"network:{self._network(endpoint.network)}:{port}/{proto}"
                    yield _line(
                        text, (), False, f"in place of {count} of its {len(members)} services"
                    )


def _denying(reason: verdict.Reason) -> str:
    """Return the key, without ``network.policy.``, of the policy entry that denies a flow, or "". A
    policy in audit mode counts as if it were enforced.
    """
    denies = not reason.passes or reason.audits
    return reason.key.removeprefix("network.policy.") if denies else ""


def _of(address: str, seen: Flow, note: str = "") -> _PeerPorts:
    if seen.port == _DNS:
        note = f"{note}, DNS" if note else "DNS"
    return _PeerPorts(bracketed(address), seen.port, seen.port, seen.proto, note)


def _outside(
    rows: Sequence[Flow], egress: bool, inside: Sequence[_Prefix]
) -> Iterator[tuple[_PeerPorts, list[Flow]]]:
    """Yield policy entries for addresses outside niso's networks, each with the flows it allows.

    All given flows are to one port. Neighbouring addresses are merged into prefixes until at most
    eight entries remain, if possible. A merged prefix contains no address of the prefixes
    ``inside``, which are niso's or the host's.
    """
    by_number: dict[int, list[Flow]] = {}
    for flow in rows:
        address = (flow.to if egress else flow.from_).address
        by_number.setdefault(int(verdict.parsed(address)), []).append(flow)
    numbers = sorted(by_number)
    kind = type(ipaddress.ip_network((flow.to if egress else flow.from_).address))
    bits = kind(0).max_prefixlen

    def around(first: int, last: int) -> _Prefix:
        free = (first ^ last).bit_length()
        return kind((first >> free << free, bits - free))

    # addresses between two neighbours share more bits with them, so they are merged already
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


def _joined(groups: dict[_PeerPorts, list[Flow]]) -> Iterator[tuple[_PeerPorts, list[Flow]]]:
    """Merge groups for consecutive ports of one peer. Yield each group with its list of flows."""
    order = sorted(groups, key=lambda g: (g.peer, g.proto, g.first))
    last: tuple[_PeerPorts, list[Flow]] | None = None
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


def _line(text: str, rows: Sequence[Flow], allowed: bool = True, note: str = "") -> LearnedEntry:
    ages = [flow.ago for flow in rows if flow.ago is not None]
    new, opened = (sum(getattr(flow, key) for flow in rows) for key in ("new", "open"))
    return LearnedEntry(text, allowed, note, new, *flows.times(min(ages, default=None)), opened)


# --- learning for services, writing manifests -----------------------------------------------------


class PolicyChange(NamedTuple):
    """A planned change of the policies in a manifest or stack.toml."""

    file: str  # the absolute path of the file
    services: tuple[str, ...]  # services whose policies are in the file
    before: str  # present content of the file
    after: str  # new content of the file
    apply: str  # the command that activates the new file

    @property
    def diff(self) -> str:
        """The change in the format of diff -u. A newline in a file name is quoted."""
        import difflib

        old, new = (text.splitlines(keepends=True) for text in (self.before, self.after))
        name = self.file if self.file.isprintable() else json.dumps(self.file)
        lines = difflib.unified_diff(old, new, name, name)
        unended = "\n\\ No newline at end of file\n"
        return "".join(line if line.endswith("\n") else line + unended for line in lines)


def learn(
    session: Session, services: Sequence[str], since: float | None, egress: bool
) -> tuple[LearnedPolicy, ...]:
    """Derive policies from recorded flows (see `Host.learn`). ``since`` is a Unix time."""
    store = session.store()
    context, seen, memory = flows.read(session.kernel(), store, since)
    hints = ["a policy from these would deny some of them; docs/design/seeing.md has the limits"]
    if memory.missed:
        text = f"{memory.missed} new flows are missing: a set of the kernel was full"
        session.caution(text, hints)
    lost = flows.sources_beyond(memory, flows.FlowReader(context), False)
    if lost:
        text = f"new flows of {flows.few(lost)} are missing: each has used up its share"
        session.caution(text, hints)
    hidden = {source for set_, source in memory.beyond if set_ not in DENIED}
    rows = {row.name: row for row in store.services()}
    wanted = [owner(store.home(store.resolve(name))) for name in services]
    wanted = wanted or [
        name
        for name, row in rows.items()
        if row.active and row.mode in ("bridge", "attached", "front") and name == owner(name)
    ]
    learned = []
    for name in dict.fromkeys(wanted):
        if name not in context.services or not context.services[name].endpoints:
            mode = rows[name].mode
            raise UsageError(
                f"{name!r} has no network of its own (mode {mode}), so it has no policy",
                "niso ps lists the networks of services",
                "SERVICE",
            )
        blind = [n for n in store.networks_of(name) if not context.networks[n].observe]
        if blind:
            session.caution(
                f"network {', '.join(blind)} of {name!r} is not observed: its flows are missing", []
            )
        to_all = [n for n in store.networks_of(name) if context.networks[n].multicast]
        if to_all:
            session.caution(
                f"multicasts on network {', '.join(to_all)} of {name!r} are not recorded",
                ["add the senders to allow_from, and the groups to egress.allow, by hand"],
            )
        gap = NOT_ALL if memory.missed or blind else "multicasts are not recorded" if to_all else ""
        names = WrittenNames(store, name)
        policy = learn_flows(context, seen, name, names.service, egress, names.network, gap, hidden)
        file, path = _place(store, rows[name])
        table = ".".join(str(key) for key in path if isinstance(key, str))
        watched = watched_s(rows[name], since)
        learned.append(policy._replace(file=file or None, table=table, watched=watched))
    return tuple(learned)


def changes(session: Session, learned: Iterable[LearnedPolicy]) -> tuple[PolicyChange, ...]:
    """Return the file changes that write learned policies (see `Host.learned_changes`)."""
    store = session.store()
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    writers: dict[tuple[object, ...], str] = {}
    rows: dict[str, list[ServiceRow]] = {}
    for policy in learned:
        row = store.service(policy.service)
        if row is None:
            raise Conflict(f"{policy.service!r} was removed meanwhile", "learn again")
        stack = store.stack_of(row.name)
        for file in store.stack_files(stack) if stack else ():
            if os.path.isfile(file):
                _read(file)  # raises if the file is invalid, because its content is then unknown
        place = target, table = _place(store, row)
        if not target:
            hint = "niso net learn without --write prints it"
            raise Error(f"{policy.service!r} has no manifest that could have its policy", hint)
        _require_own(store, row, place, writers)
        if target not in after:
            before[target] = after[target] = _read(target)
        rows.setdefault(target, []).append(row)
        active = store.policy(policy.service) or Policy()
        lists = [(table, "allow_from", policy.allow_from, active.allow_from)]
        if policy.egress is not None:
            lists.append(((*table, "egress"), "allow", policy.egress, active.egress_allow))
        for path, key, entries, applied in lists:
            old = after[target]
            items = ((entry.text, entry.allowed, entry.note) for entry in entries)
            try:
                new = after[target] = toml.with_list(old, path, key, items)
            except InvalidInput as error:
                error.file, error.service = target, policy.service
                raise
            written = toml.list_at(old, path, key)
            if new != old and written not in (None, [entry.text for entry in applied or ()]):
                where = ".".join(str(part) for part in (*path, key) if isinstance(part, str))
                session.caution(
                    f"{target}: {where} is not active yet, and what is learned replaces it",
                    [f"{_apply(store, target, [row])} first, and niso net learn narrows it"],
                )
    return tuple(
        PolicyChange(
            file,
            tuple(row.name for row in rows[file]),
            before[file],
            text,
            _apply(store, file, rows[file]),
        )
        for file, text in after.items()
        if text != before[file]
    )


def write(changes: Iterable[PolicyChange]) -> None:
    """Write changed files, as described in `Host.write_policies`."""
    drafts: dict[str, str] = {}
    path = ""
    try:
        for change in changes:
            path = os.path.realpath(change.file)
            if _read(path) != change.before:
                raise Conflict("it was changed meanwhile", "learn again", file=path)
            _draft(path, change.after, drafts)
        for path in list(drafts):
            os.rename(drafts[path], path)
            del drafts[path]
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        hint = "niso net learn without --write prints the policy"
        raise Error(f"cannot be written: {reason}", hint, file=path) from error
    finally:
        for draft in drafts.values():
            os.unlink(draft)


def _draft(path: str, text: str, drafts: dict[str, str]) -> None:
    import tempfile

    status = os.stat(path)
    fd, drafts[path] = tempfile.mkstemp(prefix=".niso-policy-", dir=os.path.dirname(path))
    with open(fd, "w", encoding="utf-8", newline="") as file:
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o7777)
        file.write(text)
        file.flush()
        os.fsync(fd)


# --- locations of policies in files ---------------------------------------------------------------


_Place = tuple[str, tuple[str | int, ...]]
"""The location of a service's policy: a file, or "" without a file, and the keys of the table."""
_OWN = ("network", "policy")


def _place(store: Store, row: ServiceRow) -> _Place:
    """Return the file and the table for a service's policy, even if the service has no policy yet.
    The policy of a [[service]] in a stack.toml is usually in the manifest of its package. The
    policy is in the stack.toml if this file has a policy for the service or uses the package twice.
    """
    stack = store.stack_of(row.name)
    for file in store.stack_files(stack) if stack else ():
        try:
            data = toml.load(file, "stack.toml")
        except Error:
            continue
        names = (row.name, row.name.removeprefix(f"{stack}-"))
        tables, items = data.get("services"), data.get("service")
        for name in names if isinstance(tables, dict) else ():
            if isinstance(tables, dict) and name in tables:
                return file, ("services", name, *_OWN)
        entries = items if isinstance(items, list) else []
        entries = [item if isinstance(item, dict) else {} for item in entries]
        packages = [item.get("package") for item in entries]
        for number, item in enumerate(entries):
            shared = packages.count(item.get("package")) > 1
            if item.get("name") in names and ("policy" in item or shared):
                return file, ("service", number, "policy")
    return row.manifest_path if os.path.isfile(row.manifest_path) else "", _OWN


def _require_own(
    store: Store, row: ServiceRow, place: _Place, writers: dict[tuple[object, ...], str]
) -> None:
    other = writers.setdefault(place, row.name)
    file, path = place
    if path == _OWN and other == row.name:
        real = os.path.realpath(file)
        sharers = (r for r in store.services() if os.path.realpath(r.manifest_path) == real)
        other = next((r.name for r in sharers if r.name != row.name), other)
    if other != row.name:
        raise Conflict(
            f"{row.name!r} and {other!r} have one manifest, {file}, and so one policy",
            "write the policies into their stack.toml: niso net learn prints them",
        )


def _read(path: str) -> str:
    try:
        content = toml.content(path, os.path.basename(path), callers())
        toml.parse(content)
        return content.decode()
    except Error as error:
        error.file = path
        raise


def _apply(store: Store, file: str, rows: Sequence[ServiceRow]) -> str:
    import shlex

    stack, folder = store.stack_of(rows[0].name), shlex.quote(os.path.dirname(file))
    if stack and file in store.stack_files(stack):
        return f"niso stack up {folder}"
    return f"niso activate {folder}"


def watched_s(row: ServiceRow, since: float | None = None) -> float | None:
    """Return for how many seconds a service's flows have been recorded since ``since`` (Unix time).

    If the service is not active, returns None.
    """
    if not row.active or row.activated_at is None:
        return None
    return max(0.0, min(KEPT_S, time.time() - max(row.activated_at, since or 0.0)))


# --- names of services and networks in policies ---------------------------------------------------


class WrittenNames:
    """The names by which the policy of a service can refer to other services and networks.

    A service of the same stack is named as in the stack's file, without the stack's prefix. If the
    file is copied for another stack, its policies then refer to that stack's own services.
    """

    def __init__(self, store: Store, service: str) -> None:
        self._store, self._service = store, service
        stack = store.stack_of(service)
        self._members = set(store.stack_members(stack)) if stack else set()
        self._own: dict[str, str] = {}  # service -> its name in the file
        self._networks: dict[str, str] = {}
        self._file: set[str] = set()
        if stack:
            self._read(stack)

    def _read(self, stack: str) -> None:
        """Read the names from the stack's files. If files are missing, derive the names."""
        services: set[str] = set()
        networks: set[str] = {DEFAULT_NETWORK}
        for file in self._store.stack_files(stack):
            try:
                services.update(outline(file).after)
                tables = toml.load(file, "stack.toml").get("networks")
            except Error:
                continue
            networks.update(tables if isinstance(tables, dict) else ())
        if not services:
            names = [member.removeprefix(f"{stack}-") for member in self._members]
            is_plain = any(name in self._members for name in names)
            services = self._members if is_plain else set(names)
        prefixed = applies(None, stack, services, self._members, False)

        def full(names: Iterable[str]) -> dict[str, str]:
            return {(long_name(stack, n) if prefixed else n): n for n in names}

        self._file, self._own, self._networks = services, full(services), full(networks)

    def service(self, other: str) -> str | None:
        """Return a name that means only the given service in this policy, or None."""
        if other in self._members and other not in self._own:
            return None  # the service is no longer in the file
        names = [self._own.get(other, other)]
        # if the stack has a prefix, the other names could mean another service in the file
        if names[0] == other:
            names += self._store.names(other)
        return next((name for name in names if self._means(name, other)), None)

    def network(self, network: str) -> str:
        """Return the name by which the policy refers to a network."""
        return self._networks.get(network, network)

    def _means(self, name: str, other: str) -> bool:
        store, own = self._store, self._own.get(other)
        if name == own:
            meant = other  # with a prefix, the service's own name replaces the file's name
        elif name in self._file or any(
            member != other and name in store.names(member) for member in self._members
        ):
            return False
        else:
            meant = name
        try:
            entries = [parse_entry(f"{name}:1/tcp", "", egress) for egress in (False, True)]
        except InvalidInput:
            return False
        # entries of both directions can begin with this name
        is_name = all(entry.peer == Peer("service", name) for entry in entries)
        return is_name and store.resolved(self._service, meant)[0] == [other]
