"""Decode the keys of etcd that list the addresses on a network.

A key that was decoded before is decoded again only if its value has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sys import intern

from niso.base.errors import Error
from niso.base.named_tuples import NamedTuple
from niso.base.names import owner
from niso.cluster import key_values
from niso.cluster.engine import Keys, KeyValue, decode
from niso.cluster.key_values import HostEntry
from niso.store.span_rows import RemoteAddress

type Subnets = Mapping[str, Sequence[tuple[str, str]]]


class ClaimedService(NamedTuple):
    """A service in etcd: its addresses on networks of this host, and its names."""

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

    ``networks`` maps names of networks to their keys and values. ``subnets`` maps them to (CIDR,
    gateway) pairs: keys with addresses that a service cannot have there are rejected. Keys of hosts
    that the host ``own`` cannot reach are rejected too.
    """
    items = {name: {item.key: item for item in some} for name, some in networks.items()}
    return View(keys, own).seen(hosts, items, subnets)


class View:
    """An incremental decoder of the cluster's address keys, for the polls of the host ``own``."""

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

        ``networks`` maps networks to values by key. A value that has not changed is not decoded
        again: callers must not modify the mappings.
        """
        pairs = None if subnets is None else {n: (*subnets.get(n, ()),) for n in networks}
        hosts, strange = tuple(hosts), self._strange
        same = self._is_done and hosts == self._hosts and networks.keys() == self._items.keys()
        if hosts != self._hosts:
            strange = _unreachable(hosts, self._own)
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
        """Record that this host now matches the last result of `seen`."""
        self._is_done = True

    def doubt(self) -> None:
        """Make the next result of `seen` say that any service may have changed."""
        self._is_done = False

    def _take(self, network: str, items: Mapping[str, KeyValue]) -> set[str]:
        """Decode the changed keys of a network; return the names of their services."""
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
        """Decode an address key; return None if its value is invalid or names no service."""
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


def _unreachable(hosts: Sequence[HostEntry], own: str) -> frozenset[str]:
    """Return the names of hosts that the host ``own`` cannot reach by their addresses.

    Such an address is not unicast, of another IP version than the address of ``own``, or equal to
    it.
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
