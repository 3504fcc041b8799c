"""Show what each policy entry has allowed, and find likely mistakes in policies.

Likely mistakes are names that no service has, name servers that a policy denies, and audits that
end soon. The kernel agrees with the manifests despite such a mistake, so `niso net check` reports
it only as a warning.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Iterator

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, family_of, owner
from niso.base.text import exact_time_text, period_text
from niso.kernel import ruleset
from niso.kernel.nft_elements import HEADERS, Atoms, Nfnetlink
from niso.kernel.ruleset import INET
from niso.look import flows
from niso.look.learn import watched_s
from niso.look.session import Session
from niso.plan import verdict
from niso.plan.policy_elements import PASSES
from niso.plan.records import METADATA_WORD, Entry, Peer, Policy
from niso.plan.verdict import PolicyContext
from niso.reconcile import live_world
from niso.reconcile.live_world import read_world
from niso.store.policy_rows import suggest
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel


if TYPE_CHECKING:
    _Count = tuple[int, float | None, Atoms]  # packets, seconds since the last, the element's key


class PolicyEntry(NamedTuple):
    """An entry of a service's policy, or a list's default for packets that no entry matches."""

    service: str  # name of the service
    key: str  # key of the manifest; without an index for the list's default
    text: str | None  # the entry; null for the list's default
    passes: bool  # whether the entry allows packets
    packets: int  # flows that the entry decided on since the policy's last change
    open: int  # flows that the entry allows and that are open now
    last: str | None  # when the last new flow began; null if over a week ago
    ago: float | None  # seconds since the last new flow began
    note: str  # addresses of a DNS name, a narrower form of the entry, or the audit; can be empty
    audited: bool  # whether the entry denies, but packets pass because the policy is in audit


def show(session: Session, name: str, unused_s: float | None) -> tuple[PolicyEntry, ...]:
    """Return the entries of a service's policy, with their use.

    If ``unused_s`` is not None, only entries that were unused for so many seconds are returned.
    """
    store = session.store()
    service = owner(store.home(store.resolve(name)))
    policy = store.policy(service)
    if policy is None:
        return ()
    term = live_world.terms(store).get(service)
    in_audit = term is not None and term.lasts
    listed = {entry.key: entry.text for entry in policy.entries()}
    outside = {e.key: e.peer.name for e in policy.entries() if e.peer.kind == "outside"}
    counts, passing = _counted(service, policy)
    used = _used(session, service)
    row = store.service(service)
    watched = None if row is None else watched_s(row)
    if unused_s is not None and watched is not None and watched < unused_s:
        text = f"{service} has been watched for {period_text(watched)}: what is rarer was not seen"
        session.caution(text, [])
    result = []
    for key, its in counts.items():
        ages = [seconds for _, seconds, _ in its if seconds is not None]
        open_, remembered = used.get(key, (0, None))
        ago = min([*ages, *([] if remembered is None else [remembered])], default=None)
        needed = open_ or (unused_s is not None and ago is not None and ago < unused_s)
        if unused_s is not None and (key not in listed or needed):
            continue
        last = None if ago is None else exact_time_text(time.time() - ago)
        note = ", ".join(store.outside.meant(outside[key])) if key in outside else ""
        note = note or _narrower(listed.get(key), its)
        audited = in_audit and key not in passing
        note = note or (f"audit until {term.text}" if term is not None and audited else "")
        decided = (key in passing, sum(packets for packets, _, _ in its), open_)
        result.append(
            PolicyEntry(service, key, listed.get(key), *decided, last, ago, note, audited)
        )
    return tuple(result)


def _counted(service: str, policy: Policy) -> tuple[dict[str, list[_Count]], set[str]]:
    """Return the counters of each policy entry, and which entries allow packets.

    Entries are identified by their manifest keys.
    """
    listed = {entry.key for entry in policy.entries()}
    passing = {e.key for e in (*(policy.allow_from or ()), *(policy.egress_allow or ()))}
    counts: dict[str, list[_Count]] = {entry.key: [] for entry in policy.entries()}
    if policy.allow_from is not None:
        counts["network.policy.allow_from"] = []
    if policy.egress_allow is not None:
        counts["network.policy.egress.allow"] = []
    with Nfnetlink() as kernel:
        for container in sorted(ruleset.COUNTED):
            for element, packets, ago in kernel.counts(HEADERS[INET, container]):
                key = element.entry
                if owner(element.owner) != service or key not in counts:
                    continue
                counts[key].append((packets, ago, element.fields))
                if key not in listed and element.value == PASSES:
                    passing.add(key)
    return counts, passing


def _used(session: Session, service: str) -> dict[str, tuple[int, float | None]]:
    """Return the number of open flows, and the age of the last flow, for each policy entry.

    Entries are identified by their manifest keys. Both numbers come from the recorded flows. The
    counters in policy elements are not used for this, because they restart at 0 when the policy or
    an address changes.
    """
    world = read_world(session.kernel(), session.store())
    memory = flows.remembered(session.kernel(), world)
    own = {
        address
        for known in world.services.values()
        if known.owner == service
        for address in verdict.addresses_of(known)
    }

    passed, refused = (
        tuple(row for row in rows if not own.isdisjoint(row[:2]))
        for rows in (memory.passed, memory.refused)
    )
    opened = {key: count for key, count in memory.opened.items() if not own.isdisjoint(key[:2])}
    memory = memory._replace(passed=passed, refused=refused, opened=opened)
    ever = world._replace(outside=world.outside_ever)
    used: dict[str, tuple[int, float | None]] = {}
    for flow in flows.joined(world, memory):
        if flow.gone or not flow.agrees:
            continue
        # for a flow that passed, the policies of both ends have decided
        both = verdict.evaluate(ever, *flow.id[:2], flow.port, flow.proto)
        for own_key in [r.key for r in (both if flow.passes else (flow,)) if r.service == service]:
            if own_key:
                count, ago = used.get(own_key, (0, None))
                ages = [age for age in (ago, flow.ago) if age is not None]
                used[own_key] = count + flow.open, min(ages, default=None)
    return used


def _narrower(text: str | None, counts: Iterable[_Count]) -> str:
    """Return a note that suggests a narrower entry if only one protocol was used, else ""."""
    if text is None or "/" in text.rpartition(":")[2] or ":" not in text:
        return ""
    used = set()
    for packets, _, fields in counts:
        if packets:
            used |= {field for field in fields if field in ("tcp", "udp", "sctp")} or {""}
    return f'"{text}/{used.pop()}" would do' if len(used) == 1 and "" not in used else ""


# --- likely mistakes ------------------------------------------------------------------------------

_DNS = 53

Warning_ = tuple[str, str]  # the text of a warning, and the next step


def warnings(kernel: Kernel, store: Store, services: Iterable[str]) -> Iterator[Warning_]:
    """Yield a warning for each likely mistake in policies of these services. Raises KernelError."""
    terms = live_world.terms(store)
    world: PolicyContext | None = None  # read once, and only if a policy needs it
    for name in services:
        policy = store.policy(name)
        if policy is None or owner(name) != name:  # instances have the policy of their service
            continue
        if name in terms:
            yield _audit(name, terms[name])
        yield from _unknown(store, name, policy)
        if policy.egress_allow is not None or policy.egress_deny:
            servers = _servers(store.service(name))
            if servers and world is None:
                world = read_world(kernel, store)
            if servers and world is not None:
                yield from _without_dns(store, world, name, policy, servers)


def _audit(name: str, term: live_world.Term) -> Warning_:
    if term.lasts:
        return (
            f"audit: the policy of {name} denies nothing until {term.text}",
            f'niso net flows {name} --denied shows what it would deny; mode = "enforce" ends it',
        )
    return (
        f"the audit of the policy of {name} has ended: it is enforced",
        'mode = "enforce" in the manifest says so; a later audit_until begins another audit',
    )


def _unknown(store: Store, name: str, policy: Policy) -> Iterator[Warning_]:
    """Yield a warning for each policy entry that names an unknown service or network."""
    for entry in policy.entries():
        peer = entry.peer
        if peer == Peer("service", METADATA_WORD) and entry in policy.egress_deny:
            continue  # this word needs no service: it stands for addresses
        if peer.kind == "service" and not store.meant(name, peer.name)[1]:
            known = sorted({service for service, _, _ in store.service_names()} - {name})
            what = f"no service is called {peer.name!r}"
        elif peer.kind == "network" and store.network(peer.name) is None:
            known = store.network_names()
            what = f"there is no network {peer.name!r}"
        else:
            continue
        hint = suggest(peer.name, known, "it matches as soon as there is one")
        yield f"{name}: {entry.key} ({entry.text!r}) matches nobody: {what}", hint


def _without_dns(
    store: Store, world: PolicyContext, name: str, policy: Policy, servers: Iterable[str]
) -> Iterator[Warning_]:
    """Yield a warning for each name server of a service that the service's egress policy denies.

    If the policy allows only services, networks of niso, and DNS names, no warning is needed: these
    names are in the service's hosts file, so the service needs no name server.
    """
    own = {family_of(address): address for _, address in reversed(store.addresses(name))}
    allowed = policy.egress_allow
    if allowed is not None and all(_is_listed(world, entry) for entry in allowed):
        return
    for server in (address for address in servers if family_of(address) in own):
        reason, _ = verdict.evaluate(world, own[family_of(server)], server, _DNS, "udp")
        if reason.key and (reason.audits or not reason.passes):
            line = f'"{bracketed(server)}:{_DNS}"'
            denying = next((e for e in policy.egress_deny if e.key == reason.key), None)
            yield (
                f"{name}: network.policy.egress denies its name server {server}: names outside"
                " niso will not resolve",
                f"change {denying.key} ({denying.text!r})"
                if denying
                else f"add {line} to network.policy.egress.allow",
            )


def _is_listed(world: PolicyContext, entry: Entry) -> bool:
    """Return whether an entry allows only names in the hosts file or addresses of networks."""
    if entry.peer.kind != "prefix":
        return entry.peer.kind != "prefixes"  # a manifest cannot contain this kind
    prefix = ipaddress.ip_network(entry.peer.name)
    network = verdict.network_of(world, str(prefix.network_address))
    return network is not None and verdict.holds(network, str(prefix.broadcast_address))


def _servers(row: ServiceRow | None) -> list[str]:
    """Return the addresses of the name servers in a service's resolv.conf."""
    spec = row.process if row is not None and row.has_process else None
    servers = []
    for line in (spec.resolv_conf if spec is not None else "").splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                servers.append(str(ipaddress.ip_address(words[1])))
            except ValueError:  # an address with a zone
                continue
    return servers
