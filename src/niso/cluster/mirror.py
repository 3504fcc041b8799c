"""Copy the services of other hosts from etcd into this host's store, and from there to the kernel.

A service of another host is called a remote service. The agent compares the complete state in etcd
with all rows for remote services. A lost event therefore does no lasting harm, and services that
are no longer in etcd are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from sys import intern

from niso.base.errors import Error
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner
from niso.base.report import Report, silent
from niso.cluster import encryption, key_values
from niso.cluster.engine import Keys, KeyValue, decode
from niso.cluster.key_values import HostEntry
from niso.reconcile.change import change
from niso.store.snapshots import Scope
from niso.store.span_rows import Peers, RemoteAddress, Services, SpanRows
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel


def apply_claims(store: Store, kernel: Kernel, now: EngineView, own: str) -> list[str]:
    """Apply the state ``now`` of etcd to rows and kernel. Return the names of changed services.

    ``own`` is this host's name. Services of this host are not copied. Addresses that a command has
    reserved here since ``now`` was read are not copied either. An address that has moved to another
    service is first removed from the former service, with its conntrack entries. The caller must
    not have niso's lock. After KernelError or Error nothing is recorded, and the next call tries
    again.
    """
    with Lock():
        if not store.cluster_id():  # a command left the cluster after etcd was read
            return []
        _revert_attempt(store, kernel, silent)
        spans = {network.name for network in store.networks() if network.span is not None}
        wanted = _wanted(store, now, own, spans)
        if now.only is not None:
            places = [(a.network, a.address) for known in wanted.values() for a in known.addresses]
            if not now.only.issuperset(store.across.holders(places).values()):
                # the rows differ from what the last poll wrote: compare everything
                now = now._replace(only=None)
                wanted = _wanted(store, now, own, spans)
        present = _present(store, now.only)
        # networks that were created after the state was read from etcd
        late = spans - now.networks
        for name, known in present.items() if late else ():
            if kept := [address for address in known.addresses if address.network in late]:
                have = wanted.get(name, ClaimedService((), known.names))
                wanted[name] = ClaimedService(tuple(sorted({*have.addresses, *kept})), have.names)
        holders = {a.address: name for name, known in present.items() for a in known.addresses}
        moved = {
            name
            for name, known in wanted.items()
            if any(holders.get(a.address, name) != name for a in known.addresses)
        }
        changed: set[str] = set()
        if moved:  # removals first
            staying = {name: known for name, known in wanted.items() if name not in moved}
            changed |= _apply(store, kernel, now, (present, staying), own)
            present = _present(store, now.only)
        if waiting := _unreachable(present, wanted):
            changed |= _apply(store, kernel, now, (present, {**present, **waiting}), own)
            present = _present(store, now.only)
        changed |= _apply(store, kernel, now, (present, wanted), own)
    return sorted(changed)


def _unreachable(
    present: dict[str, ClaimedService], wanted: dict[str, ClaimedService]
) -> dict[str, ClaimedService]:
    """Return {name: copy marked as not up} for the instances in ``wanted`` that have a new address
    or host. Otherwise the kernel could send connections to an instance before it has the neighbour
    and forwarding entries of this instance. ``present`` are the instances in the store.
    """
    return {
        name: known._replace(addresses=tuple(a._replace(up=False) for a in known.addresses))
        for name, known in wanted.items()
        if owner(name) != name
        and any(a.up for a in known.addresses)
        and {(a.network, a.address, a.host) for a in known.addresses}
        != {(a.network, a.address, a.host) for a in present.get(name, NOTHING).addresses}
    }


def _wanted(
    store: Store, now: EngineView, own: str, spans: Collection[str]
) -> dict[str, ClaimedService]:
    """Return {name: remote service} to record here, with the addresses on the networks ``spans``.
    If only some services may have changed since the last poll, only these are returned.
    """
    names = now.services if now.only is None else now.only
    wanted = {}
    for name in names:
        known = now.services.get(name, NOTHING)
        on = tuple(a for a in known.addresses if a.network in spans)
        if on and all(address.host != own for address in known.addresses):
            wanted[name] = (
                known if len(on) == len(known.addresses) else ClaimedService(on, known.names)
            )
    # neither what this host has reserved, nor addresses of services that are still active here
    claims = [claim for claim in store.across.claims() if claim.addresses]
    held = {(net, a) for claim in claims for net, some in claim.addresses.items() for a in some}
    held |= store.across.leased()
    changed = _without(wanted, {claim.service for claim in claims}, held)
    return {name: known for name, known in (wanted | changed).items() if known.addresses}


def fenced(store: Store, now: EngineView, own: str) -> list[str]:
    """Return this host's services that another host, with a higher ``gen``, has taken over."""
    lost = []
    for claim in store.across.claims(now.only):
        known = now.services.get(claim.service, NOTHING)
        if claim.addresses and any(a.host != own and a.gen > claim.gen for a in known.addresses):
            lost.append(claim.service)
    return lost


def _present(store: Store, services: Collection[str] | None) -> dict[str, ClaimedService]:
    rows, names = store.across.addresses(services), store.across.called(services)
    return {name: ClaimedService(some, names.get(name, ())) for name, some in rows.items()}


def _apply(
    store: Store,
    kernel: Kernel,
    now: EngineView,
    turn: tuple[dict[str, ClaimedService], dict[str, ClaimedService]],
    own: str,
) -> set[str]:
    """Write the rows that differ, and update the kernel. Return the changed services' names.
    ``turn`` is ({name: remote service in the store}, {name: remote service to be recorded}).
    ``own`` is this host's name.
    """
    present, wanted = turn
    peers, before_peers = {}, {}
    if now.only is None:
        others = [host for host in now.hosts if host.name != own]
        peers = {host.name: (host.state_id, _wire(store, host), host.alive) for host in others}
        before_peers = store.across.peers()
    differ = {name for name in {*peers, *before_peers} if peers.get(name) != before_peers.get(name)}
    changed = {name for name in {*wanted, *present} if wanted.get(name) != present.get(name)}
    if differ:
        both = (*wanted.items(), *present.items())
        changed |= {name for name, known in both if any(a.host in differ for a in known.addresses)}
    if changed or differ:
        hosts = {name: peers.get(name) for name in differ}
        _change(store, kernel, {name: wanted.get(name, NOTHING) for name in changed}, hosts, silent)
    return changed


def _change(
    store: Store,
    kernel: Kernel,
    changed: dict[str, ClaimedService],
    peers: dict[str, tuple[str, str, bool] | None],
    report: Report,
) -> None:
    """Change rows and kernel objects of remote services and hosts in one transaction.

    ``changed`` has the new state of the services. ``peers`` maps a host to (state id, address,
    alive), or to None to delete the host. The attempt is recorded first: after a failure,
    `revert_attempt` undoes it.
    """
    spans = store.across
    with store.transaction():
        spans.set_attempt((changed, peers))
    scope = scope_of(store, changed, changed)
    with change(kernel, store, scope, report):
        _write(spans, changed, peers)
        spans.set_attempt(None)


def revert_attempt(store: Store, kernel: Kernel, report: Report) -> None:
    """Undo a change of remote services that was interrupted, if there is one.

    Each command calls this before its own changes. The interrupted change may have left kernel
    objects without rows, which later changes would not find. The caller must not have niso's lock.
    Raises KernelError.
    """
    with Lock():
        _revert_attempt(store, kernel, report)


def _revert_attempt(store: Store, kernel: Kernel, report: Report) -> None:
    """Undo an interrupted change as `revert_attempt` does. The caller has niso's lock."""
    spans = store.across
    attempt = spans.attempt()
    if attempt is None:
        return
    services, peers = attempt
    here = {network.name for network in store.networks() if network.span is not None}
    made = {
        name: ClaimedService(tuple(a for a in known[0] if a.network in here), known[1])
        for name, known in services.items()
    }
    rows, hosts = _present(store, made), spans.peers()
    scope = scope_of(store, made, made)
    with change(kernel, store, scope, report) as back:
        _write(spans, made, peers)
        back.doubt()
        _write(
            spans,
            {name: rows.get(name, NOTHING) for name in made},
            {host: hosts.get(host) for host in peers},
        )
        spans.set_attempt(None)


def _write(spans: SpanRows, services: Services, peers: Peers) -> None:
    """Write rows of remote services and of the hosts ``peers``, which are as for `_change`. A
    service without addresses is deleted, and a host if ``peers`` maps it to None.
    """
    for host, row in peers.items():
        if row is not None:
            spans.set_peer(host, *row)
        else:
            spans.drop_peer(host)
    for name, (addresses, names) in services.items():
        spans.set_service(name, addresses, names)


def _wire(store: Store, host: HostEntry) -> str:
    """Return the address from which a host sends VXLAN packets. If VXLAN is encrypted, this is the
    host's address inside the WireGuard tunnel.
    """
    if not host.public:
        return host.address

    return encryption.address(store.cluster_id(), host.name)


def make_way(
    store: Store,
    kernel: Kernel,
    services: Collection[str],
    addresses: Collection[tuple[str, str]],
    report: Report,
) -> None:
    """Delete rows of remote services whose name or address this host has just reserved.

    ``services`` are the reserved names, and ``addresses`` the reserved (network, address) pairs.
    Such rows exist if this host's copy of etcd's data is outdated. If an inactive service of this
    host had one of the addresses, the record of its claim is deleted. A service that other hosts
    have also reserved stays until the caller's change replaces it, so that connections to its
    service address reach their instances without a gap. The caller has niso's lock, and no open
    transaction. Raises KernelError.
    """
    _revert_attempt(store, kernel, report)
    had = {*services, *store.across.holders(addresses).values()}
    joined = store.across.fronts().intersection(services)
    present = {name: known for name, known in _present(store, had).items() if name not in joined}
    if changed := _without(present, services, addresses):
        _change(store, kernel, changed, {}, report)
    holders = {store.lease_holder(address) for _, address in addresses}
    lost = sorted({holder for holder in holders if holder is not None} - {*services})
    if lost:
        _drop_claims(store, kernel, lost)


def scope_of(store: Store, changed: Iterable[str], wanted: dict[str, ClaimedService]) -> Scope:
    """Return the scope of a change of the remote services ``changed``. Each gets its state in
    ``wanted``, or is removed if ``wanted`` lacks it.
    """
    changed = {*changed}
    # include the service itself, because its service address is mapped to its instances
    changed |= {owner(name) for name in changed}
    some = (wanted, _present(store, changed))
    both = [known for name in changed for services in some if (known := services.get(name))]
    called = {*changed, *(name for known in both for name in known.names)}
    # other hosts' services may have the same names on other networks, in the same hosts files
    changed |= {other for name in called for other in store.holders_elsewhere(name)}
    # Include the former networks, so that a network is not removed with its last remote service.
    networks = {address.network for known in both for address in known.addresses}
    return _scope(store, called, networks, sorted(changed))


def scope_on(store: Store, networks: Collection[str]) -> Scope:
    """Return the scope of a change that removes networks and the remote services on them."""
    remotes = store.across.on(networks)
    called = {name for remote in remotes for name in (remote, *store.across.names(remote))}
    return _scope(store, called, networks, remotes, networks)


def _scope(
    store: Store,
    called: Iterable[str],
    networks: Iterable[str],
    remotes: Iterable[str],
    removed: Iterable[str] = (),
) -> Scope:
    # services of this host may have the same names on other networks, in the same hosts files
    here = {holder for name in called for holder in store.holders(name)}
    names = [*(("service", name) for name in called), *(("network", name) for name in removed)]
    on = tuple(sorted(networks))
    return Scope(tuple(sorted(here)), on, names=tuple(sorted(names)), remotes=tuple(remotes))


def drop_claims(store: Store, kernel: Kernel, services: Collection[str]) -> None:
    """Delete the rows of this host's claims of inactive services, but not the claims in etcd.

    Policies then no longer match the services' former addresses. Active services are skipped. The
    caller must not have niso's lock.
    """
    with Lock():
        _drop_claims(store, kernel, services)


def _drop_claims(store: Store, kernel: Kernel, services: Collection[str]) -> None:
    rows = {service: store.service(service) for service in services}
    services = [service for service, row in rows.items() if row is None or not row.active]
    called = {name for service in services for name in (service, *store.names(service))}
    scope = Scope((), (), names=tuple(sorted(("service", name) for name in called)))
    with change(kernel, store, scope, teardown=True):
        for service in services:
            store.across.drop_claim(service)


def drop_network(store: Store, kernel: Kernel, name: str, report: Report = silent) -> bool:
    """Remove a network that the cluster no longer has, unless a service of this host is on it.

    Returns whether the network was removed. The caller must not have niso's lock. Raises
    KernelError if the removal failed.
    """
    with Lock():
        if store.members(name) or store.restored_by_undo(name):
            return False
        _revert_attempt(store, kernel, report)
        scope = scope_on(store, [name])
        with change(kernel, store, scope, report, teardown=True):
            store.drop_network(name)
    return True


def changed_services(
    store: Store,
    now: EngineView,
    own: str,
    services: Collection[str] = (),
    addresses: Collection[tuple[str, str]] = (),
) -> dict[str, ClaimedService]:
    """Return {name: new state} of the remote services that a command of this host changes.

    ``now`` is etcd's state of networks that the command adds to this host: their services are
    added. This host has newly reserved the names ``services`` and the pairs (network, address) in
    ``addresses``: remote services lose these names and addresses.
    """
    had = store.across.holders(addresses).values()
    present = _present(store, {*now.services, *services, *had})
    changed = {}
    for name, known in now.services.items():
        rows = [a for a in known.addresses if a.host != own]
        if rows:
            before = present.get(name, NOTHING).addresses
            kept = [a for a in before if a.network not in now.networks]
            changed[name] = ClaimedService(tuple(sorted({*kept, *rows})), known.names)
    return changed | _without(present | changed, services, addresses)


def write(store: Store, now: EngineView, own: str, changed: dict[str, ClaimedService]) -> None:
    """Write rows of new hosts and of ``changed``, a result of `changed_services`, in the caller's
    transaction. The caller then updates the kernel in the scope that `scope_of` returns.
    """
    spans = store.across
    known_hosts = spans.peers()
    for host in now.hosts:
        if host.name != own and host.name not in known_hosts:
            spans.set_peer(host.name, host.state_id, _wire(store, host), host.alive)
    for name, known in changed.items():
        spans.set_service(name, known.addresses, known.names)


def _without(
    some: dict[str, ClaimedService],
    services: Collection[str],
    addresses: Collection[tuple[str, str]],
) -> dict[str, ClaimedService]:
    """Remove ``services``, and ``addresses`` as (network, address), from the services ``some``.
    Returns {name: new state} of the changed services only. A removed service has no addresses.
    """
    changed = {}
    for name, known in some.items():
        rows = tuple(a for a in known.addresses if (a.network, a.address) not in addresses)
        if name in services:
            changed[name] = NOTHING
        elif rows != known.addresses:
            changed[name] = ClaimedService(rows, known.names)
    return changed


# --- address keys ---------------------------------------------------------------------------------
#
# The keys of etcd that list the addresses on a network are decoded. A key that was decoded before
# is decoded again only if its value has changed.


type Subnets = Mapping[str, Sequence[tuple[str, str]]]


class ClaimedService(NamedTuple):
    """The names and addresses of a service in etcd, on the networks of this host."""

    addresses: tuple[RemoteAddress, ...]
    names: tuple[str, ...]


NOTHING = ClaimedService((), ())


class EngineView(NamedTuple):
    """The state of the cluster as read from etcd, including this host's own services."""

    hosts: tuple[HostEntry, ...]
    services: dict[str, ClaimedService]
    networks: frozenset[str]  # the networks that were read
    wrong: tuple[str, ...] = ()  # keys with an invalid value, which count as absent
    only: frozenset[str] | None = None
    """The services that changed after the last poll; None if any service may have changed."""


type _Row = tuple[RemoteAddress, tuple[str, ...]]
"""An address of a service, and the service's names."""


def seen(
    hosts: Iterable[HostEntry],
    networks: Mapping[str, Iterable[KeyValue]],
    keys: Keys,
    subnets: Subnets | None = None,
    own: str = "",
) -> EngineView:
    """Decode the address keys (``net/NETWORK/a/…``) of some networks to services.

    ``networks`` maps each network to its keys. ``subnets`` maps each network to (CIDR, gateway)
    pairs. The result's ``wrong`` lists the keys with an address that no service can have on the
    network, and those of a host that the host ``own`` cannot reach.
    """
    items = {name: {item.key: item for item in some} for name, some in networks.items()}
    return View(keys, own).seen(hosts, items, subnets)


class View:
    """A decoder of etcd's address keys that reuses earlier results. ``own`` is this host's name."""

    def __init__(self, keys: Keys, own: str) -> None:
        self._keys = keys
        self._own = own
        self._hosts: tuple[HostEntry, ...] = ()
        self._strange: frozenset[str] = frozenset()
        self._subnets: dict[str, tuple[tuple[str, str], ...]] | None = None
        self._items: dict[str, Mapping[str, KeyValue]] = {}
        self._rows: dict[str, _Row] = {}  # by key
        self._wrong: dict[str, None] = {}
        self._services: dict[str, ClaimedService] = {}
        self._is_done = False
        self.newest: dict[str, int] = {}
        """The revision of the last change of an instance of a service, by network."""

    def seen(
        self,
        hosts: Iterable[HostEntry],
        networks: Mapping[str, Mapping[str, KeyValue]],
        subnets: Subnets | None = None,
    ) -> EngineView:
        """Decode the address keys of networks, as the function `seen` does.

        ``networks`` maps each network to its keys by name. A key that has not changed is not
        decoded again: callers must not modify the mappings.
        """
        pairs = None if subnets is None else {n: (*subnets.get(n, ()),) for n in networks}
        hosts, strange = tuple(hosts), self._strange
        same = self._is_done and hosts == self._hosts and networks.keys() == self._items.keys()
        if hosts != self._hosts:
            strange = _strange_hosts(hosts, self._own)
        if (strange, pairs) != (self._strange, self._subnets) or self._items.keys() - networks:
            self._items, self._rows, self._wrong, self._services = {}, {}, {}, {}
            same = False
        self._is_done = False
        self._hosts, self._strange, self._subnets = hosts, strange, pairs
        changed: set[str] = set()
        for network, items in sorted(networks.items()):
            changed |= self._take(network, items)
        only = frozenset(changed) if same else None
        return EngineView(
            hosts, self._services, frozenset(networks), tuple(sorted(self._wrong)), only
        )

    def done(self) -> None:
        """Record that the last result of `seen` was applied: the next result has only changes."""
        self._is_done = True

    def doubt(self) -> None:
        """Make the next result of `seen` mark all services as possibly changed."""
        self._is_done = False

    def _take(self, network: str, items: Mapping[str, KeyValue]) -> set[str]:
        before = self._items.get(network, {})
        if items is before:
            return set()
        touched: dict[str, set[str]] = {}  # service -> keys of its rows
        newest = 0
        differ = [
            key
            for key, item in items.items()
            if (had := before.get(key)) is not item and had != item
        ]
        gone = before.keys() - items.keys() if len(items) < len(before) + len(differ) else ()
        for key in (*differ, *gone):
            was = self._rows.pop(key, None)
            self._wrong.pop(key, None)
            now = self._row(network, items[key]) if key in items else None
            for row in (was, now):
                if row is not None and (name := row[0].service) not in touched:
                    addresses = self._services.get(name, NOTHING).addresses
                    touched[name] = {self._keys.address(a.network, a.address) for a in addresses}
            if was is not None:
                touched[was[0].service].discard(key)
            if now is not None:
                self._rows[key] = now
                touched[now[0].service].add(key)
                if owner(now[0].service) != now[0].service:
                    newest = max(newest, items[key].modified)
        if newest:
            self.newest[network] = newest
        for name, keys in touched.items():
            rows = sorted(self._rows[key] for key in keys)
            if rows:
                names = [called for _, called in rows if called]
                addresses = tuple(address for address, _ in rows)
                self._services[name] = ClaimedService(addresses, names[-1] if names else ())
            else:
                self._services.pop(name, None)
        self._items[network] = items
        return {*touched}

    def _row(self, network: str, item: KeyValue) -> _Row | None:
        prefix = self._keys.addresses(network)
        if not item.key.startswith(prefix):
            return None
        try:
            value = decode(item.value, item.key)
        except Error:
            self._wrong[item.key] = None
            return None
        name, address = str(value.get("service", "")), item.key.removeprefix(prefix)
        if not name:
            return None
        host, gen, names = (value.get(key, 0) for key in ("host", "gen", "names"))
        subnets = self._subnets
        if not (
            key_values.is_address(address)
            and (subnets is None or key_values.is_usable(address, subnets.get(network, ())))
            and key_values.is_service(name)
            and key_values.is_name(str(host))
            and host not in self._strange
            and key_values.is_number(gen)
            and isinstance(names, list)
            and len(names) <= key_values.MOST_NAMES
            and all(key_values.is_name(str(text)) for text in names)
        ):
            self._wrong[item.key] = None
            return None
        family = 6 if ":" in address else 4
        # share equal strings between rows, to save memory
        name, host, *names = (intern(str(text)) for text in (name, host, *names))
        row = RemoteAddress(network, family, address, name, host, gen, bool(value.get("up")))
        return row, tuple(names)


def _strange_hosts(hosts: Sequence[HostEntry], own: str) -> frozenset[str]:
    """Return the names of hosts whose addresses the host ``own`` cannot reach: the address is not
    unicast, equals the address of ``own``, or has another IP version than it.
    """
    here = next((host.address for host in hosts if host.name == own), "")
    return frozenset(
        host.name
        for host in hosts
        if host.name != own
        and (
            not key_values.is_host_address(host.address)
            or (here and (host.address == here or (":" in host.address) != (":" in here)))
        )
    )
