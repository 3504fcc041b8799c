"""Collect the services and networks against which policies are evaluated."""

from __future__ import annotations

import os
import time

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.rtnl_records import prefix
from niso.plan.records import Endpoint, Policy
from niso.plan.subnets import DEFAULT_POOL, unique_local
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.plan.known_world import World


def read_world(kernel: Kernel, store: Store) -> World:
    """Read all recorded services and networks, and this host's addresses.

    Raises KernelError.
    """
    from niso.plan.desired import shut
    from niso.plan.known_world import Known, World, holds

    services = {}
    now = time.time()
    for row in store.services():
        if row.mode == "share":  # on the network, a sharer is represented by its provider
            continue
        endpoints: dict[str, tuple[str, ...]] = {}
        for network, address in store.addresses(row.name):
            endpoints[network] = (*endpoints.get(network, ()), address)
        policy = store.policy_now(row.name) or Policy()
        services[row.name] = Known(
            name=row.name,
            names=(row.name, *store.sharers(row.name)),
            endpoints=tuple(
                Endpoint(network, addresses) for network, addresses in endpoints.items()
            ),
            policy=policy,
            ports=tuple(store.ports_there(row.name)),
            active=row.active and (row.has_process or _lives(kernel, store, row.name)),
            sharers=tuple(
                (port, sharer)
                for sharer in store.sharers(row.name)
                for _, port in store.ports(sharer)
            ),
            audits=audits(policy, now),
        )
    others = store.others()
    hosts = store.across.peers() if others else {}
    by_address = {address: host for host, (_, address, _) in hosts.items()}
    # services of other hosts, which enforce the policies of these services themselves
    for remote in others:
        if remote.name in services:  # a service of this host hides it
            continue
        services[remote.name] = Known(
            name=remote.name,
            names=(remote.name,),
            endpoints=remote.endpoints,
            policy=Policy(),
            ports=(),
            active=True,
            host=by_address.get(remote.host, remote.host),
            heard=False,
        )
    own = kernel.host_addresses()
    host = frozenset(address.partition("/")[0] for address in own)
    wires = frozenset(map(prefix, own))
    closed = shut(dict(store.sysctls_before()), store.any_active(), store.any_active(6))
    pools = (os.environ.get("NISO_POOL") or DEFAULT_POOL, str(unique_local(store.state_id())))
    networks = {network.name: network for network in store.networks()}
    named = store.outside.named() if store.names_outside() else []
    outside = {name: store.outside.meant(name) for name in named}
    # a PAST address that the host or a network has taken since no longer belongs to the name
    ever = {
        name: tuple(
            address
            for address in store.outside.ever(name)
            if address not in host and not any(holds(n, address) for n in networks.values())
        )
        for name in named
    }
    return World(services, networks, host, closed, wires, pools, outside, ever)


def audits(policy: Policy, now: float) -> bool:
    """Return whether a policy has an audit that has not ended."""
    if policy.audit is None:
        return False
    from niso.kernel import nft_audit

    return nft_audit.left_s(policy.audit.since, policy.audit.until, now) > 0


def _lives(kernel: Kernel, store: Store, name: str) -> bool:
    """Return whether the namespace of an attachment still exists."""
    attached = store.attachments.get(name)
    return attached is not None and (
        not attached.netns or kernel.cookie_at(attached.netns) == attached.cookie
    )
