"""Find likely mistakes in policies: unknown names, unreachable name servers, and audits.

These are not differences between kernel and manifests.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from niso.base.addresses import bracketed, family_of
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.records import METADATA_WORD, Entry, Peer, Policy
from niso.services import auditing
from niso.store.store import ServiceRow, Store, suggest

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.plan.known_world import World

_DNS = 53

Warning_ = tuple[str, str]
"""(text, next step)."""


def warnings(kernel: Kernel, store: Store, services: Iterable[str]) -> Iterator[Warning_]:
    """Yield a warning for each problem of the policies of these services. Raises KernelError."""
    terms = auditing.terms(store)
    world: World | None = None  # read once, and only if a policy needs it
    for name in services:
        policy = store.policy(name)
        if policy is None:
            continue
        if name in terms:
            yield _audit(name, terms[name])
        yield from _unknown(store, name, policy)
        if policy.egress_allow is not None or policy.egress_deny:
            servers = _servers(store.service(name))
            if servers and world is None:
                from niso.reconcile.world import read_world

                world = read_world(kernel, store)
            if servers and world is not None:
                yield from _without_dns(store, world, name, policy, servers)


def _audit(name: str, term: auditing.Term) -> Warning_:
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
    """Yield a warning for each policy entry whose name resolves to nothing."""
    for entry in policy.entries():
        peer = entry.peer
        if peer == Peer("service", METADATA_WORD) and entry in policy.egress_deny:
            continue  # it has matched addresses
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
    store: Store, world: World, name: str, policy: Policy, servers: Iterable[str]
) -> Iterator[Warning_]:
    """Yield a warning for each name server that a service's egress policy denies.

    A service that may only connect to services and outside names needs none: its hosts file has
    them.
    """
    from niso.plan import verdict

    own = {family_of(address): address for _, address in reversed(store.addresses(name))}
    allowed = policy.egress_allow
    if allowed is not None and all(_is_listed(world, entry) for entry in allowed):
        return
    for server in (address for address in servers if family_of(address) in own):
        reason, _ = verdict.judge(world, own[family_of(server)], server, _DNS, "udp")
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


def _is_listed(world: World, entry: Entry) -> bool:
    """Return whether an entry matches names of the hosts file, or addresses of niso's networks."""
    from niso.plan import known_world

    if entry.peer.kind != "prefix":
        return entry.peer.kind != "prefixes"  # none of a manifest has them
    prefix = ipaddress.ip_network(entry.peer.name)
    network = known_world.network_of(world, str(prefix.network_address))
    return network is not None and known_world.holds(network, str(prefix.broadcast_address))


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
