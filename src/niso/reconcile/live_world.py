"""Read the services and networks from which policies are evaluated, and find ended audits.

The data come from the store and the kernel. During an audit, packets that a policy would deny are
only recorded. The manifest says when the audit ends.
"""

from __future__ import annotations

import os
import time

from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import owner
from niso.base.text import local_time_text
from niso.kernel import policy_rules
from niso.kernel.link_records import prefix
from niso.kernel.policy_rules import NEVER
from niso.plan.desired import shut
from niso.plan.records import Audit, Policy, ServiceEndpoint
from niso.plan.subnets import DEFAULT_POOL, unique_local
from niso.plan.verdict import KnownService, PolicyContext, contains
from niso.reconcile import host_settings
from niso.store.service_rows import SERVING
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel


def read_world(kernel: Kernel, store: Store) -> PolicyContext:
    """Read the services, networks and addresses that policies refer to. Raises KernelError."""
    services = {}
    now = time.time()
    # in a policy, the name of a service means its instances
    fronts = {one.service: (one.front,) for one in store.instances.all()}
    serving: dict[str, tuple[tuple[int, str], ...]] = {}
    for one in store.instances.active(SERVING):
        serving[one.front] = (*serving.get(one.front, ()), (one.ordinal, one.service))
    for name in store.across.fronts() if store.cluster_id() else ():
        parts = tuple(part[:2] for part in store.across.serving(name))
        serving[name] = (*serving.get(name, ()), *parts)
    for row in store.services():
        if row.mode == "share":  # on the network, only the namespace's owner counts
            continue
        endpoints: dict[str, tuple[str, ...]] = {}
        for network, address in store.addresses(row.name):
            endpoints[network] = (*endpoints.get(network, ()), address)
        policy = store.policy_now(row.name) or Policy()
        sharers = store.sharers(row.name)
        services[row.name] = KnownService(
            name=row.name,
            names=(row.name, *sharers, *fronts.get(row.name, ())),
            endpoints=tuple(ServiceEndpoint(*endpoint) for endpoint in endpoints.items()),
            policy=policy,
            ports=tuple(store.ports_there(row.name)),
            active=row.active and (not row.is_attachment or _lives(kernel, store, row.name)),
            sharers=tuple((port, name) for name in sharers for _, port in store.ports(name)),
            audits=audits(policy, now),
            front=next(iter(fronts.get(row.name, ())), ""),
            serving=serving.get(row.name, ()) if row.mode == "front" else None,
        )
    others = store.others()
    hosts = store.across.peers() if others else {}
    by_address = {address: host for host, (_, address, _) in hosts.items()}
    # services of other hosts, which enforce the policies of these services themselves
    hosts_of: dict[str, set[str]] = {}  # of services with a service address
    for remote in others:
        hosts_of.setdefault(owner(remote.name), set()).add(by_address.get(remote.host, remote.host))
    for remote in others:
        here = services.get(remote.name)
        # a service of this host hides it, unless the service is on several hosts and inactive here
        if here is not None and (here.active or here.serving is None or remote.mode != "front"):
            continue
        front = owner(remote.name)
        also = (front,) if front != remote.name else ()
        services[remote.name] = KnownService(
            name=remote.name,
            names=(remote.name, *also),
            endpoints=remote.endpoints,
            host=", ".join(sorted(hosts_of[remote.name]))
            if remote.mode == "front"
            else by_address.get(remote.host, remote.host),
            heard=False,
            front="".join(also),
            serving=serving.get(remote.name, ()) if remote.mode == "front" else None,
        )
    own = kernel.host_addresses()
    host = frozenset(address.partition("/")[0] for address in own)
    wires = frozenset(map(prefix, own))
    closed = shut(store.sysctls_before(), store.host_forwards(), store.host_forwards(6))
    pools = (os.environ.get("NISO_POOL") or DEFAULT_POOL, str(unique_local(store.state_id())))
    networks = {network.name: network for network in store.networks()}
    named = store.outside.named() if store.names_outside() else []
    outside = {name: store.outside.resolved(name) for name in named}
    # a PAST address that the host or a network has taken since no longer belongs to the name
    ever = {
        name: tuple(
            address
            for address in store.outside.ever(name)
            if address not in host and not any(contains(n, address) for n in networks.values())
        )
        for name in named
    }
    routes = host_settings.later_routes(kernel, store) if closed else {}
    return PolicyContext(services, networks, host, closed, wires, pools, outside, ever, routes)


def audits(policy: Policy, now: float) -> bool:
    """Return whether a policy's audit period is running at the Unix time ``now``."""
    audit = policy.audit
    return audit is not None and policy_rules.left_s(audit.since, audit.until, now) > 0


def _lives(kernel: Kernel, store: Store, name: str) -> bool:
    if (attached := store.attachments.get(name)) is None:
        return False
    return not attached.netns or kernel.cookie_at(attached.netns) == attached.cookie


_KEY = "network.policy.audit_until"


def begun(policy: Policy, before: Policy | None, now: float) -> Policy:
    """Return a policy with the start and end of its audit as Unix times.

    ``before`` is the service's previous policy, whose audit continues unless the manifest has
    another end of the audit. ``now`` is a Unix time. Raises InvalidInput if a new audit would last
    too long, or if its end has passed: then the policy would drop packets immediately, which its
    author did not intend.
    """
    audit = policy.audit
    assert audit is not None
    held = before.audit if before is not None else None
    if held is not None and held.text == audit.text:
        return policy._replace(audit=held)
    since = int(now)
    if audit.until == NEVER:
        return policy._replace(audit=audit._replace(since=since))
    until = audit.until or since + policy_rules.MOST_S
    latest = since + policy_rules.MOST_S
    if until <= since:
        hint = 'a later date; mode = "enforce" is the policy without an audit'
        raise InvalidInput("has passed", hint, _KEY, value=audit.text)
    if until > latest:
        reason = f"is more than {policy_rules.MOST_S // 86_400} days ahead"
        hint = f'the latest is {local_time_text(latest)}; "never" has no end'
        raise InvalidInput(reason, hint, _KEY, value=audit.text)
    return policy._replace(audit=Audit(audit.text, since, until))


def kept(policy: Policy, store: Store, name: str) -> Policy:
    """Return a policy with the recorded audit period of the service ``name``. If the record is
    damaged, or if it is of another audit, the audit period counts as over.
    """
    try:
        held = store.policy(name)
    except (ValueError, TypeError, LookupError):
        held = None
    assert policy.audit is not None
    audit = held and held.audit
    if audit is None or audit.text != policy.audit.text:
        audit = Audit(policy.audit.text)
    return policy._replace(audit=audit)


def terms(store: Store) -> dict[str, tuple[int, bool]]:
    """Return {service: (end of the audit, whether the audit is running)}.

    Contains the services whose policy has an audit. The end is a Unix time, or -1 (`NEVER`).
    """
    now = time.time()
    return {
        service: (until, policy_rules.left_s(since, until, now) > 0)
        for service, (since, until) in store.audits().items()
    }


def ended(store: Store) -> list[str]:
    """Return the active services whose audit period is over: their policies must be enforced."""
    over = {name for name, (_, lasts) in terms(store).items() if not lasts}
    return [name for name in store.active_services() if name in over]
