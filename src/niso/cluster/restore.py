"""Restore a cluster's keys from the store of one of its hosts, after etcd has lost its data.

The cluster's own key is written last, and all others only while it is absent: until then no host
changes anything. Existing keys are left alone, so a restore can be repeated. What this host does
not know is restored by the agents of the others.
"""

from __future__ import annotations

import os

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.claim_values import About, Claim, address_value
from niso.cluster.engine import Compare, NoAnswer, Put, Txn
from niso.cluster.host_values import Cluster, Host, cluster_value, host_value
from niso.cluster.index import Spec
from niso.cluster.keys import encode
from niso.cluster.membership import PORT, Membership
from niso.cluster.settle import about

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from niso.cluster.keys import Keys
    from niso.plan.records import Network, Tunnel
    from niso.store.store import Store

EPOCH = 1 << 32
LIVES_S = 30
"""How long a host that was alive still counts as alive, before its agent reports."""


def spec_of(network: Network) -> Spec:
    """Convert a network to its form in the cluster."""
    assert network.span is not None
    subnets = tuple((subnet.cidr, subnet.gateway) for subnet in network.subnets)
    return Spec(network.name, network.span.vni, network.mtu, subnets, network.internal)


def base_of(store: Store) -> int:
    """Return a number above all claims' numbers (``gen``) so far, and above those that may follow.

    The engine's revisions restart, and a claim from before the loss must not look newer.
    """
    known = [claim.gen for claim in store.across.claims()]
    known += [row.gen for rows in store.across.addresses().values() for row in rows]
    return (max(known, default=0) // EPOCH + 1) * EPOCH


def restore(store: Store, membership: Membership, own: Host, encryption: str = "") -> Cluster:
    """Write the keys that this host knows; return the cluster.

    ``encryption`` is how this host encrypts traffic to others. Raises Conflict if the engine has a
    cluster.
    """
    networks = [network for network in store.networks() if network.span is not None]
    tunnel = store.across.tunnel()
    ports = {n.span.port for n in networks if n.span is not None}
    if tunnel is not None:
        ports.add(tunnel.port - 1)
    made = Cluster(store.cluster_id(), ports.pop() if ports else PORT, encryption)
    have = membership.cluster()
    if have is not None:
        raise Conflict(
            f"etcd has cluster {have.identity}: there is nothing to restore",
            "niso cluster status shows its hosts",
        )
    engine, keys = membership.engine, membership.keys
    lease = engine.grant(LIVES_S)
    for host in (own, *_peers(store, own.mtu, tunnel)):
        _put(membership, {keys.host(host.name): encode(host_value(host))})
        if host.alive and host != own:
            _put(membership, {keys.live(host.name): encode({"boot": ""})}, lease)
    for network in networks:
        membership.restore_network(spec_of(network)._replace(base=base_of(store)))
    for claim, shown in (*_own(store, own.name), *_others(store)):
        _put(membership, _values(claim, shown, keys))
    _put(membership, {keys.cluster: encode(cluster_value(made))})
    if membership.cluster() != made:
        raise Conflict("another host makes the cluster", "niso cluster status")
    return made


def _peers(store: Store, mtu: int, tunnel: Tunnel | None) -> Iterable[Host]:
    """Yield the other hosts; in an encrypted cluster only those whose public keys are known."""
    inside = {end[2]: end for end in tunnel.others} if tunnel is not None else {}
    for name, (state_id, address, alive) in store.across.peers().items():
        if tunnel is None:
            yield Host(name, state_id, address, mtu, alive)
        # the record has the address inside the tunnel, not the one between the hosts
        elif address in inside:
            public, place, _ = inside[address]
            between = place.rpartition(":")[0].strip("[]")
            yield Host(name, state_id, between, mtu, alive, public=public)


def _put(membership: Membership, values: dict[str, str], lease: int = 0) -> None:
    """Write keys if none of them exists. Raises Conflict if there is a cluster, NoAnswer."""
    keys = membership.keys
    conditions = [Compare(key) for key in sorted({*values, keys.cluster})]
    txn = Txn(tuple(conditions), tuple(Put(key, text, lease) for key, text in values.items()))
    try:
        membership.engine.commit(txn)
    except NoAnswer as error:
        if not error.unknown:
            raise
        membership.engine.commit(txn)  # this one changes nothing if the first was carried out


def _own(store: Store, host: str) -> Iterable[tuple[Claim, About]]:
    """Yield the claims that this host has recorded for its own services."""
    for record in store.across.claims():
        row = store.service(record.service)
        if row is not None and record.addresses:
            mark = record.mark or os.urandom(16).hex()
            who = (record.service, host, record.gen, mark)
            what = (record.addresses, store.names_there(record.service), 0)
            yield Claim(*who, *what, up=row.active), about(store, record.service)


def _others(store: Store) -> Iterable[tuple[Claim, About]]:
    """Yield the claims of other hosts on networks that this host has too."""
    for service, rows in store.across.addresses().items():
        networks: dict[str, tuple[str, ...]] = {}
        for row in rows:
            networks[row.network] = (*networks.get(row.network, ()), row.address)
        newest = max(rows, key=lambda row: row.gen)
        who = (service, newest.host, newest.gen, os.urandom(16).hex())
        yield Claim(*who, networks, store.across.names(service), 0, up=newest.up), About((), "")


def _values(claim: Claim, shown: About, keys: Keys) -> dict[str, str]:
    """Return a claim's keys and their values."""
    service = {
        "host": claim.host,
        "gen": claim.gen,
        "claim": claim.mark,
        "networks": claim.networks,
        "names": claim.names,
        "kept": claim.kept,
        "up": claim.up,
    } | shown.values()
    values: dict[str, dict[str, Any]] = {keys.service(claim.service): service}
    values |= {
        keys.name(network, name): {"service": claim.service}
        for network in claim.networks
        for name in claim.names
    }
    values |= {key: address_value(claim, claim.up) for key in sorted(claim.address_keys(keys))}
    return {key: encode(value) for key, value in values.items()}
