"""Publish this host's services to etcd, and restore etcd's data after a loss.

This module creates, changes or deletes the claims of services, so that they match the services'
rows in the store. A service's row is never changed to match a claim. If a command was interrupted
before it published a change, the next call therefore publishes this change.

A restore writes the key ``cluster`` last, and writes the other keys only while ``cluster`` is
absent. While ``cluster`` is absent, no host changes anything in etcd. Existing keys are left
unchanged, so a restore can be repeated. This host can restore only the data that its own store
contains. The agents of the other hosts restore the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from niso.base.errors import Conflict, Error
from niso.base.locks import Busy, Lock, remove_locks, service_lock
from niso.base.named_tuples import TYPE_CHECKING, Any
from niso.base.names import owner
from niso.cluster import mirror
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Compare, Keys, NoAnswer, Put, Refused, Txn, encode
from niso.cluster.key_values import (
    Cluster,
    HostEntry,
    Spec,
    address_value,
    cluster_value,
    host_value,
    shown_values,
)
from niso.cluster.key_values import ClusterClaim as Held
from niso.cluster.membership import PORT, ClusterKeys
from niso.cluster.mirror import EngineView
from niso.plan.records import NetworkRecord, Tunnel
from niso.store.service_rows import SERVING, ServiceRow
from niso.store.span_rows import ClaimRow
from niso.store.sqlite import encoded
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel

ORPHAN_S = 60.0
"""Seconds for which a claim without a row is kept, since a command may write the row."""
STRAY_S = 600.0
"""Seconds between searches for claims of this host on networks that it does not have."""


class OwnClaims:
    """A publisher that makes this host's claims in etcd match the store. The agent uses it in each
    poll.

    ``log`` logs a line. ``say`` logs a line unless the line repeats the previous one.
    """

    def __init__(self, log: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._log = log
        self._say = say
        self._orphans: dict[str, float] = {}  # service -> since when its claim differs from the row
        self._is_compared = False  # whether all claims of this host were compared in full
        self._strays_s: float | None = None  # when all claims were last searched

    def doubt(self) -> None:
        """Make the next call of `bring` compare all claims of this host completely."""
        self._is_compared = False

    def bring(
        self, store: Store, kernel: Kernel, claims: Claims, now: EngineView, now_s: float
    ) -> tuple[list[str], bool]:
        """Write, change or delete the claims in etcd that do not match this host's store.

        A service that a command is changing is skipped. ``now`` is the state of etcd, and ``now_s``
        a monotonic time. Returns (names of this host's services that other hosts have reserved,
        whether all keys were already correct).
        """
        lost, is_sure = [], True
        records = store.across.claims(now.only)
        if now.only is None:
            recorded = {record.service for record in records}
            self._orphans = {n: since for n, since in self._orphans.items() if n in recorded}
        for record in records:
            so = is_published(store, record, now)
            if so and self._is_compared:
                self._orphans.pop(record.service, None)
                continue
            since = now_s if so else self._orphans.setdefault(record.service, now_s)
            is_sure = False
            try:
                with service_lock(record.service, 0):
                    is_free = store.intent(record.service) is None
                    final = now_s - since >= ORPHAN_S
                    if is_free and not publish_claim(store, kernel, claims, record.service, final):
                        lost.append(record.service)
                    if store.service(record.service) is None:
                        remove_locks(record.service)
            except Busy:
                continue
            # Continue with the other services. After a Conflict, another host has the service, and
            # its newer claim fences this host.
            except Error as error:
                if isinstance(error, NoAnswer) and not isinstance(error, Refused):
                    raise
                self._say(error.message)
        self._is_compared = True
        try:
            is_sure = self._delete_strays(store, claims, now, now_s) and is_sure
        except Refused as error:
            self._say(error.message)
            is_sure = False
        return lost, is_sure

    def _delete_strays(self, store: Store, claims: Claims, now: EngineView, now_s: float) -> bool:
        """Delete claims of this host for services that its store does not contain. Late requests
        and restored backups of etcd leave such claims. Returns True if there were no such claims.
        """
        names = now.services if now.only is None else now.only & now.services.keys()
        own = {
            name
            for name in names
            if all(address.host == claims.host for address in now.services[name].addresses)
        }
        if self._strays_s is None or now_s - self._strays_s >= STRAY_S:
            own |= {*ClusterKeys(claims.engine, claims.keys).services_of(claims.host)}
            self._strays_s = now_s
        strays = own - {record.service for record in store.across.claims(own)}
        for service in sorted(strays):
            with contextlib.suppress(Busy), service_lock(service, 0):
                held = claims.held(service)
                if held and held.host == claims.host and store.across.claim(service) is None:
                    claims.release(service, held.mark)
                    self._log(f"{service} is not on this host: its claim is given up")
                if store.service(service) is None:
                    remove_locks(service)
        return not strays


def publish_claim(
    store: Store, kernel: Kernel, claims: Claims, service: str, final: bool = True
) -> bool:
    """Update a service's claim in etcd to match the service's rows.

    Returns False if another host has the service. The caller has the service's lock, but not
    niso's, and no change of the service is in progress. If the service should not be reserved, its
    claim and the claim's row are deleted, so that policies no longer match its addresses. Without
    ``final``, an empty row stays, because a request may still be on its way to etcd. Raises
    NoAnswer, Error, and Conflict if other services have its addresses or names.
    """
    row, record, have = store.service(service), store.across.claim(service), claims.held(service)
    on = store.across.spanning(row.networks) if row is not None else []
    mine = have is not None and have.host == claims.host
    wanted = wanted_by_rows(store, row, on) if row is not None and on else None
    if row is None or wanted is None or not _is_wanted(store, row, record, have, mine):
        if have is not None and mine:
            claims.release(service, have.mark)
        if record is not None:
            mirror.drop_claims(store, kernel, [service])
        with store.transaction():
            store.across.drop_claim(service)
            if record is not None and not final:
                store.across.set_claim(ClaimRow(service, "", 0, {}))
        return True
    since = record.gen if record is not None else 0
    # with the same ``gen``, a restored backup of etcd lacks this host's part of the claim
    joins = row.mode == "front" and have is not None and have.front and have.gen == since
    if have is not None and not mine and have.gen >= since and not joins:
        return False
    if not mine or have is None or (have.networks, have.names) != (wanted.requested, wanted.names):
        try:
            have = claims.claim(wanted, since=since)
        except Conflict:
            if record is None or _places(wanted.requested) <= _places(record.addresses):
                raise
            # a command that released the address was undone, and another service has it now
            return False
    # Record the mark only after publishing: without it, the next call publishes the claim again.
    now = recorded(have)
    if record != now:
        with store.transaction():
            store.across.set_claim(now._replace(mark=""))
    claims.publish(service, have.mark, is_up(store, row), about(store, service))
    if record != now:
        with store.transaction():
            store.across.set_claim(now)
    return True


def is_published(store: Store, record: ClaimRow, now: EngineView) -> bool:
    """Return whether a service's keys in etcd match the service's rows in this host's store."""
    row, known = store.service(record.service), now.services.get(record.service)
    if row is None or known is None or not record.addresses or not record.mark:
        return False
    on = store.across.spanning(row.networks)
    leased = {address for address in store.addresses(record.service) if address[0] in on}
    return (
        {(a.network, a.address) for a in known.addresses} == _places(record.addresses) == leased
        and {*record.addresses} == {*on}
        and {a.gen for a in known.addresses} == {record.gen}
        and {a.up for a in known.addresses} == {is_up(store, row)}
        and {*known.names} == {*store.names_there(record.service)}
    )


def is_up(store: Store, row: ServiceRow) -> bool:
    """Return whether other hosts may connect to a service or an instance. For an instance, this is
    true while it receives connections to its service's address.
    """
    if not row.active or owner(row.name) == row.name:
        return row.active
    instance = store.instances.get(row.name)
    return instance is not None and instance.state == SERVING


def untold(store: Store, services: Iterable[str]) -> None:
    """Record that the agent must publish these services again. Takes niso's lock."""
    with Lock(), store.transaction():
        for service in services:
            if (record := store.across.claim(service)) is not None:
                store.across.set_claim(record._replace(mark=""))


def _places(addresses: Mapping[str, Iterable[str]]) -> set[tuple[str, str]]:
    return {(network, address) for network, some in addresses.items() for address in some}


def recorded(claim: Held) -> ClaimRow:
    """Convert a claim in etcd to a row of the store."""
    return ClaimRow(claim.service, claim.mark, claim.gen, claim.networks)


def about(store: Store, service: str) -> dict[str, Any]:
    policy = store.policy(service)
    return shown_values(
        tuple(port.text for _, port in store.ports(service)),
        "" if policy is None else encoded(policy),
        tuple(
            (sharer, tuple(port.text for _, port in store.ports(sharer)))
            for sharer in store.sharers(service)
        ),
    )


def wanted_by_rows(store: Store, row: ServiceRow, on: Sequence[str]) -> Wanted:
    """Return the names and addresses that a service must reserve on the networks ``on``."""
    leased = _by_network(pair for pair in store.addresses(row.name) if pair[0] in on)
    names = store.names_there(row.name)
    return Wanted(row.name, tuple(on), names, leased, {}, row.mode == "front")


def _by_network(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    networks: dict[str, tuple[str, ...]] = {}
    for network, address in pairs:
        networks[network] = (*networks.get(network, ()), address)
    return networks


def _is_wanted(
    store: Store, row: ServiceRow, record: ClaimRow | None, have: Held | None, mine: bool
) -> bool:
    """Return whether a service of this host should have a claim in etcd. ``record`` is the claim's
    row. ``have`` is the claim in etcd, and ``mine`` whether the claim is this host's. An active
    service should always have a claim. An inactive service should have none if other hosts have the
    service too, if an earlier command failed to reserve it, or if an address is missing.
    """
    if row.active:
        return True
    # names and addresses of an inactive service stay reserved, unless other hosts have it too
    if have and mine and have.others:
        return False
    if record is None or not record.addresses or (have and mine and have.former):
        return False
    on = store.across.spanning(row.networks)
    subnets = {network: len(store.require_network(network).subnets) for network in on}
    had = [network for network, _ in store.addresses(row.name) if network in subnets]
    return all(had.count(network) == count for network, count in subnets.items())


EPOCH = 1 << 32
LIVES_S = 30
"""Seconds for which a host that was alive counts as alive after a restore."""


def spec_of(network: NetworkRecord) -> Spec:
    """Convert the store's record of a network that spans hosts to the form stored in etcd."""
    assert network.span is not None
    subnets = tuple((subnet.cidr, subnet.gateway) for subnet in network.subnets)
    return Spec(network.name, network.span.vni, network.mtu, subnets, network.internal)


def base_of(store: Store) -> int:
    """Return a number above the ``gen`` of all claims in this host's store. New claims add the
    number to etcd's revision, which restarts from 1 if etcd loses its data.
    """
    known = [claim.gen for claim in store.across.claims()]
    known += [row.gen for rows in store.across.addresses().values() for row in rows]
    return (max(known, default=0) // EPOCH + 1) * EPOCH


def restore(store: Store, membership: ClusterKeys, own: HostEntry, encryption: str) -> Cluster:
    """Write to an empty etcd all keys that the store of the host ``own`` contains. Returns the
    cluster. Raises Conflict if etcd already has a cluster.
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
    for claim, shown in [*_recorded(store, own.name)]:
        _put(membership, _values(claim, shown, keys))
    _put(membership, {keys.cluster: encode(cluster_value(made))})
    if membership.cluster() != made:
        raise Conflict("another host makes the cluster", "niso cluster status")
    return made


def _peers(store: Store, mtu: int, tunnel: Tunnel | None) -> Iterable[HostEntry]:
    """Yield the other hosts in the store. If encrypted, leaves out hosts without a public key."""
    inside = {end[2]: end for end in tunnel.others} if tunnel is not None else {}
    for name, (state_id, address, alive) in store.across.peers().items():
        if tunnel is None:
            yield HostEntry(name, state_id, address, mtu, alive)
        # the row has the address inside the tunnel, not the host's own address
        elif address in inside:
            public, place, _ = inside[address]
            between = place.rpartition(":")[0].strip("[]")
            yield HostEntry(name, state_id, between, mtu, alive, public=public)


def _put(membership: ClusterKeys, values: dict[str, str], lease: int = 0) -> None:
    """Write {key: value} to etcd, unless a key or a cluster exists there. Raises NoAnswer."""
    keys = membership.keys
    conditions = [Compare(key) for key in sorted({*values, keys.cluster})]
    txn = Txn(tuple(conditions), tuple(Put(key, text, lease) for key, text in values.items()))
    try:
        membership.engine.commit(txn)
    except NoAnswer as error:
        if not error.unknown:
            raise
        membership.engine.commit(txn)  # no effect if etcd carried out the first request


def _recorded(store: Store, host: str) -> Iterable[tuple[Held, dict[str, Any]]]:
    """Yield (claim, fields that other hosts display) for all services in the store. ``host`` is
    this host's name. Services of other hosts are included.
    """
    for record in store.across.claims():
        row, name = store.service(record.service), record.service
        if row is not None and record.addresses:
            who = (name, host, record.gen, record.mark or os.urandom(16).hex())
            what = (record.addresses, store.names_there(name), 0)
            front = row.mode == "front"
            yield Held(*who, *what, up=is_up(store, row), front=front), about(store, name)
    fronts = store.across.fronts()
    for name, rows in store.across.addresses().items():
        newest = max(rows, key=lambda row: row.gen)
        who = (name, newest.host, newest.gen, os.urandom(16).hex())
        networks = _by_network((row.network, row.address) for row in rows)
        front = name in fronts
        claim = Held(*who, networks, store.across.names(name), 0, up=newest.up, front=front)
        yield claim, shown_values((), "")


def _values(claim: Held, shown: Mapping[str, Any], keys: Keys) -> dict[str, str]:
    service = {
        "host": claim.host,
        "gen": claim.gen,
        "claim": claim.mark,
        "networks": claim.networks,
        "names": claim.names,
        "kept": claim.kept,
        "up": claim.up,
        "front": claim.front,
        **shown,
    }
    values: dict[str, dict[str, Any]] = {keys.service(claim.service): service}
    for network in claim.networks:
        values |= {keys.name(network, name): {"service": claim.service} for name in claim.names}
    values |= {key: address_value(claim, claim.up) for key in sorted(claim.address_keys(keys))}
    return {key: encode(value) for key, value in values.items()}
