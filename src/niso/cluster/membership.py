"""Change the etcd keys that describe the cluster, its hosts and its networks, by compare-and-swap.

Callers must check that this host is in a cluster, and that etcd has this cluster's data.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable

from niso.base.errors import Conflict, Error, NotFound
from niso.base.named_tuples import TYPE_CHECKING, Any
from niso.cluster import key_values
from niso.cluster.claims import TRIES, without
from niso.cluster.engine import Compare, Delete, Keys, KeyValue, NoAnswer, Put, Txn, decode, encode
from niso.cluster.key_values import Cluster, ClusterClaim, HostEntry, Spec, host_value, index_of
from niso.runtime.machine import Machine
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.config import Config
    from niso.cluster.etcd import Etcd

PORT = 4799
"""UDP port of VXLAN. 4789 is Docker's, and niso's rules would drop Docker's packets."""
FIRST_VNI = 4097
SERIAL = re.compile("[0-9A-F]{1,64}", re.ASCII)
MOST_VNI = (1 << 24) - 1


class ClusterKeys:
    """A client for etcd's keys of the cluster, its hosts and networks. Raises NoAnswer, Error."""

    def __init__(self, engine: Etcd, keys: Keys | None = None) -> None:
        self.engine = engine
        self.keys = keys or Keys()

    def cluster(self) -> Cluster | None:
        """Return the cluster that is stored in etcd, or None if there is none. niso chooses the
        cluster's id, because etcd's own id survives a loss of etcd's data.
        """
        item = self._item(self.keys.cluster)
        return key_values.cluster_of(item) if item is not None else None

    def make(self, port: int = PORT, encryption: str = "") -> Cluster:
        """Create a cluster in etcd and return it. Raises Conflict if etcd already has one."""
        made = Cluster(os.urandom(4).hex(), port, encryption)
        put = Put(self.keys.cluster, encode(key_values.cluster_value(made)))

        def txn() -> Txn:
            have = self.cluster()
            if have is not None and have != made:
                raise Conflict(
                    f"etcd has a cluster already: {have.identity}",
                    "join it, or choose another prefix",
                )
            return Txn((Compare(self.keys.cluster),), (put,))

        self._commit(txn, lambda: self.cluster() == made)
        return made

    def hosts(self) -> list[HostEntry]:
        """Return all hosts of the cluster, sorted by name."""
        items = {item.key: item for item in self.engine.get(self.keys.hosts).items}
        return [
            key_values.host_of(item, self.keys)._replace(alive=f"{key}/live" in items)
            for key, item in items.items()
            if "/" not in key.removeprefix(self.keys.hosts)
        ]

    def host_item(self, host: str) -> KeyValue | None:
        """Return the key of a host with its value, or None if the cluster has no such host."""
        return self._item(self.keys.host(host))

    def join(self, host: HostEntry) -> None:
        """Add a host to the cluster, or update its values in etcd.

        Raises Conflict if another host uses this name, state folder or address, if the host has
        another IP version than the others, or if only one of cluster and host is encrypted.
        """
        value = host_value(host)
        key = self.keys.host(host.name)

        def txn() -> Txn:
            cluster = self.cluster()
            if cluster is not None and bool(cluster.encryption) != bool(host.public):
                is_not = "is" if cluster.encryption else "is not"
                raise Conflict(
                    f"the cluster {is_not} encrypted, and this host is to be otherwise",
                    "all hosts of a cluster encrypt, or none",
                )
            for other in self.hosts():
                if other.name == host.name and other.state_id != host.state_id:
                    raise Conflict(
                        f"the cluster has another host {other.name}, with the address"
                        f" {other.address}",
                        "use another name; if that host is lost, niso cluster forget"
                        f" {other.name} first",
                    )
                if other.name != host.name and other.state_id == host.state_id:
                    raise Conflict(
                        f"host {other.name} of the cluster has the same state folder,"
                        f" {other.state_id}",
                        f"a copy of the machine {other.name} needs a state folder of its own",
                    )
                if other.name != host.name and other.address == host.address:
                    raise Conflict(
                        f"{host.address} is the address of host {other.name}", "choose another one"
                    )
                key_values.require_family(host.address, other.address, other.name)
            item = self._item(key)
            before = decode(item.value, key) if item else {}
            here = Compare(key, item.modified if item else 0)
            return Txn((here,), (Put(key, encode(before | value)),))

        self._commit(txn, lambda: self._has(key, value))

    def refresh(self, host: HostEntry) -> None:
        """Update a host's address, MTU, version and public key, if the host is in the cluster."""
        item = self._item(self.keys.host(host.name))
        before = decode(item.value, item.key) if item else {}
        value = {"address": host.address, "mtu": host.mtu, "niso": host.version}
        if host.public:
            value["wgkey"] = host.public
        if item and before.get("id") == host.state_id and not value.items() <= before.items():
            put = Put(item.key, encode(before | value))
            self.engine.commit(Txn((Compare(item.key, item.modified),), (put,)))

    def live(self, host: str, state_id: str, lease: int, boot: str) -> bool:
        """Write the key that shows that a host is alive. The key is deleted when ``lease`` expires.
        Returns False if the host is not in the cluster, or another state folder has its name.
        """
        item = self._item(self.keys.host(host))
        if item is None or decode(item.value, item.key).get("id") != state_id:
            return False
        live = Put(self.keys.live(host), encode({"boot": boot}), lease)
        return self.engine.commit(Txn((Compare(item.key, item.modified),), (live,))) > 0

    def say_seen(self, network: str, host: str, lease: int, revision: int) -> None:
        """Write the revision up to which a host has applied changes of instances on a network."""
        value = encode({"revision": revision})
        self.engine.commit(Txn((), (Put(self.keys.seen(network, host), value, lease),)))

    def unseen(self, network: str, revision: int, own: str) -> list[str]:
        """Return the live hosts, except ``own``, that have not applied changes up to a revision.
        Hosts that have never reported a revision for ``network`` are left out.
        """
        prefix = self.keys.seen(network)
        hosts = []
        for item in self.engine.get(prefix).items:
            host, seen = item.key.removeprefix(prefix), decode(item.value, item.key).get("revision")
            if host != own and not (isinstance(seen, int) and seen >= revision):
                hosts.append(host)
        return hosts

    def say_late(self, host: str, lease: int, seconds: int) -> None:
        """Write how long changes have waited for a host's agent (`late`). 0 deletes the key."""
        key = self.keys.late + host
        value = encode({"seconds": seconds})
        self.engine.commit(Txn((), (Put(key, value, lease) if seconds else Delete(key),)))

    def late(self) -> dict[str, int]:
        """Return {host: seconds}: how long the oldest unapplied change has waited for the host's
        agent. Hosts without such a change are left out. The answer may be outdated, because any
        etcd member may answer, even one that is cut off.
        """
        behind = {}
        for item in self.engine.get(self.keys.late, stale=True).items:
            with contextlib.suppress(Error):
                seconds = decode(item.value, item.key).get("seconds")
                if isinstance(seconds, int) and key_values.is_number(seconds):
                    behind[item.key.removeprefix(self.keys.late)] = seconds
        return behind

    def leave(self, host: str, state_id: str) -> None:
        """Remove a host from the cluster, if it is there. Raises Conflict if it has services."""
        item = self._item(self.keys.host(host))
        if item is None or decode(item.value, item.key).get("id") != state_id:
            return
        held = self.services_of(host)
        if held:
            raise Conflict(
                f"{host} has services in the cluster: {', '.join(held)}",
                "they can be removed, or moved to another host",
            )
        changes = (Delete(item.key), Delete(self.keys.live(host)))
        self._delete(item.key, Txn((Compare(item.key, item.modified),), changes))

    def services(self) -> list[ClusterClaim]:
        """Return the claims of all services by all hosts, sorted by service."""
        items = self.engine.get(self.keys.services, stale=True).items
        claims = [(item, key_values.claim_of(item, self.keys)) for item in items]
        return [
            key_values.claim_of(item, self.keys, host)
            for item, claim in claims
            for host in sorted(claim.hosts)
        ]

    def instances(self, front: str) -> set[int]:
        """Return the ordinals of the instances of the service ``front`` that any host reserved."""
        prefix = self.keys.service(f"{front}.")
        return {
            int(number)
            for key in self.engine.keys(prefix)
            if (number := key.removeprefix(prefix)).isdecimal()
        }

    def services_of(self, host: str) -> list[str]:
        """Return the names of the services that a host has reserved in etcd."""
        return [claim.service for _, claim in self._had_by(host) if host in claim.hosts]

    def forget(self, host: str) -> list[str]:
        """Remove a dead host and its claims from etcd. Return the names of its services. Raises
        Conflict if the host is alive, and NotFound for an unknown host.
        """
        key = self.keys.host(host)
        item = self._item(key)
        if item is None:
            raise NotFound(f"no host {host!r} in the cluster", "niso cluster status lists them")
        if self._item(self.keys.live(host)) is not None:
            raise Conflict(f"host {host} is alive", "only a host that is gone can be forgotten")
        gone = []
        # read again: a service taken over from the host returns to it if it does not start
        while some := self._had_by(host):
            for item, claim in some:
                held = (Compare(item.key, item.modified), Compare(self.keys.live(host)))
                if host in claim.hosts and claim.others:
                    self._leave_to_others(item.key, host)
                    gone.append(claim.service)
                elif claim.host == host:
                    keys = sorted({item.key, *claim.keys(self.keys)})
                    self._delete(item.key, Txn(held, tuple(map(Delete, keys))))
                    gone.append(claim.service)
                else:
                    value = decode(item.value, item.key)
                    del value["former"]
                    self.engine.commit(Txn(held[:1], (Put(item.key, encode(value)),)))
        lost = (Compare(self.keys.live(host)),)
        self._delete(key, Txn(lost, (Delete(key), *self._withdrawing(host))))
        return gone

    def _leave_to_others(self, key: str, host: str) -> None:
        """Remove a host from the claim of a service that other hosts have reserved too."""

        def txn() -> Txn:
            item = self._item(key)
            assert item is not None
            claim = key_values.claim_of(item, self.keys)
            found = [self._item(address) for address in sorted(claim.address_keys(self.keys))]
            items = {each.key: each for each in (item, *found) if each is not None}
            held = (Compare(item.key, item.modified), Compare(self.keys.live(host)))
            return Txn(held, tuple(without(items, claim, self.keys, host)))

        self._commit(txn, lambda: all(item.key != key for item, _ in self._had_by(host)))

    def _had_by(self, host: str) -> list[tuple[KeyValue, ClusterClaim]]:
        """Return (key, claim) for each service of a host, including services taken over from it."""
        items = self.engine.get(self.keys.services).items
        claims = [(item, key_values.claim_of(item, self.keys)) for item in items]
        return [(item, claim) for item, claim in claims if host in (*claim.hosts, claim.former)]

    def issued(self, host: str, serial: str) -> None:
        """Record the serial number of a certificate that was created for a host."""
        self._put(Put(self.keys.certificates(host) + serial, encode({})))

    def issued_to(self, host: str) -> list[str]:
        """Return the names of the etcd keys of the certificates that were created for a host."""
        return self.engine.keys(self.keys.certificates(host))

    def withdraw(self, host: str) -> int:
        """Revoke the certificates of a host, so that etcd refuses them. Return their number."""
        changes = self._withdrawing(host)
        if changes:
            self._commit(lambda: Txn((), changes), lambda: not self._withdrawing(host))
        return len(changes) // 2

    def refuse(self, serials: Iterable[str]) -> None:
        """Mark certificates by serial number as revoked, after etcd was restored from a backup."""
        for serial in serials:
            self._put(Put(self.keys.refused + serial, encode({})))

    def refused(self) -> list[str]:
        """Return the serial numbers of revoked certificates, sorted. Invalid keys are left out."""
        serials = (
            key.removeprefix(self.keys.refused) for key in self.engine.keys(self.keys.refused)
        )
        return sorted(serial for serial in serials if SERIAL.fullmatch(serial))

    def _withdrawing(self, host: str) -> tuple[Put | Delete, ...]:
        prefix = self.keys.certificates(host)
        changes: list[Put | Delete] = []
        for key in self.issued_to(host):
            refused = Put(self.keys.refused + key.removeprefix(prefix), encode({"host": host}))
            changes += [refused, Delete(key)]
        return tuple(changes)

    def network_names(self) -> list[str]:
        return sorted(self.index()[1])

    def networks(self) -> list[Spec]:
        """Return all networks of the cluster, sorted by name."""
        return [spec for name in self.network_names() if (spec := self.network(name)) is not None]

    def network(self, name: str) -> Spec | None:
        item = self._item(self.keys.spec(name))
        return key_values.spec_of(name, item) if item else None

    def create_network(self, spec: Spec) -> Spec:
        """Create a network in etcd with a new VNI, or return the existing one. Raises Conflict."""
        made: list[Spec] = []

        def txn() -> Txn:
            held, index = self.index()
            _require_apart(spec, index)
            taken = {int(network["vni"]) for network in index.values()}
            vni = next(n for n in range(FIRST_VNI, MOST_VNI) if n not in taken)
            made[:] = [spec._replace(vni=vni)]
            return self._adding(made[0], held, index)

        def same() -> bool:
            have = self.network(spec.name)
            if have is None:
                return False
            if have._replace(vni=0, base=0) != spec._replace(vni=0, base=0):
                raise Conflict(
                    f"network {spec.name!r} exists in the cluster and differs",
                    "choose another name",
                )
            made[:] = [have]
            return True

        if not same():
            self._commit(txn, same)
        return made[0]

    def restore_network(self, spec: Spec) -> None:
        """Write a network to etcd again after etcd has lost it. Raises Conflict."""

        def txn() -> Txn:
            held, index = self.index()
            _require_apart(spec, index)
            for name, network in index.items():
                if network["vni"] == spec.vni:
                    raise Conflict(f"network {spec.name!r} has the number of network {name!r}")
            return self._adding(spec, held, index)

        def is_done() -> bool:
            have = self.network(spec.name)
            return have is not None and have.vni == spec.vni

        if not is_done():
            self._commit(txn, is_done)

    def remove_network(self, name: str) -> None:
        """Remove a network from etcd. Raises NotFound, and Conflict if it has addresses."""
        addresses = self.keys.addresses(name)

        def txn() -> Txn:
            held, index = self.index()
            if name not in index:
                raise NotFound(f"no network {name!r} in the cluster", "niso net list")
            if used := self.engine.keys(addresses):
                raise Conflict(
                    f"network {name!r} has {len(used)} addresses in use in the cluster",
                    "niso ps shows the services",
                )
            del index[name]
            changes = (Put(held.key, encode(index)), Delete(self.keys.network(name), prefix=True))
            return Txn((held, Compare(addresses, prefix=True)), changes)

        self._commit(txn, lambda: self._item(self.keys.spec(name)) is None)

    def index(self) -> tuple[Compare, dict[str, dict[str, Any]]]:
        """Return (condition that fails if etcd's list of networks changes, the list). The list is
        {NETWORK: {vni, subnets}}.
        """
        item = self._item(self.keys.nets)
        held = Compare(self.keys.nets, item.modified if item else 0)
        return held, index_of(item) if item else {}

    def _adding(self, spec: Spec, held: Compare, index: dict[str, dict[str, Any]]) -> Txn:
        subnets = [cidr for cidr, _ in spec.subnets]
        index[spec.name] = {"vni": spec.vni, "subnets": subnets}
        own = Put(self.keys.spec(spec.name), encode(key_values.spec_value(spec)))
        return Txn((held,), (Put(held.key, encode(index)), own))

    def _item(self, key: str) -> KeyValue | None:
        items = self.engine.get(key, one=True).items
        return items[0] if items else None

    def _has(self, key: str, value: dict[str, Any]) -> bool:
        item = self._item(key)
        return item is not None and value.items() <= decode(item.value, key).items()

    def _commit(self, txn: Callable[[], Txn], is_done: Callable[[], bool]) -> None:
        """Commit the transaction that ``txn`` builds. Try up to `TRIES` times. ``is_done`` returns
        whether etcd has carried out a request that it did not answer. Raises Conflict if the
        conditions failed each time.
        """
        for attempt in range(TRIES):
            try:
                if self.engine.commit(txn()):
                    return
            except NoAnswer as error:
                if not error.unknown or attempt == TRIES - 1:
                    raise
                if is_done():
                    return
        raise Conflict("other hosts keep changing the same", "try again")

    def _put(self, put: Put) -> None:
        self._commit(lambda: Txn((), (put,)), lambda: self._item(put.key) is not None)

    def _delete(self, key: str, txn: Txn) -> None:
        self._commit(lambda: txn, lambda: self._item(key) is None)


def _require_apart(spec: Spec, index: dict[str, Any]) -> None:
    for name, network in index.items():
        if name == spec.name:
            raise Conflict(f"network {name!r} exists in the cluster", "choose another name")
        for text in network["subnets"]:
            other = ipaddress.ip_network(text)
            for cidr, _ in spec.subnets:
                net = ipaddress.ip_network(cidr)
                if net.version == other.version and net.overlaps(other):
                    raise Conflict(
                        f"network {spec.name!r}: subnet {net} overlaps {other} of network {name!r}"
                        " in the cluster",
                        "choose another subnet",
                    )


def require_joined(machine: Machine) -> Config:
    """Return this host's cluster configuration. Raises Error if this host is in no cluster."""
    joined: Config | None = machine.joined()
    if joined is None:
        raise Error(
            "this host is in no cluster",
            "niso cluster init makes one; niso cluster join FILE joins one",
        )
    return joined


def require_own(store: Store, membership: ClusterKeys) -> Cluster:
    """Return the cluster in etcd. Raises Conflict if it is not the cluster that this host is in."""
    cluster, own = membership.cluster(), store.cluster_id()
    if cluster is None or cluster.identity != own:
        has = f"cluster {cluster.identity}" if cluster else "no cluster"
        raise Conflict(
            f"etcd has {has}, and this host is in {own or 'none'}: nothing is changed",
            "niso cluster status shows both",
        )
    return cluster
